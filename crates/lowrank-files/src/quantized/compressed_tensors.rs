//! compressed-tensors (llm-compressor): FP8 (`float-quantized`), integers of eight bits (`int-quantized`), and integers of
//! four or eight bits in words (`pack-quantized`).

use serde_json::Value;

use super::fp8;
use super::grid::{Scales, bytes_with_scales};
use super::group::{Grouped, Order, unpack_lines};
use super::matrix::{Code, Shape, packed};
use super::parts::{Config, FLOATS, INSTEAD, Part, dense_format, tensor_error};
use crate::error::{Result, shown};
use crate::tensors::Tensors;

pub(super) fn read(config: &Config<'_>, tensors: &mut Tensors) -> Result<()> {
    let groups = config.settings.get("config_groups").and_then(Value::as_object);
    let weights: Vec<&Value> =
        groups.into_iter().flat_map(|groups| groups.values()).map(|group| &group["weights"]).collect();
    match config.text("format").unwrap_or("dense") {
        "float-quantized" | "naive-quantized" => {
            let size = |block: &Value| Some([block[0].as_u64()? as usize, block[1].as_u64()? as usize]);
            fp8::read_with(tensors, weights.iter().find_map(|weights| size(&weights["block_structure"])))?;
            bytes(tensors)
        }
        "int-quantized" => bytes(tensors),
        "pack-quantized" => {
            let bits: Vec<u64> = weights.iter().filter_map(|weights| weights["num_bits"].as_u64()).collect();
            match bits.as_slice() {
                [first @ (4 | 8), rest @ ..] if rest.iter().all(|bits| bits == first) => {
                    words(tensors, *first as usize)
                }
                _ => Err(config.wrong(
                    "config_groups",
                    format!("weights of {bits:?} bits are not supported (4 or 8 are): {INSTEAD}"),
                )),
            }
        }
        "dense" => Ok(()),
        other => {
            let known = "float-quantized, int-quantized, naive-quantized and pack-quantized";
            Err(config.wrong("format", format!("{} is not supported ({known} are): {INSTEAD}", shown(other))))
        }
    }
}

/// Weights of I8 with a scale for each row.
fn bytes(tensors: &mut Tensors) -> Result<()> {
    let names: Vec<String> =
        tensors.names().filter(|name| name.ends_with(".weight")).map(str::to_owned).collect();
    for name in names {
        if tensors.unread(&name).is_none_or(|(dtype, _)| dtype != "I8") {
            continue;
        }
        let [scale, zero] = ["scale", "zero_point"].map(|end| format!("{name}_{end}"));
        if tensors.unread(&zero).is_some_and(|(_, bytes)| bytes.iter().any(|byte| *byte != 0)) {
            return Err(tensor_error(
                tensors,
                &zero,
                format!("is not zero, which is not supported: {INSTEAD}"),
            ));
        }
        let packed =
            bytes_with_scales(tensors, &name, Code::Int8, Scales { name: &scale, times: 1.0, block: None })?;
        let stem = name.trim_end_matches("weight");
        let unused = ["input_scale", "input_zero_point"].map(|end| format!("{stem}{end}"));
        tensors.pack(&name, &name, packed, unused.into_iter().chain([scale.clone(), zero]));
    }
    Ok(())
}

/// Weights in words.
fn words(tensors: &mut Tensors, bits: usize) -> Result<()> {
    const END: &str = ".weight_packed";
    let stems: Vec<String> =
        tensors.names().filter_map(|name| Some(name.strip_suffix(END)?.to_owned())).collect();
    let (per, middle) = (32 / bits, 1i16 << (bits - 1));
    for stem in stems {
        let name = |end: &str| format!("{stem}.weight_{end}");
        let words = Part::of(tensors, &name("packed"), &["I32"])?;
        let axes = Part::of(tensors, &name("shape"), &["I64", "I32"])?.values();
        let scales = Part::of(tensors, &name("scale"), &FLOATS)?;
        let &[rows, cols] = axes.iter().map(|axis| *axis as usize).collect::<Vec<_>>().as_slice() else {
            return Err(tensor_error(tensors, &name("shape"), "is no shape of a matrix".into()));
        };
        words.expect(tensors, &name("packed"), &[rows, cols.div_ceil(per)])?;
        let groups = scales.shape.get(1).copied().unwrap_or(1);
        if rows == 0 || cols == 0 || groups == 0 || !cols.is_multiple_of(groups) {
            let what =
                format!("has shape {:?}, which are not the scales of {rows} x {cols} values", scales.shape);
            return Err(tensor_error(tensors, &name("scale"), what));
        }
        // One for the whole matrix, or for each row and group.
        let count: usize = scales.shape.iter().product();
        if count != rows * groups && count != 1 {
            let what =
                format!("has shape {:?}, which are not the scales of {rows} x {cols} values", scales.shape);
            return Err(tensor_error(tensors, &name("scale"), what));
        }
        let mut parts = vec![words.clone(), scales.clone()];
        let mut zeros = None;
        if tensors.contains(&name("zero_point")) {
            let part = Part::of(tensors, &name("zero_point"), &["I32"])?;
            part.expect(tensors, &name("zero_point"), &[rows.div_ceil(per), groups])?;
            if bits == 8 {
                let what = format!("zeros are not supported in 8 bits: {INSTEAD}");
                return Err(tensor_error(tensors, &name("zero_point"), what));
            }
            parts.push(part.clone());
            zeros = Some(part);
        }
        let run = cols / groups;
        let mut group_of = None;
        if tensors.contains(&name("g_idx")) {
            let part = Part::of(tensors, &name("g_idx"), &["I32"])?;
            part.expect(tensors, &name("g_idx"), &[cols])?;
            let of: Vec<usize> =
                (0..cols).map(|col| usize::try_from(part.i32(col)).unwrap_or(usize::MAX)).collect();
            if of.iter().any(|group| *group >= groups) {
                return Err(tensor_error(
                    tensors,
                    &name("g_idx"),
                    format!("names a group that is not one of {groups}"),
                ));
            }
            group_of = of.iter().enumerate().any(|(col, group)| *group != col / run).then_some(of);
            parts.push(part);
        }
        let shape = Shape {
            rows,
            cols,
            run: if group_of.is_some() { 1 } else { run },
            code: if bits == 8 { Code::Int8 } else { Code::Int4 },
            dense: dense_format(&scales),
        };
        let matrix = packed(shape, parts, move || {
            let (mut scales, mut values) = (scales.values(), vec![middle; rows * groups]);
            if count == 1 {
                scales = vec![scales[0]; rows * groups];
            }
            // Rows in a word.
            if let Some(packed) = zeros.as_ref().map(|zeros| unpack_lines(zeros, bits, |i| i)) {
                for (at, zero) in values.iter_mut().enumerate() {
                    let (row, group) = (at / groups, at % groups);
                    *zero = packed[(row / per * groups + group) * per + row % per];
                }
            }
            Grouped {
                words: words.clone(),
                order: Order::Rows,
                bits,
                rows,
                cols,
                scales,
                zeros: values,
                by_group: false,
                groups,
                group_of: group_of.clone(),
                group_len: run,
            }
        });
        let drop = ["shape", "scale", "zero_point", "g_idx"].map(name);
        tensors.pack(&name("packed"), &format!("{stem}.weight"), matrix, drop);
    }
    Ok(())
}
