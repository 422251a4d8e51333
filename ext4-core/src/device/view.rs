//! Views: pool memory (of folios) that a reader looks at without a copy, for as long as it likes.
//!
//! Invariant: bytes under a view do not change. [`PoolMemory::write`] refuses them; a writer that changes the
//! file there gives it other memory first (the folio does that, `ext4-writeback`). A device does not fill
//! them: a task that reads into a piece of memory has looked for views when nothing of the range was valid,
//! and a view is valid only if the range was when it had been made.
#![allow(unsafe_code)]

use std::fmt;
use std::ops::{Deref, Range};
use std::sync::Arc;

use super::memory::PoolMemory;

/// Bytes of pool memory, as they were when this was made; see the module.
pub struct PoolView {
    memory: Arc<PoolMemory>,
    range: Range<usize>,
}

impl PoolView {
    /// A view of bytes `range`. Waits while a writer changes the memory.
    ///
    /// # Panics
    /// If the range is not the memory's.
    #[must_use]
    pub fn new(memory: Arc<PoolMemory>, range: Range<u32>) -> Self {
        let range = range.start as usize..range.end as usize;
        assert!(range.start <= range.end && range.end <= memory.len(), "a view of {range:?}");
        memory.without_writers(|| memory.views().add(range.clone()));
        Self { memory, range }
    }
}

impl Deref for PoolView {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let start = self.memory.as_ptr().wrapping_add(self.range.start);
        // SAFETY: the range lies within the memory, which `memory` keeps alive. The view was entered while
        // the memory's lock was not held for writing, and writers refuse bytes that are viewed; devices keep
        // to the module's invariant.
        unsafe { std::slice::from_raw_parts(start, self.range.len()) }
    }
}

impl Drop for PoolView {
    fn drop(&mut self) {
        self.memory.views().remove(&self.range);
    }
}

impl fmt::Debug for PoolView {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PoolView({:?} of {:?})", self.range, self.memory)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::MemoryPool;

    #[test]
    fn viewed_bytes_do_not_change_and_others_do() {
        let pool = MemoryPool::new(2 << 20);
        let memory = Arc::new(pool.allocate(8192).unwrap().unwrap());
        memory.write(0, 8192, |bytes| bytes.fill(1));
        let (first, second) =
            (PoolView::new(Arc::clone(&memory), 0..4096), PoolView::new(Arc::clone(&memory), 2048..4096));
        assert!(memory.try_write(4095, 2, |bytes| bytes.fill(2)).is_none());
        memory.write(4096, 4096, |bytes| bytes.fill(2));
        assert!(first.iter().all(|byte| *byte == 1));
        drop(first);
        assert!(memory.try_write(0, 2048, |bytes| bytes.fill(3)).is_some());
        assert!(memory.try_write(2048, 1, |bytes| bytes.fill(3)).is_none());
        assert!(second.iter().all(|byte| *byte == 1));
        drop(second);
        memory.write(0, 8192, |bytes| bytes.fill(4));
    }

    #[test]
    fn memory_beyond_the_bound_is_asked_for_by_name() {
        let pool = MemoryPool::new(2 << 20);
        let all = pool.allocate(2 << 20).unwrap().unwrap();
        assert!(pool.allocate(4096).unwrap().is_none());
        let more = pool.allocate_beyond(4096).unwrap();
        more.write(0, 4096, |bytes| bytes.fill(5));
        drop((all, more));
        assert_eq!(pool.used(), 0);
    }
}
