//! What a convolution reads, side by side, so that it is a matrix product (im2col).

/// How a convolution goes over an input of three axes; fewer axes have size, kernel and stride 1 in front.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// Sizes of the input.
    pub size: [usize; 3],
    /// Sizes of the kernel.
    pub kernel: [usize; 3],
    /// Steps of the kernel.
    pub stride: [usize; 3],
    /// Zeros on each side of the input.
    pub padding: [usize; 3],
    /// Steps within the kernel.
    pub dilation: [usize; 3],
}

impl Window {
    /// Sizes of the output: `(size + 2 padding - dilation (kernel - 1) - 1) / stride + 1`, or nothing where the kernel
    /// is larger than the padded input, or a step or a size is zero.
    pub fn output(&self) -> Option<[usize; 3]> {
        let mut out = [0; 3];
        for (axis, out) in out.iter_mut().enumerate() {
            let reach = self.dilation[axis].checked_mul(self.kernel[axis].checked_sub(1)?)?.checked_add(1)?;
            let padded = self.size[axis].checked_add(self.padding[axis].checked_mul(2)?)?;
            *out = padded.checked_sub(reach)?.checked_div(self.stride[axis])? + 1;
        }
        (self.size.iter().all(|size| *size > 0) && self.dilation.iter().all(|step| *step > 0)).then_some(out)
    }

    /// Calls `f(row, place, from)` for what each place of the output reads at each place of the kernel, by index.
    fn each(&self, mut f: impl FnMut(usize, usize, usize)) {
        let out = self.output().expect("a window that fits");
        let outputs = grid(out);
        for (row, k) in grid(self.kernel).enumerate() {
            for (place, at) in outputs.clone().enumerate() {
                let from = |axis: usize| {
                    let at = at[axis] * self.stride[axis] + k[axis] * self.dilation[axis];
                    at.checked_sub(self.padding[axis]).filter(|at| *at < self.size[axis])
                };
                if let (Some(a), Some(b), Some(c)) = (from(0), from(1), from(2)) {
                    f(row, place, (a * self.size[1] + b) * self.size[2] + c);
                }
            }
        }
    }
}

/// The places of a grid in order.
fn grid(size: [usize; 3]) -> impl Iterator<Item = [usize; 3]> + Clone {
    let [a, b, c] = size;
    (0..a * b * c).map(move |i| [i / (b * c), i / c % b, i % c])
}

/// `y[c K + k, p]` is the number of channel `c` that place `p` of the output meets at place `k` of the kernel, 0 in the
/// padding. `x: [C, size]`, `y: [C K, P]` with `K` places of the kernel and `P` of the output.
///
/// # Panics
/// If a length does not fit the shapes, or the window does not fit the input.
pub fn patches(y: &mut [f32], x: &[f32], channels: usize, window: &Window) {
    let (size, places, kernel) = check("patches", y.len(), x.len(), channels, window);
    y.fill(0.0);
    for (y, x) in y.chunks_exact_mut(kernel * places).zip(x.chunks_exact(size)) {
        window.each(|k, p, from| y[k * places + p] = x[from]);
    }
}

/// Backward of [`patches`]: `dx` is overwritten with the sum over the places that each number went to.
///
/// # Panics
/// As [`patches`].
pub fn patches_backward(dx: &mut [f32], dy: &[f32], channels: usize, window: &Window) {
    let (size, places, kernel) = check("patches_backward", dy.len(), dx.len(), channels, window);
    dx.fill(0.0);
    for (dy, dx) in dy.chunks_exact(kernel * places).zip(dx.chunks_exact_mut(size)) {
        window.each(|k, p, from| dx[from] += dy[k * places + p]);
    }
}

fn check(name: &str, wide: usize, narrow: usize, channels: usize, window: &Window) -> (usize, usize, usize) {
    let product = |sizes: [usize; 3]| sizes.iter().product::<usize>();
    let places = product(window.output().unwrap_or_else(|| panic!("{name}: {window:?} does not fit")));
    let (size, kernel) = (product(window.size), product(window.kernel));
    assert_eq!(narrow, channels * size, "{name}: {channels} channels of {size} numbers");
    assert_eq!(wide, channels * kernel * places, "{name}: {channels} channels, {kernel} x {places} numbers");
    (size, places, kernel)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_each_place_reads() {
        let window = Window {
            size: [1, 2, 3],
            kernel: [1, 2, 2],
            stride: [1, 1, 2],
            padding: [0, 1, 0],
            dilation: [1, 1, 1],
        };
        assert_eq!(window.output(), Some([1, 3, 1]));
        let mut y = vec![f32::NAN; 12];
        patches(&mut y, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], 1, &window);
        // Kernel places one below the other, output places from left to right.
        assert_eq!(y, [0.0, 1.0, 4.0, 0.0, 2.0, 5.0, 1.0, 4.0, 0.0, 2.0, 5.0, 0.0]);
    }

    #[test]
    fn the_backward_is_the_transpose() {
        for (stride, padding, dilation) in [(1, 0, 1), (2, 1, 1), (1, 2, 2)] {
            let window = Window {
                size: [3, 4, 5],
                kernel: [2, 3, 2],
                stride: [1, stride, stride],
                padding: [0, padding, padding],
                dilation: [1, 1, dilation],
            };
            let wide = 2 * 12 * window.output().unwrap().iter().product::<usize>();
            let x: Vec<f32> = (0..120).map(|i| (i * 7 % 11) as f32).collect();
            let dy: Vec<f32> = (0..wide).map(|i| (i * 5 % 13) as f32).collect();
            let (mut y, mut dx) = (vec![f32::NAN; wide], vec![f32::NAN; 120]);
            patches(&mut y, &x, 2, &window);
            patches_backward(&mut dx, &dy, 2, &window);
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f32>();
            assert_eq!(dot(&y, &dy), dot(&x, &dx));
        }
    }

    #[test]
    fn windows_that_do_not_fit() {
        let good =
            Window { size: [1, 1, 4], kernel: [1, 1, 3], stride: [1; 3], padding: [0; 3], dilation: [1; 3] };
        assert_eq!(good.output(), Some([1, 1, 2]));
        for bad in [
            Window { kernel: [1, 1, 5], ..good },
            Window { kernel: [1, 1, 0], ..good },
            Window { stride: [1, 1, 0], ..good },
            Window { dilation: [1, 1, 2], ..good },
            Window { dilation: [1, 0, 1], ..good },
            Window { size: [0, 1, 4], ..good },
            Window { padding: [0, 0, usize::MAX], ..good },
        ] {
            assert_eq!(bad.output(), None, "{bad:?}");
        }
    }
}
