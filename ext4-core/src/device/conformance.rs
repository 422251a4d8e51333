//! What every backend must do: one suite, run by each of them.
//!
//! [`run`] makes devices through a function and checks them from outside, as an engine would use them. It
//! panics at the first difference. The content of a device it is given is taken to be garbage and is written
//! over.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::{
    AlignedBuffer, Bio, BioFlags, BlockDevice, BlockImage, Completion, Image, MemoryPool, Operation,
    RecordingDevice, Segment,
};
use crate::error::{Errno, Result};

/// The least size of a device that the suite is run on.
pub const MIN_SIZE: u64 = 16 << 20;

/// Nothing here takes long: what does hangs.
const DEADLINE: Duration = Duration::from_secs(120);

/// Runs the suite. `make(read_only)` opens the device, of at least [`MIN_SIZE`] bytes; it is called once per
/// check, when the last reference to the device before is gone. (If a completion held that reference, the
/// drop may still be running on the backend's thread: a `make` that opens the same target each time tries
/// again on `EBUSY`.) Needs a tokio runtime with time enabled.
///
/// # Panics
/// If the device differs from its contract.
pub async fn run(make: impl Fn(bool) -> Arc<dyn BlockDevice>) {
    let checks = async {
        refuses_what_the_geometry_does_not_allow(make(false)).await;
        moves_segments_of_every_kind(make(false)).await;
        moves_memory_of_any_alignment(make(false)).await;
        splits_what_is_too_large(make(false)).await;
        read_only_devices_do_not_change(make(true)).await;
        flushes_and_forced_writes_complete(make(false)).await;
        zeroes_and_discards_exactly(make(false)).await;
        neighbours_of_a_plug_stay_apart(make(false)).await;
        carries_many_from_many_tasks(make(false)).await;
        takes_a_plug_deeper_than_its_queue(make(false)).await;
        completions_may_submit(make(false)).await;
        a_completion_may_drop_the_device(make(false)).await;
        drops_with_bios_in_flight(make(false)).await;
        forgets_waiters_that_went_away(make(false)).await;
    };
    tokio::time::timeout(DEADLINE, checks).await.expect("the device lost a bio: nothing completes any more");
}

/// `len` bytes that follow from `seed`.
fn pattern(len: usize, seed: u64) -> AlignedBuffer {
    let mut buffer = AlignedBuffer::zeroed(len).expect("memory for a test");
    for (number, word) in buffer.chunks_mut(8).enumerate() {
        let value =
            (number as u64 + 1).wrapping_mul(seed.wrapping_mul(2) + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes()[..word.len()]);
    }
    buffer
}

fn owned(len: usize, seed: u64) -> Vec<Segment> {
    vec![Segment::Owned(pattern(len, seed))]
}

async fn read(device: &Arc<dyn BlockDevice>, offset: u64, len: usize) -> AlignedBuffer {
    device.read_at(offset, len).await.expect("a read within the device")
}

async fn write(device: &Arc<dyn BlockDevice>, offset: u64, segments: Vec<Segment>) {
    device.write_at(offset, segments, BioFlags::empty()).await.expect("a write within the device");
}

fn errno(result: Result<()>) -> Option<Errno> {
    result.err().map(|error| error.errno())
}

fn unit(device: &Arc<dyn BlockDevice>) -> usize {
    device.geometry().logical_block_size as usize
}

async fn refuses_what_the_geometry_does_not_allow(device: Arc<dyn BlockDevice>) {
    let geometry = device.geometry().clone();
    assert!(geometry.size >= MIN_SIZE, "the suite needs {MIN_SIZE} bytes, the device has {}", geometry.size);
    assert!(geometry.logical_block_size.is_power_of_two() && geometry.logical_block_size >= 512);
    assert!(geometry.max_transfer >= geometry.logical_block_size && geometry.max_segments > 0);
    let block = unit(&device);
    let attempt = async |operation, offset, len, segments| {
        errno(device.submit_and_wait(operation, BioFlags::empty(), offset, len, segments).await.result)
    };
    let (len, short) = (block as u64, (block / 2) as u64);
    for operation in [Operation::Read, Operation::Write] {
        let one = || owned(block, 1);
        assert_eq!(attempt(operation, 1, len, one()).await, Some(Errno::EINVAL), "offset");
        assert_eq!(attempt(operation, 0, short, owned(block / 2, 1)).await, Some(Errno::EINVAL), "length");
        assert_eq!(attempt(operation, 0, 0, Vec::new()).await, Some(Errno::EINVAL), "nothing");
        assert_eq!(attempt(operation, 0, 2 * len, one()).await, Some(Errno::EINVAL), "too little memory");
        assert_eq!(attempt(operation, geometry.size, len, one()).await, Some(Errno::EIO), "the end");
        assert_eq!(attempt(operation, u64::MAX - len + 1, len, one()).await, Some(Errno::EIO), "overflow");
        let split = vec![Segment::Owned(pattern(block / 2, 1)), Segment::Owned(pattern(block / 2, 2))];
        assert_eq!(attempt(operation, 0, len, split).await, Some(Errno::EINVAL), "a segment of half a block");
        let memory = MemoryPool::new(1 << 21).allocate(4096).expect("memory").expect("an empty pool");
        let outside =
            vec![Segment::Pool { memory: Arc::new(memory), offset: 512, len: 4096.max(block as u32) }];
        let len = 4096.max(len);
        assert_eq!(attempt(operation, 0, len, outside).await, Some(Errno::EINVAL), "memory of others");
    }
    let frozen = vec![Segment::Image(BlockImage::from(pattern(block, 3)))];
    assert_eq!(attempt(Operation::Read, 0, len, frozen).await, Some(Errno::EINVAL), "read into an image");
    for operation in [Operation::Discard, Operation::WriteZeroes] {
        assert_eq!(attempt(operation, 1, len, Vec::new()).await, Some(Errno::EINVAL));
        assert_eq!(attempt(operation, 0, 0, Vec::new()).await, Some(Errno::EINVAL));
        assert_eq!(attempt(operation, geometry.size, len, Vec::new()).await, Some(Errno::EIO));
    }
    // The last block is within.
    let last = geometry.size - len;
    write(&device, last, owned(block, 4)).await;
    assert!(read(&device, last, block).await[..] == pattern(block, 4)[..]);
}

async fn moves_segments_of_every_kind(device: Arc<dyn BlockDevice>) {
    let pool = MemoryPool::new(8 << 20);
    let block = unit(&device).max(1024);
    let folio = |seed| {
        let memory = pool.allocate(64 << 10).expect("memory").expect("room in the pool");
        memory.write(0, 64 << 10, |bytes| bytes.copy_from_slice(&pattern(64 << 10, seed)));
        Arc::new(memory)
    };
    let (first, second) = (folio(1), folio(2));
    let piece = u32::try_from(8 * block).expect("a small piece");
    let segments = vec![
        Segment::Owned(pattern(2 * block, 3)),
        Segment::Pool { memory: Arc::clone(&first), offset: piece, len: piece },
        Segment::Image(BlockImage::from(pattern(block, 4))),
        // Next to each other in memory, though two segments.
        Segment::Pool { memory: Arc::clone(&second), offset: 0, len: piece },
        Segment::Pool { memory: Arc::clone(&second), offset: piece, len: piece },
    ];
    let mut expected = Vec::new();
    for segment in &segments {
        segment.read(|bytes| expected.extend_from_slice(bytes));
    }
    let offset = 1 << 20;
    let done = device
        .submit_and_wait(Operation::Write, BioFlags::META, offset, expected.len() as u64, segments)
        .await;
    done.result.expect("a vectored write");
    assert_eq!(done.segments.len(), 5, "segments come back");
    assert!(read(&device, offset, expected.len()).await[..] == expected[..]);

    let target = Arc::new(pool.allocate(64 << 10).expect("memory").expect("room in the pool"));
    target.write(0, 64 << 10, |bytes| bytes.fill(0xee));
    let segments = vec![
        Segment::Pool { memory: Arc::clone(&target), offset: piece, len: piece },
        Segment::Owned(pattern(2 * block, 9)),
        Segment::Pool { memory: Arc::clone(&target), offset: 0, len: piece },
    ];
    let len = 18 * block as u64;
    let done = device.submit_and_wait(Operation::Read, BioFlags::SYNC, offset, len, segments).await;
    done.result.expect("a vectored read");
    let mut found = Vec::new();
    for segment in &done.segments {
        segment.read(|bytes| found.extend_from_slice(bytes));
    }
    assert!(found[..] == expected[..found.len()]);
    let untouched =
        target.read(2 * piece, (64 << 10) - 2 * piece, |bytes| bytes.iter().all(|byte| *byte == 0xee));
    assert!(untouched, "memory beside the segments has changed");
}

async fn moves_memory_of_any_alignment(device: Arc<dyn BlockDevice>) {
    let pool = MemoryPool::new(8 << 20);
    let block = u32::try_from(unit(&device)).expect("a block is small");
    let memory = Arc::new(pool.allocate(64 << 10).expect("memory").expect("room in the pool"));
    for shift in [8, 24, 512, 520] {
        memory.write(0, 64 << 10, |bytes| bytes.copy_from_slice(&pattern(64 << 10, u64::from(shift))));
        let segment = |number: u32| Segment::Pool {
            memory: Arc::clone(&memory),
            offset: shift + 2 * number * block,
            len: block,
        };
        let expected = memory.read(shift, 3 * block, <[u8]>::to_vec);
        write(&device, 4096, vec![segment(0), segment(1)]).await;
        let found = read(&device, 4096, 2 * block as usize).await;
        let (one, two) = (block as usize, 2 * block as usize);
        assert!(found[..one] == expected[..one] && found[one..] == expected[two..], "written from {shift}");
        memory.write(0, 64 << 10, |bytes| bytes.fill(0));
        let back = vec![segment(0), segment(1)];
        let len = 2 * u64::from(block);
        let done = device.submit_and_wait(Operation::Read, BioFlags::empty(), 4096, len, back).await;
        done.result.expect("a read into memory of any alignment");
        let found = memory.read(shift, 3 * block, <[u8]>::to_vec);
        assert!(found[..one] == expected[..one] && found[two..] == expected[two..], "read to {shift}");
        assert!(found[one..two].iter().all(|byte| *byte == 0), "memory between segments has changed");
    }
}

async fn splits_what_is_too_large(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    // More than any device takes at once, at an odd place.
    let len = (9 << 20) + 3 * block;
    let offset = 3 * block as u64;
    write(&device, offset, owned(len, 5)).await;
    assert!(read(&device, offset, len).await[..] == pattern(len, 5)[..], "a long transfer");
    // More segments than any call takes, backwards in memory so that none joins the next.
    let count = 3000 / (block / 512);
    let pool = MemoryPool::new(16 << 20);
    let folios: Vec<_> = (0..(count * 2 * block).div_ceil(2 << 20))
        .map(|_| Arc::new(pool.allocate(2 << 20).expect("memory").expect("room in the pool")))
        .collect();
    let each = (2 << 20) / (2 * block);
    let segments: Vec<_> = (0..count)
        .map(|number| {
            let memory = Arc::clone(&folios[number / each]);
            let offset = (each - 1 - number % each) * 2 * block;
            let offset = u32::try_from(offset).expect("within a folio");
            let mut segment =
                Segment::Pool { memory, offset, len: u32::try_from(block).expect("a small block") };
            segment.fill(|bytes| bytes.copy_from_slice(&pattern(block, number as u64)));
            segment
        })
        .collect();
    write(&device, offset, segments).await;
    let found = read(&device, offset, count * block).await;
    for (number, bytes) in found.chunks(block).enumerate() {
        assert!(bytes == &pattern(block, number as u64)[..], "segment {number}");
    }
}

async fn read_only_devices_do_not_change(device: Arc<dyn BlockDevice>) {
    assert!(device.geometry().read_only);
    let block = unit(&device);
    let before = read(&device, 0, block).await;
    let attempt = async |operation, segments| {
        let done = device.submit_and_wait(operation, BioFlags::empty(), 0, block as u64, segments).await;
        errno(done.result)
    };
    assert_eq!(attempt(Operation::Write, owned(block, 77)).await, Some(Errno::EROFS));
    assert_eq!(attempt(Operation::Discard, Vec::new()).await, Some(Errno::EROFS));
    assert_eq!(attempt(Operation::WriteZeroes, Vec::new()).await, Some(Errno::EROFS));
    device.flush().await.expect("nothing to flush is no error");
    assert!(read(&device, 0, block).await[..] == before[..]);
}

/// That the flags are honoured shows only on a recorder or in a power cut; here, that they arrive at a
/// recorder in the right order, and that each form completes and stores.
async fn flushes_and_forced_writes_complete(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    let image = Image::zeroed(device.geometry().size);
    let recorder = Arc::new(RecordingDevice::around(Arc::clone(&device), image));
    let recorded: Arc<dyn BlockDevice> = Arc::clone(&recorder) as Arc<dyn BlockDevice>;
    let forms = [
        BioFlags::empty(),
        BioFlags::FUA,
        BioFlags::PREFLUSH,
        BioFlags::PREFLUSH | BioFlags::FUA,
        BioFlags::FUA | BioFlags::META | BioFlags::SYNC,
    ];
    for (number, flags) in forms.into_iter().enumerate() {
        let seed = number as u64 + 10;
        recorded.write_at(seed * 65536, owned(16 * block, seed), flags).await.expect("a write with flags");
        assert!(read(&recorded, seed * 65536, 16 * block).await[..] == pattern(16 * block, seed)[..]);
        let recording = recorder.recording();
        let end = recording.cut_at(recording.events().len());
        let uncertain = end.uncertain();
        let open = !flags.contains(BioFlags::FUA);
        // The first write was not flushed; a FUA that is a flush takes it along.
        let first_is_open = number == 1 && !recorded.geometry().fua_flushes();
        assert_eq!(uncertain > 0, open || first_is_open, "after a write with {flags:?}");
    }
    recorded.flush().await.expect("a flush");
    let recording = recorder.recording();
    assert_eq!(recording.cut_at(recording.events().len()).uncertain(), 0);
    // Flushes beside writes in one plug: each completes.
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let mut plug = Vec::new();
    for number in 0..8_u64 {
        for operation in [Operation::Write, Operation::Flush] {
            let sender = sender.clone();
            let segments = if operation == Operation::Write { owned(block, number) } else { Vec::new() };
            let end_io = Box::new(move |done: Completion| drop(sender.send(done.result)));
            plug.push(Bio::new(operation, BioFlags::SYNC, number * block as u64, segments, end_io));
        }
    }
    drop(sender);
    device.submit(plug);
    let mut ended = 0;
    while let Some(result) = receiver.recv().await {
        result.expect("a write or flush of a plug");
        ended += 1;
    }
    assert_eq!(ended, 16);
}

async fn zeroes_and_discards_exactly(device: Arc<dyn BlockDevice>) {
    let block = unit(&device) as u64;
    let len = 1 << 20;
    let ranges =
        [(0, 1 << 20), (block, block), (3 * block, 65536), (65536, 65536), (block, (1 << 20) - 2 * block)];
    for (start, count) in ranges {
        for operation in [Operation::WriteZeroes, Operation::Discard] {
            write(&device, 1 << 20, owned(len, start + count)).await;
            match operation {
                Operation::WriteZeroes => device.write_zeroes((1 << 20) + start, count).await,
                _ => device.discard((1 << 20) + start, count).await,
            }
            .expect("zeroes and discards are for every device");
            let found = read(&device, 1 << 20, len).await;
            let (from, to) =
                (usize::try_from(start).expect("small"), usize::try_from(start + count).expect("small"));
            let written = pattern(len, start + count);
            assert!(found[..from] == written[..from], "{operation:?} {start}+{count}: what lies before");
            assert!(found[to..] == written[to..], "{operation:?} {start}+{count}: what lies behind");
            if operation == Operation::WriteZeroes {
                assert!(found[from..to].iter().all(|byte| *byte == 0), "{start}+{count}: zeros");
            }
        }
    }
}

/// A backend may join neighbours: their results and their memory stay their own.
async fn neighbours_of_a_plug_stay_apart(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    let write_all = |order: Vec<u64>| {
        let (sender, receiver) = mpsc::unbounded_channel();
        let plug = order.into_iter().map(|number| {
            let sender = sender.clone();
            let end_io = Box::new(move |done: Completion| drop(sender.send((number, done))));
            let segments = vec![
                Segment::Image(BlockImage::from(pattern(block, 2 * number))),
                Segment::Owned(pattern(block, 2 * number + 1)),
            ];
            Bio::new(Operation::Write, BioFlags::BACKGROUND, number * 2 * block as u64, segments, end_io)
        });
        device.submit(plug.collect());
        receiver
    };
    let end = device.geometry().size / (2 * block as u64);
    // The last one lies past the end; it alone fails.
    let mut order: Vec<u64> = (end - 40..=end).collect();
    order.reverse();
    let mut receiver = write_all(order);
    let mut ended = 0;
    while let Some((number, done)) = receiver.recv().await {
        ended += 1;
        assert_eq!(errno(done.result), (number == end).then_some(Errno::EIO), "bio {number}");
        let expected = pattern(block, 2 * number + 1);
        let own = matches!(&done.segments[1], Segment::Owned(bytes) if bytes[..] == expected[..]);
        assert!(own, "bio {number} got the memory of another");
    }
    assert_eq!(ended, 41);
    // And reads of neighbours each fill their own.
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let plug = (end - 40..end).map(|number| {
        let sender = sender.clone();
        let end_io = Box::new(move |done: Completion| drop(sender.send((number, done))));
        Bio::new(Operation::Read, BioFlags::empty(), number * 2 * block as u64, owned(2 * block, 0), end_io)
    });
    device.submit(plug.collect());
    drop(sender);
    while let Some((number, done)) = receiver.recv().await {
        done.result.expect("a read of a neighbour");
        let Some(Segment::Owned(bytes)) = done.segments.first() else {
            panic!("bio {number} lost its memory")
        };
        assert!(bytes[..block] == pattern(block, 2 * number)[..]);
        assert!(bytes[block..] == pattern(block, 2 * number + 1)[..]);
    }
}

async fn carries_many_from_many_tasks(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    let pool = MemoryPool::new(64 << 20);
    let mut tasks = JoinSet::new();
    for task in 0..32_u64 {
        let (device, pool) = (Arc::clone(&device), Arc::clone(&pool));
        tasks.spawn(async move {
            let start = task * 64 * 4096;
            for round in 0..3 {
                let mut writes = JoinSet::new();
                for number in 0..16_u64 {
                    let (device, pool) = (Arc::clone(&device), Arc::clone(&pool));
                    writes.spawn(async move {
                        let seed = (task << 32) | (round << 16) | number;
                        let memory =
                            Arc::new(pool.allocate(4096).expect("memory").expect("room in the pool"));
                        let bytes = pattern(4096, seed);
                        memory.write(0, 4096, |piece| piece.copy_from_slice(&bytes));
                        let len = 4096_u32.max(u32::try_from(block).expect("a small block"));
                        assert_eq!(len, 4096, "the suite is for blocks up to 4 KiB");
                        let offset = start + number * 4096;
                        let segment = || vec![Segment::Pool { memory: Arc::clone(&memory), offset: 0, len }];
                        write(&device, offset, segment()).await;
                        memory.write(0, 4096, |piece| piece.fill(0));
                        let done = device
                            .submit_and_wait(Operation::Read, BioFlags::empty(), offset, 4096, segment())
                            .await;
                        done.result.expect("a read");
                        assert!(
                            memory.read(0, 4096, |piece| piece == &bytes[..]),
                            "task {task} block {number}"
                        );
                    });
                }
                while let Some(result) = writes.join_next().await {
                    result.expect("a task's blocks");
                }
            }
        });
    }
    while let Some(result) = tasks.join_next().await {
        result.expect("a task");
    }
}

async fn takes_a_plug_deeper_than_its_queue(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    let count = MIN_SIZE / 2 / block as u64 / 2;
    let count = count.min(3000);
    let completed = Arc::new(AtomicU64::new(0));
    let (sender, receiver) = oneshot::channel();
    let sender = Arc::new(parking_lot::Mutex::new(Some(sender)));
    // Every second block, so that nothing joins.
    let plug = (0..count).map(|number| {
        let (completed, sender) = (Arc::clone(&completed), Arc::clone(&sender));
        let end_io = Box::new(move |done: Completion| {
            done.result.expect("a write of a deep plug");
            if completed.fetch_add(1, Ordering::Relaxed) + 1 == count
                && let Some(sender) = sender.lock().take()
            {
                let _ = sender.send(());
            }
        });
        let segments = owned(block, number);
        Bio::new(Operation::Write, BioFlags::empty(), 2 * number * block as u64, segments, end_io)
    });
    device.submit(plug.collect());
    receiver.await.expect("every bio of a deep plug completes");
    for number in (0..count).step_by(97) {
        let found = read(&device, 2 * number * block as u64, block).await;
        assert!(found[..] == pattern(block, number)[..], "block {number}");
    }
}

/// Each completion submits the next bio.
async fn completions_may_submit(device: Arc<dyn BlockDevice>) {
    fn next(device: &Arc<dyn BlockDevice>, left: u64, block: usize, done: oneshot::Sender<()>) {
        let again = Arc::clone(device);
        let end_io = Box::new(move |completion: Completion| {
            completion.result.expect("a write of a chain");
            if left == 0 {
                let _ = done.send(());
            } else {
                next(&again, left - 1, block, done);
            }
        });
        let segments = owned(block, left);
        device.submit(vec![Bio::new(
            Operation::Write,
            BioFlags::empty(),
            left * block as u64,
            segments,
            end_io,
        )]);
    }
    let (sender, receiver) = oneshot::channel();
    next(&device, 50, unit(&device), sender);
    receiver.await.expect("the chain comes to its end");
}

async fn a_completion_may_drop_the_device(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let last = Arc::clone(&device);
    let weak = Arc::downgrade(&device);
    let mut plug = Vec::new();
    for number in 0..20_u64 {
        let sender = sender.clone();
        plug.push(Bio::new(
            Operation::Write,
            BioFlags::empty(),
            number * 2 * block as u64,
            owned(block, number),
            Box::new(move |done: Completion| drop(sender.send(done.result))),
        ));
    }
    drop(sender);
    let (handle, dropped) = oneshot::channel();
    let end_io = Box::new(move |_: Completion| {
        drop(last);
        let _ = handle.send(());
    });
    plug.push(Bio::new(Operation::Read, BioFlags::empty(), 0, owned(block, 0), end_io));
    device.submit(plug);
    drop(device);
    dropped.await.expect("the completion that drops the device");
    let mut ended = 0;
    while let Some(result) = receiver.recv().await {
        result.expect("a write before the device went");
        ended += 1;
    }
    assert_eq!(ended, 20);
    while weak.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
}

async fn drops_with_bios_in_flight(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let plug = (0..500_u64).map(|number| {
        let sender = sender.clone();
        let end_io = Box::new(move |done: Completion| {
            let _ = sender.send(done.segments.len());
        });
        let operation = if number % 2 == 0 { Operation::Write } else { Operation::Read };
        Bio::new(operation, BioFlags::empty(), 2 * number * block as u64, owned(block, number), end_io)
    });
    device.submit(plug.collect());
    drop(sender);
    drop(device);
    let mut ended = 0;
    while let Some(segments) = receiver.recv().await {
        assert_eq!(segments, 1);
        ended += 1;
    }
    assert_eq!(ended, 500, "every bio is completed, also when the device is dropped");
}

async fn forgets_waiters_that_went_away(device: Arc<dyn BlockDevice>) {
    let block = unit(&device);
    for number in 0..20 {
        let segments = owned(block, number);
        let waiter = device.submit_and_wait(Operation::Write, BioFlags::empty(), 0, block as u64, segments);
        // Polled once, so that it is submitted, then dropped.
        tokio::select! {
            biased;
            _ = waiter => {}
            () = std::future::ready(()) => {}
        }
    }
    device.flush().await.expect("the device goes on");
    write(&device, 0, owned(block, 99)).await;
}

#[cfg(test)]
mod tests {
    use super::super::{FaultyDevice, MemoryDevice};
    use super::*;

    #[tokio::test]
    async fn the_memory_device_conforms() {
        run(|read_only| {
            Arc::new(MemoryDevice::new(MIN_SIZE).with_geometry(|geometry| geometry.read_only = read_only))
        })
        .await;
    }

    #[tokio::test]
    async fn a_memory_device_of_large_blocks_conforms() {
        run(|read_only| {
            Arc::new(MemoryDevice::new(2 * MIN_SIZE).with_geometry(|geometry| {
                geometry.read_only = read_only;
                geometry.logical_block_size = 4096;
            }))
        })
        .await;
    }

    #[tokio::test]
    async fn the_wrappers_conform() {
        run(|read_only| {
            let memory = MemoryDevice::new(MIN_SIZE).with_geometry(|geometry| geometry.read_only = read_only);
            let faulty = FaultyDevice::new(Arc::new(memory));
            Arc::new(RecordingDevice::around(Arc::new(faulty), Image::zeroed(MIN_SIZE)))
        })
        .await;
    }
}
