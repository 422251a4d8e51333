//! An ordered map of runs: stretches of a file's blocks, each with one value that goes on through it, as
//! extents do.
//!
//! ```text
//!   blocks     0 ···· 8 ····· 12 ···················· 40
//!   runs         (none) ├ 700.. ┤├──── hole ──────────┤        block 10 has value 702
//! ```
//!
//! Invariants:
//! - Runs do not overlap and are not empty.
//! - No two runs that touch could be one ([`RunValue::goes_on`]), but for what [`RunMap::extend`] and
//!   [`RunMap::retain`] leave.
//! - `counted_runs` and `counted_blocks` are those of the runs of which [`RunValue::is_counted`] is true.

use std::collections::BTreeMap;
use std::ops::Range;

/// What the blocks of a run have.
pub trait RunValue: Copy + PartialEq {
    /// The value of the block that lies `count` blocks behind the one with this value, in the same run.
    #[must_use]
    fn advance(self, count: u32) -> Self;

    /// Returns true if a run of `len` blocks that begins with this value and a run behind it that begins with
    /// `next` are one run.
    fn goes_on(self, len: u32, next: Self) -> bool {
        self.advance(len) == next
    }

    /// Returns true if the map keeps count of runs with this value, and of their blocks. All blocks of a run
    /// agree.
    fn is_counted(self) -> bool {
        false
    }
}

/// Blocks `start..end` of a file, and what the first of them has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run<V> {
    /// The first block.
    pub start: u32,
    /// The block behind the last.
    pub end: u32,
    /// What the first block has.
    pub value: V,
}

impl<V: RunValue> Run<V> {
    /// How many blocks it has; at least 1.
    #[must_use]
    pub fn blocks(&self) -> u32 {
        self.end - self.start
    }

    /// What `block`, one of the run's, has.
    #[must_use]
    pub fn value_at(&self, block: u32) -> V {
        self.value.advance(block - self.start)
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub struct RunMap<V> {
    /// The first block of each run; the block behind its last, and the value of the first.
    runs: BTreeMap<u32, (u32, V)>,
    counted_runs: usize,
    counted_blocks: u64,
}

impl<V> Default for RunMap<V> {
    fn default() -> Self {
        Self { runs: BTreeMap::new(), counted_runs: 0, counted_blocks: 0 }
    }
}

impl<V: RunValue> RunMap<V> {
    /// How many runs there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.runs.len()
    }

    /// Returns true if there are no runs.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// How many runs are counted ([`RunValue::is_counted`]).
    #[must_use]
    pub fn counted_runs(&self) -> usize {
        self.counted_runs
    }

    /// How many blocks the counted runs have.
    #[must_use]
    pub fn counted_blocks(&self) -> u64 {
        self.counted_blocks
    }

    /// All runs, in the order of the file.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = Run<V>> + '_ {
        self.runs.iter().map(|(start, (end, value))| Run { start: *start, end: *end, value: *value })
    }

    /// The runs that start in `blocks`, in the order of the file.
    pub fn starting_in(&self, blocks: Range<u32>) -> impl DoubleEndedIterator<Item = Run<V>> + '_ {
        // An empty range that is upside down would panic in the map.
        let end = blocks.end.max(blocks.start);
        let runs = self.runs.range(blocks.start..end);
        runs.map(|(start, (end, value))| Run { start: *start, end: *end, value: *value })
    }

    /// The run that `block` lies in.
    #[must_use]
    pub fn covering(&self, block: u32) -> Option<Run<V>> {
        let (start, (end, value)) = self.runs.range(..=block).next_back()?;
        (*end > block).then_some(Run { start: *start, end: *end, value: *value })
    }

    /// The last run that starts before `block`; it may cover `block`.
    #[must_use]
    pub fn before(&self, block: u32) -> Option<Run<V>> {
        let (start, (end, value)) = self.runs.range(..block).next_back()?;
        Some(Run { start: *start, end: *end, value: *value })
    }

    /// The first block from `block` on at which a run starts.
    #[must_use]
    pub fn next_start(&self, block: u32) -> Option<u32> {
        self.runs.range(block..).next().map(|(start, _)| *start)
    }

    fn add(&mut self, start: u32, end: u32, value: V) {
        if start < end {
            if value.is_counted() {
                self.counted_runs += 1;
                self.counted_blocks += u64::from(end - start);
            }
            self.runs.insert(start, (end, value));
        }
    }

    fn take(&mut self, start: u32) -> Option<(u32, V)> {
        let (end, value) = self.runs.remove(&start)?;
        if value.is_counted() {
            self.counted_runs -= 1;
            self.counted_blocks -= u64::from(end - start);
        }
        Some((end, value))
    }

    /// Takes `blocks` out of the map, cutting the runs at its edges, and shows each piece that was there to
    /// `each`, in the order of the file.
    pub fn remove(&mut self, blocks: Range<u32>, mut each: impl FnMut(Run<V>)) {
        if blocks.is_empty() {
            return;
        }
        if let Some(run) = self.covering(blocks.start).filter(|run| run.start < blocks.start) {
            self.take(run.start);
            self.add(run.start, blocks.start, run.value);
            self.add(blocks.start, run.end, run.value_at(blocks.start));
        }
        while let Some(start) = self.next_start(blocks.start).filter(|start| *start < blocks.end) {
            let Some((end, value)) = self.take(start) else { break };
            let stop = end.min(blocks.end);
            each(Run { start, end: stop, value });
            self.add(stop, end, value.advance(stop - start));
        }
    }

    /// Adds a run, which begins with `value`, where there is none; it joins its neighbours if they go on.
    /// No-op for an empty one.
    pub fn insert(&mut self, blocks: Range<u32>, value: V) {
        let Range { mut start, mut end } = blocks;
        let mut value = value;
        if start >= end {
            return;
        }
        if let Some(before) = self.before(start)
            && before.end == start
            && before.value.goes_on(before.blocks(), value)
        {
            self.take(before.start);
            (start, value) = (before.start, before.value);
        }
        if let Some((_, after)) = self.runs.get(&end).copied()
            && value.goes_on(end - start, after)
            && let Some((after_end, _)) = self.take(end)
        {
            end = after_end;
        }
        self.add(start, end, value);
    }

    /// Makes `blocks` a run that begins with `value`, whatever was there.
    pub fn set(&mut self, blocks: Range<u32>, value: V) {
        self.remove(blocks.clone(), |_| ());
        self.insert(blocks, value);
    }

    /// Moves the border between two runs that touch: the one that ends at `border` reaches to `end`, which
    /// lies within the one that starts at `border`. The value of the second one is the same all through. In
    /// place: one removal and one insertion, for a stream of small steps. No-op if there are no such runs.
    pub fn extend(&mut self, border: u32, end: u32) {
        let touches = self.before(border).is_some_and(|run| run.end == border);
        let Some((stop, value)) = touches.then(|| self.take(border)).flatten() else { return };
        self.add(end, stop, value);
        if let Some((_, (before_end, before))) = self.runs.range_mut(..border).next_back() {
            *before_end = end;
            if before.is_counted() {
                self.counted_blocks += u64::from(end - border);
            }
        }
    }

    /// Keeps the runs of which `keep` is true.
    pub fn retain(&mut self, mut keep: impl FnMut(&Run<V>) -> bool) {
        let Self { runs, counted_runs, counted_blocks } = self;
        runs.retain(|start, (end, value)| {
            let kept = keep(&Run { start: *start, end: *end, value: *value });
            if !kept && value.is_counted() {
                *counted_runs -= 1;
                *counted_blocks -= u64::from(*end - *start);
            }
            kept
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A place that goes on, or a mark that is the same all through and is counted.
    #[derive(Clone, Copy, PartialEq, Eq, Debug)]
    enum Value {
        Mark,
        At(u64),
    }

    impl RunValue for Value {
        fn advance(self, count: u32) -> Self {
            match self {
                Self::Mark => Self::Mark,
                Self::At(place) => Self::At(place + u64::from(count)),
            }
        }

        fn is_counted(self) -> bool {
            self == Self::Mark
        }
    }

    const BLOCKS: usize = 80;

    fn check(map: &RunMap<Value>, model: &[Option<Value>; BLOCKS], context: &str) {
        let mut found = [None; BLOCKS];
        let mut last: Option<Run<Value>> = None;
        for run in map.iter() {
            assert!(run.start < run.end, "{context}");
            if let Some(last) = last {
                assert!(last.end <= run.start, "{context}: overlap");
                let one = last.end == run.start && last.value.goes_on(last.blocks(), run.value);
                assert!(!one, "{context}: {last:?} and {run:?} are one");
            }
            for block in run.start..run.end {
                found[block as usize] = Some(run.value_at(block));
            }
            last = Some(run);
        }
        assert_eq!(found, *model, "{context}");
        let marks = model.iter().filter(|value| **value == Some(Value::Mark)).count();
        assert_eq!(map.counted_blocks(), marks as u64, "{context}");
        let counted = map.iter().filter(|run| run.value.is_counted()).count();
        assert_eq!(map.counted_runs(), counted, "{context}");
        for at in 0..BLOCKS as u32 {
            let covering = map.covering(at).map(|run| run.value_at(at));
            assert_eq!(covering, model[at as usize], "{context}: at {at}");
            let start = map.iter().map(|run| run.start).find(|start| *start >= at);
            assert_eq!(map.next_start(at), start, "{context}: behind {at}");
        }
    }

    #[test]
    fn random_changes_agree_with_an_array_of_blocks() {
        for seed in 0..300 {
            let mut random = fastrand::Rng::with_seed(seed);
            let mut map = RunMap::default();
            let mut model = [None; BLOCKS];
            for step in 0..60 {
                let start = random.usize(0..BLOCKS);
                let end = random.usize(start..=BLOCKS.min(start + 25));
                let range = start as u32..end as u32;
                // Few places, so that neighbours often fit together.
                let value = if random.bool() { Value::Mark } else { Value::At(1000 + start as u64) };
                let context = format!("seed {seed}, step {step}");
                match random.u8(0..4) {
                    0 => {
                        let mut removed = Vec::new();
                        map.remove(range.clone(), |run| {
                            removed.extend((run.start..run.end).map(|block| (block, run.value_at(block))));
                        });
                        let expected: Vec<_> =
                            range.filter_map(|block| Some((block, model[block as usize].take()?))).collect();
                        assert_eq!(removed, expected, "{context}");
                    }
                    1 => {
                        let free = model[start..end].iter().take_while(|value| value.is_none()).count();
                        map.insert(range.start..range.start + free as u32, value);
                        for (slot, n) in model[start..start + free].iter_mut().zip(0..) {
                            *slot = Some(value.advance(n));
                        }
                    }
                    2 => {
                        map.set(range, value);
                        for (slot, n) in model[start..end].iter_mut().zip(0..) {
                            *slot = Some(value.advance(n));
                        }
                    }
                    _ => {
                        let from = start as u32;
                        map.retain(|run| run.start != from);
                        if let Some(first) = model[start] {
                            let before = start.checked_sub(1).and_then(|before| model[before]);
                            if before.is_none_or(|before| !before.goes_on(1, first)) {
                                let mut at = start;
                                let expected = |at: usize| Some(first.advance((at - start) as u32));
                                while at < BLOCKS && model[at] == expected(at) {
                                    model[at] = None;
                                    at += 1;
                                }
                            }
                        }
                    }
                }
                check(&map, &model, &context);
            }
        }
    }

    #[test]
    fn a_border_moves_in_place() {
        let mut map = RunMap::default();
        map.insert(0..10, Value::Mark);
        map.insert(10..20, Value::At(500));
        map.extend(10, 12);
        assert_eq!(map.iter().map(|run| (run.start, run.end)).collect::<Vec<_>>(), [(0, 12), (12, 20)]);
        assert_eq!((map.counted_runs(), map.counted_blocks()), (1, 12));
        // To the end of the second one, which is gone then; and nothing to move.
        map.extend(12, 20);
        map.extend(20, 25);
        assert_eq!(map.iter().map(|run| (run.start, run.end)).collect::<Vec<_>>(), [(0, 20)]);
        assert_eq!(map.counted_blocks(), 20);
    }
}
