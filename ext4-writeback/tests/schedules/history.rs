//! What several tasks did to a few files, and what a power cut may leave of it.
//!
//! Every call is an [`Op`] with a beginning and an end. Two calls that overlap in time may have happened in
//! either order; a call that began after another had ended came after it. A call is *durable* at a cut if a
//! sync of its file began after the call had ended, and that sync had returned before the cut.
//!
//! A byte of a file after recovery is one of these:
//! - what a call wrote there, unless a durable call that changed the byte came after that call;
//! - zero, if no call had written there, or a truncation had cut the byte off, with the same exception;
//! - not there (behind the size), if the same is true and no durable call that made the file longer came
//!   after.
//!
//! A size can only have been reached by a call that made it. If all calls that could have made the size that
//! is found began after a truncation had ended, the transaction of the truncation is on the device as well:
//! it counts as durable. So bytes that were cut off never come back under a size that is younger than the
//! cut.
//!
//! Each writing call has a byte of its own, odd; what lay on the device before is even: so a byte tells where
//! it is from.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

/// The byte that the files hold at first.
pub const FIRST_BYTE: u8 = 1;

/// What a call does.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Fills `range` with `byte`.
    Write { range: Range<u64>, byte: u8 },
    /// The file has this size from now on.
    SetLen(u64),
    /// What ended before is durable when this returns.
    Sync,
    /// The file's name ends in this number from now on.
    Rename(u64),
}

/// A call.
#[derive(Clone, Debug)]
pub struct Op {
    pub task: usize,
    /// The file; `None`: all of them.
    pub file: Option<usize>,
    pub action: Action,
    /// When it began and ended, on the clock of this history.
    pub began: u64,
    pub ended: Option<u64>,
    /// How many events the device had seen when it began, and when it ended.
    pub from_event: usize,
    pub to_event: Option<usize>,
}

/// All calls of a run.
pub struct History {
    clock: AtomicU64,
    ops: Mutex<Vec<Op>>,
    bytes: AtomicU64,
}

impl Default for History {
    fn default() -> Self {
        // Times 0 and 1 are those of what the files hold at first.
        Self { clock: AtomicU64::new(2), ops: Mutex::default(), bytes: AtomicU64::new(0) }
    }
}

impl History {
    pub fn new() -> Arc<Self> {
        Arc::new(Self::default())
    }

    /// A byte that no other call writes: odd, and not the first one. (After 126 calls they come again.)
    pub fn byte(&self) -> u8 {
        let number = self.bytes.fetch_add(1, Ordering::Relaxed);
        u8::try_from(3 + 2 * (number % 126)).expect("below 256")
    }

    /// A call begins.
    pub fn begin(&self, task: usize, file: Option<usize>, action: Action, event: usize) -> usize {
        let began = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut ops = self.ops.lock();
        ops.push(Op { task, file, action, began, ended: None, from_event: event, to_event: None });
        ops.len() - 1
    }

    /// It returned.
    pub fn end(&self, op: usize, event: usize) {
        let ended = self.clock.fetch_add(1, Ordering::Relaxed);
        let mut ops = self.ops.lock();
        ops[op].ended = Some(ended);
        ops[op].to_event = Some(event);
    }

    /// The calls, for a report.
    pub fn ops(&self) -> Vec<Op> {
        self.ops.lock().clone()
    }
}

/// What is known of one file at a cut.
pub struct Expectation {
    /// The calls that may have an effect, the file's first content being the first of them.
    changes: Vec<Change>,
    renames: Vec<Change>,
}

#[derive(Clone, Debug)]
struct Change {
    action: Action,
    began: u64,
    ended: Option<u64>,
    durable: bool,
}

impl Change {
    /// It came after `other`, whatever the interleaving.
    fn is_after(&self, other: &Self) -> bool {
        other.ended.is_some_and(|ended| self.began > ended)
    }

    fn sets_value_at(&self, at: u64) -> bool {
        match &self.action {
            Action::Write { range, .. } => range.contains(&at),
            Action::SetLen(size) => *size <= at,
            _ => false,
        }
    }

    fn makes_present(&self, at: u64) -> bool {
        self.reaches() > at
    }

    fn cuts_off(&self, at: u64) -> bool {
        matches!(self.action, Action::SetLen(size) if size <= at)
    }

    /// The size that it makes, at least.
    fn reaches(&self) -> u64 {
        match &self.action {
            Action::Write { range, .. } => range.end,
            Action::SetLen(size) => *size,
            _ => 0,
        }
    }
}

/// What was found that cannot be.
#[derive(Debug)]
pub struct Violation(pub String);

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Expectation {
    /// Of `file`, which held `first_len` bytes of [`FIRST_BYTE`], at the cut after `events` events of the
    /// device.
    pub fn at(ops: &[Op], file: usize, first_len: u64, events: usize) -> Self {
        let concerns = |op: &&Op| op.file.is_none_or(|of| of == file) && op.from_event <= events;
        let synced = ops
            .iter()
            .filter(concerns)
            .filter(|op| op.action == Action::Sync && op.to_event.is_some_and(|event| event <= events))
            .map(|op| op.began)
            .max()
            .unwrap_or(0);
        // The name of a file is made durable by a sync of everything only.
        let names_synced = ops
            .iter()
            .filter(|op| op.file.is_none() && op.action == Action::Sync)
            .filter(|op| op.to_event.is_some_and(|event| event <= events))
            .map(|op| op.began)
            .max()
            .unwrap_or(0);
        let change = |op: &Op, synced: u64| Change {
            action: op.action.clone(),
            began: op.began,
            ended: op.ended.filter(|_| op.to_event.is_some_and(|event| event <= events)),
            durable: op.ended.is_some_and(|ended| ended < synced),
        };
        let zero = |action| Change { action, began: 0, ended: Some(0), durable: true };
        let mut changes =
            vec![zero(Action::SetLen(0)), zero(Action::Write { range: 0..first_len, byte: FIRST_BYTE })];
        // The second came after the first, and before every call.
        (changes[1].began, changes[1].ended) = (1, Some(1));
        let mut renames = vec![zero(Action::Rename(0))];
        for op in ops.iter().filter(concerns) {
            match op.action {
                Action::Rename(_) => renames.push(change(op, names_synced)),
                Action::Write { .. } | Action::SetLen(_) => changes.push(change(op, synced)),
                Action::Sync => {}
            }
        }
        Self { changes, renames }
    }

    /// Judges the file's bytes.
    pub fn check(&self, bytes: &[u8]) -> Result<(), Violation> {
        let size = bytes.len() as u64;
        let mut changes = self.changes.clone();
        // What could have made this size: truncations that had ended before any of it began are on the
        // device.
        let earliest =
            changes.iter().filter(|change| change.reaches() >= size).map(|change| change.began).min();
        let Some(earliest) = earliest else {
            return Err(Violation(format!("no call made the file {size} bytes long")));
        };
        if size > 0 {
            for change in &mut changes {
                let truncation = matches!(change.action, Action::SetLen(_));
                change.durable |= truncation && change.ended.is_some_and(|ended| ended < earliest);
            }
        }
        let mut bounds: Vec<u64> = changes
            .iter()
            .flat_map(|change| match &change.action {
                Action::Write { range, .. } => [range.start, range.end],
                Action::SetLen(at) => [*at, *at],
                _ => [0, 0],
            })
            .chain([0, size])
            .collect();
        bounds.sort_unstable();
        bounds.dedup();
        for pair in bounds.windows(2) {
            let (start, end) = (pair[0], pair[1]);
            let open = |change: &Change, ends: &dyn Fn(&Change) -> bool| {
                !changes.iter().any(|later| later.durable && ends(later) && later.is_after(change))
            };
            let sets_value = |change: &Change| change.sets_value_at(start);
            if start >= size {
                let absent = changes.iter().any(|change| {
                    change.cuts_off(start) && open(change, &|later| later.makes_present(start))
                });
                if !absent {
                    return Err(Violation(format!("{size} bytes, but bytes {start}..{end} are durable")));
                }
                continue;
            }
            let present = changes
                .iter()
                .any(|change| change.makes_present(start) && open(change, &|later| later.cuts_off(start)));
            if !present {
                return Err(Violation(format!("{size} bytes, but bytes {start}..{end} were cut off")));
            }
            let mut allowed = [false; 256];
            for change in changes.iter().filter(|change| sets_value(change) && open(change, &sets_value)) {
                match change.action {
                    Action::Write { byte, .. } => allowed[usize::from(byte)] = true,
                    _ => allowed[0] = true,
                }
            }
            let found = &bytes[start as usize..end as usize];
            if let Some(wrong) = found.iter().position(|byte| !allowed[usize::from(*byte)]) {
                let expected: Vec<usize> = (0..256).filter(|byte| allowed[*byte]).collect();
                return Err(Violation(format!(
                    "byte {} of {size} is {:#x}, not one of {expected:x?}",
                    start + wrong as u64,
                    found[wrong]
                )));
            }
        }
        Ok(())
    }

    /// The numbers of which the file's name may end in one.
    pub fn names(&self) -> Vec<u64> {
        let current =
            |change: &&Change| !self.renames.iter().any(|later| later.durable && later.is_after(change));
        self.renames
            .iter()
            .filter(current)
            .filter_map(|change| match change.action {
                Action::Rename(number) => Some(number),
                _ => None,
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(history: &History, action: Action, events: (usize, usize)) {
        let op = history.begin(0, Some(0), action, events.0);
        history.end(op, events.1);
    }

    fn check(history: &History, events: usize, bytes: &[u8]) -> Result<(), Violation> {
        Expectation::at(&history.ops(), 0, 10, events).check(bytes)
    }

    #[test]
    fn what_was_synced_must_be_there_and_what_was_not_may_be() {
        let history = History::default();
        done(&history, Action::Write { range: 5..20, byte: 3 }, (0, 0));
        for bytes in [vec![1; 10], [vec![1; 5], vec![3; 15]].concat(), [vec![1; 10], vec![0; 3]].concat()] {
            check(&history, 5, &bytes).expect("not synced yet");
        }
        done(&history, Action::Sync, (1, 4));
        check(&history, 3, &[1; 10]).expect("the sync had not returned");
        check(&history, 4, &[1; 10]).expect_err("lost");
        check(&history, 4, &[vec![1; 5], vec![3; 15]].concat()).expect("as it was synced");
        check(&history, 4, &[vec![1; 5], vec![3; 14], vec![0]].concat()).expect_err("a zero");
        check(&history, 4, &[vec![1; 5], vec![3; 15], vec![0]].concat()).expect_err("too long");
        check(&history, 4, &[vec![1; 5], vec![3; 14], vec![0xaa]].concat()).expect_err("stale");
    }

    #[test]
    fn what_was_cut_off_does_not_come_back_under_a_younger_size() {
        let history = History::default();
        done(&history, Action::SetLen(4), (0, 0));
        done(&history, Action::Write { range: 12..14, byte: 3 }, (0, 0));
        check(&history, 5, &[1; 10]).expect("neither is there");
        check(&history, 5, &[1; 4]).expect("the truncation is");
        check(&history, 5, &[vec![1; 4], vec![0; 8], vec![3; 2]].concat()).expect("both are");
        check(&history, 5, &[vec![1; 10], vec![0; 2], vec![3; 2]].concat()).expect_err("stale bytes");
    }

    #[test]
    fn calls_that_overlap_may_come_in_either_order() {
        let history = History::default();
        let write = history.begin(0, Some(0), Action::Write { range: 0..4, byte: 3 }, 0);
        let other = history.begin(1, Some(0), Action::Write { range: 0..4, byte: 5 }, 0);
        history.end(write, 0);
        history.end(other, 0);
        done(&history, Action::Sync, (0, 0));
        for byte in [3, 5] {
            check(&history, 1, &[vec![byte; 4], vec![1; 6]].concat()).expect("either");
        }
        check(&history, 1, &[1; 10]).expect_err("one of them is durable");
    }
}
