//! GPTQ: `qweight` `[in / per word, out]`, `qzeros` `[groups, out / per word]`, `scales` `[groups, out]` and `g_idx`, the
//! group of each input. Files of before `gptq_v2` keep zeros less one.

use super::group::{Grouped, Order, unpack_lines};
use super::matrix::{Code, Shape, packed};
use super::parts::{Config, FLOATS, INSTEAD, Part, dense_format, tensor_error};
use crate::error::Result;
use crate::tensors::Tensors;

pub(super) fn read(config: &Config<'_>, tensors: &mut Tensors) -> Result<()> {
    let bits = match config.integer("bits") {
        Some(bits @ (2 | 4 | 8)) => bits as usize,
        other => {
            let found = other.map_or("is missing".into(), |bits| format!("{bits} is not supported"));
            return Err(config.wrong("bits", format!("{found} (2, 4 and 8 are): {INSTEAD}")));
        }
    };
    // What the file keeps is one less, unless it says otherwise.
    let less = match config.text("checkpoint_format").unwrap_or("gptq") {
        "gptq" => 1,
        "gptq_v2" => 0,
        other => {
            let what =
                format!("{} is not supported (gptq and gptq_v2 are): {INSTEAD}", crate::error::shown(other));
            return Err(config.wrong("checkpoint_format", what));
        }
    };
    let stems: Vec<String> =
        tensors.names().filter_map(|name| Some(name.strip_suffix(".qweight")?.to_owned())).collect();
    for stem in stems {
        let name = |end: &str| format!("{stem}.{end}");
        let words = Part::of(tensors, &name("qweight"), &["I32"])?;
        let scales = Part::of(tensors, &name("scales"), &FLOATS)?;
        let zeros = Part::of(tensors, &name("qzeros"), &["I32"])?;
        let per = 32 / bits;
        let (&[lines, rows], &[groups, _]) = (words.shape.as_slice(), scales.shape.as_slice()) else {
            let what = format!("has shape {:?}, expected a matrix", words.shape);
            return Err(tensor_error(tensors, &name("qweight"), what));
        };
        let cols = lines * per;
        let empty = rows == 0 || cols == 0 || groups == 0;
        if empty || !rows.is_multiple_of(per) {
            let what = format!("has shape {:?}, which is none of {bits} bits", words.shape);
            return Err(tensor_error(tensors, &name("qweight"), what));
        }
        scales.expect(tensors, &name("scales"), &[groups, rows])?;
        zeros.expect(tensors, &name("qzeros"), &[groups, rows / per])?;
        let zero_values = move |zeros: &Part| -> Vec<i16> {
            unpack_lines(zeros, bits, |i| i).iter().map(|zero| zero + less).collect()
        };
        if bits == 8 && zero_values(&zeros).iter().any(|zero| *zero != 128) {
            let what = format!("has zeros other than 128, which are not supported in 8 bits: {INSTEAD}");
            return Err(tensor_error(tensors, &name("qzeros"), what));
        }
        let group_len = match config.integer("group_size").and_then(|size| usize::try_from(size).ok()) {
            Some(size) if size > 0 && cols.div_ceil(size) == groups => size,
            _ => cols.div_ceil(groups),
        };
        let mut parts = vec![words.clone(), scales.clone(), zeros.clone()];
        let mut group_of = None;
        if tensors.contains(&name("g_idx")) {
            let part = Part::of(tensors, &name("g_idx"), &["I32"])?;
            part.expect(tensors, &name("g_idx"), &[cols])?;
            let of: Vec<usize> =
                (0..cols).map(|col| usize::try_from(part.i32(col)).unwrap_or(usize::MAX)).collect();
            if let Some(group) = of.iter().find(|group| **group >= groups) {
                let what = format!("names the group {group} of {groups}");
                return Err(tensor_error(tensors, &name("g_idx"), what));
            }
            // Activation order: the columns of a group are not next to each other.
            group_of = of.iter().enumerate().any(|(col, group)| *group != col / group_len).then_some(of);
            parts.push(part);
        }
        let shape = Shape {
            rows,
            cols,
            run: if group_of.is_some() { 1 } else { group_len },
            code: if bits == 8 { Code::Int8 } else { Code::Int4 },
            dense: dense_format(&scales),
        };
        let matrix = packed(shape, parts, move || Grouped {
            words: words.clone(),
            order: Order::Inputs,
            bits,
            rows,
            cols,
            scales: scales.values(),
            zeros: zero_values(&zeros),
            by_group: true,
            groups,
            group_of: group_of.clone(),
            group_len,
        });
        let drop = ["scales", "qzeros", "g_idx"].map(name);
        tensors.pack(&name("qweight"), &name("weight"), matrix, drop);
    }
    Ok(())
}
