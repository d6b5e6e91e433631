//! LoRA on a convolution of one to three axes, as loralib's `ConvLoRA`: a layer of its own, outside of any model.
//!
//! The product `B A` is read as the weight's change, number by number:
//! `y = conv(x, W0 + (alpha / r) reshape(B A)) + b`, with `W0: [O, C/groups, k, ...]`, `A: [r k, C k]` and
//! `B: [O/groups k^(axes - 1), r k]`. With two axes that is loralib's (`loralib/layers.py`, `ConvLoRA`); with one or
//! three, its `B` has one `k` too many or too few for the weight, and this is what fits.

use lowrank_engine::kernels::{self, Window, patches, patches_backward};
use lowrank_kernels::{MatMut, MatRef};

use crate::error::Error;

/// Sizes of a [`ConvLora`]. The kernel has the same size along every axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ConvConfig {
    /// `C`.
    pub in_channels: usize,
    /// `O`.
    pub out_channels: usize,
    /// `k`.
    pub kernel_size: usize,
    /// Steps of the kernel.
    pub stride: usize,
    /// Zeros on each side of the input.
    pub padding: usize,
    /// Steps within the kernel.
    pub dilation: usize,
    /// Groups of channels that are apart.
    pub groups: usize,
    /// Rank.
    pub r: usize,
    /// The change is scaled by `alpha / r`.
    pub lora_alpha: f64,
    /// Whether [`ConvLora::eval`] merges.
    pub merge_weights: bool,
}

impl Default for ConvConfig {
    /// loralib's and PyTorch's defaults, with rank 8; the channels and the kernel size must be said.
    fn default() -> Self {
        Self {
            in_channels: 0,
            out_channels: 0,
            kernel_size: 0,
            stride: 1,
            padding: 0,
            dilation: 1,
            groups: 1,
            r: 8,
            lora_alpha: 1.0,
            merge_weights: true,
        }
    }
}

/// A frozen convolution of `AXES` axes with its LoRA.
///
/// ```
/// use lowrank_adapters::{ConvConfig, ConvLora};
///
/// # fn main() -> Result<(), lowrank_adapters::Error> {
/// let config = ConvConfig { in_channels: 2, out_channels: 4, kernel_size: 3, padding: 1, r: 2, ..Default::default() };
/// let mut conv = ConvLora::<2>::new(config, vec![0.1; 4 * 2 * 3 * 3], None, 42)?;
/// let (x, size) = (vec![1.0; 2 * 5 * 6], [5, 6]); // one picture of 2 channels, 5 x 6
/// let y = conv.forward(&x, size)?;
/// assert_eq!(y.len(), 4 * 5 * 6);
///
/// let grads = conv.backward(&x, size, &vec![1.0; y.len()])?; // of the sum of y
/// conv.b.iter_mut().zip(&grads.b).for_each(|(b, db)| *b -= 1e-3 * db);
/// conv.eval(); // merged: forward costs what the convolution alone costs
/// conv.train(); // and out again, to the same bits
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct ConvLora<const AXES: usize> {
    /// `A: [r k, C k]`, random at the start.
    pub a: Vec<f32>,
    /// `B: [O/groups k^(AXES - 1), r k]`, zero at the start.
    pub b: Vec<f32>,
    config: ConvConfig,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    merged: Option<Vec<f32>>,
}

/// Gradients of [`ConvLora::backward`].
#[derive(Clone, Debug)]
pub struct ConvGrads {
    /// Of the input.
    pub x: Vec<f32>,
    /// Of `A`.
    pub a: Vec<f32>,
    /// Of `B`.
    pub b: Vec<f32>,
}

impl<const AXES: usize> ConvLora<AXES> {
    /// The layer over `weight: [O, C/groups, k, ...]` and `bias: [O]`: `A` uniform as PyTorch's linear layers
    /// start (`kaiming_uniform_(a=sqrt(5))`), `B` zero.
    ///
    /// # Errors
    /// Where a size is zero or does not fit the others.
    pub fn new(
        config: ConvConfig,
        weight: Vec<f32>,
        bias: Option<Vec<f32>>,
        seed: u64,
    ) -> Result<Self, Error> {
        const { assert!(1 <= AXES && AXES <= 3, "one to three axes") };
        let ConvConfig { in_channels: c, out_channels: o, kernel_size: k, groups, r, .. } = config;
        let wrong = |what: String| Err(Error::Config(format!("convolution: {what}")));
        for (name, value) in [
            ("in_channels", c),
            ("out_channels", o),
            ("kernel_size", k),
            ("stride", config.stride),
            ("dilation", config.dilation),
            ("groups", groups),
            ("r", r),
        ] {
            if value == 0 {
                return wrong(format!("{name} must be at least 1"));
            }
        }
        if !c.is_multiple_of(groups) || !o.is_multiple_of(groups) {
            return wrong(format!("{groups} groups do not divide {c} input and {o} output channels"));
        }
        if !config.lora_alpha.is_finite() {
            return wrong(format!("lora_alpha is {}", config.lora_alpha));
        }
        let numbers = o * (c / groups) * k.pow(AXES as u32);
        if weight.len() != numbers {
            return wrong(format!("the weight has {} numbers, its shape has {numbers}", weight.len()));
        }
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != o) {
            return wrong(format!("the bias has {} numbers for {o} output channels", bias.len()));
        }
        let mut a = vec![0.0; r * k * c * k];
        let bound = 1.0 / ((c * k) as f32).sqrt();
        kernels::uniform(&mut a, -bound, bound, seed, crate::init::STREAM);
        let b = vec![0.0; numbers / (c * k) * (r * k)];
        Ok(Self { a, b, config, weight, bias, merged: None })
    }

    /// `alpha / r`.
    pub fn scaling(&self) -> f32 {
        (self.config.lora_alpha / self.config.r as f64) as f32
    }

    /// Sizes of the output for an input of `size`.
    ///
    /// # Errors
    /// Where the kernel is larger than the padded input.
    pub fn output_size(&self, size: [usize; AXES]) -> Result<[usize; AXES], Error> {
        let out = self.window(size).output().ok_or_else(|| {
            let ConvConfig { kernel_size, padding, dilation, .. } = self.config;
            let kernel = format!("a kernel of {kernel_size} with padding {padding} and dilation {dilation}");
            Error::Config(format!("convolution: {kernel} does not fit an input of {size:?}"))
        })?;
        Ok(std::array::from_fn(|axis| out[3 - AXES + axis]))
    }

    /// For use alone: merges, so that [`ConvLora::forward`] costs what the base alone costs (loralib's `eval()`).
    pub fn eval(&mut self) {
        if self.config.merge_weights {
            self.merged = Some(self.adapted());
        }
    }

    /// For training: takes the adapter out again. The base's weight was never touched, so it is the same to the bit.
    pub fn train(&mut self) {
        self.merged = None;
    }

    /// Whether the adapter is merged. Changes of `a` and `b` have no effect until [`ConvLora::train`] then.
    pub fn is_merged(&self) -> bool {
        self.merged.is_some()
    }

    /// `W0 + s reshape(B A)`.
    pub fn adapted(&self) -> Vec<f32> {
        let ConvConfig { in_channels: c, kernel_size: k, r, .. } = self.config;
        let (mut w, cols) = (self.weight.clone(), c * k);
        let (a, b) = (MatRef::row_major(&self.a, cols), MatRef::row_major(&self.b, r * k));
        kernels::gemm(
            w.len() / cols,
            cols,
            r * k,
            self.scaling(),
            b,
            a,
            1.0,
            MatMut::row_major(&mut w, cols),
        );
        w
    }

    /// `y: [N, O, ...]` for `x: [N, C, size]`.
    ///
    /// # Errors
    /// As [`ConvLora::output_size`], and where `x` is no whole number of inputs.
    pub fn forward(&self, x: &[f32], size: [usize; AXES]) -> Result<Vec<f32>, Error> {
        let (window, places) = self.checked(x, size)?;
        let weight = self.merged.clone().unwrap_or_else(|| self.adapted());
        let Shape { o, inner, outer, groups, image, .. } = self.shape(&window);
        let mut wide = vec![0.0; groups * inner * places];
        let mut y = vec![0.0; x.len() / image * o * places];
        for (x, y) in x.chunks_exact(image).zip(y.chunks_exact_mut(o * places)) {
            patches(&mut wide, x, self.config.in_channels, &window);
            for g in 0..groups {
                let w = MatRef::row_major(&weight[g * outer * inner..], inner);
                let part = MatRef::row_major(&wide[g * inner * places..], places);
                let y = MatMut::row_major(&mut y[g * outer * places..][..outer * places], places);
                kernels::gemm(outer, places, inner, 1.0, w, part, 0.0, y);
            }
            if let Some(bias) = &self.bias {
                let channels = y.chunks_exact_mut(places).zip(bias);
                channels.for_each(|(y, bias)| y.iter_mut().for_each(|y| *y += bias));
            }
        }
        Ok(y)
    }

    /// The gradients for `dy: [N, O, ...]`: with `dW` that of the weight, `dB = s dW A^T` and `dA = s B^T dW`. The
    /// weight and the bias are frozen.
    ///
    /// # Errors
    /// As [`ConvLora::forward`], where `dy` has another size than `y`, and where the adapter is merged.
    pub fn backward(&self, x: &[f32], size: [usize; AXES], dy: &[f32]) -> Result<ConvGrads, Error> {
        let wrong = |what: String| Err(Error::Config(format!("convolution: {what}")));
        if self.is_merged() {
            return wrong("the adapter is merged: call train() before training".into());
        }
        let (window, places) = self.checked(x, size)?;
        let Shape { o, inner, outer, groups, image } = self.shape(&window);
        if dy.len() != x.len() / image * o * places {
            return wrong(format!("dy has {} numbers, y has {}", dy.len(), x.len() / image * o * places));
        }
        let weight = self.adapted();
        let (mut wide, mut dwide) = (vec![0.0; groups * inner * places], vec![0.0; groups * inner * places]);
        let (mut dx, mut dw) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
        let images = x.chunks_exact(image).zip(dx.chunks_exact_mut(image));
        for ((x, dx), dy) in images.zip(dy.chunks_exact(o * places)) {
            patches(&mut wide, x, self.config.in_channels, &window);
            for g in 0..groups {
                let dy = MatRef::row_major(&dy[g * outer * places..], places);
                let part = MatRef::row_major(&wide[g * inner * places..], places);
                let dw = MatMut::row_major(&mut dw[g * outer * inner..][..outer * inner], inner);
                kernels::gemm(outer, inner, places, 1.0, dy, part.t(), 1.0, dw);
                let w = MatRef::row_major(&weight[g * outer * inner..], inner);
                let dpart = MatMut::row_major(&mut dwide[g * inner * places..][..inner * places], places);
                kernels::gemm(inner, places, outer, 1.0, w.t(), dy, 0.0, dpart);
            }
            patches_backward(dx, &dwide, self.config.in_channels, &window);
        }
        let ConvConfig { in_channels: c, kernel_size: k, r, .. } = self.config;
        let (cols, rank, s) = (c * k, r * k, self.scaling());
        let (rows, mut da, mut db) = (dw.len() / cols, vec![0.0; self.a.len()], vec![0.0; self.b.len()]);
        let change = MatRef::row_major(&dw, cols);
        let (a, b) = (MatRef::row_major(&self.a, cols), MatRef::row_major(&self.b, rank));
        kernels::gemm(rows, rank, cols, s, change, a.t(), 0.0, MatMut::row_major(&mut db, rank));
        kernels::gemm(rank, cols, rows, s, b.t(), change, 0.0, MatMut::row_major(&mut da, cols));
        Ok(ConvGrads { x: dx, a: da, b: db })
    }

    fn window(&self, size: [usize; AXES]) -> Window {
        let ConvConfig { kernel_size, stride, padding, dilation, .. } = self.config;
        let along = |other: usize, value: usize| -> [usize; 3] {
            std::array::from_fn(|axis| if axis < 3 - AXES { other } else { value })
        };
        Window {
            size: std::array::from_fn(|axis| if axis < 3 - AXES { 1 } else { size[axis + AXES - 3] }),
            kernel: along(1, kernel_size),
            stride: along(1, stride),
            padding: along(0, padding),
            dilation: along(1, dilation),
        }
    }

    /// The window over an input and the places of its output.
    fn checked(&self, x: &[f32], size: [usize; AXES]) -> Result<(Window, usize), Error> {
        let places = self.output_size(size)?.iter().product();
        let image = self.config.in_channels * size.iter().product::<usize>();
        if !x.len().is_multiple_of(image) {
            let what = format!("{} numbers are no whole number of inputs of {image}", x.len());
            return Err(Error::Config(format!("convolution: {what}")));
        }
        Ok((self.window(size), places))
    }

    fn shape(&self, window: &Window) -> Shape {
        let ConvConfig { in_channels: c, out_channels: o, kernel_size: k, groups, .. } = self.config;
        let (inner, image) = (c / groups * k.pow(AXES as u32), c * window.size.iter().product::<usize>());
        Shape { o, inner, outer: o / groups, groups, image }
    }
}

/// Sizes of the products.
struct Shape {
    o: usize,
    /// Numbers that one output reads.
    inner: usize,
    /// Output channels of a group.
    outer: usize,
    groups: usize,
    /// Numbers of one input.
    image: usize,
}
