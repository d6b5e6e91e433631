//! What the fuzz targets share. Run one from the repository's root, with the ordinary tests' corpus:
//! `cargo +nightly fuzz run gguf crates/lowrank-models/tests/corpus/gguf`.

use std::fs;
use std::path::Path;

use lowrank_models::{Base, Message};

/// Two small tensors, for targets whose subject is another file of the folder.
pub const WEIGHTS: &[u8] = include_bytes!("../../crates/lowrank-models/tests/corpus/safetensors/good");

/// Opens a model with `bytes` as the file `name` and uses all that a base offers. The readers work on
/// mapped files, so the bytes become one, in memory where the system has such a place.
pub fn with_file(name: &str, bytes: &[u8]) {
    let memory = Path::new("/dev/shm");
    let folder = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    let folder = folder.expect("a temporary folder");
    fs::write(folder.path().join("config.json"), "{}").expect("room");
    fs::write(folder.path().join("model.safetensors"), WEIGHTS).expect("room");
    let file = folder.path().join(name);
    fs::write(&file, bytes).expect("room");
    let path = if name.ends_with(".gguf") { file.as_path() } else { folder.path() };
    let Ok(base) = Base::open_path(path) else { return };
    for name in base.tensors.names() {
        let _ = base.tensors.weight(name).map(|weight| weight.byte_len());
        let _ = base.tensors.vector(name);
    }
    if let Ok(chat) = base.chat() {
        let _ = chat.render_with_spans(&[Message::new("user", "a"), Message::new("assistant", "b")]);
    }
    if let Ok(tokenizer) = base.tokenizer()
        && let Ok(ids) = tokenizer.encode_with_special_tokens("ab <e> é 12")
    {
        let _ = tokenizer.decode(&ids, true);
    }
}
