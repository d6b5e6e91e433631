//! Tokenizers against the ids of their own libraries (`tools/reference/tokenizer.py` wrote the fixtures).

mod common;

use common::{fixture, fixture_json};
use lowrank_files::{Gguf, GgufWriter};
use lowrank_models::{Base, GenerationConfig, Tokenizer};
use serde_json::Value;

fn check(tokenizer: &Tokenizer, expected: &Value) {
    let cases = expected["cases"].as_array().unwrap();
    assert!(cases.len() > 60);
    for case in cases {
        let text = case["text"].as_str().unwrap();
        let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
        assert_eq!(tokenizer.encode(text).unwrap(), ids, "{text:?}");
        let decoded = tokenizer.decode(&ids, false).unwrap();
        assert_eq!(decoded, case["decoded"].as_str().unwrap(), "{text:?}");
        let mut stream = tokenizer.stream(false);
        let mut streamed: String = ids.iter().map(|id| stream.push(*id).unwrap()).collect();
        streamed += &stream.finish().unwrap();
        assert_eq!(streamed, decoded, "{text:?}");
    }
}

#[test]
fn the_real_smollm2_tokenizer_out_of_its_gguf() {
    let Some(path) = lowrank_testing::smollm2() else { return };
    let base = Base::open_path(&path).unwrap();
    let tokenizer = base.tokenizer().unwrap();
    assert_eq!(tokenizer.vocab_size(), 49152);
    assert_eq!((tokenizer.bos(), tokenizer.eos(), tokenizer.pad()), (Some(1), Some(2), Some(2)));
    assert_eq!(tokenizer.token_to_id("<|im_end|>"), Some(2));
    assert_eq!(tokenizer.decode(&[1, 4093, 198], true).unwrap(), "user\n");
    // The model wants nothing before a text.
    assert_eq!(tokenizer.encode_with_special_tokens("Hello").unwrap(), tokenizer.encode("Hello").unwrap());
    check(&tokenizer, &fixture_json("tok-smollm2.json"));
}

#[test]
#[ignore = "reads public data sets: make data-test"]
fn the_real_gpt2_tokenizer() {
    let folder = lowrank_testing::public_data("gpt2-tokenizer");
    let tokenizer = Tokenizer::from_folder(&folder, &GenerationConfig::default()).unwrap();
    assert_eq!(tokenizer.vocab_size(), 50257);
    check(&tokenizer, &fixture_json("tok-gpt2.json"));
}

#[test]
fn every_kind_of_gguf_tokenizer() {
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "spm"] {
        let gguf = Gguf::open(&fixture(&format!("tok-{name}.gguf"))).unwrap();
        let expected = fixture_json(&format!("tok-{name}.json"));
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        check(&tokenizer, &expected);
        let around = tokenizer.encode_with_special_tokens("ab").unwrap();
        assert_eq!(around[0] == 1, expected["begins"].as_bool().unwrap(), "{name}");
    }
}

/// Every `tokenizer.ggml.pre` of llama.cpp cuts as it does there, or as the models' own files say
/// (`tools/reference/pre_tokenizers.py`).
#[test]
fn every_pre_tokenizer_of_llama_cpp() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.gguf");
    let vocabulary = Gguf::open(&fixture("tok-pre.gguf")).unwrap();
    let expected = fixture_json("tok-pre.json");
    let (texts, ids) = (expected["texts"].as_array().unwrap(), &expected["ids"]);
    let names = expected["names"].as_object().unwrap();
    assert!(texts.len() > 60 && names.len() > 80);
    for (name, which) in names {
        let mut writer = GgufWriter::new();
        writer.copy_metadata(&vocabulary, |_| true).unwrap();
        writer.string("tokenizer.ggml.pre", name).unwrap();
        writer.write(&path, &[], |_, _| Ok::<_, lowrank_files::Error>(())).unwrap();
        let tokenizer = Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap();
        for (at, (text, which)) in texts.iter().zip(which.as_array().unwrap()).enumerate() {
            let text = text.as_str().unwrap();
            let want: Vec<u32> =
                serde_json::from_value(ids[at][which.as_u64().unwrap() as usize].clone()).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), want, "{name}: {text:?}");
        }
    }
}

/// SentencePiece's Unigram with its normalisation, and BERT's WordPiece.
#[test]
fn unigram_and_word_piece() {
    for (name, around) in [("t5", (None, Some(1))), ("bert", (Some(2), Some(3)))] {
        let gguf = Gguf::open(&fixture(&format!("tok-{name}.gguf"))).unwrap();
        let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
        let expected = fixture_json(&format!("tok-{name}.json"));
        let cases = expected["cases"].as_array().unwrap();
        assert!(cases.len() > 50);
        for case in cases {
            let text = case["text"].as_str().unwrap();
            let ids: Vec<u32> = serde_json::from_value(case["ids"].clone()).unwrap();
            assert_eq!(tokenizer.encode(text).unwrap(), ids, "{name}: {text:?}");
            // What a text means is kept, but not its spaces: unknown characters have no text.
            if let Some(decoded) = case["decoded"].as_str() {
                assert_eq!(tokenizer.decode(&ids, false).unwrap(), decoded, "{name}: {text:?}");
            }
        }
        let whole = tokenizer.encode_with_special_tokens("ab").unwrap();
        assert_eq!(around.0, Some(whole[0]).filter(|_| around.0.is_some()), "{name}");
        assert_eq!(around.1, whole.last().copied(), "{name}");
    }
}

/// GGUF to `tokenizer.json` to GGUF: the ids stay.
#[test]
fn tokenizers_survive_the_way_through_both_formats() {
    for name in ["gpt-2", "smollm", "llama-bpe", "qwen2", "tekken", "spm"] {
        let folder = tempfile::tempdir().unwrap();
        let expected = fixture_json(&format!("tok-{name}.json"));
        let first =
            Tokenizer::from_gguf(&Gguf::open(&fixture(&format!("tok-{name}.gguf"))).unwrap()).unwrap();
        common::write_llama_folder(folder.path(), first.vocab_size() + 3);
        std::fs::write(folder.path().join("tokenizer.json"), first.to_json().unwrap()).unwrap();
        let words = serde_json::json!({"bos_token": first.id_to_token(1), "eos_token": {"content": first.id_to_token(2)},
            "unk_token": first.id_to_token(0)});
        std::fs::write(folder.path().join("tokenizer_config.json"), words.to_string()).unwrap();

        let base = Base::open_path(folder.path()).unwrap();
        check(&base.tokenizer().unwrap(), &expected);
        let path = folder.path().join("model.gguf");
        let file_type = Some(lowrank_models::FileType::F32);
        lowrank_models::save_gguf(&base, &path, file_type, &mut |n, r, o| {
            Ok(base.tensors.read_rows(n, r, o)?)
        })
        .unwrap();
        let again = Base::open_path(&path).unwrap().tokenizer().unwrap();
        assert_eq!((again.bos(), again.eos()), (Some(1), Some(2)), "{name}");
        assert_eq!(
            again.vocab_size(),
            first.vocab_size() + 3,
            "{name}: rows of the embedding without a token"
        );
        check(&again, &expected);
        let begins = again.encode_with_special_tokens("ab").unwrap()[0] == 1;
        assert_eq!(begins, expected["begins"].as_bool().unwrap(), "{name}");
    }
}

#[test]
fn half_characters_wait_and_broken_ones_do_not_wait_for_ever() {
    let gguf = Gguf::open(&fixture("tok-gpt-2.gguf")).unwrap();
    let tokenizer = Tokenizer::from_gguf(&gguf).unwrap();
    // The first byte of a four-byte character, again and again.
    let half = tokenizer.token_to_id("ð").unwrap();
    let a = tokenizer.token_to_id("a").unwrap();
    let mut stream = tokenizer.stream(true);
    let given: Vec<String> = (0..6).map(|_| stream.push(half).unwrap()).collect();
    assert!(given[..4].iter().all(String::is_empty), "{given:?}");
    assert!(!given.concat().is_empty(), "{given:?}");
    let rest = stream.push(a).unwrap() + &stream.finish().unwrap();
    assert!(rest.ends_with('a'), "{rest:?}");
}

#[test]
fn what_is_wrong_with_a_gguf_tokenizer_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("t.gguf");
    let write = |fill: &dyn Fn(&mut GgufWriter)| {
        let mut writer = GgufWriter::new();
        fill(&mut writer);
        writer.write(&path, &[], |_, _| Ok::<_, lowrank_files::Error>(())).unwrap();
        Tokenizer::from_gguf(&Gguf::open(&path).unwrap()).unwrap_err().to_string()
    };
    let none = write(&|_| {});
    assert!(none.contains("tokenizer.ggml.model"), "{none}");
    let other = write(&|w| w.string("tokenizer.ggml.model", "rwkv").unwrap());
    assert!(other.contains("rwkv is not supported"), "{other}");
    let pre = write(&|w| {
        w.string("tokenizer.ggml.model", "gpt2").unwrap();
        w.string("tokenizer.ggml.pre", "novel").unwrap();
    });
    assert!(pre.contains("novel is not supported") && pre.contains("qwen2"), "{pre}");
    let merge = write(&|w| {
        w.string("tokenizer.ggml.model", "gpt2").unwrap();
        w.strings("tokenizer.ggml.tokens", ["a", "b"].into_iter()).unwrap();
        w.strings("tokenizer.ggml.merges", ["a b"].into_iter()).unwrap();
    });
    assert!(merge.contains("`ab`"), "{merge}");
}
