//! Models in several GGUF files.

mod common;

use std::fs;
use std::path::{Path, PathBuf};

use common::{small_gguf, small_gguf_with};
use lowrank_files::{Gguf, GgufWriter, TensorPlan};
use lowrank_models::{Base, save_gguf};

/// Writes tensors of a file as a part. The first part has the metadata, the others those of the split alone.
fn write_part(whole: &Gguf, tensors: &[&str], path: &Path, (number, count, total): (u32, u32, u32)) {
    let mut writer = GgufWriter::new();
    if number == 0 {
        writer.copy_metadata(whole, |_| true).unwrap();
    }
    writer.u32("split.no", number).unwrap();
    writer.u32("split.count", count).unwrap();
    writer.u32("split.tensors.count", total).unwrap();
    let plans: Vec<TensorPlan> = whole
        .tensor_infos()
        .filter(|(name, ..)| tensors.contains(name))
        .map(|(name, dims, format)| TensorPlan { name: name.into(), dims: dims.into(), format })
        .collect();
    let all = whole.tensors().unwrap();
    let fill = |plan: &TensorPlan, out: &mut dyn std::io::Write| {
        out.write_all(all.stored(&plan.name).unwrap()).unwrap();
        Ok::<_, lowrank_files::Error>(())
    };
    writer.write(path, &plans, fill).unwrap();
}

/// The model of `small_gguf` in three parts, the second of which has no tensors.
fn split(folder: &Path) -> [PathBuf; 3] {
    let path = folder.join("whole.gguf");
    small_gguf(&path);
    let whole = Gguf::open(&path).unwrap();
    let parts = [1, 2, 3].map(|i| folder.join(format!("m-0000{i}-of-00003.gguf")));
    write_part(&whole, &["token_embd.weight"], &parts[0], (0, 3, 3));
    write_part(&whole, &[], &parts[1], (1, 3, 3));
    write_part(&whole, &["blk.0.attn_q.weight", "output_norm.weight"], &parts[2], (2, 3, 3));
    parts
}

fn refused(path: &Path) -> String {
    Gguf::open(path).err().expect("an error").to_string()
}

#[test]
fn the_first_part_opens_all() {
    let folder = tempfile::tempdir().unwrap();
    let parts = split(folder.path());
    let (whole, base) =
        (Base::open_path(&folder.path().join("whole.gguf")).unwrap(), Base::open_path(&parts[0]).unwrap());
    assert_eq!(base.config, whole.config);
    assert_eq!(base.tensors.len(), 3);
    for name in whole.tensors.names() {
        assert_eq!(base.tensors.stored(name), whole.tensors.stored(name), "{name}");
        assert_eq!(base.tensors.order(name), whole.tensors.order(name), "{name}");
    }
    assert_eq!(base.tensors.file_of("model.norm.weight"), Some(parts[2].as_path()));
    assert_eq!(base.tokenizer().unwrap().encode("ab").unwrap(), [2]);

    // What is written is one file.
    let (one, other) = (folder.path().join("one.gguf"), folder.path().join("other.gguf"));
    for (base, path) in [(&base, &one), (&whole, &other)] {
        save_gguf(base, path, None, &mut |n, r, o| Ok(base.tensors.read_rows(n, r, o)?)).unwrap();
    }
    assert!(fs::read(one).unwrap() == fs::read(other).unwrap());
}

#[test]
fn parts_that_do_not_belong_together_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let parts = split(folder.path());
    let second = refused(&parts[1]);
    assert!(
        second.contains("is part 2 of 3: name the first part") && second.contains("m-00001-of-00003.gguf")
    );

    let kept = fs::read(&parts[2]).unwrap();
    fs::remove_file(&parts[2]).unwrap();
    let missing = refused(&parts[0]);
    assert!(missing.contains("m-00003-of-00003.gguf: is missing: part 3 of 3"), "{missing}");

    fs::copy(&parts[1], &parts[2]).unwrap();
    let swapped = refused(&parts[0]);
    assert!(swapped.contains("m-00003") && swapped.contains("says that it is part 2 of 3"), "{swapped}");

    fs::copy(folder.path().join("whole.gguf"), &parts[2]).unwrap();
    let whole = refused(&parts[0]);
    assert!(whole.contains("m-00003") && whole.contains("whole model"), "{whole}");

    let one = Gguf::open(&folder.path().join("whole.gguf")).unwrap();
    write_part(&one, &["token_embd.weight"], &parts[2], (2, 3, 3));
    let twice = refused(&parts[0]);
    assert!(twice.contains("token_embd.weight") && twice.contains("another part"), "{twice}");

    write_part(&one, &["output_norm.weight"], &parts[2], (2, 3, 3));
    let fewer = refused(&parts[0]);
    assert!(fewer.contains("split.tensors.count: is 3, but all parts together hold 2"), "{fewer}");

    let other = folder.path().join("other.gguf");
    small_gguf_with(&other, |writer| {
        writer.u32("split.no", 2).unwrap();
        writer.u32("split.count", 3).unwrap();
        writer.string("general.uuid", "b").unwrap();
    });
    fs::copy(&other, &parts[2]).unwrap();
    let first = folder.path().join("first.gguf");
    small_gguf_with(&first, |writer| {
        writer.u32("split.no", 0).unwrap();
        writer.u32("split.count", 3).unwrap();
        writer.string("general.uuid", "a").unwrap();
    });
    let named = refused(&first);
    assert!(named.contains("should end in -00001-of-00003.gguf"), "{named}");
    fs::copy(&first, &parts[0]).unwrap();
    let foreign = refused(&parts[0]);
    assert!(foreign.contains("general.uuid is b and not a"), "{foreign}");

    fs::write(&parts[2], kept).unwrap();
}
