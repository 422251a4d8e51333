//! Operations on paths: names separated by slashes, followed from the root directory.
//!
//! A path is bytes, as every name of ext4 is: methods take `impl AsRef<[u8]>`, which `&str`, `&[u8]`,
//! `b"..."`, `String` and `Vec<u8>` all are (an `OsStr` by `as_encoded_bytes`). The slash in front may be
//! left out. Methods are named as in `std::fs`; if an operation on an inode has that name already, `_path` is
//! added ([`Filesystem::open_path`]).
//!
//! Invariants:
//! - At most [`MAX_SYMLINKS`] symlinks are followed, so a loop of them ends with `ELOOP`.
//! - Every error names the path that the caller gave; its errno, and its variant, are those of the operation
//!   that failed.
//!
//! Locks: none is held from one component to the next. A rename of a directory on the way decides what is
//! found, as in the kernel.

use ext4_core::format::inode::FileType;
use ext4_core::meta::directory::DirectoryEntry;
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::file::File;
use crate::file::options::OpenOptions;
use crate::filesystem::Filesystem;
use crate::namespace::attributes::Attributes;
use crate::namespace::new_inode::Credentials;
use crate::namespace::rename::RenameFlags;
use crate::namespace::symlink;

/// How many symlinks one path may lead through (the kernel's `MAXSYMLINKS`).
pub const MAX_SYMLINKS: u32 = 40;

/// Directory entries that [`Filesystem::read_dir`] takes under one lock of the directory.
const ENTRIES_AT_ONCE: usize = 256;

/// Owner and permissions of a file that is created by its path.
const FILE: Credentials = Credentials { uid: 0, gid: 0, mode: 0o644 };

/// Owner and permissions of a directory that is created by its path.
const DIRECTORY: Credentials = Credentials { uid: 0, gid: 0, mode: 0o755 };

fn shown(path: &[u8]) -> String {
    format!("{:?}", String::from_utf8_lossy(path))
}

/// Puts `path` in front of what `error` says, unless it is there; the errno and the variant stay.
fn at_path(path: &[u8], error: Error) -> Error {
    let path = shown(path);
    let named = |context: String| {
        if context.starts_with(&path) { context } else { format!("{path}: {context}") }
    };
    match error {
        Error::Posix { errno, context } => Error::posix(errno, named(context)),
        Error::Io { operation, location, errno, purpose } => {
            Error::io(operation, named(location), errno).for_purpose(purpose)
        }
        Error::Corrupt(corrupt) => Error::corrupt(named(corrupt.what), corrupt.problem),
        Error::Unsupported(what) => Error::Unsupported(named(what)),
        Error::Aborted(reason) => Error::Aborted(named(reason)),
        error => error,
    }
}

/// Pushes the components of `path` in front of those that are still to be followed (the next one is last). A
/// slash at the end counts as `.` after it: what is before must be a directory.
fn push_components(path: &[u8], pending: &mut Vec<Vec<u8>>) {
    if path.ends_with(b"/") {
        pending.push(b".".to_vec());
    }
    let components = path.split(|byte| *byte == b'/').rev().filter(|component| !component.is_empty());
    pending.extend(components.map(<[u8]>::to_vec));
}

/// Splits `path` into the part that leads to the directory of its last component (empty for the root
/// directory), and that component. Slashes at the end are ignored.
fn split_last(path: &[u8]) -> Result<(&[u8], &[u8])> {
    if path.is_empty() {
        return Err(Error::posix(Errno::ENOENT, "the empty path"));
    }
    let Some(last) = path.iter().rposition(|byte| *byte != b'/') else {
        return Err(Error::posix(Errno::EBUSY, "the root directory has no name"));
    };
    let trimmed = &path[..=last];
    let name = trimmed.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    Ok(trimmed.split_at(name))
}

impl Filesystem {
    /// The inode at `path`. Symlinks on the way are followed; a symlink that is the last component is
    /// followed if `follow` is true, or if a slash stands behind it.
    ///
    /// # Errors
    /// - `ENOENT`: a component does not exist, or the path is empty.
    /// - `ENOTDIR`: a component before the last, or before a slash at the end, is no directory.
    /// - `ELOOP`: more than 40 symlinks.
    /// - `ENAMETOOLONG`: a component is longer than 255 bytes.
    /// - `EIO`, `EUCLEAN`: the device failed, or a directory is corrupt.
    pub async fn resolve(&self, path: impl AsRef<[u8]>, follow: bool) -> Result<InodeNumber> {
        let path = path.as_ref();
        let found = self.follow_components(path, follow).await;
        found.map_err(|error| match error {
            Error::Posix { errno, .. } if !path.is_empty() => Error::posix(errno, shown(path)),
            error => at_path(path, error),
        })
    }

    async fn follow_components(&self, path: &[u8], follow: bool) -> Result<InodeNumber> {
        if path.is_empty() {
            return Err(Error::posix(Errno::ENOENT, "the empty path"));
        }
        let mut pending = Vec::new();
        push_components(path, &mut pending);
        let mut current = InodeNumber::ROOT;
        let mut symlinks = 0;
        while let Some(name) = pending.pop() {
            let found = self.lookup(current, &name).await?;
            if (!pending.is_empty() || follow)
                && let Some(target) = self.target_if_symlink(found).await?
            {
                symlinks += 1;
                if symlinks > MAX_SYMLINKS {
                    return Err(Error::posix(Errno::ELOOP, "too many symlinks"));
                }
                if target.starts_with(b"/") {
                    current = InodeNumber::ROOT;
                }
                push_components(&target, &mut pending);
                continue;
            }
            current = found;
        }
        Ok(current)
    }

    async fn target_if_symlink(&self, inode: InodeNumber) -> Result<Option<Vec<u8>>> {
        self.observe("follow", inode, async {
            let inode = self.inner.inode(inode).await?;
            let raw = inode.on_disk.read().await;
            if raw.file_type() != Some(FileType::Symlink) {
                return Ok(None);
            }
            inode.check_alive()?;
            symlink::target(&self.inner.volume.info, &self.inner.volume.inode_layout, &raw).await.map(Some)
        })
        .await
    }

    /// The directory that holds the last component of `path`, and that component, which need not exist.
    /// Slashes at the end are ignored.
    ///
    /// # Errors
    /// - `EBUSY`: the path is that of the root directory, which has no name.
    /// - Those of [`Filesystem::resolve`], for the part before the last component.
    pub async fn resolve_parent<'p>(
        &self,
        path: &'p (impl AsRef<[u8]> + ?Sized),
    ) -> Result<(InodeNumber, &'p [u8])> {
        let path = path.as_ref();
        let (parent, name) = split_last(path).map_err(|error| at_path(path, error))?;
        if parent.is_empty() {
            return Ok((InodeNumber::ROOT, name));
        }
        let parent = self.follow_components(parent, true).await.map_err(|error| match error {
            Error::Posix { errno, .. } => Error::posix(errno, shown(path)),
            error => at_path(path, error),
        })?;
        Ok((parent, name))
    }

    /// What stat(2) tells of the inode at `path`, symlinks followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`] and [`Filesystem::attributes`].
    pub async fn metadata(&self, path: impl AsRef<[u8]>) -> Result<Attributes> {
        let path = path.as_ref();
        let inode = self.resolve(path, true).await?;
        self.attributes(inode).await.map_err(|error| at_path(path, error))
    }

    /// What lstat(2) tells of the inode at `path`: a symlink that is the last component is not followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`] and [`Filesystem::attributes`].
    pub async fn symlink_metadata(&self, path: impl AsRef<[u8]>) -> Result<Attributes> {
        let path = path.as_ref();
        let inode = self.resolve(path, false).await?;
        self.attributes(inode).await.map_err(|error| at_path(path, error))
    }

    /// Opens the regular file at `path`, symlinks followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`] and [`Filesystem::open`].
    pub async fn open_path(&self, path: impl AsRef<[u8]>) -> Result<File> {
        self.open_path_with(path, OpenOptions::default()).await
    }

    /// Opens the regular file at `path` as `options` say, symlinks followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`] and [`Filesystem::open_with`].
    pub async fn open_path_with(&self, path: impl AsRef<[u8]>, options: OpenOptions) -> Result<File> {
        let path = path.as_ref();
        let inode = self.resolve(path, true).await?;
        self.open_with(inode, options).await.map_err(|error| at_path(path, error))
    }

    /// Opens the regular file at `path`, symlinks followed, and cuts it to 0 bytes; creates it (owner 0, mode
    /// 0644) if it does not exist.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`], [`Filesystem::create`], [`Filesystem::open`] and [`File::set_len`].
    pub async fn create_path(&self, path: impl AsRef<[u8]>) -> Result<File> {
        let path = path.as_ref();
        self.create_or_cut(path).await.map_err(|error| at_path(path, error))
    }

    async fn create_or_cut(&self, path: &[u8]) -> Result<File> {
        let inode = match self.resolve(path, true).await {
            Err(error) if error.errno() == Errno::ENOENT && !path.ends_with(b"/") => {
                let (parent, name) = self.resolve_parent(path).await?;
                self.create(parent, name, FILE).await?
            }
            found => found?,
        };
        let file = self.open(inode).await?;
        file.set_len(0).await?;
        Ok(file)
    }

    /// The whole content of the regular file at `path`, symlinks followed.
    ///
    /// # Errors
    /// - `ENOMEM`: no memory for the content.
    /// - Those of [`Filesystem::open_path`] and [`File::read_at`].
    pub async fn read(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        self.read_whole(path).await.map_err(|error| at_path(path, error))
    }

    async fn read_whole(&self, path: &[u8]) -> Result<Vec<u8>> {
        let file = self.open_path(path).await?;
        let too_large = || Error::posix(Errno::ENOMEM, format!("{} bytes", file.len()));
        let len = usize::try_from(file.len()).map_err(|_| too_large())?;
        let mut content = Vec::new();
        content.try_reserve_exact(len).map_err(|_| too_large())?;
        content.resize(len, 0);
        let mut filled = 0;
        while filled < len {
            match file.read_at(filled as u64, &mut content[filled..]).await? {
                0 => break,
                count => filled += count,
            }
        }
        content.truncate(filled);
        Ok(content)
    }

    /// Replaces the content of the regular file at `path`, symlinks followed; creates the file (owner 0, mode
    /// 0644) if it does not exist. The content is durable after [`File::sync_all`], [`Filesystem::sync`] or
    /// [`Filesystem::unmount`].
    ///
    /// # Errors
    /// Those of [`Filesystem::create_path`] and [`File::write_at`].
    pub async fn write(&self, path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Result<()> {
        let (path, content) = (path.as_ref(), content.as_ref());
        let file = self.create_path(path).await?;
        let mut written = 0;
        while written < content.len() {
            let rest = file.write_at(written as u64, &content[written..]).await;
            written += rest.map_err(|error| at_path(path, error))?;
        }
        Ok(())
    }

    /// Creates the directory `path` (owner 0, mode 0755). Returns its inode.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve_parent`] and [`Filesystem::mkdir`].
    pub async fn create_dir(&self, path: impl AsRef<[u8]>) -> Result<InodeNumber> {
        let path = path.as_ref();
        let (parent, name) = self.resolve_parent(path).await?;
        self.mkdir(parent, name, DIRECTORY).await.map_err(|error| at_path(path, error))
    }

    /// Creates the directory `path`, and those above it that do not exist (owner 0, mode 0755). Returns its
    /// inode.
    ///
    /// # Errors
    /// - `ENOTDIR`: something that is no directory is in the way.
    /// - Those of [`Filesystem::resolve`] and [`Filesystem::mkdir`].
    pub async fn create_dir_all(&self, path: impl AsRef<[u8]>) -> Result<InodeNumber> {
        let path = path.as_ref();
        self.create_directories(path).await.map_err(|error| at_path(path, error))
    }

    async fn create_directories(&self, path: &[u8]) -> Result<InodeNumber> {
        let mut current = InodeNumber::ROOT;
        let mut end = 0;
        for component in path.split(|byte| *byte == b'/') {
            end += component.len();
            let so_far = &path[..end.min(path.len())];
            end += 1;
            if component.is_empty() {
                continue;
            }
            current = match self.resolve(so_far, true).await {
                Err(error) if error.errno() == Errno::ENOENT => {
                    match self.mkdir(current, component, DIRECTORY).await {
                        // Another caller created it, or a symlink that leads nowhere is in the way.
                        Err(error) if error.errno() == Errno::EEXIST => self.resolve(so_far, true).await?,
                        made => made?,
                    }
                }
                found => found?,
            };
        }
        if self.attributes(current).await?.file_type != FileType::Directory {
            return Err(Error::posix(Errno::ENOTDIR, shown(path)));
        }
        Ok(current)
    }

    /// All entries of the directory `path` but `.` and `..`, in the order of its blocks. Entries that are
    /// added or removed meanwhile may be in it or not. A caller that has to bound its memory uses
    /// [`Filesystem::readdir`].
    ///
    /// # Errors
    /// - `ENOTDIR`: the path is not that of a directory.
    /// - Those of [`Filesystem::resolve`] and [`Filesystem::readdir`].
    pub async fn read_dir(&self, path: impl AsRef<[u8]>) -> Result<Vec<DirectoryEntry>> {
        let path = path.as_ref();
        let directory = self.resolve(path, true).await?;
        let mut all = Vec::new();
        let mut position = 0;
        loop {
            let entries = self.readdir(directory, position, ENTRIES_AT_ONCE).await;
            let entries = entries.map_err(|error| at_path(path, error))?;
            let Some(last) = entries.last() else { return Ok(all) };
            position = last.next;
            all.extend(entries.into_iter().filter(|entry| entry.name != b"." && entry.name != b".."));
        }
    }

    /// The target of the symlink at `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`] and [`Filesystem::readlink`].
    pub async fn read_link(&self, path: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let path = path.as_ref();
        let inode = self.resolve(path, false).await?;
        self.readlink(inode).await.map_err(|error| at_path(path, error))
    }

    /// Creates the symlink `path` (owner 0) that leads to `target`, which need not exist. Returns its inode.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve_parent`] and [`Filesystem::symlink`].
    pub async fn symlink_path(
        &self,
        target: impl AsRef<[u8]>,
        path: impl AsRef<[u8]>,
    ) -> Result<InodeNumber> {
        let path = path.as_ref();
        let (parent, name) = self.resolve_parent(path).await?;
        let owner = Credentials { mode: 0o777, ..Credentials::default() };
        self.symlink(parent, name, target, owner).await.map_err(|error| at_path(path, error))
    }

    /// Gives what is at `original` the second name `link`; a symlink at `original` is not followed.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve`], [`Filesystem::resolve_parent`] and [`Filesystem::link`].
    pub async fn hard_link(&self, original: impl AsRef<[u8]>, link: impl AsRef<[u8]>) -> Result<()> {
        let link = link.as_ref();
        let inode = self.resolve(original, false).await?;
        let (parent, name) = self.resolve_parent(link).await?;
        self.link(inode, parent, name).await.map_err(|error| at_path(link, error))
    }

    /// Renames `from` to `to`, which is replaced if it exists, in one step that a crash shows done or not
    /// done.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve_parent`] and [`Filesystem::rename`].
    pub async fn rename_path(&self, from: impl AsRef<[u8]>, to: impl AsRef<[u8]>) -> Result<()> {
        let (from, to) = (from.as_ref(), to.as_ref());
        let source = self.resolve_parent(from).await?;
        let target = self.resolve_parent(to).await?;
        let renamed = self.rename(source, target, RenameFlags::default()).await;
        renamed.map_err(|error| at_path(from, error))
    }

    /// Removes the name `path` of something that is no directory. The inode is deleted when its last name is
    /// removed and its last open file is closed.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve_parent`] and [`Filesystem::unlink`].
    pub async fn remove_file(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.resolve_parent(path).await?;
        self.unlink(parent, name).await.map_err(|error| at_path(path, error))
    }

    /// Removes the empty directory `path`.
    ///
    /// # Errors
    /// Those of [`Filesystem::resolve_parent`] and [`Filesystem::rmdir`].
    pub async fn remove_dir(&self, path: impl AsRef<[u8]>) -> Result<()> {
        let path = path.as_ref();
        let (parent, name) = self.resolve_parent(path).await?;
        self.rmdir(parent, name).await.map_err(|error| at_path(path, error))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slash_at_the_end_asks_for_a_directory() {
        let components = |path: &[u8]| {
            let mut pending = Vec::new();
            push_components(path, &mut pending);
            pending.reverse();
            pending
        };
        assert_eq!(components(b"/a//b"), [b"a".to_vec(), b"b".to_vec()]);
        assert_eq!(components(b"a/b/"), [b"a".to_vec(), b"b".to_vec(), b".".to_vec()]);
        assert_eq!(components(b"/"), [b".".to_vec()]);
    }

    #[test]
    fn the_last_component_is_split_off() {
        let split = |path| split_last(path).map_err(|error| error.errno());
        assert_eq!(split(b"/a/b//"), Ok((&b"/a/"[..], &b"b"[..])));
        assert_eq!(split(b"a"), Ok((&b""[..], &b"a"[..])));
        assert_eq!(split(b"/a"), Ok((&b"/"[..], &b"a"[..])));
        assert_eq!(split(b"//"), Err(Errno::EBUSY));
        assert_eq!(split(b""), Err(Errno::ENOENT));
    }

    #[test]
    fn a_path_is_named_once_and_the_kind_of_error_stays() {
        let path = b"/a/b";
        let once = at_path(path, Error::posix(Errno::ENOSPC, "no blocks"));
        assert_eq!(once.to_string(), at_path(path, once.clone()).to_string());
        assert_eq!(once.to_string(), "\"/a/b\": no blocks: No space left on device");
        let io = at_path(path, Error::io("read", "bytes 0..4096", Errno::EIO));
        assert!(matches!(io, Error::Io { operation: "read", errno: Errno::EIO, .. }), "{io:?}");
        let corrupt = at_path(path, Error::corrupt("inode 12", "no type"));
        assert!(corrupt.is_corrupt());
        assert_eq!(corrupt.to_string(), "corrupt: \"/a/b\": inode 12: no type");
        let aborted = at_path(path, Error::Aborted("EIO".into()));
        assert!(matches!(aborted, Error::Aborted(_)) && aborted.errno() == Errno::EROFS);
    }
}
