//! The content of a simulated device: copied on write in chunks, so that a copy costs a pointer per chunk and
//! a hole nothing.

use std::fmt;
use std::hash::{DefaultHasher, Hasher};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::Arc;

use crate::error::{Error, Result};

/// The unit that two images share or do not.
const CHUNK: usize = 64 << 10;

/// The bytes of a device. Cloning is cheap: clones share what neither has changed since.
#[derive(Clone)]
pub struct Image {
    len: u64,
    /// `None`: zeros.
    chunks: Vec<Option<Arc<[u8; CHUNK]>>>,
}

impl fmt::Debug for Image {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Image({} bytes)", self.len)
    }
}

impl Image {
    /// `len` bytes of zeros.
    #[must_use]
    pub fn zeroed(len: u64) -> Self {
        let chunks = usize::try_from(len.div_ceil(CHUNK as u64)).expect("an image fits in memory");
        Self { len, chunks: vec![None; chunks] }
    }

    /// What a file holds: holes stay holes.
    ///
    /// # Errors
    /// The host's.
    pub fn from_file(path: &Path) -> Result<Self> {
        std::fs::read(path)
            .map(|content| Self::from(&content[..]))
            .map_err(|source| Error::host("read", path.display().to_string(), &source))
    }

    /// Makes a file, or replaces its content, with this content; zeros become holes.
    ///
    /// # Errors
    /// The host's.
    pub fn to_file(&self, path: &Path) -> Result<()> {
        let write = || {
            let mut file = std::fs::File::create(path)?;
            file.set_len(self.len)?;
            for (number, chunk) in self.chunks.iter().enumerate() {
                let Some(chunk) = chunk else { continue };
                let start = number as u64 * CHUNK as u64;
                let len = usize::try_from((self.len - start).min(CHUNK as u64)).unwrap_or(CHUNK);
                file.seek(SeekFrom::Start(start))?;
                file.write_all(&chunk[..len])?;
            }
            Ok(())
        };
        write().map_err(|source| Error::host("write", path.display().to_string(), &source))
    }

    /// The length in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Returns true for no bytes at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Fills `bytes` from byte `offset` on.
    ///
    /// # Panics
    /// If the range does not lie within the image.
    pub fn read(&self, offset: u64, bytes: &mut [u8]) {
        let mut done = 0;
        for (chunk, start, len) in self.pieces(offset, bytes.len() as u64) {
            let piece = &mut bytes[done..done + len];
            match &self.chunks[chunk] {
                Some(content) => piece.copy_from_slice(&content[start..start + len]),
                None => piece.fill(0),
            }
            done += len;
        }
    }

    /// Stores `bytes` from byte `offset` on.
    ///
    /// # Panics
    /// If the range does not lie within the image.
    pub fn write(&mut self, offset: u64, bytes: &[u8]) {
        let mut done = 0;
        for (chunk, start, len) in self.pieces(offset, bytes.len() as u64) {
            self.chunk_mut(chunk)[start..start + len].copy_from_slice(&bytes[done..done + len]);
            done += len;
        }
    }

    /// Sets `len` bytes from byte `offset` on to `byte`.
    ///
    /// # Panics
    /// If the range does not lie within the image.
    pub fn fill(&mut self, offset: u64, len: u64, byte: u8) {
        for (chunk, start, len) in self.pieces(offset, len) {
            if byte != 0 {
                self.chunk_mut(chunk)[start..start + len].fill(byte);
            } else if len == CHUNK {
                self.chunks[chunk] = None;
            } else if self.chunks[chunk].is_some() {
                self.chunk_mut(chunk)[start..start + len].fill(0);
            }
        }
    }

    /// All bytes.
    #[must_use]
    pub fn to_vec(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(self.len).expect("an image fits in memory")];
        self.read(0, &mut bytes);
        bytes
    }

    fn chunk_mut(&mut self, chunk: usize) -> &mut [u8; CHUNK] {
        Arc::make_mut(self.chunks[chunk].get_or_insert_with(|| Arc::new([0; CHUNK])))
    }

    /// The chunks under a range: number, first byte within, length.
    fn pieces(&self, offset: u64, len: u64) -> impl Iterator<Item = (usize, usize, usize)> + use<> {
        let end = offset.checked_add(len).filter(|end| *end <= self.len);
        let end = end.unwrap_or_else(|| panic!("bytes {offset}+{len} of an image of {} bytes", self.len));
        let mut at = offset;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let chunk = usize::try_from(at / CHUNK as u64).ok()?;
            let start = usize::try_from(at % CHUNK as u64).ok()?;
            let len = usize::try_from(end - at).unwrap_or(CHUNK).min(CHUNK - start);
            at += len as u64;
            Some((chunk, start, len))
        })
    }
}

/// Fingerprints of images that share most of their chunks: those of chunks are remembered.
#[derive(Debug, Default)]
pub(super) struct Fingerprints {
    /// By place: the last few contents there and their fingerprints. Held, so that an address is not used
    /// again.
    chunks: Vec<std::collections::VecDeque<(Arc<[u8; CHUNK]>, u64)>>,
}

/// How many contents of one place are remembered.
const REMEMBERED: usize = 4;

impl Fingerprints {
    /// The fingerprint of all of `image`.
    pub(super) fn of(&mut self, image: &Image) -> u64 {
        if self.chunks.len() < image.chunks.len() {
            self.chunks.resize_with(image.chunks.len(), Default::default);
        }
        let mut all = DefaultHasher::new();
        all.write_u64(image.len);
        for (chunk, remembered) in image.chunks.iter().zip(&mut self.chunks) {
            all.write_u64(chunk.as_ref().map_or(0, |chunk| fingerprint(chunk, remembered)));
        }
        all.finish()
    }
}

/// The fingerprint of one chunk; 0 for zeros.
fn fingerprint(
    chunk: &Arc<[u8; CHUNK]>,
    remembered: &mut std::collections::VecDeque<(Arc<[u8; CHUNK]>, u64)>,
) -> u64 {
    if let Some((_, fingerprint)) = remembered.iter().find(|(known, _)| Arc::ptr_eq(known, chunk)) {
        return *fingerprint;
    }
    let fingerprint = if chunk.iter().all(|byte| *byte == 0) {
        0
    } else {
        let mut hasher = DefaultHasher::new();
        hasher.write(&chunk[..]);
        hasher.finish()
    };
    remembered.truncate(REMEMBERED - 1);
    remembered.push_front((Arc::clone(chunk), fingerprint));
    fingerprint
}

impl From<&[u8]> for Image {
    fn from(content: &[u8]) -> Self {
        let mut image = Self::zeroed(content.len() as u64);
        for (number, piece) in content.chunks(CHUNK).enumerate() {
            if piece.iter().any(|byte| *byte != 0) {
                image.chunk_mut(number)[..piece.len()].copy_from_slice(piece);
            }
        }
        image
    }
}

impl PartialEq for Image {
    fn eq(&self, other: &Self) -> bool {
        let zero = |chunk: &Arc<[u8; CHUNK]>| chunk.iter().all(|byte| *byte == 0);
        self.len == other.len
            && self.chunks.iter().zip(&other.chunks).all(|pair| match pair {
                (None, None) => true,
                (Some(chunk), None) | (None, Some(chunk)) => zero(chunk),
                (Some(left), Some(right)) => Arc::ptr_eq(left, right) || left == right,
            })
    }
}

impl Eq for Image {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_agrees_with_plain_bytes() {
        let len = 5 * CHUNK / 2;
        let (mut image, mut plain) = (Image::zeroed(len as u64), vec![0_u8; len]);
        fastrand::seed(7);
        let mut copies = Vec::new();
        for round in 0..200 {
            let start = fastrand::usize(0..len);
            let end = fastrand::usize(start..=len);
            let byte = if round % 3 == 0 { 0 } else { fastrand::u8(..) };
            plain[start..end].fill(byte);
            if round % 2 == 0 {
                image.fill(start as u64, (end - start) as u64, byte);
            } else {
                image.write(start as u64, &vec![byte; end - start]);
            }
            if round % 50 == 0 {
                copies.push((image.clone(), plain.clone()));
            }
        }
        copies.push((image, plain));
        for (image, plain) in copies {
            assert!(image.to_vec() == plain);
            assert_eq!(image, Image::from(&plain[..]));
        }
    }
}
