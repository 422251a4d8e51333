//! Fallocate: blocks for a range of a file, or none; zeros in it; or the range itself taken out or put in.
//!
//! | mode | file | what happens |
//! |---|---|---|
//! | `Allocate`, `AllocateKeepSize` | `allocate` | holes become unwritten blocks, delayed blocks are allocated |
//! | `PunchHole` | `punch` | whole blocks are freed, parts of blocks are zeroed |
//! | `ZeroRange`, `ZeroRangeKeepSize` | `zero` | whole blocks become unwritten, parts of blocks are zeroed |
//! | `CollapseRange`, `InsertRange` | `shift` | extents move along the file |
//!
//! Invariants:
//! - `rwlock` is held for writing all the time: nobody writes, truncates or fills holes meanwhile. What drops page cache
//!   holds `invalidate_lock` for writing too, so that nobody reads a block that is being freed into memory again.
//! - Page cache goes before blocks do: no I/O is under way to a block that may belong to another file.
//! - A size that grows follows the gate of every other growth ([`crate::writeback::completion`]): the rest of the old last block is
//!   zeroed first, and i_disksize waits for those zeros. Were it otherwise, a crash would show what the device held
//!   there.
//! - No folio is locked under a handle, and no transaction is waited for under the inode's lock: what needs several
//!   transactions gives the lock up in between, and every one of them leaves a whole file.
//!
//! None of this needs the list of orphans: nothing is ever mapped past the size that was not allowed to be there before.
//! After a crash half way a punched or zeroed range has blocks of both kinds, old and zero; what collapse and insert
//! show is said in `shift`.

pub(crate) mod allocate;
pub(crate) mod punch;
pub(crate) mod request;
pub(crate) mod shift;
pub(crate) mod zero;
