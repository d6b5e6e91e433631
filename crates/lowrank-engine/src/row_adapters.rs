//! Which adapter each row of a pass uses, where one batch serves several.

use std::cell::RefCell;
use std::ops::Range;
use std::rc::Rc;

/// The place of an adapter among those of a routed set.
pub type AdapterIndex = usize;

/// The adapter of each row of a pass; a row without one has the base alone. Operations that pick rows carry it along: it
/// knows every count of rows that was picked so far, and what the last pick of that count was.
pub struct RowAdapters {
    maps: RefCell<Vec<Rc<[Option<AdapterIndex>]>>>,
}

impl RowAdapters {
    /// For a batch of `rows` rows, of which each of `ranges` uses an adapter.
    ///
    /// # Panics
    /// Where a range is outside the batch.
    pub fn new(rows: usize, ranges: &[(Range<usize>, AdapterIndex)]) -> Self {
        let mut map = vec![None; rows];
        for (range, adapter) in ranges {
            map[range.clone()].fill(Some(*adapter));
        }
        Self { maps: RefCell::new(vec![map.into()]) }
    }

    /// The adapter of each of `rows` rows.
    ///
    /// # Panics
    /// Where the pass has no value of so many rows.
    pub fn of(&self, rows: usize) -> Rc<[Option<AdapterIndex>]> {
        let maps = self.maps.borrow();
        let known = maps.iter().rev().find(|map| map.len() == rows);
        known.unwrap_or_else(|| panic!("{rows} rows that no batch of several adapters has")).clone()
    }

    /// The rows of each adapter, of a value of `rows` rows.
    ///
    /// # Panics
    /// As [`RowAdapters::of`].
    pub fn groups(&self, rows: usize) -> Vec<(AdapterIndex, Vec<u32>)> {
        let mut groups: Vec<(AdapterIndex, Vec<u32>)> = Vec::new();
        for (row, adapter) in (0..).zip(&*self.of(rows)) {
            let Some(adapter) = adapter else { continue };
            match groups.iter_mut().find(|(known, _)| known == adapter) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((*adapter, vec![row])),
            }
        }
        groups
    }

    /// Rows `picked` (the first of each range) of a value of `rows` rows become a value of their own.
    pub(crate) fn pick(&self, rows: usize, picked: &[Range<usize>]) {
        let map = self.of(rows);
        let picked = picked.iter().map(|range| map[range.start]).collect();
        self.maps.borrow_mut().push(picked);
    }
}
