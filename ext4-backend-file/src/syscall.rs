//! Vectored reads and writes (`preadv`, `pwritev2`): the system calls that take addresses.
//!
//! Invariant: a transfer covers the whole range or fails. An interrupted or short transfer is resumed where
//! it stopped, so that a bio never reports more than what reached the host.
#![allow(unsafe_code)]

use std::fs::File;
use std::os::fd::AsRawFd;

use ext4_core::Errno;
use ext4_core::device::Bio;

/// The most vectors one call takes (`UIO_MAXIOV`).
pub(crate) const MAX_VECTORS: usize = 1024;

/// The direction of a transfer.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Direction {
    Read,
    Write {
        /// True if the write completes only when its bytes are durable (`RWF_DSYNC`).
        durable: bool,
    },
}

/// Reads or writes the memory of the adjacent `bios`, from byte `offset` of `file` on.
///
/// # Errors
/// - `EIO`: the file ends before the range does.
/// - The host's errors.
pub(crate) fn transfer(
    file: &File,
    direction: Direction,
    mut offset: u64,
    bios: &mut [Bio],
) -> Result<(), Errno> {
    let mut vectors: Vec<libc::iovec> = bios
        .iter_mut()
        .flat_map(|bio| &mut bio.segments)
        .filter(|segment| !segment.is_empty())
        .map(|segment| libc::iovec {
            iov_len: segment.len() as usize,
            iov_base: segment.as_device_ptr().cast(),
        })
        .collect();
    let mut rest = &mut vectors[..];
    while !rest.is_empty() {
        let count = rest.len().min(MAX_VECTORS);
        let moved = match call(file, direction, offset, &rest[..count]) {
            Ok(0) => return Err(Errno::EIO),
            Ok(moved) => moved,
            Err(Errno::EINTR) => continue,
            Err(errno) => return Err(errno),
        };
        offset += moved as u64;
        rest = advance(rest, moved);
    }
    Ok(())
}

/// Makes one system call; returns the number of bytes moved.
fn call(file: &File, direction: Direction, offset: u64, vectors: &[libc::iovec]) -> Result<usize, Errno> {
    let offset = libc::off_t::try_from(offset).map_err(|_| Errno::EFBIG)?;
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| Errno::EINVAL)?;
    let descriptor = file.as_raw_fd();
    let moved = match direction {
        // SAFETY: the vectors come from `transfer`: each points into a segment of a bio that `transfer`
        // borrows for the length of the call, and `Bio::check` refused segments that reach past their memory.
        // The bio is a read, so no segment is a frozen image and nothing else touches the memory (invariant
        // of `ext4_core::device::memory`).
        Direction::Read => unsafe { libc::preadv(descriptor, vectors.as_ptr(), count, offset) },
        Direction::Write { durable } => {
            let flags = if durable { libc::RWF_DSYNC } else { 0 };
            // SAFETY: as for `preadv`; the host only reads the memory, which stays unchanged while it is
            // under writeback.
            unsafe { libc::pwritev2(descriptor, vectors.as_ptr(), count, offset, flags) }
        }
    };
    let moved = Errno::result(moved)?;
    usize::try_from(moved).map_err(|_| Errno::EIO)
}

/// Returns what is left of `vectors` after the first `moved` bytes.
fn advance(mut vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    while let Some(first) = vectors.first_mut() {
        if moved < first.iov_len {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
            break;
        }
        moved -= first.iov_len;
        vectors = &mut vectors[1..];
    }
    vectors
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_transfer_goes_on_where_it_stopped() {
        let vector = |base: usize, len| libc::iovec { iov_base: base as *mut _, iov_len: len };
        let mut vectors = [vector(0x1000, 100), vector(0x2000, 50), vector(0x3000, 1)];
        let rest = advance(&mut vectors, 120);
        assert_eq!(rest.len(), 2);
        assert_eq!((rest[0].iov_base as usize, rest[0].iov_len), (0x2014, 30));
        let rest = advance(rest, 30);
        assert_eq!((rest.len(), rest[0].iov_base as usize), (1, 0x3000));
        assert!(advance(rest, 1).is_empty());
    }
}
