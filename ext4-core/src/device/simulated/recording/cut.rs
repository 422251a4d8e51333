//! Power cuts: the moments of a recording at which the power can go, and what the device may hold then.

use super::{Change, Event, Recording};
use crate::device::BioFlags;
use crate::device::simulated::{Image, Random};

/// What becomes of a change in a power cut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Fate {
    Lost,
    Whole,
    Torn,
}

/// A change that is not in the settled image.
#[derive(Clone, Copy, Debug)]
struct Pending {
    submitted: usize,
    /// It is durable, and waits only for earlier ones that it overlaps.
    durable: bool,
}

/// The moments of a [`Recording`]; see [`Recording::cuts`].
#[derive(Clone, Debug)]
pub struct Cuts<'r> {
    recording: &'r Recording,
    /// Events seen.
    pub(super) position: usize,
    started: bool,
    /// The base with everything durable that nothing pending lies under.
    settled: Image,
    /// The other changes, in the order of submission.
    pending: Vec<Pending>,
    /// By place of submission: whether it has completed without an error.
    completed: Vec<bool>,
}

impl<'r> Cuts<'r> {
    pub(super) fn new(recording: &'r Recording) -> Self {
        Self {
            recording,
            position: 0,
            started: false,
            settled: recording.base.clone(),
            pending: Vec::new(),
            completed: vec![false; recording.events.len()],
        }
    }

    /// Takes one event in. Returns true if a cut after it differs from one before it.
    pub(super) fn step(&mut self) -> bool {
        let place = self.position;
        self.position += 1;
        match &self.recording.events[place] {
            Event::Mark(_) => true,
            Event::Submitted { change: Change::Flush, .. } => false,
            Event::Submitted { .. } => {
                self.pending.push(Pending { submitted: place, durable: false });
                true
            }
            Event::Completed { submitted, success } => {
                if !success {
                    // How far it came is not known: it stays pending.
                    return false;
                }
                let submitted = *submitted;
                self.completed[submitted] = true;
                let Event::Submitted { change, flags } = &self.recording.events[submitted] else {
                    return false;
                };
                let fua = flags.contains(BioFlags::FUA) && *change != Change::Flush;
                let flushed = *change == Change::Flush
                    || flags.contains(BioFlags::PREFLUSH)
                    || fua && self.recording.fua_flushes;
                if flushed {
                    self.flush(submitted);
                }
                if fua {
                    self.pending
                        .iter_mut()
                        .filter(|pending| pending.submitted == submitted)
                        .for_each(|pending| pending.durable = true);
                }
                if flushed || fua {
                    self.settle();
                }
                flushed || fua
            }
        }
    }

    /// A flush submitted at `flush` has completed: what had completed before it is durable.
    fn flush(&mut self, flush: usize) {
        // Completions that came after the flush was submitted do not count.
        let late: Vec<usize> = self.recording.events[flush..self.position]
            .iter()
            .filter_map(|event| match event {
                Event::Completed { submitted, .. } => Some(*submitted),
                _ => None,
            })
            .collect();
        for pending in &mut self.pending {
            pending.durable |= pending.submitted < flush
                && self.completed[pending.submitted]
                && !late.contains(&pending.submitted);
        }
    }

    /// Moves into the settled image what is durable and lies over nothing that is not.
    fn settle(&mut self) {
        let mut kept: Vec<Pending> = Vec::new();
        for pending in self.pending.drain(..) {
            let change = self.recording.change(pending.submitted);
            let free = kept.iter().all(|earlier| !change.overlaps(self.recording.change(earlier.submitted)));
            if pending.durable && free {
                change.apply(&mut self.settled);
            } else {
                kept.push(pending);
            }
        }
        self.pending = kept;
    }

    pub(super) fn cut(&self) -> Cut<'r> {
        Cut {
            recording: self.recording,
            position: self.position,
            settled: self.settled.clone(),
            pending: self.pending.clone(),
        }
    }

    fn advance(&mut self) -> bool {
        if !self.started {
            self.started = true;
            return true;
        }
        while self.position < self.recording.events.len() {
            if self.step() {
                return true;
            }
        }
        false
    }
}

impl<'r> Iterator for Cuts<'r> {
    type Item = Cut<'r>;

    fn next(&mut self) -> Option<Cut<'r>> {
        self.advance().then(|| self.cut())
    }

    fn nth(&mut self, skip: usize) -> Option<Cut<'r>> {
        for _ in 0..skip {
            if !self.advance() {
                return None;
            }
        }
        self.next()
    }
}

/// A moment at which the power goes, and what the device may hold then.
#[derive(Clone, Debug)]
pub struct Cut<'r> {
    recording: &'r Recording,
    position: usize,
    settled: Image,
    pending: Vec<Pending>,
}

impl Cut<'_> {
    /// How many events came before.
    #[must_use]
    pub fn position(&self) -> usize {
        self.position
    }

    /// Returns true if the test had called [`RecordingDevice::mark`](super::RecordingDevice::mark) with
    /// `name` before.
    #[must_use]
    pub fn has_passed(&self, name: &str) -> bool {
        self.marks().any(|mark| mark == name)
    }

    /// The marks before, in order.
    pub fn marks(&self) -> impl Iterator<Item = &str> {
        self.recording.events[..self.position].iter().filter_map(|event| match event {
            Event::Mark(name) => Some(name.as_str()),
            _ => None,
        })
    }

    /// How many changes may or may not be there.
    #[must_use]
    pub fn uncertain(&self) -> usize {
        self.pending.iter().filter(|pending| !pending.durable).count()
    }

    /// The image if nothing is lost.
    #[must_use]
    pub fn with_all(&self) -> Image {
        self.build(|change, image| change.apply(image))
    }

    /// The image if everything is lost that may be lost.
    #[must_use]
    pub fn with_none(&self) -> Image {
        self.build(|_, _| {})
    }

    /// An image in which any of what may be lost is lost or torn, as `seed` decides.
    #[must_use]
    pub fn variant(&self, seed: u64) -> Image {
        let mut random = Random(seed ^ (self.position as u64).rotate_left(32));
        let mut fates: Vec<Fate> = self
            .pending
            .iter()
            .map(|pending| match random.below(5) {
                _ if pending.durable => Fate::Whole,
                0 | 1 => Fate::Lost,
                2 | 3 => Fate::Whole,
                _ => Fate::Torn,
            })
            .collect();
        // From the last one on: what a preflush made durable may itself have come behind one.
        for (index, pending) in self.pending.iter().enumerate().rev() {
            let flushed_first = self.recording.flags(pending.submitted).contains(BioFlags::PREFLUSH);
            if flushed_first && fates[index] != Fate::Lost {
                for (earlier, fate) in self.pending[..index].iter().zip(&mut fates) {
                    if self.recording.completed_between(earlier.submitted, pending.submitted) {
                        *fate = Fate::Whole;
                    }
                }
            }
        }
        let mut image = self.settled.clone();
        for (pending, fate) in self.pending.iter().zip(fates) {
            let change = self.recording.change(pending.submitted);
            match fate {
                Fate::Lost => {}
                Fate::Whole => change.apply(&mut image),
                Fate::Torn => change.apply_torn(&mut image, &mut random),
            }
        }
        image
    }

    fn build(&self, mut uncertain: impl FnMut(&Change, &mut Image)) -> Image {
        let mut image = self.settled.clone();
        for pending in &self.pending {
            let change = self.recording.change(pending.submitted);
            if pending.durable {
                change.apply(&mut image);
            } else {
                uncertain(change, &mut image);
            }
        }
        image
    }
}
