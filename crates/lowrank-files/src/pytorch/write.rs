//! Writing a dictionary of tensors as torch.save does.

use std::io::{Cursor, Write};
use std::path::Path;

use lowrank_kernels::Format;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

use crate::atomic::write_atomic;
use crate::error::{Error, Result};

/// A tensor to write.
pub struct PytorchTensor<'a> {
    /// Its key in the dictionary.
    pub name: &'a str,
    /// Outermost axis first.
    pub shape: &'a [usize],
    /// F32, F16 or BF16.
    pub format: Format,
    /// The numbers, least significant byte first.
    pub bytes: &'a [u8],
}

/// Writes the tensors as a dictionary that `torch.load` reads: a zip archive with a pickle of protocol 2 and one
/// storage a tensor, each at a multiple of 64 bytes.
///
/// # Errors
/// Where a tensor's bytes are not those of its shape, or the file cannot be written.
pub fn write_pytorch(path: &Path, tensors: &[PytorchTensor<'_>]) -> Result<()> {
    let mut pickle = b"\x80\x02}(".to_vec();
    for (key, tensor) in tensors.iter().enumerate() {
        let storage = match tensor.format {
            Format::F32 => "FloatStorage",
            Format::F16 => "HalfStorage",
            Format::BF16 => "BFloat16Storage",
            other => {
                let what = format!("{} cannot be stored in PyTorch's format", other.name());
                return Err(Error::tensor(path, tensor.name, what));
            }
        };
        let numbers: usize = tensor.shape.iter().product();
        if numbers * tensor.format.block_bytes() != tensor.bytes.len() {
            let what = format!("shape {:?} does not take {} bytes", tensor.shape, tensor.bytes.len());
            return Err(Error::tensor(path, tensor.name, what));
        }
        let mut strides = vec![1; tensor.shape.len()];
        for axis in (1..tensor.shape.len()).rev() {
            strides[axis - 1] = strides[axis] * tensor.shape[axis].max(1);
        }
        text(&mut pickle, tensor.name);
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        text(&mut pickle, "storage");
        pickle.extend(format!("ctorch\n{storage}\n").bytes());
        text(&mut pickle, &key.to_string());
        text(&mut pickle, "cpu");
        int(&mut pickle, numbers);
        pickle.extend(b"tQ");
        int(&mut pickle, 0);
        for sizes in [tensor.shape, &strides] {
            pickle.push(b'(');
            sizes.iter().for_each(|size| int(&mut pickle, *size));
            pickle.push(b't');
        }
        // No gradient, and no hooks: an ordered dictionary without entries.
        pickle.extend(b"\x89ccollections\nOrderedDict\n)RtR");
    }
    pickle.extend(b"u.");

    let zip = |e: zip::result::ZipError| Error::file(path, e.to_string());
    let mut archive = ZipWriter::new(Cursor::new(Vec::new()));
    let options = SimpleFileOptions::default()
        .compression_method(CompressionMethod::Stored)
        .with_alignment(64)
        .large_file(tensors.iter().any(|t| t.bytes.len() >= 1 << 31));
    let named = |name: &str| format!("archive/{name}");
    let mut entry = |name: &str, bytes: &[u8]| -> Result<()> {
        archive.start_file(named(name), options).map_err(zip)?;
        archive.write_all(bytes).map_err(Error::io(path))
    };
    entry("data.pkl", &pickle)?;
    entry("byteorder", b"little")?;
    for (key, tensor) in tensors.iter().enumerate() {
        entry(&format!("data/{key}"), tensor.bytes)?;
    }
    entry("version", b"3\n")?;
    write_atomic(path, &archive.finish().map_err(zip)?.into_inner())
}

fn text(pickle: &mut Vec<u8>, text: &str) {
    pickle.push(b'X');
    pickle.extend((text.len() as u32).to_le_bytes());
    pickle.extend(text.bytes());
}

fn int(pickle: &mut Vec<u8>, value: usize) {
    pickle.extend([0x8a, 8]);
    pickle.extend((value as i64).to_le_bytes());
}
