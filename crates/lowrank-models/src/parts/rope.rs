//! Rotary position embeddings and their scalings, as `transformers/modeling_rope_utils.py` computes
//! them: linear, dynamic NTK, yarn (Peng et al. 2023), llama3, longrope (Ding et al. 2024).

use std::f32::consts::PI;

use lowrank_engine::{Device, Rope};
use serde::Deserialize;

use crate::{Error, Result};

/// `rope_scaling` of a configuration.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct RopeScaling {
    rope_type: Option<String>,
    /// The old name; some files have both.
    r#type: Option<String>,
    factor: Option<f64>,
    original_max_position_embeddings: Option<usize>,
    attention_factor: Option<f64>,
    beta_fast: Option<f64>,
    beta_slow: Option<f64>,
    low_freq_factor: Option<f64>,
    high_freq_factor: Option<f64>,
    mscale: Option<f64>,
    mscale_all_dim: Option<f64>,
    truncate: Option<bool>,
    short_factor: Option<Vec<f64>>,
    long_factor: Option<Vec<f64>>,
}

impl RopeScaling {
    /// Phi-3 keeps the trained length beside the scaling, and calls longrope `su` or `yarn` in old files.
    pub(crate) fn complete_longrope(&mut self, original: Option<usize>) {
        self.original_max_position_embeddings = self.original_max_position_embeddings.or(original);
        if matches!(self.kind(), "su" | "yarn") {
            self.rope_type = Some("longrope".to_owned());
        }
    }

    fn kind(&self) -> &str {
        self.rope_type.as_deref().or(self.r#type.as_deref()).unwrap_or("default")
    }
}

/// Frequencies of the rotary pairs of a head.
#[derive(Clone, Debug)]
pub struct RopeTable {
    dim: usize,
    theta: f64,
    inverse: Vec<f32>,
    /// Multiplies cosines and sines (yarn).
    attention_factor: f32,
    dynamic: Option<Dynamic>,
    long: Option<Long>,
}

/// Longrope: sequences longer than the trained length have frequencies of their own.
#[derive(Clone, Debug)]
struct Long {
    original: usize,
    inverse: Vec<f32>,
}

/// Dynamic NTK: the base grows with the sequence once that is longer than the model was made for.
#[derive(Clone, Copy, Debug)]
struct Dynamic {
    factor: f64,
    max_positions: usize,
}

impl RopeTable {
    /// The frequencies of `dim` rotated numbers per head: `theta^(-2i/dim)`, scaled.
    ///
    /// # Errors
    /// Where the scaling is unknown or lacks a field.
    pub fn new(dim: usize, theta: f64, max_positions: usize, scaling: Option<&RopeScaling>) -> Result<Self> {
        let plain = inverse(dim, theta);
        let mut table = Self { dim, theta, inverse: plain, attention_factor: 1.0, dynamic: None, long: None };
        let Some(s) = scaling else { return Ok(table) };
        let kind = s.kind();
        let need = |value: Option<f64>, name: &str| {
            value
                .filter(|v| v.is_finite() && *v > 0.0)
                .ok_or_else(|| Error::Config(format!("rope_scaling of type {kind} needs a positive {name}")))
        };
        let original = s.original_max_position_embeddings.unwrap_or(max_positions);
        match kind {
            "default" | "mrope" => {}
            "linear" => {
                let factor = need(s.factor, "factor")? as f32;
                table.inverse.iter_mut().for_each(|f| *f /= factor);
            }
            "dynamic" => {
                table.dynamic = Some(Dynamic { factor: need(s.factor, "factor")?, max_positions });
            }
            "yarn" => {
                let factor = match s.factor {
                    None => max_positions as f64 / original as f64,
                    factor => need(factor, "factor")?,
                };
                table.yarn(s, factor, original);
            }
            "llama3" => {
                let factor = need(s.factor, "factor")? as f32;
                let low = need(s.low_freq_factor, "low_freq_factor")? as f32;
                let high = need(s.high_freq_factor, "high_freq_factor")? as f32;
                table.llama3(factor, low, high, original as f32);
            }
            "longrope" => {
                let factor = match s.factor {
                    None => max_positions as f64 / original as f64,
                    factor => need(factor, "factor")?,
                };
                table.longrope(s, factor, original)?;
            }
            other => {
                let known = "default, linear, dynamic, yarn, llama3, longrope";
                return Err(Error::Config(format!(
                    "rope_scaling type {other:?} is not known; known are {known}"
                )));
            }
        }
        Ok(table)
    }

    /// Divides each frequency by its own factor, as llama.cpp's `rope_freqs` asks for.
    pub fn divide(&mut self, factors: &[f32]) {
        self.inverse.iter_mut().zip(factors).for_each(|(f, by)| *f /= by);
    }

    /// Number of rotary pairs.
    pub fn pairs(&self) -> usize {
        self.dim / 2
    }

    fn yarn(&mut self, s: &RopeScaling, factor: f64, original: usize) {
        let (dim, base) = (self.dim as f64, self.theta);
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        self.attention_factor = match (s.attention_factor, s.mscale, s.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
            _ => mscale(1.0),
        } as f32;
        // The pair that turns `rotations` times within the original length.
        let turning = |rotations: f64| {
            dim * (original as f64 / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
        };
        let fast = s.beta_fast.filter(|b| *b != 0.0).unwrap_or(32.0);
        let slow = s.beta_slow.filter(|b| *b != 0.0).unwrap_or(1.0);
        let (mut low, mut high) = (turning(fast), turning(slow));
        if s.truncate.unwrap_or(true) {
            (low, high) = (low.floor(), high.ceil());
        }
        let (low, mut high) = (low.max(0.0) as f32, high.min(dim - 1.0) as f32);
        if low == high {
            high += 0.001;
        }
        for (i, f) in self.inverse.iter_mut().enumerate() {
            let keep = 1.0 - ((i as f32 - low) / (high - low)).clamp(0.0, 1.0);
            *f = (*f / factor as f32) * (1.0 - keep) + *f * keep;
        }
    }

    fn llama3(&mut self, factor: f32, low: f32, high: f32, original: f32) {
        for f in &mut self.inverse {
            let wavelength = 2.0 * PI / *f;
            if wavelength > original / low {
                *f /= factor;
            } else if wavelength >= original / high {
                let smooth = (original / wavelength - low) / (high - low);
                *f = (1.0 - smooth) * *f / factor + smooth * *f;
            }
        }
    }

    fn longrope(&mut self, s: &RopeScaling, factor: f64, original: usize) -> Result<()> {
        let plain = self.inverse.clone();
        let divided = |by: &Option<Vec<f64>>, name: &str| {
            let pairs = plain.len();
            let by = by.as_ref().filter(|by| by.len() == pairs).ok_or_else(|| {
                Error::Config(format!("rope_scaling of type longrope needs a {name} of {pairs} numbers"))
            })?;
            Ok::<_, Error>(plain.iter().zip(by).map(|(f, by)| f / *by as f32).collect())
        };
        self.inverse = divided(&s.short_factor, "short_factor")?;
        self.long = Some(Long { original, inverse: divided(&s.long_factor, "long_factor")? });
        self.attention_factor = match s.attention_factor {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / (original as f64).ln()).sqrt(),
        } as f32;
        Ok(())
    }

    /// Cosines and sines of `positions`, `[N, pairs]` each; `lengths` are those of the rows' sequences.
    pub fn at(&self, device: &Device, positions: &[u32], lengths: &[u32]) -> Rope {
        let (n, pairs) = (positions.len(), self.pairs());
        let (mut cos, mut sin) = (device.alloc(n, pairs), device.alloc(n, pairs));
        // The frequencies of each row are one of several sets, by the length of its sequence.
        let mut frequencies = self.inverse.clone();
        let mut sets = Vec::with_capacity(n);
        let (mut lengths_of, mut last) = (Vec::new(), (0, 0));
        let add = |frequencies: &mut Vec<f32>, set: &[f32]| {
            frequencies.extend_from_slice(set);
            (frequencies.len() / set.len() - 1) as u32
        };
        for &length in lengths {
            if last.0 != length {
                last = match (self.dynamic, &self.long) {
                    (Some(d), _) if length as usize > d.max_positions => {
                        let known = lengths_of.iter().find(|(known, _)| *known == length);
                        let set = known.map_or_else(
                            || add(&mut frequencies, &self.grown(d, length)),
                            |(_, set): &(u32, u32)| *set,
                        );
                        lengths_of.push((length, set));
                        (length, set)
                    }
                    (_, Some(long)) if length as usize > long.original => {
                        let known = lengths_of.first().map(|(_, set)| *set);
                        let set = known.unwrap_or_else(|| add(&mut frequencies, &long.inverse));
                        lengths_of.push((length, set));
                        (length, set)
                    }
                    _ => (length, 0),
                };
            }
            sets.push(last.1);
        }
        device.rope_table(&mut cos, &mut sin, positions, &sets, &frequencies, self.attention_factor);
        Rope { cos, sin }
    }

    /// Frequencies of a sequence that is longer than the model was made for.
    fn grown(&self, d: Dynamic, length: u32) -> Vec<f32> {
        let ratio = f64::from(length) / d.max_positions as f64;
        let power = self.dim as f64 / (self.dim as f64 - 2.0);
        inverse(self.dim, self.theta * (d.factor * ratio - (d.factor - 1.0)).powf(power))
    }
}

fn inverse(dim: usize, theta: f64) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / dim as f32;
    (0..dim / 2).map(|i| 1.0 / (theta as f32).powf(exponent(i))).collect()
}
