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
//! - A write that is durable is in every image of every later cut. A test that fails on an image has found a
//!   missing flush or a wrong order, never a device that broke its word.
//! - A write that carried `PREFLUSH` shows, even in part, only in images that hold everything that had
//!   completed before it was submitted: the device flushes first.
//! - If two writes overlap and the earlier one had completed before the later was submitted, the earlier
//!   never shows over the later.
//! - Two images with the same bytes are the same state, and a test looks at it once ([`DistinctStates`]).

mod change;
mod cut;
mod device;
mod distinct;

pub use change::Change;
pub use cut::{Cut, Cuts};
pub use device::RecordingDevice;
pub use distinct::DistinctStates;

use super::Image;
use crate::device::BioFlags;

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

/// What a [`RecordingDevice`] recorded.
#[derive(Clone, Debug)]
pub struct Recording {
    base: Image,
    events: Vec<Event>,
    /// A FUA write was carried out with a flush behind it
    /// ([`Geometry::fua_flushes`](crate::device::Geometry::fua_flushes)).
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

    /// What the device holds when the first `writes` changes, in the order of submission, are done and no
    /// other.
    #[must_use]
    pub fn prefix(&self, writes: usize) -> Image {
        let mut image = self.base.clone();
        for change in self.changes().take(writes) {
            change.apply(&mut image);
        }
        image
    }

    /// Every moment at which a power cut makes a difference, in order, the one before the first event
    /// included. To skip (`nth`, `step_by`) costs no images.
    #[must_use]
    pub fn cuts(&self) -> Cuts<'_> {
        Cuts::new(self)
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

    /// Returns true if the bio submitted at `submitted` had completed well before the event at `before`.
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use parking_lot::Mutex;

    use super::*;
    use crate::device::{AlignedBuffer, Bio, BlockDevice, Geometry, MemoryDevice, Operation, Plug, Segment};

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
