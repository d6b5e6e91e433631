//! Rotary position embeddings and their scalings, as `transformers/modeling_rope_utils.py` computes
//! them: linear, dynamic NTK, yarn (Peng et al. 2023), llama3, longrope (Ding et al. 2024).

use std::f32::consts::PI;

use lowrank_engine::{Device, Rope};
use lowrank_files::shown;
use serde_json::{Map, Value};

use super::fields;
use crate::{Error, Result};

/// The rope of a model's layers, or of one kind of them, as transformers 5 completes `rope_parameters`.
#[derive(Clone, Debug)]
pub(crate) struct RopeParameters {
    /// Base of the frequencies.
    pub theta: f64,
    /// The kind of scaling: `rope_type`.
    pub kind: String,
    /// The share of a head that is rotated, where it is said.
    pub partial: Option<f64>,
    /// The length that the model was trained with; 0 for kinds that do not ask for it.
    pub original: f64,
    pub factor: Option<f64>,
    pub attention_factor: Option<f64>,
    pub beta_fast: Option<f64>,
    pub beta_slow: Option<f64>,
    pub low_freq_factor: Option<f64>,
    pub high_freq_factor: Option<f64>,
    pub mscale: Option<f64>,
    pub mscale_all_dim: Option<f64>,
    pub truncate: bool,
    pub short_factor: Option<Vec<f64>>,
    pub long_factor: Option<Vec<f64>>,
    /// Where it stands in `config.json`.
    at: String,
}

/// Fields of `config.json` that complete a rope: it has them where its own section does not.
pub(crate) struct Beside<'a> {
    pub theta: Option<&'a Value>,
    pub default_theta: f64,
    pub partial: Option<&'a Value>,
    /// Wins over the section's own.
    pub original: Option<&'a Value>,
    pub max_positions: usize,
}

impl<'a> Beside<'a> {
    /// The fields of most models.
    pub fn of(config: &'a Map<String, Value>) -> Self {
        Self {
            theta: config.get("rope_theta"),
            default_theta: 10_000.0,
            partial: config.get("partial_rotary_factor").filter(|share| !share.is_null()),
            original: config.get("original_max_position_embeddings"),
            max_positions: max_positions(config),
        }
    }
}

fn max_positions(config: &Map<String, Value>) -> usize {
    let length = config.get("max_position_embeddings").and_then(Value::as_u64);
    length.and_then(|length| usize::try_from(length).ok()).unwrap_or_default()
}

/// An object of `config.json`, where it is there.
///
/// # Errors
/// Where it is something else.
pub(crate) fn section(config: &Map<String, Value>, name: &str) -> Result<Option<Map<String, Value>>> {
    match config.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Object(fields)) => Ok(Some(fields.clone())),
        Some(other) => Err(fields::wrong(format!("{name} is {other}; an object is needed"))),
    }
}

/// Name and fields of the section that counts: `rope_scaling`, unless it is empty, before `rope_parameters`.
///
/// # Errors
/// Where one of them is no object.
pub(crate) fn flat_section(config: &Map<String, Value>) -> Result<(&'static str, Map<String, Value>)> {
    let parameters = section(config, "rope_parameters")?;
    Ok(match section(config, "rope_scaling")?.filter(|fields| !fields.is_empty()) {
        Some(fields) => ("rope_scaling", fields),
        None => ("rope_parameters", parameters.unwrap_or_default()),
    })
}

/// Refuses ropes by kind of layer, for models that know kinds of layers but have one rope.
///
/// # Errors
/// Names the field.
pub(crate) fn check_flat(config: &Map<String, Value>) -> Result<()> {
    let (at, fields) = flat_section(config)?;
    match ["full_attention", "sliding_attention"].iter().find(|kind| fields.contains_key(**kind)) {
        Some(kind) => Err(fields::wrong(format!("{at}.{kind}: all layers of this model have the same rope"))),
        None => Ok(()),
    }
}

impl RopeParameters {
    /// The rope of a model whose layers all have the same.
    ///
    /// # Errors
    /// Where a field is wrong.
    pub fn read(config: &Map<String, Value>) -> Result<Self> {
        let (at, fields) = flat_section(config)?;
        Self::complete(at, &fields, &Beside::of(config))
    }

    /// The rope that `fields`, which stand at `at`, and those beside them ask for.
    ///
    /// # Errors
    /// Where a field is wrong.
    pub fn complete(at: &str, fields: &Map<String, Value>, beside: &Beside<'_>) -> Result<Self> {
        let wrong = |name: &str, value: &Value, what: &str| {
            fields::wrong(format!("{at}.{name} is {value}; {what} is needed"))
        };
        let number = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => match value.as_f64().filter(|number| number.is_finite()) {
                Some(number) => Ok(Some(number)),
                None => Err(wrong(name, value, "a number")),
            },
        };
        let numbers = |name: &str| match fields.get(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => {
                let list = value.as_array().and_then(|list| list.iter().map(Value::as_f64).collect());
                let list: Option<Vec<f64>> = list;
                list.ok_or_else(|| wrong(name, value, "a list of numbers")).map(Some)
            }
        };
        let kind = match fields.get("rope_type").or(fields.get("type")) {
            None => "default".to_owned(),
            Some(Value::String(kind)) => kind.clone(),
            Some(other) => return Err(wrong("rope_type", other, "a name such as \"default\"")),
        };
        let theta = match fields.get("rope_theta").or(beside.theta) {
            None => beside.default_theta,
            Some(value) => match value.as_f64().filter(|theta| theta.is_finite() && *theta > 0.0) {
                Some(theta) => theta,
                None => return Err(wrong("rope_theta", value, "a positive number")),
            },
        };
        let partial = match fields.get("partial_rotary_factor").or(beside.partial) {
            None => None,
            Some(Value::Null) if kind == "default" => None,
            Some(value) => match value.as_f64() {
                Some(share) => Some(share),
                None => return Err(wrong("partial_rotary_factor", value, "a number")),
            },
        };
        let original = match kind.as_str() {
            "llama3" | "yarn" | "longrope" => {
                let name = "original_max_position_embeddings";
                let own = beside.original.or(fields.get(name));
                match own.map(|value| (value, value.as_f64().filter(|length| *length > 0.0))) {
                    None => beside.max_positions as f64,
                    Some((_, Some(length))) => length,
                    Some((value, None)) => return Err(wrong(name, value, "a positive number")),
                }
            }
            _ => 0.0,
        };
        // What is there but null is false.
        let truncate = fields.get("truncate").is_none_or(|truncate| truncate.as_bool().unwrap_or(false));
        let rope = Self {
            theta,
            partial,
            original,
            factor: number("factor")?,
            attention_factor: number("attention_factor")?,
            beta_fast: number("beta_fast")?,
            beta_slow: number("beta_slow")?,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            mscale: number("mscale")?,
            mscale_all_dim: number("mscale_all_dim")?,
            truncate,
            short_factor: numbers("short_factor")?,
            long_factor: numbers("long_factor")?,
            kind,
            at: at.to_owned(),
        };
        // YaRN's factor may be null, but not absent.
        if rope.kind == "yarn" && !fields.contains_key("factor") {
            return Err(rope.lacks("factor"));
        }
        Ok(rope)
    }

    fn lacks(&self, field: &str) -> Error {
        let (at, kind) = (&self.at, &self.kind);
        fields::wrong(format!("{at}.{field}: a rope of type {kind} needs a positive number"))
    }

    fn need(&self, value: Option<f64>, field: &str) -> Result<f64> {
        value.filter(|value| *value > 0.0).ok_or_else(|| self.lacks(field))
    }

    /// The factor, or the share of the trained length in `max_positions`.
    fn stretch(&self, max_positions: usize) -> Result<f64> {
        match self.factor {
            None => Ok(max_positions as f64 / self.original),
            factor => self.need(factor, "factor"),
        }
    }

    /// How many of a head's `head_dim` numbers are rotated.
    pub fn rotated(&self, head_dim: usize) -> usize {
        (head_dim as f64 * self.partial.unwrap_or(1.0)) as usize
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
    /// Whether the two values of a pair are neighbours.
    pub interleaved: bool,
}

/// Longrope: sequences longer than the trained length have frequencies of their own.
#[derive(Clone, Debug)]
struct Long {
    original: f64,
    inverse: Vec<f32>,
}

/// Dynamic NTK: the base grows with the sequence once that is longer than the model was made for.
#[derive(Clone, Copy, Debug)]
struct Dynamic {
    factor: f64,
    max_positions: usize,
}

impl RopeTable {
    /// The frequencies of a model that rotates all of a head, `theta^(-2i/head_dim)`, scaled.
    ///
    /// # Errors
    /// Where the scaling is unknown, lacks a field, or leaves a part of the head alone.
    pub fn whole(head_dim: usize, max_positions: usize, rope: &RopeParameters) -> Result<Self> {
        let rotated = match rope.kind.as_str() {
            "default" | "proportional" => head_dim,
            _ => rope.rotated(head_dim),
        };
        if rotated.div_ceil(2) * 2 != head_dim {
            let (at, share) = (&rope.at, rope.partial.unwrap_or(1.0));
            return Err(fields::wrong(format!(
                "{at}: partial_rotary_factor {share} with a rope of type {} rotates {rotated} numbers of a head of \
                 {head_dim}, of which this model rotates all",
                rope.kind
            )));
        }
        Self::of_part(rotated, head_dim, max_positions, rope)
    }

    /// The frequencies of `dim` rotated numbers of a head of `head_dim`.
    ///
    /// # Errors
    /// Where the scaling is unknown or lacks a field.
    pub fn of_part(dim: usize, head_dim: usize, max_positions: usize, rope: &RopeParameters) -> Result<Self> {
        let at = &rope.at;
        // The growing base of the dynamic kind has an exponent of `dim / (dim - 2)`.
        if dim == 0 || rope.kind == "dynamic" && dim <= 2 {
            return Err(fields::wrong(format!(
                "{at}: {dim} numbers of each head are rotated, which is too few"
            )));
        }
        let plain = inverse(dim, rope.theta);
        let theta = rope.theta;
        let mut table = Self {
            dim,
            theta,
            inverse: plain,
            attention_factor: 1.0,
            dynamic: None,
            long: None,
            interleaved: false,
        };
        match rope.kind.as_str() {
            "default" => {}
            "linear" => {
                let factor = rope.need(rope.factor, "factor")? as f32;
                table.inverse.iter_mut().for_each(|f| *f /= factor);
            }
            "proportional" => {
                let factor = rope.factor.unwrap_or(1.0) as f32;
                let turning = (head_dim as f64 * rope.partial.unwrap_or(1.0) / 2.0).max(0.0) as usize;
                table.inverse.iter_mut().skip(turning).for_each(|f| *f = 0.0);
                table.inverse.iter_mut().for_each(|f| *f /= factor);
            }
            "dynamic" => {
                table.dynamic = Some(Dynamic { factor: rope.need(rope.factor, "factor")?, max_positions });
            }
            "yarn" => table.yarn(rope, rope.stretch(max_positions)?),
            "llama3" => {
                let factor = rope.need(rope.factor, "factor")? as f32;
                let low = rope.need(rope.low_freq_factor, "low_freq_factor")? as f32;
                let high = rope.need(rope.high_freq_factor, "high_freq_factor")? as f32;
                table.llama3(factor, low, high, rope.original as f32);
            }
            "longrope" => table.longrope(rope, rope.stretch(max_positions)?)?,
            other => {
                let known = "default, linear, dynamic, yarn, llama3, longrope, proportional";
                let other = shown(other);
                return Err(fields::wrong(format!(
                    "{at}.rope_type \"{other}\" is not known; known are {known}"
                )));
            }
        }
        let long = table.long.iter().flat_map(|long| &long.inverse);
        let finite = table.inverse.iter().chain(long).all(|f| f.is_finite() && *f >= 0.0);
        if !finite || !is_positive(f64::from(table.attention_factor)) {
            return Err(fields::wrong(format!(
                "{at}: the numbers of this rope of type {} make frequencies or an attention factor that are not finite \
                 and positive",
                rope.kind
            )));
        }
        Ok(table)
    }

    /// Divides each frequency by its own factor, as llama.cpp's `rope_freqs` asks for.
    ///
    /// # Errors
    /// Where there is not one positive factor for each.
    pub fn divide(&mut self, factors: &[f32]) -> Result<()> {
        if factors.len() != self.inverse.len() || !factors.iter().all(|by| is_positive(f64::from(*by))) {
            let pairs = self.inverse.len();
            return Err(Error::Config(format!("rope_freqs: {pairs} positive factors are needed")));
        }
        self.inverse.iter_mut().zip(factors).for_each(|(f, by)| *f /= by);
        Ok(())
    }

    /// Number of rotary pairs.
    pub fn pairs(&self) -> usize {
        self.inverse.len()
    }

    fn yarn(&mut self, s: &RopeParameters, factor: f64) {
        let (dim, base) = (self.dim as f64, self.theta);
        let mscale = |m: f64| if factor <= 1.0 { 1.0 } else { 0.1 * m * factor.ln() + 1.0 };
        self.attention_factor = match (s.attention_factor, s.mscale, s.mscale_all_dim) {
            (Some(given), _, _) => given,
            (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => mscale(m) / mscale(all),
            _ => mscale(1.0),
        } as f32;
        // The pair that turns `rotations` times within the original length.
        let turning = |rotations: f64| {
            dim * (s.original / (rotations * 2.0 * std::f64::consts::PI)).ln() / (2.0 * base.ln())
        };
        let fast = s.beta_fast.filter(|b| *b != 0.0).unwrap_or(32.0);
        let slow = s.beta_slow.filter(|b| *b != 0.0).unwrap_or(1.0);
        let (mut low, mut high) = (turning(fast), turning(slow));
        if s.truncate {
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

    fn longrope(&mut self, s: &RopeParameters, factor: f64) -> Result<()> {
        let plain = self.inverse.clone();
        let divided = |by: &Option<Vec<f64>>, name: &str| {
            let pairs = plain.len();
            let by = by.as_ref().filter(|by| by.len() == pairs).ok_or_else(|| {
                let at = &s.at;
                fields::wrong(format!("{at}.{name}: a rope of type longrope needs a list of {pairs} numbers"))
            })?;
            Ok::<_, Error>(plain.iter().zip(by).map(|(f, by)| f / *by as f32).collect())
        };
        self.inverse = divided(&s.short_factor, "short_factor")?;
        self.long = Some(Long { original: s.original, inverse: divided(&s.long_factor, "long_factor")? });
        self.attention_factor = match s.attention_factor {
            Some(given) => given,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / s.original.ln()).sqrt(),
        } as f32;
        Ok(())
    }

    /// The longest sequence with the short factors, where there are long ones.
    pub fn switch(&self) -> Option<usize> {
        self.long.as_ref().map(|long| long.original as usize)
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
                    (_, Some(long)) if f64::from(length) > long.original => {
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
        Rope { cos, sin, interleaved: self.interleaved }
    }

    /// Frequencies of a sequence that is longer than the model was made for.
    fn grown(&self, d: Dynamic, length: u32) -> Vec<f32> {
        let ratio = f64::from(length) / d.max_positions as f64;
        let power = self.dim as f64 / (self.dim as f64 - 2.0);
        inverse(self.dim, self.theta * (d.factor * ratio - (d.factor - 1.0)).powf(power))
    }
}

/// Whether it is above 0 and below infinity in f32.
fn is_positive(x: f64) -> bool {
    x as f32 > 0.0 && (x as f32).is_finite()
}

fn inverse(dim: usize, theta: f64) -> Vec<f32> {
    let exponent = |i: usize| (2 * i) as f32 / dim as f32;
    (0..dim.div_ceil(2)).map(|i| 1.0 / (theta as f32).powf(exponent(i))).collect()
}
