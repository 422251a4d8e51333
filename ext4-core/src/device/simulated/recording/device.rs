//! The device that records.
//!
//! Lock: the log's mutex, held for an append; never while the inner device is called.

use std::sync::Arc;

use parking_lot::Mutex;

use super::{Change, Event, Recording};
use crate::device::simulated::memory::gather;
use crate::device::simulated::{Image, MemoryDevice};
use crate::device::{BlockDevice, Geometry, Operation, Plug};

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

    /// Notes a moment by a name: `fsync returned`. [`Cut::has_passed`](super::Cut::has_passed) asks for it.
    pub fn mark(&self, name: impl Into<String>) {
        self.events.lock().push(Event::Mark(name.into()));
    }

    /// How many events were recorded so far: the position of a cut that is taken now.
    #[must_use]
    pub fn position(&self) -> usize {
        self.events.lock().len()
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
