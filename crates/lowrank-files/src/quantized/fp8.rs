//! FP8: `weight` is E4M3, and multiplied with `weight_scale_inv` or `weight_scale`: one scale for all, one a row, or one a
//! block of rows and columns.

use super::grid::{Scales, bytes_with_scales};
use super::matrix::Code;
use super::parts::{Config, INSTEAD, tensor_error};
use crate::error::Result;
use crate::tensors::Tensors;

pub(super) fn read(config: &Config<'_>, tensors: &mut Tensors) -> Result<()> {
    let size = |value: &serde_json::Value| usize::try_from(value.as_u64()?).ok().filter(|size| *size > 0);
    let sizes = config.settings.get("weight_block_size").and_then(|sizes| sizes.as_array());
    let block = sizes.and_then(|sizes| Some([size(sizes.first()?)?, size(sizes.get(1)?)?]));
    read_with(tensors, block)
}

/// Makes one tensor of each weight in E4M3 and its scales. `block` are rows and columns of a block.
pub(super) fn read_with(tensors: &mut Tensors, block: Option<[usize; 2]>) -> Result<()> {
    let names: Vec<String> =
        tensors.names().filter(|name| name.ends_with(".weight")).map(str::to_owned).collect();
    for name in names {
        match tensors.unread(&name).map(|(dtype, _)| dtype.to_owned()).as_deref() {
            Some("F8_E4M3") => {}
            Some(dtype) if dtype.starts_with("F8") => {
                let what = format!("is {dtype}, which is not supported (F8_E4M3 is): {INSTEAD}");
                return Err(tensor_error(tensors, &name, what));
            }
            _ => continue,
        }
        let scales = [format!("{name}_scale_inv"), format!("{name}_scale")];
        let Some(scale) = scales.iter().find(|name| tensors.contains(name)) else {
            return Err(tensors.missing(&scales[1]));
        };
        let packed =
            bytes_with_scales(tensors, &name, Code::E4m3, Scales { name: scale, times: 1.0, block })?;
        let stem = name.trim_end_matches("weight");
        // Of the activations, which are not quantized here.
        let unused = ["input_scale", "input_scale_ub", "activation_scale", "output_scale"];
        let drop = unused.map(|end| format!("{stem}{end}")).into_iter().chain([scale.clone()]);
        tensors.pack(&name, &name, packed, drop);
    }
    Ok(())
}
