//! How much of one adapter's subspace lies in another's (Hu et al. 2021, section 7.2 and appendix G).

use std::path::Path;

use lowrank_adapters::linalg;
use lowrank_engine::kernels;
use lowrank_tools::{Options, Pair, formats};

use crate::error::{Error, Result};

/// The adapted layers of the LoRA folder `dir` whose module path is or ends with one of `modules`.
///
/// # Errors
/// Where the folder holds no LoRA, or no such module.
pub fn pairs(dir: &Path, modules: &[String]) -> Result<Vec<(String, Pair)>> {
    let lora = formats::read(dir, formats::peft::FORMAT, &Options::default())?;
    let wanted = |path: &str| modules.iter().any(|m| path == m || path.ends_with(&format!(".{m}")));
    let mut found: Vec<(String, Pair)> = lora.pairs.into_iter().filter(|(path, _)| wanted(path)).collect();
    if found.is_empty() {
        return Err(Error::file(dir, format!("it adapts no module {}", modules.join(", "))));
    }
    found.sort_by(|a, b| natural(&a.0).cmp(&natural(&b.0)));
    Ok(found)
}

/// Sorts `layers.2` before `layers.10`.
fn natural(path: &str) -> Vec<(u64, &str)> {
    path.split('.').map(|part| (part.parse().unwrap_or_default(), part)).collect()
}

/// `phi(i, j) = ||U_i^T V_j||_F^2 / min(i, j)`, the Grassmann similarity of the spaces spanned by the first `i`
/// right-singular vectors of `a: [m, K]` and the first `j` of `b: [n, K]`: 1 where one holds the other, 0 where they
/// are orthogonal. Returns `phi[i - 1][j - 1]` for `i` to `rows`, `j` to `cols` (at most the matrices' ranks).
///
/// # Errors
/// Where a number is not finite.
///
/// # Panics
/// Where the slices hold no whole number of rows of `inputs` numbers.
pub fn phi(a: &[f32], b: &[f32], inputs: usize, rows: usize, cols: usize) -> Result<Vec<Vec<f64>>> {
    let vectors = |x: &[f32]| linalg::svd(x.len() / inputs, inputs, x).map(|svd| svd.vt);
    let (u, v) = (vectors(a)?, vectors(b)?);
    let rows = rows.min(u.len() / inputs);
    let cols = cols.min(v.len() / inputs);
    let mut out = vec![vec![0.0; cols]; rows];
    for i in 0..rows {
        let mut along = 0.0;
        for j in 0..cols {
            let (u, v) = (&u[i * inputs..(i + 1) * inputs], &v[j * inputs..(j + 1) * inputs]);
            let dot: f64 = u.iter().zip(v).map(|(x, y)| f64::from(*x) * f64::from(*y)).sum();
            along += dot * dot;
            out[i][j] = along + if i > 0 { out[i - 1][j] } else { 0.0 };
        }
    }
    for (i, row) in out.iter_mut().enumerate() {
        for (j, value) in row.iter_mut().enumerate() {
            *value /= (i.min(j) + 1) as f64;
        }
    }
    Ok(out)
}

/// The same for two random Gaussian matrices of `m` and `n` rows: what chance alone gives.
///
/// # Errors
/// As [`phi`].
pub fn phi_gaussian(
    m: usize,
    n: usize,
    inputs: usize,
    rows: usize,
    cols: usize,
    seed: u64,
) -> Result<Vec<Vec<f64>>> {
    let random = |rows: usize, stream: u64| {
        let mut x = vec![0.0; rows * inputs];
        kernels::normal(&mut x, 0.0, 1.0, seed, stream);
        x
    };
    phi(&random(m, 0), &random(n, 1), inputs, rows, cols)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_space_is_like_itself_and_unlike_its_complement() {
        let mut a = vec![0.0; 3 * 6];
        let mut b = vec![0.0; 3 * 6];
        for i in 0..3 {
            a[i * 6 + i] = (3 - i) as f32;
            b[i * 6 + 3 + i] = (3 - i) as f32;
        }
        let same = phi(&a, &a, 6, 3, 3).unwrap();
        assert!(same.iter().flatten().all(|x| (x - 1.0).abs() < 1e-6), "{same:?}");
        let other = phi(&a, &b, 6, 3, 3).unwrap();
        assert!(other.iter().flatten().all(|x| x.abs() < 1e-6));
    }

    #[test]
    fn chance_gives_the_share_of_the_dimensions() {
        // The expected overlap of a random j-space with one direction in K dimensions is j / K.
        let random = phi_gaussian(4, 32, 64, 4, 32, 7).unwrap();
        assert!((random[3][31] - 0.5).abs() < 0.15, "{}", random[3][31]);
    }

    #[test]
    fn paths_are_sorted_by_their_numbers() {
        let mut paths = ["l.10.q", "l.2.q"];
        paths.sort_by_key(|p| natural(p));
        assert_eq!(paths, ["l.2.q", "l.10.q"]);
    }
}
