//! Rows of a batch replaced by rows of a parameter: the keys and values of a prefix's virtual tokens.

use std::ops::Range;

/// `x[row,:] = table[token, columns]` for each `(row, token)` of `rows`, with `x: [N,D]`, `table: [M,C]` and `D` of its
/// columns. No flops.
///
/// # Panics
/// If a length does not fit the shapes or an index is outside them.
pub fn replace_rows(
    x: &mut [f32],
    table: &[f32],
    cols: usize,
    columns: Range<usize>,
    rows: &[(usize, usize)],
) {
    let d = check(x.len(), table.len(), cols, &columns);
    for &(row, token) in rows {
        x[row * d..][..d].copy_from_slice(&table[token * cols + columns.start..][..d]);
    }
}

/// Backward of [`replace_rows`]: `dtable[token, columns] += dx[row,:]`, and `dx[row,:] = 0`, since the row that was
/// replaced has no gradient. `D` flops a row.
///
/// # Panics
/// As [`replace_rows`].
pub fn replace_rows_backward(
    dtable: &mut [f32],
    dx: &mut [f32],
    cols: usize,
    columns: Range<usize>,
    rows: &[(usize, usize)],
) {
    let d = check(dx.len(), dtable.len(), cols, &columns);
    for &(row, token) in rows {
        let from = &mut dx[row * d..][..d];
        let to = &mut dtable[token * cols + columns.start..][..d];
        to.iter_mut().zip(&*from).for_each(|(to, from)| *to += from);
        from.fill(0.0);
    }
}

/// `D`.
fn check(x: usize, table: usize, cols: usize, columns: &Range<usize>) -> usize {
    let d = columns.len();
    assert!(columns.end <= cols, "replace_rows: columns {columns:?} of {cols}");
    assert!(table.is_multiple_of(cols.max(1)), "replace_rows: {table} values are not rows of {cols}");
    assert!(x.is_multiple_of(d.max(1)), "replace_rows: {x} values are not rows of {d}");
    d
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_transpose, values};

    #[test]
    fn rows_and_their_gradient() {
        let (table, rows) = (values(3 * 8, 1), [(1, 0), (2, 2), (4, 0)]);
        let mut x = vec![0.0; 5 * 4];
        replace_rows(&mut x, &table, 8, 4..8, &rows);
        assert_eq!(x[..4], [0.0; 4]);
        assert_eq!(x[4..8], table[4..8]);
        assert_eq!(x[8..12], table[20..24]);
        let dy = values(x.len(), 2);
        let (mut dx, mut dtable) = (dy.clone(), vec![0.0; table.len()]);
        replace_rows_backward(&mut dtable, &mut dx, 8, 4..8, &rows);
        assert_eq!(dx[..4], dy[..4]);
        assert_eq!(dx[4..12], [0.0; 8]);
        assert_transpose(&table, &dtable, &x, &dy);
    }
}
