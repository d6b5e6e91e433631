//! AWQ in the layout GEMM: `qweight` `[in, out / 8]`, `qzeros` `[groups, out / 8]` and `scales` `[groups, out]`, four bits,
//! the outputs of a word in an order of their own.

use super::group::{Grouped, Order, unpack_lines};
use super::matrix::{Code, Shape, packed};
use super::parts::{Config, FLOATS, INSTEAD, Part, dense_format, tensor_error};
use crate::error::Result;
use crate::tensors::Tensors;

/// Which output of a word each four bits are of.
const PLACES: [usize; 8] = [0, 2, 4, 6, 1, 3, 5, 7];

pub(super) fn read(config: &Config<'_>, tensors: &mut Tensors) -> Result<()> {
    if config.integer("bits").is_some_and(|bits| bits != 4) {
        let bits = config.integer("bits").unwrap_or_default();
        return Err(config.wrong("bits", format!("{bits} is not supported (4 is): {INSTEAD}")));
    }
    let version = config.text("version").unwrap_or("gemm");
    if !version.eq_ignore_ascii_case("gemm") {
        let what = format!("{} is not supported (gemm is): {INSTEAD}", crate::error::shown(version));
        return Err(config.wrong("version", what));
    }
    let stems: Vec<String> =
        tensors.names().filter_map(|name| Some(name.strip_suffix(".qweight")?.to_owned())).collect();
    for stem in stems {
        let name = |end: &str| format!("{stem}.{end}");
        let words = Part::of(tensors, &name("qweight"), &["I32"])?;
        let scales = Part::of(tensors, &name("scales"), &FLOATS)?;
        let zeros = Part::of(tensors, &name("qzeros"), &["I32"])?;
        let (&[cols, across], &[groups, rows]) = (words.shape.as_slice(), scales.shape.as_slice()) else {
            let what = format!("has shape {:?}, expected a matrix", words.shape);
            return Err(tensor_error(tensors, &name("qweight"), what));
        };
        if rows != 8 * across || rows == 0 || cols == 0 || groups == 0 || !cols.is_multiple_of(groups) {
            let what =
                format!("has shape {:?}, its scales {:?}: not AWQ's of four bits", words.shape, scales.shape);
            return Err(tensor_error(tensors, &name("qweight"), what));
        }
        zeros.expect(tensors, &name("qzeros"), &[groups, across])?;
        let run = cols / groups;
        let shape = Shape { rows, cols, run, code: Code::Int4, dense: dense_format(&scales) };
        let parts = vec![words.clone(), scales.clone(), zeros.clone()];
        let matrix = packed(shape, parts, move || Grouped {
            words: words.clone(),
            order: Order::Outputs(PLACES),
            bits: 4,
            rows,
            cols,
            scales: scales.values(),
            zeros: unpack_lines(&zeros, 4, |i| PLACES[i]),
            by_group: true,
            groups,
            group_of: None,
            group_len: run,
        });
        let drop = ["scales", "qzeros"].map(name);
        tensors.pack(&name("qweight"), &name("weight"), matrix, drop);
    }
    Ok(())
}
