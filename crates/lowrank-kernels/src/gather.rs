//! Rows and columns picked by index, and the sums of their gradients.
//!
//! None of these computes: gathers cost 0 flops, each addition into a gathered place 1.

use crate::parallel::{SharedMut, for_rows};

/// Columns that a task adds up at a time: whole cache lines.
const COLUMNS_PER_TASK: usize = 64;

/// `y[i,:] = x[rows[i],:]` for `x: [M,D]`, `y: [N,D]`, `rows: [N]`. A row may come more than once.
///
/// # Panics
/// If a length does not fit the shapes or an index is not below `M`.
pub fn gather_rows(y: &mut [f32], x: &[f32], rows: &[u32], d: usize) {
    check("gather_rows", y.len(), x.len(), rows, d);
    let y = SharedMut::new(y);
    for_rows(rows.len(), d, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            unsafe { y.part(i * d..(i + 1) * d) }.copy_from_slice(&x[rows[i] as usize * d..][..d]);
        }
    });
}

/// Backward of [`gather_rows`]: `dx[rows[i],:] += dy[i,:]`, in the order of `i` (`N D` flops).
///
/// # Panics
/// As [`gather_rows`].
pub fn scatter_add_rows(dx: &mut [f32], dy: &[f32], rows: &[u32], d: usize) {
    check("scatter_add_rows", dy.len(), dx.len(), rows, d);
    let dx = SharedMut::new(dx);
    // Split over columns: several entries of `rows` may name one row, and each sum keeps its order.
    for_rows(d.div_ceil(COLUMNS_PER_TASK), rows.len() * COLUMNS_PER_TASK, |blocks| {
        let (start, end) = (blocks.start * COLUMNS_PER_TASK, d.min(blocks.end * COLUMNS_PER_TASK));
        for (dy, &row) in dy.chunks_exact(d).zip(rows) {
            let at = row as usize * d;
            // SAFETY: blocks of columns are disjoint.
            let dx = unsafe { dx.part(at + start..at + end) };
            dx.iter_mut().zip(&dy[start..end]).for_each(|(dx, dy)| *dx += dy);
        }
    });
}

/// `y[rows[i],:] = x[i,:]` for `x: [N,D]`, `y: [M,D]`, `rows: [N]`, all different: new keys and values into their rows
/// of a cache.
///
/// # Panics
/// If a length does not fit the shapes or an index is not below `M`.
pub fn scatter_rows(y: &mut [f32], x: &[f32], rows: &[u32], d: usize) {
    check("scatter_rows", x.len(), y.len(), rows, d);
    for (x, &row) in x.chunks_exact(d.max(1)).zip(rows) {
        y[row as usize * d..][..d].copy_from_slice(x);
    }
}

/// `y[i,j] = x[i, columns[j]]` for `x: [N,D]`, `y: [N,J]`, `columns: [J]`: the scores of some tokens.
///
/// # Panics
/// If a length does not fit the shapes or an index is not below `D`.
pub fn gather_columns(y: &mut [f32], x: &[f32], columns: &[u32], n: usize) {
    let (j, d) = (columns.len(), check_columns("gather_columns", y.len(), x.len(), columns, n));
    let y = SharedMut::new(y);
    for_rows(n, j, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(i * j..(i + 1) * j) };
            y.iter_mut().zip(columns).for_each(|(y, &column)| *y = x[i * d + column as usize]);
        }
    });
}

/// `y[i, columns[j]] = x[i,j] + bias[columns[j]]` for `x: [N,J]`, `y: [N,D]`, `bias: [D]` (zeros where there is none),
/// `columns: [J]`: the scores of some tokens put in place of others. `N J` flops.
///
/// # Panics
/// If a length does not fit the shapes or an index is not below `D`.
pub fn replace_columns(y: &mut [f32], x: &[f32], bias: Option<&[f32]>, columns: &[u32], n: usize) {
    let (j, d) = (columns.len(), check_columns("replace_columns", x.len(), y.len(), columns, n));
    assert!(bias.is_none_or(|bias| bias.len() == d), "replace_columns: the bias does not have {d} values");
    let y = SharedMut::new(y);
    for_rows(n, j, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(i * d..(i + 1) * d) };
            for (&column, x) in columns.iter().zip(&x[i * j..]) {
                let column = column as usize;
                y[column] = x + bias.map_or(0.0, |bias| bias[column]);
            }
        }
    });
}

/// `y[i,j] = x[j, ids[i]]` for `x: [R,V]`, `y: [N,R]`, `ids: [N]`: columns of a matrix as rows, which is `A` of a
/// LoRA on an embedding.
///
/// # Panics
/// If a length does not fit the shapes or an id is not below `V`.
pub fn gather_transposed(y: &mut [f32], x: &[f32], ids: &[u32], r: usize) {
    let v = check_transposed("gather_transposed", y.len(), x.len(), ids, r);
    let y = SharedMut::new(y);
    for_rows(ids.len(), r, |part| {
        for i in part {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(i * r..(i + 1) * r) };
            y.iter_mut().enumerate().for_each(|(j, y)| *y = x[j * v + ids[i] as usize]);
        }
    });
}

/// Backward of [`gather_transposed`]: `dx[j, ids[i]] += dy[i,j]`, in the order of `i` (`N R` flops).
///
/// # Panics
/// As [`gather_transposed`].
pub fn gather_transposed_backward(dx: &mut [f32], dy: &[f32], ids: &[u32], r: usize) {
    let v = check_transposed("gather_transposed_backward", dy.len(), dx.len(), ids, r);
    for (dy, &id) in dy.chunks_exact(r.max(1)).zip(ids) {
        dy.iter().enumerate().for_each(|(j, dy)| dx[j * v + id as usize] += dy);
    }
}

fn check(kernel: &str, picked: usize, all: usize, rows: &[u32], d: usize) {
    let n = rows.len();
    assert_eq!(picked, n * d, "{kernel}: {picked} values, not {n} x {d}");
    for (i, &row) in rows.iter().enumerate() {
        assert!((row as usize + 1) * d <= all, "{kernel}: row {row} (entry {i}) is outside {all} values");
    }
}

/// The number of columns, `D`.
fn check_columns(kernel: &str, picked: usize, all: usize, columns: &[u32], n: usize) -> usize {
    let (j, d) = (columns.len(), all / n.max(1));
    assert!(picked == n * j && all == n * d, "{kernel}: {picked} and {all} values in {n} rows, {j} columns");
    for &column in columns {
        assert!((column as usize) < d || n == 0, "{kernel}: column {column} is not below {d}");
    }
    d
}

/// The number of columns, `V`.
fn check_transposed(kernel: &str, picked: usize, all: usize, ids: &[u32], r: usize) -> usize {
    let (n, v) = (ids.len(), all / r.max(1));
    assert!(picked == n * r && all == r * v, "{kernel}: {picked} and {all} values, rank {r}, {n} ids");
    for &id in ids {
        assert!((id as usize) < v || r == 0, "{kernel}: id {id} is not below {v}");
    }
    v
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_transpose, values};

    #[test]
    fn rows() {
        for (n, m, d) in [(3, 5, 2), (700, 90, 257)] {
            let rows: Vec<u32> = (0..n).map(|i| (i * 37 % m) as u32).collect();
            let (x, dy) = (values(m * d, 1), values(n * d, 2));
            let (mut y, mut dx) = (vec![f32::NAN; n * d], vec![0.0; m * d]);
            gather_rows(&mut y, &x, &rows, d);
            for (y, &row) in y.chunks(d).zip(&rows) {
                assert_eq!(y, &x[row as usize * d..][..d]);
            }
            scatter_add_rows(&mut dx, &dy, &rows, d);
            assert_transpose(&x, &dx, &y, &dy);
        }
    }

    #[test]
    fn rows_into_their_places() {
        let mut y = [0.0; 8];
        scatter_rows(&mut y, &[1.0, 2.0, 3.0, 4.0], &[3, 1], 2);
        assert_eq!(y, [0.0, 0.0, 3.0, 4.0, 0.0, 0.0, 1.0, 2.0]);
    }

    #[test]
    fn columns() {
        let (n, d, columns) = (3, 5, [4, 0]);
        let (x, bias) = (values(n * d, 1), values(d, 2));
        let mut z = vec![f32::NAN; n * 2];
        gather_columns(&mut z, &x, &columns, n);
        let mut y = x.clone();
        replace_columns(&mut y, &z, Some(&bias), &columns, n);
        for i in 0..n {
            assert_eq!(z[2 * i..2 * i + 2], [x[i * d + 4], x[i * d]]);
            assert_eq!(y[i * d + 4], x[i * d + 4] + bias[4]);
            assert_eq!(y[i * d], x[i * d] + bias[0]);
            assert_eq!(y[i * d + 1..i * d + 4], x[i * d + 1..i * d + 4]);
        }
        replace_columns(&mut y, &z, None, &columns, n);
        assert_eq!(y, x);
    }

    #[test]
    fn columns_as_rows() {
        let (r, v, ids) = (3, 7, [6, 0, 6, 2]);
        let (x, dy) = (values(r * v, 1), values(ids.len() * r, 2));
        let (mut y, mut dx) = (vec![f32::NAN; ids.len() * r], vec![0.0; r * v]);
        gather_transposed(&mut y, &x, &ids, r);
        assert_eq!(y[..r], [x[6], x[13], x[20]]);
        gather_transposed_backward(&mut dx, &dy, &ids, r);
        assert_transpose(&x, &dx, &y, &dy);
    }

    #[test]
    #[should_panic(expected = "row 3 (entry 1) is outside 6 values")]
    fn a_row_outside_is_refused() {
        gather_rows(&mut [0.0; 4], &[0.0; 6], &[2, 3], 2);
    }
}
