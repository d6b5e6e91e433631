//! Rows of an embedding table.

use crate::WeightRef;
use crate::parallel::{SharedMut, for_rows};

/// `y[i,:] = W[ids[i],:]` as f32, for `y: [N,D]` and `W: [V,D]` in any format.
///
/// # Panics
/// If a length does not fit the shapes or an id is not below the rows of the table.
pub fn embedding(y: &mut [f32], ids: &[u32], w: &WeightRef<'_>, n: usize) {
    assert_eq!(ids.len(), n, "embedding: {} ids for {n} tokens", ids.len());
    let d = w.cols;
    assert_eq!(y.len(), n * d, "embedding: y has {} values, not {n} x {d}", y.len());
    for (i, &id) in ids.iter().enumerate() {
        assert!(
            (id as usize) < w.rows,
            "embedding: id {id} of token {i} is not below the table's {} rows",
            w.rows
        );
    }
    let y = SharedMut::new(y);
    for_rows(n, 4 * d, |r| {
        for i in r {
            // SAFETY: rows are disjoint.
            w.expand(ids[i] as usize, 0..d, unsafe { y.part(i * d..(i + 1) * d) });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Format, RowOrder};

    #[test]
    fn picks_rows() {
        let (rows, d) = (50, 37);
        let table: Vec<f32> = (0..rows * d).map(|i| i as f32 / 8.0).collect();
        let ids: Vec<u32> = (0..2000).map(|i| i * 7 % 50).collect();
        let mut y = vec![f32::NAN; ids.len() * d];
        embedding(&mut y, &ids, &WeightRef::from_f32(rows, d, &table), ids.len());
        for (y, &id) in y.chunks(d).zip(&ids) {
            assert_eq!(y, &table[id as usize * d..][..d]);
        }
        let halves: Vec<u8> =
            (0..rows * 4).flat_map(|i| half::f16::from_f32(i as f32).to_le_bytes()).collect();
        let w = WeightRef { format: Format::F16, rows, cols: 4, order: RowOrder::Plain, bytes: &halves };
        let mut y = [f32::NAN; 8];
        embedding(&mut y, &[3, 49], &w, 2);
        assert_eq!(y, [12.0, 13.0, 14.0, 15.0, 196.0, 197.0, 198.0, 199.0]);
    }
}
