//! What the fuzz targets share. Run one from the repository's root, with the ordinary tests' corpus:
//! `cargo +nightly fuzz run gguf crates/lowrank-models/tests/corpus/gguf`.

use std::fs;
use std::path::Path;

use lowrank_models::{Base, Message};
use lowrank_tools::{FileFormat, Options, formats};

/// Two small tensors, for targets whose subject is another file of the folder.
pub const WEIGHTS: &[u8] = include_bytes!("../../crates/lowrank-models/tests/corpus/safetensors/good");

/// Opens a model with `bytes` as the file `name` and uses all that a base offers. The readers work on
/// mapped files, so the bytes become one, in memory where the system has such a place.
pub fn with_file(name: &str, bytes: &[u8]) {
    let folder = folder();
    fs::write(folder.path().join("config.json"), "{}").expect("room");
    if name != "pytorch_model.bin" {
        fs::write(folder.path().join("model.safetensors"), WEIGHTS).expect("room");
    }
    let file = folder.path().join(name);
    fs::write(&file, bytes).expect("room");
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

/// Reads `bytes` as an adapter in each format that is one file, and as PEFT's tensors.
pub fn as_adapter(bytes: &[u8]) {
    let folder = folder();
    let config = br#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q"]}"#;
    fs::write(folder.path().join("adapter_config.json"), config).expect("room");
    for (name, format) in [
        ("a.safetensors", formats::kohya::FORMAT),
        ("b.safetensors", formats::diffusers::FORMAT),
        ("c.bin", formats::loralib::FORMAT),
        ("d.gguf", formats::gguf::FORMAT),
        ("adapter_model.safetensors", formats::peft::FORMAT),
    ] {
        let file = folder.path().join(name);
        fs::write(&file, bytes).expect("room");
        let path = if format == formats::peft::FORMAT { folder.path() } else { &file };
        let _ = FileFormat::detect(path);
        let _ = formats::read(path, format, &Options::default());
    }
}

fn folder() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    folder.expect("a temporary folder")
}
