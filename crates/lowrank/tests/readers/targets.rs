//! Every reader of a file as a function of bytes. The tests run them over seeds and mutations of these; `fuzz/` gives
//! them to a fuzzer. A reader may refuse its bytes, and must not panic, hang or take memory that they do not justify.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use lowrank::adapters::{AdapterSet, LoraConfig, Targets, read_task};
use lowrank::engine::{AdamW, Format, Site};
use lowrank::files::{LoadOptions, PytorchTensor, write_pytorch};
use lowrank::models::{Base, ChatTemplate, Message};
use lowrank::tools::{FileFormat, Options, formats};
use lowrank::train::data::{Conversation, Encode, EncodeError, Texts, labels, read, read_groups};
use lowrank::train::{DataOptions, RunState, Task, TaskSpec, checkpoint};
use lowrank::{Session, TrainOptions, read_texts};
use lowrank_study::{RunLog, Spec, plan};
use tempfile::TempDir;

/// A reader: its name, what it does with bytes, and bytes that it reads or should refuse.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Reads the bytes.
    pub run: fn(&[u8]),
    /// What mutations begin from.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

macro_rules! corpus {
    ($name:literal: $($file:literal)*) => {
        || vec![$(include_bytes!(concat!("../../../lowrank-models/tests/corpus/", $name, "/", $file)).to_vec()),*]
    };
}

/// All readers.
pub const TARGETS: &[Target] = &[
    Target {
        name: "safetensors",
        run: |bytes| with_file("model.safetensors", bytes),
        seeds: corpus!("safetensors": "good" "zero_axis" "overlap" "overflow" "float8" "twice" "no_tensors"),
    },
    Target {
        name: "gguf",
        run: |bytes| with_file("model.gguf", bytes),
        seeds: corpus!("gguf": "good" "good_v2" "every_type" "array_of_arrays" "linear" "rope_freqs" "offset"
            "vector_of_blocks"),
    },
    Target {
        name: "index",
        run: |bytes| with_file("model.safetensors.index.json", bytes),
        seeds: corpus!("index": "good" "dots" "list" "missing"),
    },
    Target {
        name: "config",
        run: |bytes| with_file("config.json", bytes),
        seeds: corpus!("config": "good" "odd_types" "number" "deep"),
    },
    Target {
        name: "tokenizer",
        run: |bytes| with_file("tokenizer.json", bytes),
        seeds: corpus!("tokenizer": "bpe" "bad_precompiled" "precompiled_too_long" "broken_decoder" "merge_out_of_vocabulary"
            "not_utf8_in_decoder" "wordpiece_without_unknown"),
    },
    Target { name: "pytorch", run: |bytes| with_file("pytorch_model.bin", bytes), seeds: pytorch_seeds },
    Target {
        name: "template",
        run: template,
        seeds: corpus!("template": "chatml" "generation" "json" "refuses" "tag_within_a_tag" "unclosed"),
    },
    Target { name: "adapter", run: adapter, seeds: corpus!("safetensors": "good" "zero_axis" "float8") },
    Target { name: "gguf_adapter", run: gguf_adapter, seeds: gguf_adapter_seeds },
    Target { name: "model", run: model, seeds: model_seeds },
    Target { name: "adapter_config", run: adapter_config, seeds: adapter_config_seeds },
    Target {
        name: "tokenizer_config",
        run: |bytes| with_file("tokenizer_config.json", bytes),
        seeds: || {
            texts(&[
                r#"{"bos_token": "<s>", "eos_token": {"content": "</s>"}, "chat_template": "{{ messages[0].content }}", "add_bos_token": true, "model_max_length": 1e30}"#,
            ])
        },
    },
    Target {
        name: "generation_config",
        run: |bytes| with_file("generation_config.json", bytes),
        seeds: || {
            texts(&[
                r#"{"eos_token_id": [1, 2], "bos_token_id": 1, "pad_token_id": 0, "temperature": 0.7, "top_k": 50, "top_p": 0.9}"#,
            ])
        },
    },
    Target {
        name: "task",
        run: task,
        seeds: || texts(&[r#"{"task": "classification", "labels": ["a", "b"]}"#, r#"{"task": "embedding"}"#]),
    },
    Target { name: "data", run: data, seeds: data_seeds },
    Target { name: "checkpoint", run: checkpoint_file, seeds: checkpoint_seeds },
    Target { name: "mlx", run: mlx, seeds: mlx_seeds },
    Target { name: "run", run: run_file, seeds: || texts(&[RUN]) },
    Target { name: "study", run: study, seeds: || texts(&[STUDY]) },
    Target {
        name: "texts",
        run: score_file,
        seeds: || texts(&["0one\ntwo\n", "1{\"prediction\": \"one\"}\n{\"prediction\": \"\"}\n"]),
    },
    Target { name: "log", run: log, seeds: || texts(&[LOG]) },
    Target { name: "result", run: result, seeds: || texts(&[RESULT]) },
    Target { name: "parquet", run: parquet, seeds: parquet_seeds },
    Target { name: "quantized", run: quantized, seeds: quantized_seeds },
];

macro_rules! quantized {
    ($($name:literal)*) => {
        &[$((
            include_str!(concat!("../../../lowrank-files/tests/fixtures/quantized/", $name, "/config.json")),
            include_bytes!(concat!("../../../lowrank-files/tests/fixtures/quantized/", $name, "/model.safetensors")),
        )),*]
    };
}

/// Quantized folders: settings and weights.
const QUANTIZED: &[(&str, &[u8])] =
    quantized!("fp8_blocks" "gptq_act_order" "awq" "nf4_blocks_of_128" "int4_words_with_zeros");

/// A quantized folder whose settings or weights are `bytes`.
fn quantized(bytes: &[u8]) {
    let folder = folder();
    for (config, weights) in QUANTIZED {
        let settings = bytes.first() == Some(&b'{');
        write(&folder, "config.json", if settings { bytes } else { config.as_bytes() });
        write(&folder, "model.safetensors", if settings { weights } else { bytes });
        let Ok(base) = Base::open_path(folder.path()) else { continue };
        for name in base.tensors.names() {
            let _ = base.tensors.weight(name).map(|weight| weight.byte_len());
        }
    }
}

fn quantized_seeds() -> Vec<Vec<u8>> {
    QUANTIZED.iter().flat_map(|(config, weights)| [config.as_bytes().to_vec(), weights.to_vec()]).collect()
}

fn texts(texts: &[&str]) -> Vec<Vec<u8>> {
    texts.iter().map(|text| text.as_bytes().to_vec()).collect()
}

/// Two small tensors, for targets whose subject is another file of the folder.
const WEIGHTS: &[u8] = include_bytes!("../../../lowrank-models/tests/corpus/safetensors/good");
const LLAMA: &str = include_str!("../fixtures/llama_gqa_tied/config.json");

fn folder() -> TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a temporary folder")
}

fn write(folder: &TempDir, name: &str, bytes: &[u8]) -> PathBuf {
    let path = folder.path().join(name);
    fs::write(&path, bytes).expect("room");
    path
}

/// Opens a model with `bytes` as the file `name` and uses all that a base offers. The readers work on mapped files, so
/// the bytes become one.
fn with_file(name: &str, bytes: &[u8]) {
    let folder = folder();
    write(&folder, "config.json", b"{}");
    if name != "pytorch_model.bin" {
        write(&folder, "model.safetensors", WEIGHTS);
    }
    let file = write(&folder, name, bytes);
    let path = if name.ends_with(".gguf") { file.as_path() } else { folder.path() };
    let Ok(base) = Base::open_path(path) else { return };
    for name in base.tensors.names() {
        let _ = base.tensors.weight(name).map(|weight| weight.byte_len());
        let _ = base.tensors.vector(name);
    }
    if let Ok(chat) = base.chat() {
        let _ =
            chat.render_with_spans(&[Message::new("user", "a"), Message::new("assistant", "b")][..].into());
    }
    if let Ok(tokenizer) = base.tokenizer()
        && let Ok(ids) = tokenizer.encode_with_special_tokens("ab <e> é 12")
    {
        let _ = tokenizer.decode(&ids, true);
    }
}

fn pytorch_seeds() -> Vec<Vec<u8>> {
    let folder = folder();
    let path = folder.path().join("a.bin");
    let zeros = [0; 24];
    let tensor = |name, shape, bytes| PytorchTensor { name, shape, format: Format::F32, bytes };
    let tensors = [tensor("a.weight", &[2, 3], &zeros[..]), tensor("b", &[4], &zeros[..16])];
    write_pytorch(&path, &tensors).expect("room");
    vec![fs::read(path).expect("just written")]
}

fn template(bytes: &[u8]) {
    let Ok(source) = std::str::from_utf8(bytes) else { return };
    if let Ok(template) = ChatTemplate::new(source, "<s>", "</s>") {
        let _ = template
            .render_with_spans(&[Message::new("user", "a"), Message::new("assistant", "b")][..].into());
    }
}

/// An adapter in each format that is one file, and as PEFT's tensors.
fn adapter(bytes: &[u8]) {
    let folder = folder();
    let config = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}"#;
    write(&folder, "adapter_config.json", config);
    for (name, format) in [
        ("a.safetensors", formats::kohya::FORMAT),
        ("b.safetensors", formats::diffusers::FORMAT),
        ("c.bin", formats::loralib::FORMAT),
        ("d.gguf", formats::gguf::FORMAT),
        ("adapter_model.safetensors", formats::peft::FORMAT),
    ] {
        let file = write(&folder, name, bytes);
        let path = if format == formats::peft::FORMAT { folder.path() } else { &file };
        let _ = FileFormat::detect(path);
        let _ = formats::read(path, format, &Options::default());
    }
}

/// A folder that stands for the base of an adapter.
fn base() -> &'static TempDir {
    static BASE: OnceLock<TempDir> = OnceLock::new();
    BASE.get_or_init(|| {
        let folder = folder();
        write(&folder, "config.json", LLAMA.as_bytes());
        write(&folder, "model.safetensors", WEIGHTS);
        folder
    })
}

fn with_base() -> Options {
    Options { base: Some(base().path().to_string_lossy().into_owned()), ..Options::default() }
}

/// llama.cpp's adapters, for a base that is at hand.
fn gguf_adapter(bytes: &[u8]) {
    let folder = folder();
    let path = write(&folder, "a.gguf", bytes);
    let _ = FileFormat::detect(&path);
    let _ = formats::read(&path, formats::gguf::FORMAT, &with_base());
}

fn gguf_adapter_seeds() -> Vec<Vec<u8>> {
    let config = LoraConfig {
        target_modules: Some(Targets::parse("q_proj,down_proj")),
        r: 2,
        ..LoraConfig::default()
    };
    let folder = folder();
    AdapterSet::new(config, sites(), 1)
        .expect("an adapter of the fixtures")
        .save(folder.path())
        .expect("room");
    let lora = formats::read(folder.path(), formats::peft::FORMAT, &with_base()).expect("PEFT's folder");
    let path = folder.path().join("a.gguf");
    formats::write(&lora, &path, formats::gguf::FORMAT, &with_base()).expect("a file for llama.cpp");
    vec![fs::read(path).expect("just written")]
}

/// `config.json` and the model that it makes, with planned tensors.
fn model(bytes: &[u8]) {
    let folder = folder();
    let path = write(&folder, "config.json", bytes);
    if let Ok(session) = Session::open_to_plan(path.to_str().expect("a plain path"), LoadOptions::default()) {
        let _ = session.sites().len();
    }
}

fn model_seeds() -> Vec<Vec<u8>> {
    texts(&[
        LLAMA,
        include_str!("../fixtures/gpt2_all/config.json"),
        include_str!("../fixtures/gemma2_caps/config.json"),
        include_str!("../fixtures/phi3_longrope/config.json"),
        include_str!("../fixtures/rope_yarn/config.json"),
        include_str!("../fixtures/deberta_v3/config.json"),
        include_str!("../fixtures/mistral_window/config.json"),
    ])
}

/// The sites of a small Llama.
fn sites() -> &'static [Site] {
    static SITES: OnceLock<Vec<Site>> = OnceLock::new();
    SITES.get_or_init(|| {
        let folder = folder();
        let path = write(&folder, "config.json", LLAMA.as_bytes());
        let session = Session::open_to_plan(path.to_str().expect("a plain path"), LoadOptions::default());
        session.expect("a model of the fixtures").sites().to_vec()
    })
}

/// `adapter_config.json`: its fields, patterns and the modules that they choose.
fn adapter_config(bytes: &[u8]) {
    let folder = folder();
    write(&folder, "adapter_config.json", bytes);
    write(&folder, "adapter_model.safetensors", WEIGHTS);
    let Ok(config) = LoraConfig::load(folder.path()) else { return };
    let _ = lowrank::adapters::targets(&config, sites());
    let _ = AdapterSet::load(folder.path(), sites());
    let _ = AdapterSet::load_alone(folder.path());
    if !config.is_large() {
        let _ = AdapterSet::planned(config, sites());
    }
}

trait Large {
    fn is_large(&self) -> bool;
}

impl Large for LoraConfig {
    /// A valid rank asks for memory in proportion.
    fn is_large(&self) -> bool {
        self.r > 256
    }
}

fn adapter_config_seeds() -> Vec<Vec<u8>> {
    texts(&[
        r#"{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 4}, "alpha_pattern": {"layers.0.*v_proj": 3.5}, "layers_to_transform": [0, 1], "layers_pattern": "layers", "bias": "none", "modules_to_save": ["lm_head"]}"#,
        r#"{"peft_type": "LORA", "r": 4, "target_modules": ".*layers\\.(0|1)\\.(?=self_attn)[a-z_]+\\.(q|v)_proj", "exclude_modules": "all-linear", "use_rslora": true, "init_lora_weights": "pissa_niter_4", "use_dora": true, "trainable_token_indices": {"embed_tokens": [1, 2]}}"#,
        r#"{"peft_type": "ADALORA", "init_r": 12, "target_r": 8, "tinit": 1, "tfinal": 2, "deltaT": 1, "total_step": 10, "beta1": 0.85, "target_modules": "all-linear"}"#,
        r#"{"peft_type": "LOKR", "r": 8, "alpha": 8, "decompose_factor": -1, "decompose_both": true, "rank_dropout": 0.1, "target_modules": ["k_proj"]}"#,
        r#"{"peft_type": "PREFIX_TUNING", "num_virtual_tokens": 4, "token_dim": 32, "num_layers": 2}"#,
        r#"{"peft_type": "IA3", "target_modules": ["k_proj", "down_proj"], "feedforward_modules": ["down_proj"]}"#,
    ])
}

/// `task.json` of an adapter.
fn task(bytes: &[u8]) {
    let folder = folder();
    write(&folder, "task.json", bytes);
    if let Ok(Some(task)) = read_task(folder.path()) {
        let _ = serde_json::from_value::<TaskSpec>(task);
    }
}

/// A token for each byte.
struct Bytes;

impl Encode for Bytes {
    fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        Ok(text.bytes().map(u32::from).collect())
    }

    fn encode_chat(&self, talk: &Conversation) -> Result<(Vec<u32>, Vec<bool>), EncodeError> {
        let text: String = talk.messages.iter().filter_map(Message::content).collect();
        let tokens = self.encode(&text)?;
        let mask = vec![true; tokens.len()];
        Ok((tokens, mask))
    }

    fn eos(&self) -> Option<u32> {
        Some(0)
    }

    fn texts(&self, first: &str, second: Option<&str>, max: Option<usize>) -> Result<Texts, EncodeError> {
        let mut ids = self.encode(first)?;
        ids.extend(self.encode(second.unwrap_or_default())?);
        ids.truncate(max.unwrap_or(usize::MAX));
        let (types, special, words) = (vec![0; ids.len()], vec![false; ids.len()], vec![Some(0); ids.len()]);
        Ok(Texts { ids, types, special, words, truncated: false })
    }

    fn words(&self, words: &[&str], max: Option<usize>) -> Result<Texts, EncodeError> {
        let ids = || {
            words
                .iter()
                .enumerate()
                .flat_map(|(i, word)| word.bytes().map(move |b| (u32::from(b), Some(i as u32))))
        };
        let (ids, words): (Vec<u32>, Vec<Option<u32>>) = ids().take(max.unwrap_or(usize::MAX)).unzip();
        let (types, special) = (vec![0; ids.len()], vec![false; ids.len()]);
        Ok(Texts { ids, types, special, words, truncated: false })
    }
}

const FORMATS: [&str; 10] =
    ["jsonl", "csv", "tsv", "conll", "e2e", "webnlg", "dart", "glue:sst2", "glue:mnli", "glue:stsb"];

/// Data: the first byte chooses format and task.
fn data(bytes: &[u8]) {
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let format = FORMATS[usize::from(*choice) % FORMATS.len()];
    let tasks =
        ["lm", "classification", "pair-classification", "regression", "token-classification", "embedding"];
    let task: Task = tasks[usize::from(*choice) / FORMATS.len() % tasks.len()].parse().expect("a task");
    let folder = folder();
    let path = write(&folder, "data", bytes);
    let options = DataOptions {
        format: Some(format.parse().expect("a format")),
        skip_bad_lines: choice % 2 == 0,
        max_seq_len: Some(64),
        task,
        labels: vec!["0".into(), "1".into()],
        ..DataOptions::default()
    };
    let _ = read(&path, &options, &Bytes);
    let _ = labels(&path, &options, &[]);
    let _ = read_groups(&path, &options);
}

fn data_seeds() -> Vec<Vec<u8>> {
    let of = |format: usize, task: usize, text: &str| {
        let mut bytes = vec![(format + task * FORMATS.len()) as u8];
        bytes.extend(text.as_bytes());
        bytes
    };
    let chat = r#"{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": [{"type": "text", "text": "b"}]}], "tools": []}"#;
    vec![
        of(0, 0, "{\"prompt\": \"a\", \"completion\": \"b\"}\n{\"text\": \"c\"}\n"),
        of(0, 0, chat),
        of(0, 0, r#"[{"instruction": "a", "input": "b", "output": "c"}]"#),
        of(
            0,
            0,
            r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "function_call", "value": "{}"}]}"#,
        ),
        of(
            0,
            0,
            r#"[{"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]}]"#,
        ),
        of(0, 1, "{\"text\": \"a\", \"label\": \"0\"}\n{\"text\": \"b\", \"label\": 1}\n"),
        of(0, 2, "{\"sentence1\": \"a\", \"sentence2\": \"b\", \"label\": \"0\"}\n"),
        of(0, 4, "{\"tokens\": [\"a\", \"b\"], \"tags\": [\"0\", \"1\"]}\n"),
        of(1, 0, "prompt,completion\na,\"b\n\"\"c\"\nd,e\n"),
        of(1, 3, "text,label\na,0.5\nb,-1e3\n"),
        of(2, 1, "text\tlabel\na\t0\nb\t1\n"),
        of(3, 4, "a 0\nb 1\n\nc 0\n"),
        of(4, 0, "mr,ref\n\"name[A], food[B]\",\"A is.\"\n"),
        of(
            5,
            0,
            r#"{"entries": [{"1": {"category": "A", "modifiedtripleset": [{"subject": "a", "property": "b", "object": "c"}], "lexicalisations": [{"lex": "d", "comment": "good"}]}}]}"#,
        ),
        of(6, 0, r#"[{"tripleset": [["a", "b", "c"]], "annotations": [{"source": "x", "text": "d"}]}]"#),
        of(7, 1, "sentence\tlabel\na b\t0\nc\t1\n"),
    ]
}

/// A checkpoint of a small run: its files and what is in them.
fn checkpoint_files() -> &'static [(String, Vec<u8>)] {
    static FILES: OnceLock<Vec<(String, Vec<u8>)>> = OnceLock::new();
    FILES.get_or_init(|| {
        let target_modules = Some(Targets::Names(vec!["q_proj".into()]));
        let config = LoraConfig { r: 2, target_modules, ..LoraConfig::default() };
        let adapters = AdapterSet::new(config, sites(), 1).expect("an adapter of the fixtures");
        let optimizer = AdamW::new(&adapters.params, 0.0);
        let state = RunState::default();
        let folder = folder();
        checkpoint::save(folder.path(), "last", &adapters, &optimizer, &state).expect("room");
        let dir = checkpoint::checkpoint_dir(folder.path(), "last");
        let mut files = Vec::new();
        for entry in fs::read_dir(&dir).expect("just made").flatten() {
            if let Ok(bytes) = fs::read(entry.path()) {
                files.push((entry.file_name().to_string_lossy().into_owned(), bytes));
            }
        }
        files.sort_unstable();
        files
    })
}

/// A checkpoint: the first byte chooses the file that the others are.
fn checkpoint_file(bytes: &[u8]) {
    let (files, folder) = (checkpoint_files(), folder());
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let dir = checkpoint::checkpoint_dir(folder.path(), "last");
    fs::create_dir_all(&dir).expect("room");
    for (i, (name, good)) in files.iter().enumerate() {
        let bytes = if i == usize::from(*choice) % files.len() { bytes } else { good };
        fs::write(dir.join(name), bytes).expect("room");
    }
    let _ = checkpoint::exists(folder.path());
    let _ = checkpoint::load(folder.path(), sites(), 0.0, |_| Ok(()));
    let _ = checkpoint::settle(folder.path());
}

fn checkpoint_seeds() -> Vec<Vec<u8>> {
    let files = checkpoint_files().iter().enumerate();
    files.map(|(i, (_, good))| [&[i as u8][..], good].concat()).collect()
}

/// MLX's folder: the first byte chooses configuration or tensors.
fn mlx(bytes: &[u8]) {
    let folder = folder();
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let config = &mlx_seeds()[0][1..];
    let (config, tensors) = if choice % 2 == 0 { (bytes, WEIGHTS) } else { (config, bytes) };
    write(&folder, "adapter_config.json", config);
    write(&folder, "adapters.safetensors", tensors);
    let _ = FileFormat::detect(folder.path());
    let _ = formats::read(folder.path(), formats::mlx::FORMAT, &Options::default());
}

fn mlx_seeds() -> Vec<Vec<u8>> {
    let config = r#"0{"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": {"rank": 2, "scale": 20.0, "dropout": 0.0, "keys": ["self_attn.q_proj"]}}"#;
    let header = br#"{"model.layers.0.self_attn.q_proj.lora_a":{"dtype":"F32","shape":[4,2],"data_offsets":[0,32]},"model.layers.0.self_attn.q_proj.lora_b":{"dtype":"F32","shape":[2,4],"data_offsets":[32,64]}}"#;
    let tensors = [&b"1"[..], &(header.len() as u64).to_le_bytes(), header, &[0; 64]].concat();
    vec![config.as_bytes().to_vec(), tensors]
}

const RUN: &str = "model = \"m\"\ndata = \"d.jsonl\"\nout = \"o\"\nr = 8\nlora-alpha = 16.0\ntarget_modules = [\"q_proj\"]\n\
    layers_to_transform = [0, 1]\nepochs = 0.5\nseed = 7\nwarmup_ratio = 0.1\nquantize = \"nf4\"\ntask = \"lm\"\n\
    method = \"dora\"\nprompt_template = \"{prompt}\\n\"\n[rank_pattern]\nq_proj = 4\n[peft_options]\nloraplus = 1\n";
const STUDY: &str = "name = \"n\"\nout = \"o\"\nseeds = [1, 2]\ntime-limit-minutes = 5.0\nmetric = \"loss\"\n[train]\nmodel = \"m\"\n\
    data = \"d.csv\"\neval-data = \"e.csv\"\n[[method]]\nname = \"LoRA\"\nr = 8\n[matrices]\nparameters = 1000\n\
    choices = [[\"q_proj\"], [\"q_proj\", \"v_proj\"]]\n[ranks]\nr = [1, 2]\n[subspace]\nranks = [2, 4]\nseeds = [1, 2]\n\
    modules = [\"q_proj\"]\n[latency]\nbatch-sizes = [1]\nlengths = [8]\n[sweep]\nlearning-rates = [1e-4]\n";
const LOG: &str = "{\"step\": 1, \"loss\": 2.5, \"learning_rate\": 1e-4, \"grad_norm\": 0.5, \"tokens_per_s\": 100.0, \"step_s\": 0.5, \
    \"peak_rss_bytes\": 1000}\n{\"step\": 1, \"eval_loss\": 2.25}\n{\"step\": 1, \"sample_prompt\": \"a\", \
    \"sample_text\": \"b\"}\n";

/// A TOML file of a run.
fn run_file(bytes: &[u8]) {
    let Ok(Ok(table)) = std::str::from_utf8(bytes).map(str::parse::<toml::Table>) else { return };
    if let Ok(options) = TrainOptions::from_table(table) {
        let _ = options.check();
        let _ = options.read_options();
    }
}

/// A study's TOML file, and the runs that it asks for.
fn study(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    if let Ok(spec) = Spec::parse(text) {
        let _ = plan(&spec, sites());
    }
}

/// Texts to score: lines, or JSON lines.
fn score_file(bytes: &[u8]) {
    let folder = folder();
    let Some((choice, bytes)) = bytes.split_first() else { return };
    let path = write(&folder, if choice % 2 == 0 { "a.txt" } else { "a.jsonl" }, bytes);
    let _ = read_texts(&path);
}

/// The log of a run.
fn log(bytes: &[u8]) {
    let folder = folder();
    let path = write(&folder, "log.jsonl", bytes);
    let _ = RunLog::read(&path);
    let _ = lowrank::train::log::JsonLog::is_log(&path);
    let _ = lowrank::train::log::JsonLog::resume(&path, 1);
}

const RESULT: &str = r#"{"error": null, "parameters": 1000, "bytes": 4000, "peak_rss_bytes": 1e9, "tokens_per_s": 100.5, "train_s": 2,
    "eval": {"loss": 2.5, "accuracy": null}}"#;

/// What a run of a study came to.
fn result(bytes: &[u8]) {
    let folder = folder();
    let runs = plan(&Spec::parse(STUDY).expect("a study"), sites()).expect("its runs");
    let dir = runs[0].dir(folder.path());
    fs::create_dir_all(&dir).expect("room");
    fs::write(dir.join("result.json"), bytes).expect("room");
    if let Ok(Some(result)) = runs[0].result(folder.path()) {
        let _ = result.metric("loss");
    }
}

/// Data in Parquet.
fn parquet(bytes: &[u8]) {
    let folder = folder();
    let path = write(&folder, "data.parquet", bytes);
    let _ = read(&path, &DataOptions { max_seq_len: Some(64), ..DataOptions::default() }, &Bytes);
    let _ = labels(&path, &DataOptions { task: Task::Classification, ..DataOptions::default() }, &[]);
}

fn parquet_seeds() -> Vec<Vec<u8>> {
    let files: [&[u8]; 3] = [
        include_bytes!("../../../lowrank-train/tests/fixtures/parquet/alpaca.snappy.parquet"),
        include_bytes!("../../../lowrank-train/tests/fixtures/parquet/messages.zstd.parquet"),
        include_bytes!("../../../lowrank-train/tests/fixtures/parquet/labels.gzip.parquet"),
    ];
    files.iter().map(|file| file.to_vec()).collect()
}
