//! A device that records all that is written to it, and what it could hold after a power cut at any moment.
//!
//! What survives a cut, given the events up to it (`S` submitted, `C` completed):
//!
//! ```text
//!   S write a   C write a   S flush   S write b   C flush   C write b   S write c (FUA)  C write c   ✂
//!   a: durable, it had completed when the flush was submitted, and the flush completed
//!   b: perhaps, in whole, in part (512-byte sectors), or not at all
//!   c: durable, it carried FUA and completed
//! ```
//!
//! Invariants:
//! - A write that is durable is in every image of every later cut. A test that fails on an image has found a missing
//!   flush or a wrong order, never a device that broke its word.
//! - A write that carried `PREFLUSH` shows, even in part, only in images that hold everything that had completed before
//!   it was submitted: the device flushes first.
//! - Where two writes overlap and the earlier one had completed before the later was submitted, the earlier never
//!   shows over the later.
//!
//! Lock: the log's mutex, held for an append; never while the inner device is called.

use std::sync::Arc;

use parking_lot::Mutex;

use super::memory::gather;
use super::{Image, MemoryDevice, Random};
use crate::device::{BioFlags, BlockDevice, Geometry, Operation, Plug};

/// The unit that a device writes whole or not at all.
const SECTOR: usize = 512;
/// What a discarded range may hold: a byte that shows.
const DISCARDED: u8 = 0xdb;

/// What a submitted bio changes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// These bytes are stored at byte `offset`.
    Write {
        /// Where.
        offset: u64,
        /// What.
        data: Arc<[u8]>,
    },
    /// `len` bytes at byte `offset` read as zeros.
    Zeroes {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// `len` bytes at byte `offset` may hold anything.
    Discard {
        /// Where.
        offset: u64,
        /// How many bytes.
        len: u64,
    },
    /// Nothing: a flush.
    Flush,
}

impl Change {
    /// The bytes of the device it covers.
    fn range(&self) -> std::ops::Range<u64> {
        match self {
            Self::Write { offset, data } => *offset..*offset + data.len() as u64,
            Self::Zeroes { offset, len } | Self::Discard { offset, len } => *offset..*offset + *len,
            Self::Flush => 0..0,
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        let (left, right) = (self.range(), other.range());
        left.start < right.end && right.start < left.end
    }

    /// Carries it out in full.
    fn apply(&self, image: &mut Image) {
        match self {
            Self::Write { offset, data } => image.write(*offset, data),
            Self::Zeroes { offset, len } | Self::Discard { offset, len } => image.fill(*offset, *len, 0),
            Self::Flush => {}
        }
    }

    /// Carries out a part of it, as chance will have it.
    fn apply_torn(&self, image: &mut Image, random: &mut Random) {
        match self {
            Self::Write { offset, data } => {
                // Torn: a run from the front, a run to the end, or sectors here and there.
                let sectors = data.len().div_ceil(SECTOR);
                let split = random.below(sectors + 1);
                let kind = random.below(3);
                for (number, sector) in data.chunks(SECTOR).enumerate() {
                    let keep = match kind {
                        0 => number < split,
                        1 => number >= split,
                        _ => random.below(2) == 0,
                    };
                    if keep {
                        image.write(offset + (number * SECTOR) as u64, sector);
                    }
                }
            }
            Self::Zeroes { offset, len } => {
                let part = random.below(usize::try_from(*len).unwrap_or(usize::MAX));
                let part = part - part % SECTOR;
                image.fill(*offset, part as u64, 0);
            }
            Self::Discard { offset, len } => image.fill(*offset, *len, DISCARDED),
            Self::Flush => {}
        }
    }
}

/// What happened at the device, in order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A bio that changes something, or a flush, was handed to the device. Its number is this event's place.
    Submitted {
        /// What it changes.
        change: Change,
        /// With which flags.
        flags: BioFlags,
    },
    /// A bio ended.
    Completed {
        /// The place of its [`Event::Submitted`].
        submitted: usize,
        /// Without an error.
        success: bool,
    },
    /// The test said where it was: [`RecordingDevice::mark`].
    Mark(String),
}

/// A device that records what is written to it and passes everything on.
///
/// It says that it has a volatile cache, so that the engine above flushes as on a disk.
#[derive(Debug)]
pub struct RecordingDevice {
    inner: Arc<dyn BlockDevice>,
    geometry: Geometry,
    base: Image,
    events: Arc<Mutex<Vec<Event>>>,
}

impl RecordingDevice {
    /// Records a device in memory that holds `image` at first.
    #[must_use]
    pub fn new(image: Image) -> Self {
        Self::around(Arc::new(MemoryDevice::from_image(image.clone())), image)
    }

    /// Records `inner`, which holds `base` now.
    #[must_use]
    pub fn around(inner: Arc<dyn BlockDevice>, base: Image) -> Self {
        let geometry = Geometry { volatile_cache: true, ..inner.geometry().clone() };
        assert_eq!(geometry.size, base.len(), "the image that the device is said to hold is of another size");
        Self { inner, geometry, base, events: Arc::default() }
    }

    /// The same device without FUA of its own: such a write is carried out with a flush behind it.
    #[must_use]
    pub fn without_fua(mut self) -> Self {
        self.geometry.fua = false;
        self
    }

    /// Notes a moment by a name: `fsync returned`. [`Cut::has_passed`] asks for it.
    pub fn mark(&self, name: impl Into<String>) {
        self.events.lock().push(Event::Mark(name.into()));
    }

    /// Everything recorded so far.
    #[must_use]
    pub fn recording(&self) -> Recording {
        Recording {
            base: self.base.clone(),
            events: self.events.lock().clone(),
            fua_flushes: self.geometry.fua_flushes(),
        }
    }
}

impl BlockDevice for RecordingDevice {
    fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn submit(&self, plug: Plug) {
        let mut passed_on = Plug::with_capacity(plug.len());
        for mut bio in plug {
            if let Err(error) = bio.check(&self.geometry) {
                bio.complete(Err(error));
                continue;
            }
            let change = match bio.operation {
                Operation::Read => {
                    passed_on.push(bio);
                    continue;
                }
                Operation::Write => match gather(&bio) {
                    Ok(bytes) => Change::Write { offset: bio.offset, data: Arc::from(&bytes[..]) },
                    Err(error) => {
                        bio.complete(Err(error));
                        continue;
                    }
                },
                Operation::WriteZeroes => Change::Zeroes { offset: bio.offset, len: bio.len },
                Operation::Discard => Change::Discard { offset: bio.offset, len: bio.len },
                Operation::Flush => Change::Flush,
            };
            let submitted = {
                let mut events = self.events.lock();
                events.push(Event::Submitted { change, flags: bio.flags });
                events.len() - 1
            };
            let events = Arc::clone(&self.events);
            let end_io = bio.end_io;
            bio.end_io = Box::new(move |completion| {
                let success = completion.result.is_ok();
                events.lock().push(Event::Completed { submitted, success });
                end_io(completion);
            });
            passed_on.push(bio);
        }
        self.inner.submit(passed_on);
    }
}

/// What a [`RecordingDevice`] recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    base: Image,
    events: Vec<Event>,
    /// A FUA write was carried out with a flush behind it ([`Geometry::fua_flushes`]).
    fua_flushes: bool,
}

impl Recording {
    /// What the device held before the first event.
    #[must_use]
    pub fn base(&self) -> &Image {
        &self.base
    }

    /// The events in order.
    #[must_use]
    pub fn events(&self) -> &[Event] {
        &self.events
    }

    /// The place of the first mark called `name`.
    #[must_use]
    pub fn position_of(&self, name: &str) -> Option<usize> {
        self.events.iter().position(|event| matches!(event, Event::Mark(mark) if mark == name))
    }

    /// How many changes (writes, zeroes, discards) were submitted.
    #[must_use]
    pub fn writes(&self) -> usize {
        self.changes().count()
    }

    /// How many flushes were submitted, those before a write included.
    #[must_use]
    pub fn flushes(&self) -> usize {
        let flush = |event: &&Event| match event {
            Event::Submitted { change, flags } => {
                *change == Change::Flush || flags.contains(BioFlags::PREFLUSH)
            }
            _ => false,
        };
        self.events.iter().filter(flush).count()
    }

    /// What the device holds when the first `writes` changes, in the order of submission, are done and no other.
    #[must_use]
    pub fn prefix(&self, writes: usize) -> Image {
        let mut image = self.base.clone();
        for change in self.changes().take(writes) {
            change.apply(&mut image);
        }
        image
    }

    /// Every moment at which a power cut makes a difference, in order, the one before the first event included.
    /// To skip (`nth`, `step_by`) costs no images.
    #[must_use]
    pub fn cuts(&self) -> Cuts<'_> {
        Cuts {
            recording: self,
            position: 0,
            started: false,
            settled: self.base.clone(),
            pending: Vec::new(),
            completed: vec![false; self.events.len()],
        }
    }

    /// The moment after the first `position` events.
    #[must_use]
    pub fn cut_at(&self, position: usize) -> Cut<'_> {
        let mut cuts = self.cuts();
        while cuts.position < position.min(self.events.len()) {
            cuts.step();
        }
        cuts.cut()
    }

    fn changes(&self) -> impl Iterator<Item = &Change> {
        self.events.iter().filter_map(|event| match event {
            Event::Submitted { change, .. } if *change != Change::Flush => Some(change),
            _ => None,
        })
    }

    fn flags(&self, submitted: usize) -> BioFlags {
        match &self.events[submitted] {
            Event::Submitted { flags, .. } => *flags,
            _ => BioFlags::empty(),
        }
    }

    /// True where the bio submitted at `submitted` had completed well before the event at `before`.
    fn completed_between(&self, submitted: usize, before: usize) -> bool {
        self.events[submitted..before].contains(&Event::Completed { submitted, success: true })
    }

    fn change(&self, submitted: usize) -> &Change {
        match &self.events[submitted] {
            Event::Submitted { change, .. } => change,
            _ => unreachable!("numbers of submissions are places of Event::Submitted"),
        }
    }
}

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
    position: usize,
    started: bool,
    /// The base with everything durable that nothing pending lies under.
    settled: Image,
    /// The other changes, in the order of submission.
    pending: Vec<Pending>,
    /// By place of submission: whether it has completed without an error.
    completed: Vec<bool>,
}

impl<'r> Cuts<'r> {
    /// Takes one event in. True where a cut after it differs from one before it.
    fn step(&mut self) -> bool {
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
                    // Who knows how far it came: it stays pending.
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

    fn cut(&self) -> Cut<'r> {
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

    /// Whether the test had called [`RecordingDevice::mark`] with `name` before.
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

    /// The image where nothing is lost.
    #[must_use]
    pub fn with_all(&self) -> Image {
        self.build(|change, image| change.apply(image))
    }

    /// The image where everything is lost that may be lost.
    #[must_use]
    pub fn with_none(&self) -> Image {
        self.build(|_, _| {})
    }

    /// An image where any of what may be lost is lost or torn, as `seed` decides.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{AlignedBuffer, Bio, Segment};

    fn bytes(len: usize, byte: u8) -> Vec<Segment> {
        let mut buffer = AlignedBuffer::zeroed(len).unwrap();
        buffer.fill(byte);
        vec![Segment::Owned(buffer)]
    }

    fn at(image: &Image, offset: u64) -> u8 {
        let mut byte = [0];
        image.read(offset, &mut byte);
        byte[0]
    }

    #[tokio::test]
    async fn a_flush_covers_what_had_completed_and_fua_covers_itself() {
        let device = RecordingDevice::new(Image::zeroed(1 << 20));
        device.write_at(0, bytes(4096, 1), BioFlags::empty()).await.unwrap();
        device.mark("before flush");
        device.flush().await.unwrap();
        device.mark("flushed");
        device.write_at(4096, bytes(4096, 2), BioFlags::empty()).await.unwrap();
        device.write_at(8192, bytes(4096, 3), BioFlags::FUA).await.unwrap();
        device.mark("fua");
        device.write_at(12288, bytes(512, 4), BioFlags::PREFLUSH).await.unwrap();
        let recording = device.recording();
        assert_eq!((recording.writes(), recording.flushes()), (4, 2));
        let mut lost = 0;
        for cut in recording.cuts() {
            for seed in 0..20 {
                let image = cut.variant(seed);
                if cut.has_passed("flushed") {
                    assert_eq!(at(&image, 0), 1);
                } else {
                    lost += u32::from(at(&image, 0) == 0);
                }
                if cut.has_passed("fua") {
                    assert_eq!(at(&image, 8192), 3);
                }
            }
        }
        assert!(lost > 10);
        let end = recording.cut_at(recording.events().len());
        assert_eq!(end.uncertain(), 1, "the last write is not durable, the one before it was flushed");
        assert_eq!((at(&end.with_none(), 4096), at(&end.with_none(), 12288)), (2, 0));
        assert_eq!(end.with_all(), recording.prefix(4));
        assert_eq!(at(&recording.prefix(1), 4096), 0);
        assert_eq!(end.variant(3), end.variant(3));
    }

    #[tokio::test]
    async fn without_fua_such_a_write_flushes_what_had_completed() {
        for own in [true, false] {
            let device = RecordingDevice::new(Image::zeroed(1 << 20));
            let device = if own { device } else { device.without_fua() };
            device.write_at(0, bytes(4096, 1), BioFlags::empty()).await.unwrap();
            device.write_at(4096, bytes(4096, 2), BioFlags::FUA).await.unwrap();
            let recording = device.recording();
            let end = recording.cuts().last().unwrap();
            assert_eq!(at(&end.with_none(), 4096), 2);
            assert_eq!(at(&end.with_none(), 0), u8::from(!own));
        }
    }

    #[tokio::test]
    async fn an_older_write_never_shows_over_a_durable_younger_one() {
        let device = RecordingDevice::new(Image::zeroed(1 << 20));
        device.write_at(0, bytes(8192, 1), BioFlags::empty()).await.unwrap();
        device.write_at(4096, bytes(512, 2), BioFlags::FUA).await.unwrap();
        let recording = device.recording();
        let end = recording.cuts().last().unwrap();
        let mut seen = [false; 2];
        for seed in 0..50 {
            let image = end.variant(seed);
            assert_eq!(at(&image, 4096), 2);
            seen[usize::from(at(&image, 0))] = true;
        }
        assert_eq!(seen, [true; 2]);
        device.flush().await.unwrap();
        let recording = device.recording();
        assert_eq!(recording.cuts().last().unwrap().uncertain(), 0);
    }

    #[tokio::test]
    async fn a_write_in_flight_is_not_covered_by_a_flush() {
        /// Completes its bios when told to.
        #[derive(Debug)]
        struct Held(Mutex<Vec<Bio>>, Geometry);
        impl BlockDevice for Held {
            fn geometry(&self) -> &Geometry {
                &self.1
            }
            fn submit(&self, plug: Plug) {
                self.0.lock().extend(plug);
            }
        }
        let base = Image::zeroed(1 << 20);
        let geometry = MemoryDevice::from_image(base.clone()).geometry().clone();
        let held = Arc::new(Held(Mutex::default(), geometry));
        let device = RecordingDevice::around(Arc::clone(&held) as Arc<dyn BlockDevice>, base);
        let submit = |operation, segments| {
            device.submit(vec![Bio::new(operation, BioFlags::empty(), 0, segments, Box::new(drop))]);
        };
        submit(Operation::Write, bytes(512, 1));
        submit(Operation::Flush, Vec::new());
        for bio in std::mem::take(&mut *held.0.lock()) {
            bio.complete(Ok(()));
        }
        let recording = device.recording();
        assert_eq!(recording.cuts().last().unwrap().uncertain(), 1);
    }
}
