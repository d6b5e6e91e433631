//! Trained rows of a table, whole or in part: which row an id has is the caller's to say.

use lowrank_engine::{ParamId, Scope, Tensor, kernels};

/// `y_i = scale T[place(id_i)]`, for the ids that have a place.
pub(crate) fn take(
    scope: &Scope<'_>,
    table: ParamId,
    ids: &[u32],
    place: impl Fn(u32) -> Option<usize> + Send,
    scale: f32,
    y: &mut Tensor,
) {
    let (table, d) = (&scope.params.get(table).value, y.cols());
    scope.device.run(0, || {
        for (y, id) in y.data_mut().chunks_exact_mut(d).zip(ids) {
            let Some(at) = place(*id) else { continue };
            y.copy_from_slice(&table[at * d..][..d]);
            if scale != 1.0 {
                kernels::scale(y, scale);
            }
        }
    });
}

/// `dT[place(id_i)] += scale dy_i`, for the ids that have a place.
pub(crate) fn add(
    scope: &Scope<'_>,
    table: &mut [f32],
    ids: &[u32],
    place: impl Fn(u32) -> Option<usize> + Send,
    scale: f32,
    dy: &Tensor,
) {
    let d = dy.cols();
    scope.device.run(0, || {
        for (dy, id) in dy.data().chunks_exact(d).zip(ids) {
            let Some(at) = place(*id) else { continue };
            let to = table[at * d..][..d].iter_mut();
            to.zip(dy).for_each(|(to, dy)| *to += scale * dy);
        }
    });
}
