//! The hot paths of the page cache allocate nothing for each block: counted by an allocator that counts.
//!
//! The one `unsafe` of the tests: an allocator cannot be written without.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::time::Duration;

use super::common::*;

struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

fn count() {
    // A thread that ends has no counter any more.
    let _ = ALLOCATIONS.try_with(|allocations| allocations.set(allocations.get() + 1));
}

// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: by the contract of the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn realloc(&self, pointer: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: by the contract of the caller.
        unsafe { System.realloc(pointer, layout, size) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: by the contract of the caller.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn allocations() -> u64 {
    ALLOCATIONS.with(Cell::get)
}

#[tokio::test]
async fn cached_writes_and_reads_allocate_nothing_per_block() {
    if !have_e2fsprogs() {
        return;
    }
    // No other task runs on this thread meanwhile.
    let options = options()
        .cache(256 << 20)
        .dirty_background_bytes(Some(64 << 20))
        .commit_interval(Some(Duration::from_secs(3600)))
        .writeback_interval(Duration::from_secs(3600));
    const CALLS: u64 = 4096;
    let (device, fs) = mount_image(make_image(128, 4096, &[], 0), options).await;
    for unit in [1024_usize, 4096] {
        let file = create(&fs, &format!("file{unit}")).await;
        let data = pattern(1, 0, unit);
        let mut bytes = vec![0; unit];
        // Folios of their first, small sizes.
        let start = 1 << 20;
        file.write_at(0, &pattern(1, 0, start)).await.expect("writes");
        let mut counted = Vec::new();
        for pass in ["append", "overwrite", "read"] {
            let before = allocations();
            for call in 0..CALLS {
                let at = start as u64 + call * unit as u64;
                if pass == "read" {
                    file.read_at(at, &mut bytes).await.expect("reads");
                } else {
                    file.write_at(at, &data).await.expect("writes");
                }
            }
            counted.push(allocations() - before);
        }
        println!("{CALLS} calls of {unit} bytes: append, overwrite, read allocate {counted:?} times");
        let folios = (CALLS * unit as u64).div_ceil(2 << 20) + 2;
        // An append makes folios: a few allocations for each of them.
        assert!(counted[0] <= 12 * folios, "{counted:?} for {folios} folios");
        // Debug builds keep a record of the locks of each operation that may wait: a few allocations for each
        // read, and for the rare write that does.
        let (rare, each) = if cfg!(debug_assertions) { (8, 4 * CALLS) } else { (1, 0) };
        assert!(counted[1] <= rare && counted[2] <= each, "{counted:?}");
    }
    finish(&device, fs).await;
}
