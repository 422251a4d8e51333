//! fallocate(2): blocks for a range of a file, or none; zeros in it; or the range itself removed or inserted.
//!
//! | mode | file | what happens |
//! |---|---|---|
//! | `Allocate`, `AllocateKeepSize` | `allocate` | holes become unwritten blocks, delayed ones get blocks |
//! | `PunchHole` | `punch` | whole blocks are freed, parts of blocks are zeroed |
//! | `ZeroRange`, `ZeroRangeKeepSize` | `zero` | whole blocks become unwritten, parts of blocks are zeroed |
//! | `CollapseRange`, `InsertRange` | `shift` | extents move along the file |
//!
//! Invariants:
//! - `rwlock` is held for writing all the time: no other task writes, truncates or fills holes meanwhile. A
//!   mode that drops page cache holds `invalidate_lock` for writing too, so that no reader reads a block that
//!   is being freed into memory.
//! - Page cache is dropped before blocks are freed: no I/O is under way to a block that may belong to another
//!   file.
//! - A growing i_size follows the gate of every other growth ([`crate::writeback::completion`]): the rest of
//!   the old last block is zeroed first, and i_disksize waits for those zeros. Otherwise a crash would show
//!   what the device held there.
//! - No folio is locked under a handle, and no transaction is waited for under the inode's lock: an operation
//!   that needs several transactions releases the lock in between, and each of them leaves a consistent file.
//!
//! No mode needs the orphan list: no block is mapped behind i_size that was not allowed to be there before.
//! After a crash half way a punched or zeroed range has both old blocks and zeros; what collapse and insert
//! show is in `shift.rs`.

pub(crate) mod allocate;
pub(crate) mod punch;
pub(crate) mod request;
pub(crate) mod shift;
pub(crate) mod zero;
