//! File I/O: one operation on one file in each module, as in the kernel's `file.c`, `inode.c` and
//! `extents.c`.
//!
//! - `read.rs`, `read_ahead.rs`: buffered reads. `buffered_write.rs`: buffered writes. `direct/`: direct I/O.
//! - `truncate.rs`, `zero.rs`, `drop_folios.rs`, `fallocate/`: sizes, holes, and the page cache over them.
//! - `inline_data.rs`: files whose inode holds their bytes. `fsync.rs`: what makes one file durable.
//!
//! Invariant: these functions take an engine and an inode; open files are known only to floors above.

pub(crate) mod buffered_write;
pub(crate) mod direct;
pub(crate) mod drop_folios;
pub(crate) mod fallocate;
pub(crate) mod fsync;
pub(crate) mod inline_data;
pub(crate) mod read;
pub(crate) mod read_ahead;
pub(crate) mod truncate;
pub(crate) mod zero;
