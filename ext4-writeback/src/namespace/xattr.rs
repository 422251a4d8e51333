//! Extended attributes of inodes. Nothing here asks whether the caller may: that is for those who serve others.

use crate::inode::log::log_inode;
use std::sync::Arc;

use ext4_core::format::inode::{Inode, InodeFlags};
use ext4_core::format::xattr::acl::Acl;
use ext4_core::meta::xattr::SetMode;
use ext4_core::meta::{SuperblockInfo, credits, xattr};
use ext4_core::{Errno, Error, InodeNumber, Result};

use crate::filesystem::{Filesystem, FilesystemInner};
use crate::inode::InodeInfo;
use crate::volume::fast_commit::reason::Reason;
use crate::volume::handle::Handle;

/// Who may what with an inode, beyond its permission bits.
pub(crate) const ACCESS_ACL: &[u8] = b"system.posix_acl_access";

/// What is made in a directory gets this as its own.
pub(crate) const DEFAULT_ACL: &[u8] = b"system.posix_acl_default";

/// Has the access control list of `inode`, where there is one, follow new permission bits, as chmod does: were it not
/// to, the bits would say one thing and the list another. True where there is a list.
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
    /// The value of an extended attribute, by its full name (`user.colour`).
    ///
    /// # Errors
    /// `ENODATA` where it is not there.
    pub async fn getxattr(&self, inode: InodeNumber, name: impl AsRef<[u8]>) -> Result<Vec<u8>> {
        let name = name.as_ref();
        self.observe("getxattr", inode, async {
            let info = self.inner.inode(inode).await?;
            let raw = info.inode.read().await;
            info.check_alive()?;
            let value = xattr::get(&self.inner.volume.info, &raw, name).await?;
            value.ok_or_else(|| {
                let context = format!("inode {inode}: attribute {:?}", String::from_utf8_lossy(name));
                Error::posix(Errno::ENODATA, context)
            })
        })
        .await
    }

    /// The full names of all extended attributes.
    ///
    /// # Errors
    /// `ENOENT` where the inode is free.
    pub async fn listxattr(&self, inode: InodeNumber) -> Result<Vec<Vec<u8>>> {
        self.observe("listxattr", inode, async {
            let info = self.inner.inode(inode).await?;
            let raw = info.inode.read().await;
            info.check_alive()?;
            xattr::list(&self.inner.volume.info, &raw).await
        })
        .await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `EEXIST` and `ENODATA` by `mode`, `ERANGE` (name), `EOPNOTSUPP` (prefix), `ENOSPC`, `EPERM` (immutable).
    pub async fn setxattr(
        &self,
        inode: InodeNumber,
        name: impl AsRef<[u8]>,
        value: impl AsRef<[u8]>,
        mode: SetMode,
    ) -> Result<()> {
        let (name, value) = (name.as_ref().to_vec(), value.as_ref().to_vec());
        self.run("setxattr", inode, move |fs| async move {
            let info = fs.inode(inode).await?;
            set(&fs, &info, &name, Some(&value), mode, true).await?;
            fs.sync_attributes(inode).await
        })
        .await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `ENODATA` where it is not there, `EPERM` (immutable).
    pub async fn removexattr(&self, inode: InodeNumber, name: impl AsRef<[u8]>) -> Result<()> {
        let name = name.as_ref().to_vec();
        self.run("removexattr", inode, move |fs| async move {
            let info = fs.inode(inode).await?;
            set(&fs, &info, &name, None, SetMode::Replace, true).await?;
            fs.sync_attributes(inode).await
        })
        .await
    }
}

/// Sets or removes one attribute in a handle of its own; ctime follows where `touch`.
pub(crate) async fn set(
    fs: &Arc<FilesystemInner>,
    info: &Arc<InodeInfo>,
    name: &[u8],
    value: Option<&[u8]>,
    mode: SetMode,
    touch: bool,
) -> Result<()> {
    let attempt = async || {
        let _content = info.rwlock.write().await;
        let handle =
            fs.volume.begin_ineligible(credits::XATTR + credits::INODE, "setxattr", Reason::Xattr).await?;
        let mut raw = info.inode.write().await;
        info.check_alive()?;
        if raw.flags.intersects(InodeFlags::IMMUTABLE | InodeFlags::APPEND) {
            let context = format!("inode {} is immutable or append-only", info.number);
            return Err(Error::posix(Errno::EPERM, context));
        }
        let result = xattr::set(&fs.volume.info, &handle, &mut raw, name, value, mode).await;
        if touch && result.is_ok() {
            raw.ctime = fs.volume.now();
        }
        log_inode(&fs.volume, &handle, info, &raw, false).await?;
        result
    };
    match attempt().await {
        Err(error) if error.errno() == Errno::ENOSPC && fs.volume.commit_for_space().await? => {
            attempt().await
        }
        result => result,
    }
}
