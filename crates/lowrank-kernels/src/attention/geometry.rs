//! Which queries see which keys, and how a segment is cut into blocks.

use std::ops::Range;

use super::shape::{AttentionShape, Segment};

/// The positions of one segment: keys count through prefix, then own.
#[derive(Clone, Copy, Debug)]
pub(super) struct View {
    /// Key positions: prefix and own.
    pub(super) keys: usize,
    /// Position of query 0.
    first: isize,
    causal: bool,
    window: usize,
}

impl View {
    pub(super) fn new(shape: &AttentionShape, segment: &Segment) -> Self {
        let keys = segment.prefix.len() + segment.own.len();
        let first = keys as isize - segment.q.len() as isize;
        Self { keys, first, causal: shape.causal, window: shape.window.unwrap_or(usize::MAX) }
    }

    /// The key positions that query `i` sees. Both ends grow with `i`.
    #[inline]
    pub(super) fn span(&self, i: usize) -> Range<usize> {
        let position = self.first + i as isize;
        let window = self.window.min(isize::MAX as usize / 2) as isize;
        let low = (position - window + 1).max(0) as usize;
        let high = if self.causal { position + 1 } else { position + window };
        let high = (high.max(0) as usize).min(self.keys);
        low.min(high)..high
    }

    /// The key positions that some query of a run sees.
    pub(super) fn reach(&self, queries: &Range<usize>) -> Range<usize> {
        if queries.is_empty() {
            return 0..0;
        }
        self.span(queries.start).start..self.span(queries.end - 1).end
    }

    /// Pairs of queries and keys that see each other.
    pub(super) fn pairs(&self, queries: usize) -> usize {
        if self.window >= self.keys && !self.causal {
            return queries * self.keys;
        }
        (0..queries).map(|i| self.span(i).len()).sum()
    }
}

/// Rows of the key buffer that a run of positions stands for: at most two runs, of the prefix and of own.
#[derive(Clone, Debug)]
pub(super) struct KeyRows {
    first: Range<usize>,
    second_start: usize,
    len: usize,
}

impl KeyRows {
    pub(super) fn new(segment: &Segment, positions: Range<usize>) -> Self {
        let p = segment.prefix.len();
        let first = positions.start.min(p)..positions.end.min(p);
        Self {
            first: segment.prefix.start + first.start..segment.prefix.start + first.end,
            second_start: segment.own.start + positions.start.max(p) - p,
            len: positions.len(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.len
    }

    /// Whether the rows are neighbours.
    pub(super) fn is_one_run(&self) -> bool {
        self.first.is_empty() || self.first.len() == self.len
    }

    /// The row of key `j` of the run.
    #[inline]
    pub(super) fn row(&self, j: usize) -> usize {
        let n = self.first.len();
        if j < n { self.first.start + j } else { self.second_start + j - n }
    }
}

/// Cuts `range` into equal blocks of at most `most`, each (but the last) a multiple of `unit`.
pub(super) fn blocks(
    range: Range<usize>,
    most: usize,
    unit: usize,
) -> impl Iterator<Item = Range<usize>> + Clone {
    let count = range.len().div_ceil(most.max(1)).max(1);
    let size = range.len().div_ceil(count).next_multiple_of(unit).max(1);
    let (start, end) = (range.start, range.end);
    (start..end).step_by(size).map(move |at| at..end.min(at + size))
}

/// Sets of segments (by index) that share no key row with another set.
pub(super) fn components(segments: &[Segment]) -> Vec<Vec<usize>> {
    let mut ranges: Vec<(usize, usize, usize)> = Vec::with_capacity(2 * segments.len());
    for (i, s) in segments.iter().enumerate() {
        for keys in [&s.prefix, &s.own] {
            if !keys.is_empty() {
                ranges.push((keys.start, keys.end, i));
            }
        }
    }
    ranges.sort_unstable();
    let mut root: Vec<usize> = (0..segments.len()).collect();
    fn find(root: &mut [usize], mut i: usize) -> usize {
        while root[i] != i {
            root[i] = root[root[i]];
            i = root[i];
        }
        i
    }
    let mut open: Option<(usize, usize)> = None;
    for (start, end, i) in ranges {
        open = Some(match open {
            Some((until, j)) if start < until => {
                let (a, b) = (find(&mut root, i), find(&mut root, j));
                // The smaller index stays, so that the order of the sets is that of the segments.
                root[a.max(b)] = a.min(b);
                (until.max(end), j)
            }
            _ => (end, i),
        });
    }
    let mut sets: Vec<Vec<usize>> = vec![Vec::new(); segments.len()];
    for i in 0..segments.len() {
        let r = find(&mut root, i);
        sets[r].push(i);
    }
    sets.retain(|s| !s.is_empty());
    sets
}

/// What the rows of one tile see, in keys of the tile, and the other way round.
#[derive(Default)]
pub(super) struct Spans {
    /// First key of each row.
    pub(super) low: Vec<u32>,
    /// One past the last key of each row.
    pub(super) high: Vec<u32>,
    /// First row of each key.
    pub(super) key_low: Vec<u32>,
    /// One past the last row of each key.
    pub(super) key_high: Vec<u32>,
}

impl Spans {
    /// Row `(i - queries.start) * group + h` is head `h` of the group of query `i`.
    pub(super) fn set_rows(
        &mut self,
        view: &View,
        queries: &Range<usize>,
        keys: &Range<usize>,
        group: usize,
    ) {
        self.low.clear();
        self.high.clear();
        for i in queries.clone() {
            let span = view.span(i);
            let high = span.end.clamp(keys.start, keys.end) - keys.start;
            let low = (span.start.clamp(keys.start, keys.end) - keys.start).min(high);
            for _ in 0..group {
                self.low.push(low as u32);
                self.high.push(high as u32);
            }
        }
    }

    /// The rows of each of `keys` keys, from the keys of the rows.
    pub(super) fn set_keys(&mut self, keys: usize) {
        self.key_low.clear();
        self.key_high.clear();
        let rows = self.low.len();
        let (mut first, mut end) = (0, 0);
        for j in 0..keys as u32 {
            while first < rows && self.high[first] <= j {
                first += 1;
            }
            while end < rows && self.low[end] <= j {
                end += 1;
            }
            self.key_low.push(first as u32);
            self.key_high.push(end.max(first) as u32);
        }
    }
}
