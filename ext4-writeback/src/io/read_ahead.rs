//! Read-ahead: how much is read before a reader asks for it (kernel: `page_cache_ra_order`).
//!
//! ```text
//!   cached          the window                the next window
//!   ───────────────[──────────────│──────────)· · · · · · · · · · · · ·)
//!          reader ──►             mark: a reader that passes it starts the next window, twice as long
//! ```
//!
//! - A read where the last one ended, or at the start of the file, is sequential: it gets the first window,
//!   later ones twice the window before.
//! - A read that finds the bytes before it in memory is sequential too: several readers of one opened file
//!   share its [`ReadAhead`], and look like jumps to it. The window is as long as the bytes before it, as the
//!   kernel's is by the history of its page cache.
//! - Any other read gets what it asked for and no more.
//!
//! No reader waits for what is read ahead: the next window is started after a read has returned its bytes
//! (the mark), or is submitted with the reader's own read.

/// The read-ahead window of the first sequential read, in bytes.
pub(crate) const FIRST_WINDOW: u64 = 128 << 10;

/// The largest read-ahead window, in bytes.
pub(crate) const LAST_WINDOW: u64 = 4 << 20;

/// The read-ahead state of one opener (kernel: `file_ra_state`).
#[derive(Debug, Default)]
pub(crate) struct ReadAhead {
    /// The byte at which the next sequential read starts.
    next: u64,
    /// The byte up to which was read ahead.
    ahead: u64,
    /// The length of the last window in bytes.
    window: u64,
}

fn most(limit: u64) -> u64 {
    LAST_WINDOW.min(limit).max(FIRST_WINDOW)
}

impl ReadAhead {
    /// Returns true if a read at byte `position` is the next of the stream.
    pub fn goes_on_at(&self, position: u64) -> bool {
        self.next == position
    }

    /// Notes a read of bytes `position..end` that does not find all of them in memory; returns the byte up to
    /// which to read. `history(most)`: how many bytes before `position` are in memory without a gap, `most`
    /// at most. `limit`: the largest window in bytes.
    pub fn window(&mut self, position: u64, end: u64, limit: u64, history: impl FnOnce(u64) -> u64) -> u64 {
        let most = most(limit);
        if position == self.next || position == self.ahead {
            self.window = (self.window * 2).clamp(FIRST_WINDOW, most);
        } else {
            let before = history(most);
            self.window = if before >= end - position { before.clamp(FIRST_WINDOW, most) } else { 0 };
        }
        self.ahead = end.max(position + self.window);
        self.ahead
    }

    /// Notes that a read of bytes `position..end` has got all of them; returns the range to start reading
    /// now, if half of what was read ahead is used up.
    pub fn advance(&mut self, position: u64, end: u64, size: u64, limit: u64) -> Option<(u64, u64)> {
        let sequential = position == self.next;
        self.next = end;
        let start = self.ahead;
        if !sequential || self.window == 0 || start < end || start >= size || end + self.window / 2 < start {
            return None;
        }
        self.window = (self.window * 2).min(most(limit));
        self.ahead = start + self.window;
        Some((start, self.ahead))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: u64 = 1 << 30;
    const READ: u64 = 64 << 10;
    const SIZE: u64 = 1 << 30;

    type Ranges = Vec<(u64, u64)>;

    /// Runs `reads` over a model of a page cache; returns the ranges of reads that waited and of those that
    /// did not.
    fn run(reads: impl Iterator<Item = (u64, u64)>) -> (Ranges, Ranges) {
        let mut state = ReadAhead::default();
        let mut cached = vec![false; 4096];
        let (mut waited, mut ahead) = (Vec::new(), Vec::new());
        for (position, end) in reads {
            let blocks = |from: u64, to: u64| (from / READ) as usize..to.div_ceil(READ) as usize;
            if !cached[blocks(position, end)].iter().all(|block| *block) {
                let history = |most: u64| {
                    let before = cached[..(position / READ) as usize].iter().rev();
                    (before.take_while(|block| **block).count() as u64 * READ).min(most)
                };
                let to = state.window(position, end, LIMIT, history);
                cached[blocks(position, to)].fill(true);
                waited.push((position, to));
            }
            if let Some((from, to)) = state.advance(position, end, SIZE, LIMIT) {
                cached[blocks(from, to)].fill(true);
                ahead.push((from, to));
            }
        }
        (waited, ahead)
    }

    #[test]
    fn a_sequential_reader_waits_once_and_the_window_grows() {
        let (waited, ahead) = run((0..1000).map(|i| (i * READ, (i + 1) * READ)));
        assert_eq!(waited, [(0, FIRST_WINDOW)]);
        let sizes: Vec<_> = ahead.iter().map(|(from, to)| to - from).collect();
        assert_eq!(sizes[..6], [2, 4, 8, 16, 32, 32].map(|times| times * FIRST_WINDOW));
        assert!(ahead.windows(2).all(|pair| pair[0].1 == pair[1].0), "no gap and nothing twice");
    }

    #[test]
    fn a_reader_that_starts_in_the_middle_is_sequential_from_its_second_read_on() {
        let start = 100 << 20;
        let (waited, ahead) = run((0..20).map(|i| (start + i * READ, start + (i + 1) * READ)));
        assert_eq!(waited[0], (start, start + READ), "the first looks like any jump");
        assert_eq!(waited[1], (start + READ, start + READ + FIRST_WINDOW));
        assert_eq!(waited.len(), 2);
        assert!(!ahead.is_empty());
    }

    #[test]
    fn jumps_get_what_they_ask_for() {
        let mut random = fastrand::Rng::with_seed(5);
        // Never next to each other.
        let places: Vec<_> = (1..500_u64).map(|i| i * 4 * READ).collect();
        let reads = (0..300).map(|_| places[random.usize(0..places.len())]).map(|at| (at, at + READ));
        let (waited, ahead) = run(reads);
        assert!(waited.iter().all(|(from, to)| to - from == READ));
        assert!(ahead.is_empty(), "{ahead:?}");
    }

    #[test]
    fn two_readers_in_turn_are_both_sequential() {
        let other = 128 << 20;
        let reads =
            (0..400).flat_map(|i| [(i * READ, (i + 1) * READ), (other + i * READ, other + (i + 1) * READ)]);
        let (waited, _) = run(reads);
        let longest = waited.iter().map(|(from, to)| to - from).max().expect("some");
        assert!(waited.len() < 60, "{} of 800 reads waited", waited.len());
        assert!(longest >= 1 << 20, "the window grows: {longest}");
    }

    #[test]
    fn little_memory_bounds_the_window() {
        let mut state = ReadAhead::default();
        for _ in 0..10 {
            let (from, limit) = (state.next, 512 << 10);
            let to = state.window(from, from + READ, limit, |_| 0);
            assert!(to - from <= limit);
            state.advance(from, to, SIZE, limit);
        }
    }
}
