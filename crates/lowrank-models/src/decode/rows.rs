//! Rows of the key-value cache: who has which.
//!
//! A block is a contiguous range of rows that grows at its end, because attention reads a sequence as at most two
//! contiguous ranges. A block gets room for all that it may come to use, up to [`ROWS_AHEAD`]: memory that is never
//! touched costs nothing. Beyond that it grows in place where the rows behind it are free and moves elsewhere where they
//! are not, doubling its room each time, so that a row is copied a constant number of times on average. The cache itself
//! grows in the same way up to its capacity.

use std::cell::RefCell;
use std::ops::Range;

use lowrank_engine::{Device, KvCache};

/// Rows set aside at once for what a block may come to use.
const ROWS_AHEAD: usize = 1024;

/// A block of rows. Every handle is released once.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BlockId(usize);

#[derive(Clone, Debug)]
struct Block {
    start: usize,
    /// Rows from `start` on that no other block has.
    room: usize,
    /// Rows in use, at the beginning of the room.
    used: usize,
    /// Rows it may come to use.
    limit: usize,
    /// Handles to it.
    owners: usize,
}

/// The cache and its blocks.
pub(super) struct Rows {
    cache: RefCell<KvCache>,
    capacity: usize,
    blocks: Vec<Option<Block>>,
}

impl Rows {
    /// An empty cache of at most `capacity` rows (`usize::MAX` for no bound) for layers with keys (and values) of the given widths.
    pub fn new(device: &Device, kv_widths: &[usize], capacity: usize) -> Self {
        let cache = RefCell::new(KvCache::new(device, 0, kv_widths));
        Self { cache, capacity, blocks: Vec::new() }
    }

    /// The keys and values themselves.
    pub fn cache(&self) -> &RefCell<KvCache> {
        &self.cache
    }

    /// Rows at most.
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Rows that the blocks may come to use.
    pub fn committed(&self) -> usize {
        self.blocks.iter().flatten().fold(0, |sum, block| sum.saturating_add(block.limit))
    }

    /// An empty block that may come to use `limit` rows. The limits of all blocks must not exceed the capacity.
    pub fn open(&mut self, limit: usize) -> BlockId {
        let fits = self.capacity == usize::MAX || limit <= self.capacity.saturating_sub(self.committed());
        assert!(fits, "a block within the cache's capacity");
        let block = Some(Block { start: 0, room: 0, used: 0, limit, owners: 1 });
        let free = self.blocks.iter().position(Option::is_none);
        let at = free.unwrap_or_else(|| {
            self.blocks.push(None);
            self.blocks.len() - 1
        });
        self.blocks[at] = block;
        BlockId(at)
    }

    /// Another handle to a block.
    pub fn share(&mut self, id: &BlockId) -> BlockId {
        self.block_mut(id).owners += 1;
        BlockId(id.0)
    }

    /// Gives a handle back; the rows are free when the last one is.
    pub fn release(&mut self, id: BlockId) {
        let block = self.block_mut(&id);
        block.owners -= 1;
        if block.owners == 0 {
            self.blocks[id.0] = None;
        }
    }

    /// Rows of a block in use.
    pub fn used(&self, id: &BlockId) -> Range<usize> {
        let block = self.block(id);
        block.start..block.start + block.used
    }

    /// Drops the rows in use; the room stays.
    pub fn clear(&mut self, id: &BlockId) {
        self.block_mut(id).used = 0;
    }

    /// Keeps the first `used` rows and lets the block come to use `limit` rows.
    pub fn truncate(&mut self, id: &BlockId, used: usize, limit: usize) {
        let block = self.block_mut(id);
        assert!(used <= block.used && used <= limit, "no more rows than there are");
        (block.used, block.limit) = (used, limit);
        block.room = block.room.min(limit);
    }

    /// Makes room for `more` rows at the end of a block. Blocks may move.
    pub fn reserve(&mut self, id: &BlockId, more: usize) {
        let Block { start, room, used, limit, .. } = *self.block(id);
        let need = used + more;
        assert!(need <= limit, "no more rows than the block's limit");
        if need <= room {
            return;
        }
        let good = need.max(2 * room).max(ROWS_AHEAD).min(limit);
        // Gaps that fit nobody are closed before the cache grows.
        let (have, committed) = (self.cache.borrow().rows(), self.committed());
        let place = self.find(id, need, good).filter(|place| place.end <= have || committed > have);
        match place {
            Some(place) => {
                self.grow(place.end);
                if place.start != start {
                    self.cache.borrow_mut().copy_rows(start..start + used, place.start);
                }
                let block = self.block_mut(id);
                (block.start, block.room) = (place.start, place.len());
            }
            None => self.spread(),
        }
    }

    /// Takes `more` rows for which there is room, and returns all rows in use.
    pub fn extend(&mut self, id: &BlockId, more: usize) -> Range<usize> {
        let block = self.block_mut(id);
        block.used += more;
        assert!(block.used <= block.room, "rows are reserved first");
        self.used(id)
    }

    /// The rows of `to` become those of `from`, for which there is room.
    pub fn copy(&mut self, from: &BlockId, to: &BlockId) {
        let from = self.used(from);
        let block = self.block_mut(to);
        block.used = from.len();
        assert!(block.used <= block.room, "rows are reserved first");
        let to = block.start;
        self.cache.borrow_mut().copy_rows(from, to);
    }

    fn block(&self, id: &BlockId) -> &Block {
        self.blocks[id.0].as_ref().expect("the handle is not released")
    }

    fn block_mut(&mut self, id: &BlockId) -> &mut Block {
        self.blocks[id.0].as_mut().expect("the handle is not released")
    }

    /// A place for `good` rows, or at the end of the cache at least `need`.
    fn find(&self, id: &BlockId, need: usize, good: usize) -> Option<Range<usize>> {
        let own = self.block(id);
        let others = self.blocks.iter().enumerate().filter(|(at, _)| *at != id.0);
        let mut taken: Vec<Range<usize>> = others
            .filter_map(|(_, block)| block.as_ref())
            .filter(|block| block.room > 0)
            .map(|block| block.start..block.start + block.room)
            .collect();
        taken.sort_unstable_by_key(|range| range.start);
        if own.room > 0 {
            let next = taken.iter().map(|range| range.start).find(|start| *start > own.start);
            let free = next.unwrap_or(self.capacity) - own.start;
            if free >= need {
                return Some(own.start..own.start + free.min(good));
            }
        }
        let mut free = 0;
        for range in taken {
            if range.start - free >= good {
                return Some(free..free + good);
            }
            free = range.end;
        }
        let left = self.capacity - free;
        (left >= need).then(|| free..free + left.min(good))
    }

    /// Moves the blocks so that each has room for all that it may come to use.
    fn spread(&mut self) {
        let mut order: Vec<&mut Block> = self.blocks.iter_mut().flatten().collect();
        order.sort_by_key(|block| (block.room == 0, block.start));
        let mut next = 0;
        let mut moves = Vec::new();
        for block in order {
            if block.used > 0 && block.start != next {
                moves.push((block.start..block.start + block.used, next));
            }
            (block.start, block.room) = (next, block.limit);
            next += block.limit;
        }
        debug_assert!(next <= self.capacity, "limits within the capacity");
        self.grow(next);
        // The order of blocks stays, so those that move down leave rows before the next ones need them, and so do
        // those that move up from the last one on.
        let cache = &mut *self.cache.borrow_mut();
        for (from, to) in moves.iter().filter(|(from, to)| *to < from.start) {
            cache.copy_rows(from.clone(), *to);
        }
        for (from, to) in moves.iter().rev().filter(|(from, to)| *to > from.start) {
            cache.copy_rows(from.clone(), *to);
        }
    }

    /// Grows the cache to at least `rows` rows.
    fn grow(&mut self, rows: usize) {
        let have = self.cache.borrow().rows();
        if rows > have {
            // Room for the requests that are here, and for as many more that a row is copied a few times only.
            let ahead = self.committed().min(2 * have + 16 * ROWS_AHEAD).max(have + have / 4);
            self.cache.borrow_mut().grow(rows.max(ahead).min(self.capacity));
        }
    }
}
