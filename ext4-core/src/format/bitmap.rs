//! Bitmaps of blocks and inodes: little-endian bits in bytes, looked at 64 at a time.
//!
//! Bit `n` of a bitmap is bit `n % 8` of byte `n / 8`. Functions take the number of bits that count (`len`);
//! bits past it are never looked at and never changed. A `len` past the bytes is cut to them, so no argument
//! panics.
//!
//! Source: kernel documentation, "Block and inode Bitmaps".

use core::ops::Range;

/// The bits of `bytes`.
fn bits(bytes: &[u8]) -> u32 {
    u32::try_from(bytes.len()).unwrap_or(u32::MAX).saturating_mul(8)
}

/// Word `index`, bits past the bytes clear.
#[inline]
fn word(bytes: &[u8], index: usize) -> u64 {
    let start = index.saturating_mul(8);
    let rest = bytes.get(start..).unwrap_or_default();
    match rest.first_chunk::<8>() {
        Some(chunk) => u64::from_le_bytes(*chunk),
        None => {
            let mut last = [0; 8];
            for (to, from) in last.iter_mut().zip(rest) {
                *to = *from;
            }
            u64::from_le_bytes(last)
        }
    }
}

/// Bits `from..` of a word.
#[inline]
fn mask_from(from: u32) -> u64 {
    u64::MAX.checked_shl(from).unwrap_or(0)
}

#[inline]
fn find(bytes: &[u8], from: u32, len: u32, invert: u64) -> Option<u32> {
    let len = len.min(bits(bytes));
    if from >= len {
        return None;
    }
    let mut index = from >> 6;
    let mut mask = mask_from(from & 63);
    let end = len.div_ceil(64);
    while index < end {
        let found = (word(bytes, usize::try_from(index).unwrap_or(usize::MAX)) ^ invert) & mask;
        if found != 0 {
            let bit = (index << 6) | found.trailing_zeros();
            return (bit < len).then_some(bit);
        }
        mask = u64::MAX;
        index = index.saturating_add(1);
    }
    None
}

/// The first set bit at or after `from`, below `len`.
#[must_use]
pub fn next_set(bytes: &[u8], from: u32, len: u32) -> Option<u32> {
    find(bytes, from, len, 0)
}

/// The first clear bit at or after `from`, below `len`.
#[must_use]
pub fn next_clear(bytes: &[u8], from: u32, len: u32) -> Option<u32> {
    find(bytes, from, len, u64::MAX)
}

/// Returns true if bit `bit` is set; one past the bytes counts as set.
#[must_use]
pub fn is_set(bytes: &[u8], bit: u32) -> bool {
    let byte = usize::try_from(bit >> 3).ok().and_then(|index| bytes.get(index));
    byte.is_none_or(|byte| byte >> (bit & 7) & 1 == 1)
}

/// Returns true if every bit of the range is clear. An empty range is.
#[must_use]
pub fn is_clear_range(bytes: &[u8], range: Range<u32>) -> bool {
    range.end <= bits(bytes) && next_set(bytes, range.start, range.end).is_none()
}

/// Returns true if every bit of the range is set. An empty range is.
#[must_use]
pub fn is_set_range(bytes: &[u8], range: Range<u32>) -> bool {
    range.end <= bits(bytes) && next_clear(bytes, range.start, range.end).is_none()
}

/// Calls `change` with each byte that has bits in the range, and the mask of those bits; whole bytes in
/// between go to `fill` at once.
fn each_byte(
    bytes: &mut [u8],
    range: Range<u32>,
    change: impl Fn(&mut u8, u8),
    fill: impl FnOnce(&mut [u8]),
) {
    let end = range.end.min(bits(bytes));
    if range.start >= end {
        return;
    }
    let at = |bit: u32| usize::try_from(bit >> 3).unwrap_or(usize::MAX);
    let (first, last) = (at(range.start), at(end));
    let head = 0xff_u8.wrapping_shl(range.start & 7);
    let tail = !0xff_u8.wrapping_shl(end & 7);
    if first == last {
        if let Some(byte) = bytes.get_mut(first) {
            change(byte, head & tail);
        }
        return;
    }
    if let Some(byte) = bytes.get_mut(first) {
        change(byte, head);
    }
    if let Some(middle) = bytes.get_mut(first.saturating_add(1)..last) {
        fill(middle);
    }
    if tail != 0
        && let Some(byte) = bytes.get_mut(last)
    {
        change(byte, tail);
    }
}

/// Sets every bit of the range.
pub fn set_range(bytes: &mut [u8], range: Range<u32>) {
    each_byte(bytes, range, |byte, mask| *byte |= mask, |middle| middle.fill(0xff));
}

/// Clears every bit of the range.
pub fn clear_range(bytes: &mut [u8], range: Range<u32>) {
    each_byte(bytes, range, |byte, mask| *byte &= !mask, |middle| middle.fill(0));
}

/// How many of the first `len` bits are clear.
#[must_use]
pub fn count_clear(bytes: &[u8], len: u32) -> u32 {
    let len = len.min(bits(bytes));
    len.saturating_sub(count_set(bytes, len))
}

/// How many of the first `len` bits are set.
#[must_use]
pub fn count_set(bytes: &[u8], len: u32) -> u32 {
    let len = len.min(bits(bytes));
    let whole = len >> 6;
    let mut count = 0_u32;
    for index in 0..whole {
        count = count.saturating_add(word(bytes, usize::try_from(index).unwrap_or(usize::MAX)).count_ones());
    }
    let rest = word(bytes, usize::try_from(whole).unwrap_or(usize::MAX)) & !mask_from(len & 63);
    count.saturating_add(rest.count_ones())
}

/// The first run of clear bits at or after `from`, below `len`, cut to `most` bits.
#[must_use]
pub fn next_clear_run(bytes: &[u8], from: u32, len: u32, most: u32) -> Option<Range<u32>> {
    let start = next_clear(bytes, from, len)?;
    let limit = len.min(start.saturating_add(most)).min(bits(bytes));
    let end = next_set(bytes, start, limit).unwrap_or(limit);
    Some(start..end)
}

/// The best run of clear bits for `wanted` bits within `within`: the first that is long enough, otherwise the
/// longest (the first of the longest), cut to `wanted` bits. `None` if no bit is clear.
#[must_use]
pub fn best_clear_run(bytes: &[u8], within: Range<u32>, wanted: u32) -> Option<Range<u32>> {
    let mut best: Option<Range<u32>> = None;
    let mut from = within.start;
    while let Some(run) = next_clear_run(bytes, from, within.end, wanted.max(1)) {
        if run.len() >= usize::try_from(wanted).unwrap_or(usize::MAX) {
            return Some(run);
        }
        from = run.end;
        if best.as_ref().is_none_or(|best| run.len() > best.len()) {
            best = Some(run);
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn model(bytes: &[u8]) -> Vec<bool> {
        (0..bytes.len() * 8).map(|bit| bytes[bit / 8] >> (bit % 8) & 1 == 1).collect()
    }

    /// Bytes with long runs as well as noise.
    fn bytes() -> impl Strategy<Value = Vec<u8>> {
        proptest::collection::vec(prop_oneof![Just(0_u8), Just(0xff), any::<u8>()], 0..64)
    }

    proptest! {
        #[test]
        fn searches_and_counts_agree_with_a_vector_of_booleans(
            bytes in bytes(),
            from in 0_u32..600,
            len in 0_u32..600,
        ) {
            let bits = model(&bytes);
            let end = bits.len().min(len as usize);
            let position = |value| (from as usize..end).find(|bit| bits[*bit] == value).map(|bit| bit as u32);
            prop_assert_eq!(next_set(&bytes, from, len), position(true));
            prop_assert_eq!(next_clear(&bytes, from, len), position(false));
            prop_assert_eq!(count_set(&bytes, len) as usize, bits[..end].iter().filter(|bit| **bit).count());
            let clear = bits[..end].iter().filter(|bit| !**bit).count();
            prop_assert_eq!(count_clear(&bytes, len) as usize, clear);
            prop_assert_eq!(is_set(&bytes, from), bits.get(from as usize).copied().unwrap_or(true));
        }

        #[test]
        fn changes_touch_the_range_and_nothing_else(
            mut bytes in bytes(),
            start in 0_u32..600,
            len in 0_u32..300,
        ) {
            let mut bits = model(&bytes);
            let range = start..start + len;
            let hit = start as usize..bits.len().min(range.end as usize);
            let mut cleared = bytes.clone();
            clear_range(&mut cleared, range.clone());
            set_range(&mut bytes, range.clone());
            if !hit.is_empty() {
                bits[hit.clone()].fill(true);
            }
            prop_assert_eq!(model(&bytes), bits.clone());
            let fits = range.end as usize <= bits.len();
            prop_assert_eq!(is_set_range(&bytes, range.clone()), fits);
            prop_assert_eq!(is_clear_range(&cleared, range), fits);
        }

        #[test]
        fn the_best_run_is_long_enough_or_the_longest(
            bytes in bytes(),
            start in 0_u32..300,
            wanted in 1_u32..100,
        ) {
            let bits = model(&bytes);
            let within = start..512;
            let mut runs: Vec<Range<u32>> = Vec::new();
            for bit in start..bits.len() as u32 {
                if bits[bit as usize] { continue; }
                match runs.last_mut() {
                    Some(run) if run.end == bit => run.end += 1,
                    _ => runs.push(bit..bit + 1),
                }
            }
            let best = best_clear_run(&bytes, within, wanted);
            match runs.iter().find(|run| run.len() as u32 >= wanted) {
                Some(run) => prop_assert_eq!(best, Some(run.start..run.start + wanted)),
                None => prop_assert_eq!(best.map(|run| run.len()), runs.iter().map(|run| run.len()).max()),
            }
        }
    }
}
