//! PyTorch's files: what torch.save wrote, and files made to hurt their reader.

mod common;

use std::fs;
use std::io::{Cursor, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use common::counting::{Counting, measured};
use common::{fixture, write_llama_folder};
use lowrank_files::Tensors;
use lowrank_models::Base;
use tempfile::NamedTempFile;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn open(name: &str) -> lowrank_files::Result<Tensors> {
    Tensors::open(&fixture("pytorch").join(name))
}

fn numbers(tensors: &Tensors, name: &str) -> Vec<f32> {
    let (rows, cols) = tensors.matrix_shape(name).unwrap_or_else(|| panic!("{name}"));
    let mut out = vec![f32::NAN; rows * cols];
    tensors.read_rows(name, 0..rows, &mut out).unwrap();
    out
}

#[test]
fn reads_what_torch_save_wrote() {
    let ramp: Vec<f32> = (0..12u8).map(f32::from).collect();
    for name in ["zip.bin", "old.bin", "wrapped.pt"] {
        let tensors = open(name).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert_eq!(tensors.len(), 8, "{name}");
        assert_eq!(tensors.shape("matrix"), Some(&[2, 3][..]));
        assert_eq!(numbers(&tensors, "matrix"), ramp[..6]);
        assert_eq!(numbers(&tensors, "tied"), ramp[..6]);
        assert_eq!(numbers(&tensors, "slice"), ramp[4..9]);
        assert_eq!(numbers(&tensors, "half"), [1.0, -2.5, 65504.0]);
        assert_eq!(numbers(&tensors, "bfloat"), [0.5, -3.0]);
        assert_eq!(tensors.shape("parameter"), Some(&[2, 1, 2][..]));
        assert_eq!(numbers(&tensors, "parameter"), [7.0; 4]);
        assert_eq!(numbers(&tensors, "empty"), [0f32; 0]);
        assert_eq!(tensors.shape("count"), Some(&[][..]));
        assert_eq!(tensors.format("count"), None);
    }
}

#[test]
fn refuses_what_is_no_tensor_file() {
    let attack = open("attack.bin").unwrap_err().to_string();
    assert!(attack.contains("attack.bin") && attack.contains("posix.system"), "{attack}");
    let strided = open("strided.bin").unwrap_err().to_string();
    assert!(strided.contains("transposed") && strided.contains(".contiguous()"), "{strided}");
}

#[test]
fn a_folder_may_hold_pytorch_files() {
    let folder = tempfile::tempdir().unwrap();
    write_llama_folder(folder.path(), 40);
    fs::remove_file(folder.path().join("model.safetensors")).unwrap();
    let open = || Base::open_path(folder.path());
    assert!(open().unwrap_err().to_string().contains("pytorch_model.bin"));
    fs::copy(fixture("pytorch/zip.bin"), folder.path().join("pytorch_model.bin")).unwrap();
    fs::write(folder.path().join("training_args.bin"), "not a model").unwrap();
    assert_eq!(open().unwrap().tensors.len(), 8);

    let index = folder.path().join("pytorch_model.bin.index.json");
    let map = |names: &[&str]| {
        let map: serde_json::Map<_, _> = names
            .iter()
            .map(|name| ((*name).to_owned(), "pytorch_model-00001-of-00001.bin".into()))
            .collect();
        serde_json::json!({ "weight_map": map }).to_string()
    };
    fs::write(&index, map(&["matrix", "half"])).unwrap();
    assert!(open().unwrap_err().to_string().contains("is missing"));
    fs::copy(fixture("pytorch/old.bin"), folder.path().join("pytorch_model-00001-of-00001.bin")).unwrap();
    assert_eq!(numbers(&open().unwrap().tensors, "model.slice"), [4.0, 5.0, 6.0, 7.0, 8.0]);
    fs::write(&index, map(&["matrix", "none"])).unwrap();
    assert!(open().unwrap_err().to_string().contains("none"));
}

#[test]
#[ignore = "reads public data sets: make data-test"]
fn reads_the_published_checkpoint() {
    let folder = lowrank_testing::public_data("loralib");
    let tensors = Tensors::open(&folder.join("roberta_base_lora_mnli.bin")).unwrap();
    assert_eq!(tensors.len(), 52);
    let name = "roberta.encoder.layer.11.attention.self.value.lora_B";
    assert_eq!(tensors.shape(name), Some(&[768, 8][..]));
    assert!(tensors.weight(name).unwrap().view().bytes.as_ptr().cast::<f32>().is_aligned());
    assert!(numbers(&tensors, "classifier.out_proj.bias").iter().all(|x| x.is_finite()));
}

/// A zip archive of torch.save with this pickle and these storages.
fn archive(pickle: &[u8], storages: &[(&str, &[u8])], method: CompressionMethod) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(method);
    zip.start_file("a/data.pkl", options).unwrap();
    zip.write_all(pickle).unwrap();
    for (key, bytes) in storages {
        zip.start_file(format!("a/data/{key}"), options).unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

fn text(text: &str) -> Vec<u8> {
    [b"X".as_slice(), &(text.len() as u32).to_le_bytes(), text.as_bytes()].concat()
}

fn int(value: i64) -> Vec<u8> {
    [&[0x8a, 8][..], &value.to_le_bytes()].concat()
}

/// `{'w': tensor}` where the tensor has the storage '0' of `numbers` and these sizes.
fn one_tensor(numbers: i64, offset: i64, shape: &[i64], strides: &[i64]) -> Vec<u8> {
    let tuple =
        |sizes: &[i64]| [b"(".to_vec(), sizes.iter().flat_map(|s| int(*s)).collect(), b"t".to_vec()].concat();
    [
        b"\x80\x02}".to_vec(),
        text("w"),
        b"ctorch._utils\n_rebuild_tensor_v2\n((".to_vec(),
        text("storage"),
        b"ctorch\nFloatStorage\n".to_vec(),
        text("0"),
        text("cpu"),
        int(numbers),
        b"tQ".to_vec(),
        int(offset),
        tuple(shape),
        tuple(strides),
        b"\x89}tRs.".to_vec(),
    ]
    .concat()
}

/// Reads a file of these bytes; its error as text. It must take little memory and never panic.
fn read(what: &str, bytes: &[u8]) -> std::result::Result<usize, String> {
    // Thousands of small files: in memory where the system has such a place.
    let memory = Path::new("/dev/shm");
    let file = if memory.is_dir() { NamedTempFile::new_in(memory) } else { NamedTempFile::new() };
    let file = file.unwrap();
    let path = file.path();
    fs::write(path, bytes).unwrap();
    let (result, _, took) =
        measured(|| catch_unwind(AssertUnwindSafe(|| Tensors::open(path).map(|t| t.len()))));
    assert!(took < (1 << 20) + 300 * bytes.len(), "{what}: took {took} bytes for {}", bytes.len());
    let result = result.unwrap_or_else(|_| panic!("{what}: the reader panicked"));
    result.map_err(|e| {
        let message = e.to_string();
        assert!(message.len() < 2000 && !message.contains('\n'), "{what}: {message}");
        message
    })
}

fn stored(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    archive(pickle, &[("0", storage)], CompressionMethod::Stored)
}

#[test]
fn lies_about_sizes_are_found() {
    let good = one_tensor(6, 0, &[2, 3], &[3, 1]);
    assert_eq!(read("good", &stored(&good, &[0; 24])), Ok(1));
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("a short storage", stored(&good, &[0; 20]), "20 bytes"),
        ("a long storage", stored(&good, &[0; 28]), "28 bytes"),
        ("no storage", archive(&good, &[], CompressionMethod::Stored), "storage 0 is missing"),
        ("too large", stored(&one_tensor(6, 0, &[2, 4], &[4, 1]), &[0; 24]), "outside"),
        ("beyond the end", stored(&one_tensor(6, 1, &[2, 3], &[3, 1]), &[0; 24]), "outside"),
        ("overflow", stored(&one_tensor(6, 0, &[1 << 62, 8], &[8, 1]), &[0; 24]), "outside"),
        ("empty and endless", stored(&one_tensor(6, 0, &[0, i64::MAX, 4], &[1, 1, 1]), &[0; 24]), "outside"),
        ("storage overflow", stored(&one_tensor(i64::MAX, 0, &[1], &[1]), &[0; 24]), "numbers of F32"),
        ("negative size", stored(&one_tensor(6, 0, &[-1], &[1]), &[0; 24]), "size of -1"),
        ("negative offset", stored(&one_tensor(6, -1, &[1], &[1]), &[0; 24]), "begins at -1"),
        ("negative storage", stored(&one_tensor(-6, 0, &[1], &[1]), &[0; 24]), "-6 numbers"),
        ("strides", stored(&one_tensor(6, 0, &[3, 2], &[1, 3]), &[0; 24]), "contiguous"),
        ("broadcast", stored(&one_tensor(6, 0, &[2, 2], &[0, 0]), &[0; 24]), "contiguous"),
        ("axes and strides", stored(&one_tensor(6, 0, &[2, 3], &[1]), &[0; 24]), "strides"),
        ("many axes", stored(&one_tensor(6, 0, &[1; 9], &[1; 9]), &[0; 24]), "axes"),
    ];
    for (what, bytes, word) in cases {
        let error = read(what, &bytes).unwrap_err();
        assert!(error.contains(word), "{what}: {error}");
    }
}

#[test]
fn nothing_is_executed() {
    let with = |pickle: &[u8]| stored(pickle, &[0; 24]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("system", b"cos\nsystem\n(X\x02\0\0\0lstR.".to_vec(), "os.system"),
        ("eval", b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.".to_vec(), "builtins.eval"),
        ("a class", b"\x80\x02ctorch\nTensor\n)\x81.".to_vec(), "torch.Tensor"),
        ("NEWOBJ", b"\x80\x02ccollections\nOrderedDict\n)\x81.".to_vec(), "NEWOBJ"),
        ("INST", b"(ios\nsystem\n.".to_vec(), "INST"),
        ("OBJ", b"(ccollections\nOrderedDict\no.".to_vec(), "OBJ"),
        ("persistent id", b"Pevil\n.".to_vec(), "PERSID"),
        ("state", b"\x80\x02ccollections\nOrderedDict\n}b.".to_vec(), "BUILD"),
        ("a call of a dictionary", b"\x80\x02})R.".to_vec(), "not a function"),
        ("a call with arguments", b"\x80\x02ccollections\nOrderedDict\nK\x01\x85R.".to_vec(), "OrderedDict"),
        ("a storage as function", b"\x80\x02ctorch\nFloatStorage\nK\x06\x85R.".to_vec(), "Storage"),
        ("a newer protocol", b"\x80\x09}.".to_vec(), "protocol 9"),
    ];
    for (what, pickle, word) in cases {
        let error = read(what, &with(&pickle)).unwrap_err();
        assert!(error.contains(word), "{what}: {error}");
    }
}

#[test]
fn bombs_do_not_go_off() {
    let with = |pickle: &[u8]| stored(pickle, &[0; 24]);
    // Each tuple holds the one before twice: two to the power of 20000 values if anyone unfolded them.
    let doubled = [b"\x80\x02K\x01q\0".to_vec(), b"h\0h\0\x86q\0".repeat(20_000), b".".to_vec()].concat();
    let nested = [b"\x80\x02".to_vec(), b"]".to_vec(), b"\x85".repeat(300_000), b".".to_vec()].concat();
    let own = b"\x80\x02}q\0X\x01\0\0\0ah\0s.".to_vec();
    let marks = [b"\x80\x02".to_vec(), b"(".repeat(300_000), b".".to_vec()].concat();
    let cycle = [b"\x80\x02}q\0".to_vec(), text("model"), b"h\0s.".to_vec()].concat();
    for (what, pickle) in
        [("doubled", doubled), ("nested", nested), ("own", own), ("marks", marks), ("cycle", cycle)]
    {
        read(what, &with(&pickle)).unwrap_err();
    }
    let memo = [b"\x80\x02}r\xff\xff\xff\xffj\xff\xff\xff\xff.".to_vec()].concat();
    assert!(read("memo", &with(&memo)).unwrap_err().contains("no tensors"));
    let long = b"\x80\x02X\xff\xff\xff\xffabc.".to_vec();
    assert!(read("long text", &with(&long)).unwrap_err().contains("truncated"));
    let integer = [b"\x80\x02\x8a\xff".to_vec(), vec![1; 255], b".".to_vec()].concat();
    assert!(read("long integer", &with(&integer)).unwrap_err().contains("255 bytes"));
}

#[test]
fn archives_that_are_none() {
    let good = one_tensor(6, 0, &[2, 3], &[3, 1]);
    assert!(read("no data.pkl", &archive(b"", &[], CompressionMethod::Stored)).is_err());
    for bytes in [&b"PK\x03\x04"[..], b"", b"PK\x03\x04 and then nothing that an archive has", b"hello"] {
        assert!(read("no archive", bytes).is_err());
    }
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default().compression_method(CompressionMethod::Stored);
    for name in ["a/data.pkl", "b/data.pkl"] {
        zip.start_file(name, options).unwrap();
        zip.write_all(&good).unwrap();
    }
    let two = zip.finish().unwrap().into_inner();
    assert!(read("two pickles", &two).unwrap_err().contains("data.pkl"));
}

/// Cut anywhere and with any byte wrong, a file is read or refused, and that is all.
#[test]
fn damaged_files() {
    for name in ["zip.bin", "old.bin"] {
        let good = fs::read(fixture("pytorch").join(name)).unwrap();
        for length in (0..good.len()).step_by(3) {
            read(&format!("{name} cut at {length}"), &good[..length]).unwrap_err();
        }
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= if at % 2 == 0 { 0xff } else { 0x41 };
            let _ = read(&format!("{name} byte {at}"), &bad);
        }
    }
}
