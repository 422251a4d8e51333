//! Extended attributes: getxattr(2), listxattr(2), setxattr(2), removexattr(2) of an inode. Permissions are
//! not checked: that is for programs that serve others.
//!
//! Locks: `rwlock` of the inode for writing around a change.

use std::sync::Arc;

use ext4_core::format::inode::{Inode, InodeFlags};
use ext4_core::format::xattr::acl::Acl;
use ext4_core::meta::xattr::SetMode;
use ext4_core::meta::{SuperblockInfo, credits, xattr};
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::InodeInfo;
use crate::inode::log::log_inode;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;

/// The access control list of an inode (POSIX ACL), which refines its permission bits.
pub(crate) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// The default access control list of a directory, which inodes that are created in it inherit.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Adapts the access control list of `inode` to the new permission bits `mode`, as chmod(2) does: otherwise
/// the bits would say one thing and the list another. Returns true if the inode has a list.
pub(crate) async fn follow_mode(
    info: &SuperblockInfo,
    handle: &Handle,
    inode: &mut Inode,
    mode: u16,
) -> Result<bool> {
    let Some(value) = xattr::get(info, inode, ACCESS_ACL).await? else { return Ok(false) };
    let number = inode.number;
    let acl = Acl::from_call(&value)
        .map_err(|problem| Error::corrupt(format!("inode {number}: access control list"), problem))?;
    let Some(acl) = acl else { return Ok(false) };
    let value = acl.with_mode(mode).to_call();
    xattr::set(info, handle, inode, ACCESS_ACL, Some(&value), SetMode::Any).await?;
    Ok(true)
}

impl Filesystem {
    /// getxattr(2): the value of an extended attribute, by its full name (`user.colour`).
    ///
    /// # Errors
    /// - `ENODATA`: the inode has no such attribute.
    /// - `ENOENT`: the inode is free.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn getxattr(&self, inode: InodeNumber, name: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let name = name.as_ref();
        self.observe("getxattr", inode, async {
            let inode = self.inner.inode(inode).await?;
            let raw = inode.on_disk.read().await;
            inode.check_alive()?;
            let value = xattr::get(&self.inner.volume.info, &raw, name).await?;
            value.ok_or_else(|| {
                let name = String::from_utf8_lossy(name);
                let context = format!("inode {}: attribute {name:?}", inode.number);
                Error::posix(Errno::ENODATA, context)
            })
        })
        .await
    }

    /// listxattr(2): the full names of all extended attributes.
    ///
    /// # Errors
    /// - `ENOENT`: the inode is free.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn listxattr(&self, inode: InodeNumber) -> Result<Vec<Vec<u8>>> {
        self.observe("listxattr", inode, async {
            let inode = self.inner.inode(inode).await?;
            let raw = inode.on_disk.read().await;
            inode.check_alive()?;
            xattr::list(&self.inner.volume.info, &raw).await
        })
        .await
    }

    /// setxattr(2): sets an extended attribute, as `mode` says about one that exists.
    ///
    /// # Errors
    /// - `EEXIST`, `ENODATA`: the attribute exists, or does not, against `mode`.
    /// - `ERANGE`: the name is empty or too long.
    /// - `EOPNOTSUPP`: the name has no known prefix (`user.`, `trusted.`, …).
    /// - `ENOSPC`: no room for the value.
    /// - `EPERM`: the inode is immutable or append-only.
    /// - `ENOENT`: the inode is free.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn setxattr(
        &self,
        inode: InodeNumber,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        mode: SetMode,
    ) -> Result<()> {
        let (name, value) = (name.as_ref().to_vec(), value.as_ref().to_vec());
        self.run("setxattr", inode, move |fs| async move {
            let inode = fs.inode(inode).await?;
            set(&fs, &inode, &name, Some(&value), mode, true).await?;
            fs.sync_attributes(inode.number).await
        })
        .await
    }

    /// removexattr(2): removes an extended attribute.
    ///
    /// # Errors
    /// - `ENODATA`: the inode has no such attribute.
    /// - `EPERM`: the inode is immutable or append-only.
    /// - `ENOENT`: the inode is free.
    /// - `EROFS`: the file system is not written.
    /// - `EIO`, `EUCLEAN`: the device, or what it holds.
    pub async fn removexattr(&self, inode: InodeNumber, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref().to_vec();
        self.run("removexattr", inode, move |fs| async move {
            let inode = fs.inode(inode).await?;
            set(&fs, &inode, &name, None, SetMode::Replace, true).await?;
            fs.sync_attributes(inode.number).await
        })
        .await
    }
}

/// Sets one attribute, or removes it if `value` is `None`, in a handle of its own. Updates ctime if `ctime`
/// is true.
pub(crate) async fn set(
    fs: &Arc<FilesystemInner>,
    inode: &Arc<InodeInfo>,
    name: &[u8],
    value: Option<&[u8]>,
    mode: SetMode,
    ctime: bool,
) -> Result<()> {
    let attempt = async || {
        let _content = inode.rwlock.write().await;
        let handle =
            fs.volume.begin_ineligible(credits::XATTR + credits::INODE, "setxattr", Reason::Xattr).await?;
        let mut raw = inode.on_disk.write().await;
        inode.check_alive()?;
        if raw.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            let context = format!("inode {} is immutable or append-only", inode.number);
            return Err(Error::posix(Errno::EPERM, context));
        }
        let result = xattr::set(&fs.volume.info, &handle, &mut raw, name, value, mode).await;
        if ctime && result.is_ok() {
            raw.ctime = fs.volume.now();
        }
        log_inode(&fs.volume, &handle, inode, &raw, false).await?;
        result
    };
    match attempt().await {
        Err(error) if error.errno() == Errno::ENOSPC && fs.volume.commit_for_space().await? => {
            attempt().await
        }
        result => result,
    }
}
