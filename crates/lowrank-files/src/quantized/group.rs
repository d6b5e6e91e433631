//! Integers of two, four or eight bits in groups, several in a word of 32: what GPTQ, AWQ and compressed-tensors share.

use std::ops::Range;

use super::matrix::Source;
use super::parts::Part;

/// Where the integers of a matrix lie.
pub(super) enum Order {
    /// `[in / per word, out]`, inputs in a word: GPTQ.
    Inputs,
    /// `[in, out / per word]`, outputs in a word, at these places: AWQ.
    Outputs([usize; 8]),
    /// `[out, in / per word]`, inputs in a word: compressed-tensors.
    Rows,
}

/// A matrix of grouped integers: `(q - zero) * scale`.
pub(super) struct Grouped {
    pub words: Part,
    pub order: Order,
    pub bits: usize,
    pub rows: usize,
    pub cols: usize,
    /// By group and row, or by row and group: see `by_group`.
    pub scales: Vec<f32>,
    pub zeros: Vec<i16>,
    /// Whether scales and zeros are `[groups, rows]`, else `[rows, groups]`.
    pub by_group: bool,
    pub groups: usize,
    /// The group of each column, where columns are not in order of groups; then each column is a run of its own.
    pub group_of: Option<Vec<usize>>,
    /// Columns of a group.
    pub group_len: usize,
}

/// The `i`-th integer of a word.
#[inline]
fn unpack(word: i32, bits: usize, i: usize) -> i16 {
    (word as u32 >> (bits * i) & ((1u32 << bits) - 1)) as i16
}

/// All integers of a tensor `[lines, words]` along its words, at these places in a word.
pub(super) fn unpack_lines(part: &Part, bits: usize, places: impl Fn(usize) -> usize) -> Vec<i16> {
    let per = 32 / bits;
    let count = part.bytes().len() / 4;
    let mut out = vec![0; count * per];
    for w in 0..count {
        let word = part.i32(w);
        (0..per).for_each(|i| out[w * per + places(i)] = unpack(word, bits, i));
    }
    out
}

impl Grouped {
    fn at(&self, group: usize, row: usize) -> usize {
        if self.by_group { group * self.rows + row } else { row * self.groups + group }
    }

    fn group(&self, col: usize) -> usize {
        match &self.group_of {
            Some(of) => of[col],
            None => col / self.group_len,
        }
    }
}

impl Source for Grouped {
    fn read(&self, rows: Range<usize>, codes: &mut [i16], scales: &mut [f32]) {
        let (cols, bits) = (self.cols, self.bits);
        let per = 32 / bits;
        match &self.order {
            Order::Inputs => {
                for block in 0..cols / per {
                    for (r, row) in rows.clone().enumerate() {
                        let word = self.words.i32(block * self.rows + row);
                        let to = &mut codes[r * cols + block * per..][..per];
                        to.iter_mut().enumerate().for_each(|(i, code)| *code = unpack(word, bits, i));
                    }
                }
            }
            Order::Outputs(places) => {
                // The bits of each output within its word.
                let mut bit_of = [0; 8];
                places.iter().enumerate().for_each(|(bit, place)| bit_of[*place] = bit);
                for col in 0..cols {
                    for (r, row) in rows.clone().enumerate() {
                        let word = self.words.i32(col * (self.rows / per) + row / per);
                        codes[r * cols + col] = unpack(word, bits, bit_of[row % per]);
                    }
                }
            }
            Order::Rows => {
                let words = cols.div_ceil(per);
                for (row, codes) in rows.clone().zip(codes.chunks_exact_mut(cols)) {
                    for (col, code) in codes.iter_mut().enumerate() {
                        *code = unpack(self.words.i32(row * words + col / per), bits, col % per);
                    }
                }
            }
        }
        for (row, codes) in rows.clone().zip(codes.chunks_exact_mut(cols)) {
            for (col, code) in codes.iter_mut().enumerate() {
                *code -= self.zeros[self.at(self.group(col), row)];
            }
        }
        let runs = scales.len() / rows.len().max(1);
        for (row, scales) in rows.zip(scales.chunks_exact_mut(runs)) {
            for (run, scale) in scales.iter_mut().enumerate() {
                let group = if self.group_of.is_some() { self.group(run) } else { run };
                *scale = self.scales[self.at(group, row)];
            }
        }
    }
}
