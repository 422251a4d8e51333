//! A device that fails on purpose: errors at chosen moments and places, torn transfers, late and reordered
//! completions, a device that is gone.
//!
//! Invariant: also a failing device completes every bio exactly once. What is held back when the device is
//! dropped ends with `ENODEV`.
//!
//! Lock: one mutex around plan and held bios; never held while the inner device or a completion is called.

use std::ops::Range;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::Random;
use super::memory::gather;
use crate::device::{AlignedBuffer, Bio, BlockDevice, Geometry, Operation, Plug, Segment};
use crate::error::{Errno, Error};

/// Which bios a fault meets.
#[derive(Clone, Debug)]
pub enum Trigger {
    /// The bio that comes after `skip` others of its operation (of any, if `None`), and that one only.
    Nth {
        /// Which operation counts.
        operation: Option<Operation>,
        /// How many pass before.
        skip: u64,
    },
    /// Every bio of the operation (of any, if `None`) that touches these bytes.
    Touching {
        /// Which operation.
        operation: Option<Operation>,
        /// Which bytes of the device.
        range: Range<u64>,
    },
}

/// What happens to a bio.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It does not reach the device and fails with this error.
    Fail(Errno),
    /// The first half of its bytes (whole logical blocks) is transferred, then it fails with `EIO`: a short
    /// transfer that could not be completed.
    Torn,
    /// It is carried out, and reported as failed with `EIO`.
    FailAfterwards,
}

#[derive(Debug)]
struct State {
    faults: Vec<(Trigger, Fault)>,
    vanished: bool,
    /// Present: bios are held here until they are released, in an order it decides.
    reorder: Option<Random>,
    held: Vec<Bio>,
    met: u64,
}

/// A device that fails on purpose; see the module.
#[derive(Debug)]
pub struct FaultyDevice {
    inner: Arc<dyn BlockDevice>,
    state: Mutex<State>,
    arrived: Notify,
}

impl FaultyDevice {
    /// A device that passes everything on to `inner` until it is told otherwise.
    #[must_use]
    pub fn new(inner: Arc<dyn BlockDevice>) -> Self {
        let state = State { faults: Vec::new(), vanished: false, reorder: None, held: Vec::new(), met: 0 };
        Self { inner, state: Mutex::new(state), arrived: Notify::new() }
    }

    /// Adds a fault.
    pub fn inject(&self, trigger: Trigger, fault: Fault) {
        self.state.lock().faults.push((trigger, fault));
    }

    /// The bio after `skip` others of `operation` fails with `EIO`.
    pub fn fail_nth(&self, operation: Operation, skip: u64) {
        self.inject(Trigger::Nth { operation: Some(operation), skip }, Fault::Fail(Errno::EIO));
    }

    /// Every bio of `operation` that touches `range` fails with `EIO`: a bad sector.
    pub fn fail_range(&self, operation: Operation, range: Range<u64>) {
        self.inject(Trigger::Touching { operation: Some(operation), range }, Fault::Fail(Errno::EIO));
    }

    /// Takes all faults back. A device that vanished stays away.
    pub fn heal(&self) {
        self.state.lock().faults.clear();
    }

    /// How many bios have met a fault.
    #[must_use]
    pub fn faults_met(&self) -> u64 {
        self.state.lock().met
    }

    /// The device is gone: what is held back and all that comes fails with `ENODEV`.
    pub fn vanish(&self) {
        let held = {
            let mut state = self.state.lock();
            state.vanished = true;
            std::mem::take(&mut state.held)
        };
        gone(held);
    }

    /// From now on bios are held back until [`FaultyDevice::release_one`] or [`FaultyDevice::drive`] lets
    /// them go, in an order that follows from `seed`.
    pub fn reorder(&self, seed: u64) {
        self.state.lock().reorder = Some(Random(seed));
    }

    /// How many bios are held back.
    #[must_use]
    pub fn held(&self) -> usize {
        self.state.lock().held.len()
    }

    /// Returns true if it let one bio go that was held back; false if there is none.
    pub fn release_one(&self) -> bool {
        let bio = {
            let mut state = self.state.lock();
            let state = &mut *state;
            let Some(random) = &mut state.reorder else { return false };
            if state.held.is_empty() {
                return false;
            }
            state.held.swap_remove(random.below(state.held.len()))
        };
        self.start(vec![bio]);
        true
    }

    /// Lets bios go as they come, one each time the caller's tasks had their turn. Never ends: run it beside
    /// the test (`tokio::select!`). On a runtime with one thread the order follows from the seed alone.
    pub async fn drive(&self) {
        loop {
            tokio::task::yield_now().await;
            if !self.release_one() {
                self.arrived.notified().await;
            }
        }
    }

    /// Passes bios on, each with the fault it meets.
    fn start(&self, plug: Plug) {
        let mut passed_on = Plug::with_capacity(plug.len());
        for bio in plug {
            let fault = {
                let mut state = self.state.lock();
                if state.vanished { Some(Fault::Fail(Errno::ENODEV)) } else { state.meet(&bio) }
            };
            match fault {
                None => passed_on.push(bio),
                Some(Fault::Fail(errno)) => {
                    let error = Error::io(bio.operation_name(), bio.location(), errno);
                    bio.complete(Err(error));
                }
                Some(Fault::FailAfterwards) => passed_on.push(failing(bio)),
                Some(Fault::Torn) => {
                    if let Some(part) = self.torn(bio) {
                        passed_on.push(part);
                    }
                }
            }
        }
        self.inner.submit(passed_on);
    }

    /// A bio for the first half of `bio`, which fails when that is done. `None` if the half is nothing: then
    /// it has failed already.
    fn torn(&self, bio: Bio) -> Option<Bio> {
        let unit = u64::from(self.inner.geometry().logical_block_size);
        let half = bio.len / 2 - bio.len / 2 % unit;
        let transfer = matches!(bio.operation, Operation::Read | Operation::Write);
        let whole = if transfer { gather(&bio) } else { AlignedBuffer::zeroed(0) };
        let (Ok(whole), true) = (whole, half > 0) else {
            let error = short(&bio);
            bio.complete(Err(error));
            return None;
        };
        let error = short(&bio);
        let Bio { operation, flags, offset, mut segments, end_io, .. } = bio;
        let part = usize::try_from(half).unwrap_or(usize::MAX).min(whole.len());
        let memory = if transfer { AlignedBuffer::copied(&whole[..part]) } else { AlignedBuffer::zeroed(0) };
        let Ok(memory) = memory else {
            end_io(crate::device::Completion { result: Err(error), segments });
            return None;
        };
        let memory = if transfer { vec![Segment::Owned(memory)] } else { Vec::new() };
        let end_io: crate::device::EndIo = Box::new(move |completion| {
            if operation == Operation::Read
                && let Some(Segment::Owned(bytes)) = completion.segments.first()
            {
                let mut rest = &bytes[..];
                for segment in &mut segments {
                    let len = rest.len().min(segment.len() as usize);
                    segment.fill(|piece| piece[..len].copy_from_slice(&rest[..len]));
                    rest = &rest[len..];
                }
            }
            end_io(crate::device::Completion { result: Err(error), segments });
        });
        Some(Bio { operation, flags, offset, len: half, segments: memory, end_io })
    }
}

impl State {
    /// The fault that `bio` meets; counts it.
    fn meet(&mut self, bio: &Bio) -> Option<Fault> {
        let mut found = None;
        let end = bio.offset.saturating_add(bio.len);
        self.faults.retain_mut(|(trigger, fault)| match trigger {
            Trigger::Nth { operation, skip } => {
                if operation.is_some_and(|operation| operation != bio.operation) {
                    true
                } else if *skip > 0 {
                    *skip -= 1;
                    true
                } else {
                    found.get_or_insert(*fault);
                    false
                }
            }
            Trigger::Touching { operation, range } => {
                let meant = operation.is_none_or(|operation| operation == bio.operation);
                if meant && bio.offset < range.end && range.start < end {
                    found.get_or_insert(*fault);
                }
                true
            }
        });
        self.met += u64::from(found.is_some());
        found
    }
}

impl BlockDevice for FaultyDevice {
    fn geometry(&self) -> &Geometry {
        self.inner.geometry()
    }

    fn submit(&self, plug: Plug) {
        let mut checked = Plug::with_capacity(plug.len());
        for bio in plug {
            match bio.check(self.geometry()) {
                Ok(()) => checked.push(bio),
                Err(error) => bio.complete(Err(error)),
            }
        }
        {
            let mut state = self.state.lock();
            if state.reorder.is_some() && !state.vanished {
                state.held.append(&mut checked);
            }
        }
        if checked.is_empty() {
            self.arrived.notify_one();
        } else {
            self.start(checked);
        }
    }
}

impl Drop for FaultyDevice {
    fn drop(&mut self) {
        gone(std::mem::take(&mut self.state.get_mut().held));
    }
}

fn gone(bios: Vec<Bio>) {
    for bio in bios {
        let error = Error::io(bio.operation_name(), bio.location(), Errno::ENODEV);
        bio.complete(Err(error));
    }
}

fn short(bio: &Bio) -> Error {
    Error::io(bio.operation_name(), bio.location(), Errno::EIO)
}

/// `bio` as it is, but it reports failure.
fn failing(mut bio: Bio) -> Bio {
    let error = short(&bio);
    let end_io = bio.end_io;
    bio.end_io = Box::new(move |mut completion| {
        completion.result = Err(error);
        end_io(completion);
    });
    bio
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::{BioFlags, MemoryDevice};

    fn bytes(len: usize, byte: u8) -> Vec<Segment> {
        let mut buffer = AlignedBuffer::zeroed(len).unwrap();
        buffer.fill(byte);
        vec![Segment::Owned(buffer)]
    }

    async fn write(device: &FaultyDevice, offset: u64, byte: u8) -> Result<(), Errno> {
        let written = device.write_at(offset, bytes(4096, byte), BioFlags::empty()).await;
        written.map_err(|error| error.errno())
    }

    #[tokio::test]
    async fn faults_meet_the_bios_they_are_meant_for() {
        let memory = Arc::new(MemoryDevice::new(1 << 20));
        let device = FaultyDevice::new(Arc::clone(&memory) as Arc<dyn BlockDevice>);
        device.fail_nth(Operation::Write, 1);
        device.fail_range(Operation::Read, 8192..8193);
        assert_eq!(write(&device, 0, 1).await, Ok(()));
        assert_eq!(write(&device, 0, 2).await, Err(Errno::EIO));
        assert_eq!(write(&device, 8192, 3).await, Ok(()));
        assert_eq!(device.read_at(0, 4096).await.unwrap()[0], 1);
        assert_eq!(device.read_at(4096, 8192).await.unwrap_err().errno(), Errno::EIO);
        assert_eq!(device.faults_met(), 2);
        device.heal();
        device.inject(Trigger::Nth { operation: None, skip: 0 }, Fault::Torn);
        assert_eq!(write(&device, 16384, 4).await, Err(Errno::EIO));
        let content = memory.content();
        assert_eq!((content[16384 + 2047], content[16384 + 2048]), (4, 0));
        device.inject(Trigger::Nth { operation: None, skip: 0 }, Fault::FailAfterwards);
        assert_eq!(write(&device, 16384, 5).await, Err(Errno::EIO));
        assert_eq!(memory.content()[16384 + 4095], 5);
        device.vanish();
        assert_eq!(write(&device, 0, 1).await, Err(Errno::ENODEV));
    }

    #[tokio::test]
    async fn held_bios_come_in_another_order_and_none_is_lost() {
        let order = |seed| async move {
            let device = Arc::new(FaultyDevice::new(Arc::new(MemoryDevice::new(1 << 20))));
            device.reorder(seed);
            let order = Arc::new(Mutex::new(Vec::new()));
            let tasks = async {
                let mut tasks = tokio::task::JoinSet::new();
                for number in 0..10_u8 {
                    let (device, order) = (Arc::clone(&device), Arc::clone(&order));
                    tasks.spawn(async move {
                        write(&device, u64::from(number) * 4096, number).await.unwrap();
                        order.lock().push(number);
                    });
                }
                tasks.join_all().await;
            };
            tokio::select! {
                () = tasks => {}
                () = device.drive() => unreachable!("drive does not end"),
            }
            Arc::into_inner(order).unwrap().into_inner()
        };
        let first = order(1).await;
        assert_eq!(first, order(1).await);
        assert_ne!(first, order(2).await);
        let mut sorted = first.clone();
        sorted.sort_unstable();
        assert_eq!(sorted, (0..10).collect::<Vec<_>>());
        assert_ne!(sorted, first);
    }
}
