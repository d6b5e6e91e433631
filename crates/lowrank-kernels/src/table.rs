//! Rows of a trained table in place of an embedding's own.

use crate::WeightRef;
use crate::parallel::{SharedMut, for_rows};

/// `y[i,:] = scale T[rows[i],:]` where `rows[i]` names a row, else `y[i,:]` stays, for `T: [M,D]`, `y: [N,D]`,
/// `rows: [N]`. `N D` flops.
///
/// # Panics
/// If a length does not fit the shapes or a row is outside `T`.
pub fn table_lookup(y: &mut [f32], table: &[f32], rows: &[Option<u32>], scale: f32, d: usize) {
    check("table_lookup", y.len(), table.len(), rows, d);
    let y = SharedMut::new(y);
    for_rows(rows.len(), d, |part| {
        for i in part {
            let Some(row) = rows[i] else { continue };
            let from = &table[row as usize * d..][..d];
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(i * d..(i + 1) * d) };
            y.iter_mut().zip(from).for_each(|(y, x)| *y = x * scale);
        }
    });
}

/// Backward of [`table_lookup`]: `dT[rows[i],:] += scale dy[i,:]`, in the order of `i`. `2 N D` flops.
///
/// # Panics
/// As [`table_lookup`].
pub fn table_lookup_backward(dtable: &mut [f32], dy: &[f32], rows: &[Option<u32>], scale: f32, d: usize) {
    check("table_lookup_backward", dy.len(), dtable.len(), rows, d);
    for (dy, row) in dy.chunks_exact(d.max(1)).zip(rows) {
        let Some(row) = row else { continue };
        let to = dtable[*row as usize * d..][..d].iter_mut();
        to.zip(dy).for_each(|(to, dy)| *to += scale * dy);
    }
}

/// `y[j,:] = T[j,:] - W[rows[j],:]` for `T, y: [M,D]`, `W: [V,D]` in any format, `rows: [M]`: what trained rows change
/// in a table. `M D` flops.
///
/// # Panics
/// If a length does not fit the shapes or a row is outside `W`.
pub fn table_change(y: &mut [f32], table: &[f32], w: &WeightRef<'_>, rows: &[u32]) {
    let (m, d) = (rows.len(), w.cols);
    assert!(
        y.len() == m * d && table.len() == m * d,
        "table_change: {} and {} values, not {m} x {d}",
        y.len(),
        table.len()
    );
    let y = SharedMut::new(y);
    for_rows(m, 4 * d, |part| {
        for j in part {
            // SAFETY: rows are disjoint.
            let y = unsafe { y.part(j * d..(j + 1) * d) };
            w.expand(rows[j] as usize, 0..d, y);
            y.iter_mut().zip(&table[j * d..]).for_each(|(y, own)| *y = own - *y);
        }
    });
}

fn check(kernel: &str, picked: usize, table: usize, rows: &[Option<u32>], d: usize) {
    let n = rows.len();
    assert_eq!(picked, n * d, "{kernel}: {picked} values, not {n} x {d}");
    for row in rows.iter().flatten() {
        assert!((*row as usize + 1) * d <= table, "{kernel}: row {row} is outside {table} values");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{assert_transpose, values};

    #[test]
    fn rows_and_their_gradient() {
        let (d, rows) = (4, [Some(2), None, Some(0), Some(2)]);
        let (table, dy) = (values(3 * d, 1), values(rows.len() * d, 2));
        let (mut y, mut dtable) = (vec![0.0; rows.len() * d], vec![0.0; table.len()]);
        table_lookup(&mut y, &table, &rows, 0.5, d);
        assert_eq!(y[d..2 * d], [0.0; 4]);
        assert!(y[..d].iter().zip(&table[2 * d..]).all(|(y, t)| *y == 0.5 * t));
        table_lookup_backward(&mut dtable, &dy, &rows, 0.5, d);
        assert_transpose(&table, &dtable, &y, &dy);
    }

    #[test]
    fn changes_of_rows() {
        let (d, rows) = (4, [1, 0]);
        let (own, base) = (values(2 * d, 1), values(3 * d, 2));
        let mut y = vec![f32::NAN; 2 * d];
        table_change(&mut y, &own, &WeightRef::from_f32(3, d, &base), &rows);
        for (j, row) in [1, 0].into_iter().enumerate() {
            for i in 0..d {
                assert_eq!(y[j * d + i], own[j * d + i] - base[row * d + i]);
            }
        }
    }
}
