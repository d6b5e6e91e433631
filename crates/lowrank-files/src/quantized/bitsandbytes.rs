//! bitsandbytes. Four bits: `weight` `[values / 2, 1]` of bytes with `weight.absmax`, and `weight.quant_state` that says how;
//! with double quantisation `absmax` is of bytes, with `weight.nested_absmax` and `weight.nested_quant_map`. Eight bits:
//! `weight` `[out, in]` of I8 and `SCB`, 127 times the scale of each row.

use std::ops::Range;

use lowrank_engine::FrozenWeight;
use lowrank_kernels::{Format, nf4_tables, pack_nf4};
use serde::Deserialize;

use super::grid::{Scales, bytes_with_scales};
use super::matrix::{Code, Shape, Source, packed};
use super::parts::{Config, INSTEAD, Part, tensor_error};
use crate::error::{Result, shown};
use crate::packed::Packed;
use crate::tensors::Tensors;

/// What `quant_state` holds.
#[derive(Deserialize)]
struct State {
    quant_type: String,
    blocksize: usize,
    shape: Vec<usize>,
    #[serde(default)]
    nested_blocksize: Option<usize>,
    #[serde(default)]
    nested_offset: Option<f32>,
}

pub(super) fn read(_: &Config<'_>, tensors: &mut Tensors) -> Result<()> {
    const STATE: &str = ".quant_state.bitsandbytes__";
    let states: Vec<(String, String)> = tensors
        .names()
        .filter_map(|name| Some((name.split_once(STATE)?.0.to_owned(), name.to_owned())))
        .collect();
    for (name, state) in states {
        let packed = four_bits(tensors, &name, &state)?;
        let ends = ["absmax", "quant_map", "nested_absmax", "nested_quant_map"];
        let drop = ends.map(|end| format!("{name}.{end}")).into_iter().chain([state]);
        tensors.pack(&name, &name, packed, drop);
    }
    let stems: Vec<String> =
        tensors.names().filter_map(|name| Some(name.strip_suffix(".SCB")?.to_owned())).collect();
    for stem in stems {
        let [name, scale, format] = ["weight", "SCB", "weight_format"].map(|end| format!("{stem}.{end}"));
        let scales = Scales { name: &scale, times: 1.0 / 127.0, block: None };
        let packed = bytes_with_scales(tensors, &name, Code::Int8, scales)?;
        tensors.pack(&name, &name, packed, [scale.clone(), format]);
    }
    Ok(())
}

fn four_bits(tensors: &Tensors, name: &str, state_name: &str) -> Result<Packed> {
    let wrong = |what: String| tensor_error(tensors, state_name, what);
    let state: State = serde_json::from_slice(Part::of(tensors, state_name, &["U8"])?.bytes())
        .map_err(|e| wrong(format!("is not a quantization state: {e}")))?;
    if state.quant_type != "nf4" {
        let what = format!("{} is not supported (nf4 and int8 are): {INSTEAD}", shown(&state.quant_type));
        return Err(wrong(what));
    }
    let &[rows, cols] = state.shape.as_slice() else {
        return Err(wrong(format!("the shape is {:?}, expected a matrix", state.shape)));
    };
    let (len, count) = (state.blocksize, rows.checked_mul(cols).unwrap_or(0));
    if count == 0 || len == 0 || !cols.is_multiple_of(64) || !cols.is_multiple_of(len) {
        let what = format!("{rows} x {cols} values in blocks of {len} are not supported: {INSTEAD}");
        return Err(wrong(what));
    }
    let weight = Part::of(tensors, name, &["U8"])?;
    if weight.bytes().len() != count / 2 {
        let what = format!(
            "has {} bytes; {rows} x {cols} values of four bits take {}",
            weight.bytes().len(),
            count / 2
        );
        return Err(tensor_error(tensors, name, what));
    }
    let other = |end: &str, dtype: &str, len: usize| -> Result<Part> {
        let name = format!("{name}.{end}");
        let part = Part::of(tensors, &name, &[dtype])?;
        part.expect(tensors, &name, &[len])?;
        Ok(part)
    };
    let (levels, dynamic) = nf4_tables();
    let map = other("quant_map", "F32", 16)?;
    if map.values() != levels {
        return Err(wrong(format!(
            "`quant_map` has other levels than NF4's, which is not supported: {INSTEAD}"
        )));
    }
    let nested = state.nested_blocksize.filter(|len| *len > 0).zip(state.nested_offset);
    let absmax = other("absmax", if nested.is_some() { "U8" } else { "F32" }, count / len)?;
    let mut parts = vec![weight.clone(), absmax.clone()];
    let shape = Shape { rows, cols, run: len, code: Code::Nf4, dense: Format::F16 };
    let Some((nested_len, offset)) = nested else {
        let source = move || Levels { weight: weight.clone(), scales: absmax.values(), cols, run: len };
        return Ok(packed(shape, parts, source));
    };
    let groups = other("nested_absmax", "F32", (count / len).div_ceil(nested_len))?;
    let codes = other("nested_quant_map", "F32", 256)?;
    parts.extend([groups.clone(), codes.clone()]);
    let stored = parts.iter().map(|part| part.bytes().len()).sum();
    let (groups, codes) = (groups.values(), codes.values());
    // The same as what `--quantize nf4` makes: its scales stay bytes.
    if len == 64 && nested_len == 256 && codes == dynamic {
        return Ok(Packed::new(Format::NF4, (rows, cols), stored, move || {
            let level = |i: usize| level_of(weight.bytes(), i) as u8;
            let fill = |out: &mut [u8]| {
                pack_nf4(absmax.bytes(), offset, &groups, level, out);
                Ok::<_, String>(())
            };
            let made = FrozenWeight::filled(Format::NF4, rows, cols, fill).map_err(|e| e.to_string())?;
            parts.iter().for_each(Part::release);
            made
        }));
    }
    Ok(packed(shape, parts, move || {
        let scale = |(i, code): (usize, &u8)| codes[usize::from(*code)] * groups[i / nested_len] + offset;
        let scales = absmax.bytes().iter().enumerate().map(scale).collect();
        Levels { weight: weight.clone(), scales, cols, run: len }
    }))
}

/// The number of the level of value `i`: the upper half of a byte comes first.
#[inline]
fn level_of(bytes: &[u8], i: usize) -> i16 {
    i16::from(bytes[i / 2] >> (4 * (1 - i % 2)) & 15)
}

struct Levels {
    weight: Part,
    scales: Vec<f32>,
    cols: usize,
    run: usize,
}

impl Source for Levels {
    fn read(&self, rows: Range<usize>, codes: &mut [i16], scales: &mut [f32]) {
        let (bytes, first) = (self.weight.bytes(), rows.start * self.cols);
        codes.iter_mut().enumerate().for_each(|(i, code)| *code = level_of(bytes, first + i));
        scales.copy_from_slice(&self.scales[first / self.run..][..scales.len()]);
    }
}
