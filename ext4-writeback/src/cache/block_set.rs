//! Sets of the blocks of one folio (the bitmaps of iomap_folio_state): one word, or an array of words if a
//! folio has more than 64 blocks. No allocation for a folio of up to 64 blocks.

use std::ops::Range;

/// A set of a folio's blocks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum BlockSet {
    /// Up to 64 blocks.
    Word(u64),
    /// More.
    Words(Box<[u64]>),
}

impl BlockSet {
    /// The empty set for `blocks` blocks.
    pub fn empty(blocks: u32) -> Self {
        if blocks <= 64 {
            Self::Word(0)
        } else {
            Self::Words(vec![0; (blocks as usize).div_ceil(64)].into_boxed_slice())
        }
    }

    fn words(&self) -> &[u64] {
        match self {
            Self::Word(word) => std::slice::from_ref(word),
            Self::Words(words) => words,
        }
    }

    fn words_mut(&mut self) -> &mut [u64] {
        match self {
            Self::Word(word) => std::slice::from_mut(word),
            Self::Words(words) => words,
        }
    }

    fn for_each_word(range: Range<u32>, mut f: impl FnMut(usize, u64)) {
        let mut at = range.start;
        while at < range.end {
            let word = at / 64;
            let end = range.end.min((word + 1) * 64);
            let count = end - at;
            let mask = if count == 64 { u64::MAX } else { ((1_u64 << count) - 1) << (at % 64) };
            f(word as usize, mask);
            at = end;
        }
    }

    /// Adds `range`.
    pub fn insert(&mut self, range: Range<u32>) {
        let words = self.words_mut();
        Self::for_each_word(range, |word, mask| words[word] |= mask);
    }

    /// Takes `range` out.
    pub fn remove(&mut self, range: Range<u32>) {
        let words = self.words_mut();
        Self::for_each_word(range, |word, mask| words[word] &= !mask);
    }

    /// True when all of `range` is in.
    pub fn contains(&self, range: Range<u32>) -> bool {
        let words = self.words();
        let mut all = true;
        Self::for_each_word(range, |word, mask| all &= words[word] & mask == mask);
        all
    }

    /// True when nothing is in.
    pub fn is_empty(&self) -> bool {
        self.words().iter().all(|word| *word == 0)
    }

    /// The first block at or after `from`, below `end`, that is in (`wanted`) or is not.
    fn next(&self, from: u32, end: u32, wanted: bool) -> Option<u32> {
        let words = self.words();
        let mut at = from;
        while at < end {
            let word = words[(at / 64) as usize];
            let word = if wanted { word } else { !word } >> (at % 64);
            if word != 0 {
                return Some(at + word.trailing_zeros()).filter(|found| *found < end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    /// The first run of blocks that are in, within `from..end`.
    pub fn next_run(&self, from: u32, end: u32) -> Option<Range<u32>> {
        let start = self.next(from, end, true)?;
        Some(start..self.next(start, end, false).unwrap_or(end))
    }

    /// The first run of blocks that are not in, within `from..end`.
    pub fn next_gap(&self, from: u32, end: u32) -> Option<Range<u32>> {
        let start = self.next(from, end, false)?;
        Some(start..self.next(start, end, true).unwrap_or(end))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sets_agree_with_a_vector() {
        let mut random = fastrand::Rng::with_seed(7);
        for blocks in [1_u32, 4, 63, 64, 65, 512, 2048] {
            let mut set = BlockSet::empty(blocks);
            let mut model = vec![false; blocks as usize];
            for _ in 0..300 {
                let start = random.u32(0..=blocks);
                let end = random.u32(start..=blocks);
                let value = random.bool();
                if value {
                    set.insert(start..end)
                } else {
                    set.remove(start..end)
                }
                model[start as usize..end as usize].fill(value);
                let from = random.u32(0..=blocks);
                let first = (from..blocks).find(|i| model[*i as usize]);
                let run =
                    first.map(|first| first..(first..blocks).find(|i| !model[*i as usize]).unwrap_or(blocks));
                assert_eq!(set.next_run(from, blocks), run);
                assert_eq!(set.contains(start..end), model[start as usize..end as usize].iter().all(|b| *b));
                assert_eq!(set.is_empty(), model.iter().all(|b| !b));
            }
        }
    }
}
