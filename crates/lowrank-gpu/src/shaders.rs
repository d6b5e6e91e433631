//! The shaders: WGSL files, and the entry points that are made for their functions.
//!
//! A function `fn name(i: u32)` runs for every `i` below the parameter `n`, `fn name(row: u32, t: u32)` in one workgroup for
//! every row below `rows`, `fn name(row: u32, head: u32, t: u32)` in one for every row and head. Each has its own
//! parameters, in one uniform buffer, and storage buffers from binding 1 on.

use lowrank_engine::Format;

/// Threads of a workgroup that has a row.
pub(crate) const ROW_THREADS: u32 = 128;
/// Threads of a workgroup that has a row and a head, and of one whose threads have an element each.
pub(crate) const SMALL_THREADS: u32 = 64;

/// A file of shaders.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum File {
    Activation,
    AdamW,
    Attention,
    ColumnSums,
    Columns,
    Dropout,
    Elementwise,
    /// Of two matrices of f32.
    Gemm,
    /// With the transpose of a frozen weight.
    Linear(Format),
    /// With a frozen weight.
    LinearBackward(Format),
    Int16,
    Loha,
    Loss,
    Norm,
    Rope,
    Rows,
}

impl File {
    /// Every file, for tests.
    #[cfg(test)]
    pub fn all() -> Vec<Self> {
        use File::*;
        let plain = [
            Activation,
            AdamW,
            Attention,
            ColumnSums,
            Columns,
            Dropout,
            Elementwise,
            Gemm,
            Int16,
            Loha,
            Loss,
            Norm,
            Rope,
            Rows,
        ];
        let formats = Format::ALL.into_iter().flat_map(|format| [Linear(format), LinearBackward(format)]);
        plain.into_iter().chain(formats).collect()
    }

    /// WGSL, with entry points `<name>_main`.
    pub fn source(self) -> String {
        macro_rules! text {
            ($($name:literal),*) => { concat!($(include_str!(concat!("shaders/", $name, ".wgsl"))),*) };
        }
        let source = match self {
            Self::Activation => text!("activation").to_owned(),
            Self::AdamW => text!("adamw").to_owned(),
            Self::Attention => text!("attention", "philox", "reduce").to_owned(),
            Self::ColumnSums => text!("column_sums").to_owned(),
            Self::Columns => text!("columns").to_owned(),
            Self::Dropout => text!("dropout", "philox").to_owned(),
            Self::Elementwise => text!("elementwise").to_owned(),
            Self::Gemm => return text!("gemm", "gemm_values").to_owned(),
            Self::Linear(format) => return text!("gemm", "gemm_forward").to_owned() + weight(format),
            Self::LinearBackward(format) => {
                return text!("gemm", "gemm_backward").to_owned() + weight(format);
            }
            Self::Int16 => text!("int16", "reduce").to_owned(),
            Self::Loha => text!("loha").to_owned(),
            Self::Loss => text!("loss", "reduce").to_owned(),
            Self::Norm => text!("norm", "reduce").to_owned(),
            Self::Rope => text!("rope").to_owned(),
            Self::Rows => text!("rows").to_owned(),
        };
        with_entry_points(source)
    }
}

/// `weight`, which expands four values.
fn weight(format: Format) -> &'static str {
    macro_rules! text {
        ($($name:literal),*) => { concat!($(include_str!(concat!("shaders/formats/", $name, ".wgsl"))),*) };
    }
    match format {
        Format::F32 => text!("f32"),
        Format::F16 => text!("f16"),
        Format::BF16 => text!("bf16"),
        Format::Q4_0 => text!("bytes", "q4_0"),
        Format::Q4_1 => text!("bytes", "q4_1"),
        Format::Q5_0 => text!("bytes", "q5_0"),
        Format::Q5_1 => text!("bytes", "q5_1"),
        Format::Q8_0 => text!("bytes", "q8_0"),
        Format::Q4_K => text!("bytes", "k_scales", "q4_k"),
        Format::Q5_K => text!("bytes", "k_scales", "q5_k"),
        Format::Q6_K => text!("bytes", "q6_k"),
        Format::NF4 | Format::NF4_F32 => text!("bytes", "nf4"),
        Format::F8_E4M3 => text!("bytes", "f8_e4m3"),
        Format::Q2_K => text!("bytes", "q2_k"),
        _ => text!("bytes", "levels"),
    }
}

fn with_entry_points(mut source: String) -> String {
    const BUILTINS: &str = "@builtin(workgroup_id) group: vec3<u32>, @builtin(num_workgroups) groups: vec3<u32>, \
                            @builtin(local_invocation_index) t: u32";
    let functions: Vec<(String, usize)> = source
        .lines()
        .filter_map(|line| {
            let (name, arguments) = line.strip_prefix("fn ")?.split_once('(')?;
            let arguments = arguments.split_once(')')?;
            let count = match arguments.0 {
                "i: u32" => 1,
                "row: u32, t: u32" => 2,
                "row: u32, head: u32, t: u32" | "entry: u32, head: u32, t: u32" => 3,
                _ => return None,
            };
            arguments.1.trim_start().starts_with('{').then(|| (name.to_owned(), count))
        })
        .collect();
    let by_head = functions.iter().any(|(_, count)| *count == 3);
    let row_threads = if by_head { SMALL_THREADS } else { ROW_THREADS };
    source += &format!("\nconst THREADS = {row_threads}u;\n");
    for (name, count) in functions {
        let (threads, body) = match count {
            1 => (
                SMALL_THREADS,
                format!(
                    "for (var i = group.x * {SMALL_THREADS}u + t; i < p.n; i += groups.x * {SMALL_THREADS}u) {{ {name}(i); }}"
                ),
            ),
            2 => (
                row_threads,
                format!("for (var row = group.x; row < p.rows; row += groups.x) {{ {name}(row, t); }}"),
            ),
            _ => (
                row_threads,
                format!(
                    "for (var row = group.x; row < p.rows; row += groups.x) {{ {name}(row, group.y, t); }}"
                ),
            ),
        };
        source += &format!("@compute @workgroup_size({threads}) fn {name}_main({BUILTINS}) {{ {body} }}\n");
    }
    source
}

#[cfg(test)]
mod tests {
    use super::*;
    use naga::back::{hlsl, msl, spv};
    use naga::valid::{Capabilities, ValidationFlags, Validator};

    /// What only Vulkan takes is found here. f16 unpacked to f32 is the one capability beyond the least, and every driver of the
    /// three has it.
    #[test]
    fn every_shader_is_translated_for_vulkan_metal_and_directx_12() {
        for file in File::all() {
            let source = file.source();
            let module = naga::front::wgsl::parse_str(&source)
                .unwrap_or_else(|error| panic!("{file:?}: {}", error.emit_to_string(&source)));
            let info = Validator::new(ValidationFlags::all(), Capabilities::SHADER_FLOAT16_IN_FLOAT32)
                .validate(&module)
                .unwrap_or_else(|error| panic!("{file:?}: {}", error.emit_to_string(&source)));
            assert!(!module.entry_points.is_empty(), "{file:?} has no entry point");
            let words = spv::write_vec(&module, &info, &spv::Options::default(), None)
                .unwrap_or_else(|error| panic!("{file:?} for Vulkan: {error}"));
            assert!(words.len() > 100, "{file:?} for Vulkan");
            let options =
                msl::Options { lang_version: (2, 1), fake_missing_bindings: true, ..Default::default() };
            let (text, translated) =
                msl::write_string(&module, &info, &options, &msl::PipelineOptions::default())
                    .unwrap_or_else(|error| panic!("{file:?} for Metal: {error}"));
            assert!(text.contains("kernel void"), "{file:?} for Metal");
            translated
                .entry_point_names
                .iter()
                .for_each(|name| assert!(name.is_ok(), "{file:?} for Metal: {name:?}"));
            let options = hlsl::Options { fake_missing_bindings: true, ..Default::default() };
            let (mut text, pipeline) = (String::new(), hlsl::PipelineOptions::default());
            let translated = hlsl::Writer::new(&mut text, &options, &pipeline)
                .write(&module, &info, None)
                .unwrap_or_else(|error| panic!("{file:?} for DirectX 12: {error}"));
            assert!(text.contains("numthreads"), "{file:?} for DirectX 12");
            translated
                .entry_point_names
                .iter()
                .for_each(|name| assert!(name.is_ok(), "{file:?} for DirectX 12: {name:?}"));
        }
    }
}
