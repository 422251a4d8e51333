//! POSIX access control lists: ext4's form of them, the system calls' form, and what they have to do with a
//! mode.
//!
//! | | on the device | in system calls |
//! |---|---|---|
//! | header | version 1 | version 2 |
//! | owner, group, mask, others | tag, permissions: 4 bytes | tag, permissions, id (all ones): 8 bytes |
//! | named user or group | tag, permissions, id: 8 bytes | the same |
//!
//! A list that comes from a caller is valid as POSIX 1003.1e draft 17 wants it: in order, each of owner,
//! group and others once, a mask if a user or group is named. One from the device is taken as it is, as the
//! kernel does: it is shown, so that it can be mended.
//!
//! Source: kernel documentation, "Extended Attributes", POSIX ACLs; acl(5);
//! include/uapi/linux/posix_acl_xattr.h for the numbers.

use alloc::format;
use alloc::vec::Vec;

use super::Problem;

/// a_version on the device.
const DISK_VERSION: u32 = 1;
/// a_version in system calls.
const CALL_VERSION: u32 = 2;
/// The id of an entry that names no user or group.
const NO_ID: u32 = u32::MAX;

/// The subject of an entry, in the order of a valid list. The values are those on the device and in system
/// calls.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Hash)]
#[repr(u16)]
pub enum Tag {
    /// The owner.
    UserObject = 0x01,
    /// A named user.
    User = 0x02,
    /// The group.
    GroupObject = 0x04,
    /// A named group.
    Group = 0x08,
    /// The most that named ones and the group can have.
    Mask = 0x10,
    /// All others.
    Other = 0x20,
}

impl Tag {
    fn from_number(number: u16) -> Option<Self> {
        [Self::UserObject, Self::User, Self::GroupObject, Self::Group, Self::Mask, Self::Other]
            .into_iter()
            .find(|tag| tag.number() == number)
    }

    fn number(self) -> u16 {
        match self {
            Self::UserObject => 0x01,
            Self::User => 0x02,
            Self::GroupObject => 0x04,
            Self::Group => 0x08,
            Self::Mask => 0x10,
            Self::Other => 0x20,
        }
    }

    fn is_named(self) -> bool {
        matches!(self, Self::User | Self::Group)
    }
}

/// One entry of a list.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AclEntry {
    /// Its subject.
    pub tag: Tag,
    /// Read 4, write 2, execute 1.
    pub permissions: u16,
    /// The user's or group's number, of a named one.
    pub id: Option<u32>,
}

/// An access control list.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Acl(Vec<AclEntry>);

fn take<'a, const N: usize>(bytes: &mut &'a [u8]) -> Option<&'a [u8; N]> {
    let (first, rest) = bytes.split_first_chunk::<N>()?;
    *bytes = rest;
    Some(first)
}

fn take_u16(bytes: &mut &[u8]) -> Option<u16> {
    take(bytes).copied().map(u16::from_le_bytes)
}

fn take_u32(bytes: &mut &[u8]) -> Option<u32> {
    take(bytes).copied().map(u32::from_le_bytes)
}

impl Acl {
    /// Reads either form; `short`: entries that name no user or group have no id.
    fn parse(mut bytes: &[u8], version: u32, short: bool) -> Result<Self, Problem> {
        let found = take_u32(&mut bytes).ok_or("ACL without a header")?;
        if found != version {
            return Err(format!("ACL version {found} is not {version}").into());
        }
        let mut entries = Vec::with_capacity(bytes.len() / 4);
        while !bytes.is_empty() {
            let cut = || Problem::from("ACL ends in the middle of an entry");
            let number = take_u16(&mut bytes).ok_or_else(cut)?;
            let permissions = take_u16(&mut bytes).ok_or_else(cut)?;
            let tag = Tag::from_number(number).ok_or_else(|| format!("ACL tag {number:#x} is unknown"))?;
            let id = if short && !tag.is_named() { NO_ID } else { take_u32(&mut bytes).ok_or_else(cut)? };
            entries.push(AclEntry { tag, permissions, id: tag.is_named().then_some(id) });
        }
        Ok(Self(entries))
    }

    fn serialize(&self, version: u32, short: bool) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(self.0.len().saturating_mul(8).saturating_add(4));
        bytes.extend_from_slice(&version.to_le_bytes());
        for entry in &self.0 {
            bytes.extend_from_slice(&entry.tag.number().to_le_bytes());
            bytes.extend_from_slice(&entry.permissions.to_le_bytes());
            if !short || entry.tag.is_named() {
                bytes.extend_from_slice(&entry.id.unwrap_or(NO_ID).to_le_bytes());
            }
        }
        bytes
    }

    /// From an attribute's value on the device.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn from_disk(bytes: &[u8]) -> Result<Self, Problem> {
        Self::parse(bytes, DISK_VERSION, true)
    }

    /// As an attribute's value on the device.
    #[must_use]
    pub fn to_disk(&self) -> Vec<u8> {
        self.serialize(DISK_VERSION, true)
    }

    /// From what setxattr is given; `None` for a header alone, which takes a list away.
    ///
    /// # Errors
    /// The first thing that is wrong, in words.
    pub fn from_call(bytes: &[u8]) -> Result<Option<Self>, Problem> {
        if bytes.is_empty() || bytes == CALL_VERSION.to_le_bytes() {
            return Ok(None);
        }
        let acl = Self::parse(bytes, CALL_VERSION, false)?;
        acl.check()?;
        Ok(Some(acl))
    }

    /// As getxattr returns it.
    #[must_use]
    pub fn to_call(&self) -> Vec<u8> {
        self.serialize(CALL_VERSION, false)
    }

    /// The entries, in order.
    #[must_use]
    pub fn entries(&self) -> &[AclEntry] {
        &self.0
    }

    fn check(&self) -> Result<(), Problem> {
        let mut before: Option<&AclEntry> = None;
        let mut named = false;
        for entry in &self.0 {
            if entry.permissions > 7 {
                return Err(format!("ACL permissions {:#o}", entry.permissions).into());
            }
            // The kernel asks for the order of tags only; that no user is named twice is left to libacl.
            let in_order = before.is_none_or(|before| {
                before.tag < entry.tag || (before.tag == entry.tag && entry.tag.is_named())
            });
            if !in_order {
                return Err(format!("ACL entry {:?} is out of order", entry.tag).into());
            }
            named |= entry.tag.is_named();
            before = Some(entry);
        }
        let has = |tag| self.0.iter().any(|entry| entry.tag == tag);
        if !(has(Tag::UserObject) && has(Tag::GroupObject) && has(Tag::Other)) {
            return Err("ACL without owner, group or others".into());
        }
        if named && !has(Tag::Mask) {
            return Err("ACL with names but without a mask".into());
        }
        Ok(())
    }

    fn permissions(&self, tag: Tag) -> Option<u16> {
        self.0.iter().find(|entry| entry.tag == tag).map(|entry| entry.permissions)
    }

    /// The nine permission bits of a mode that go with this list (the mask stands for the group), and whether
    /// they say all of it, so that no list need be kept.
    #[must_use]
    pub fn mode(&self) -> (u16, bool) {
        let class = |tag| self.permissions(tag).unwrap_or(0) & 7;
        let group = self.permissions(Tag::Mask).map_or(class(Tag::GroupObject), |mask| mask & 7);
        let mode = (class(Tag::UserObject) << 6) | (group << 3) | class(Tag::Other);
        (mode, self.0.len() == 3)
    }

    /// The list after chmod to `mode`: owner, others, and the mask (or the group, if there is no mask)
    /// follow.
    #[must_use]
    pub fn with_mode(&self, mode: u16) -> Self {
        let has_mask = self.permissions(Tag::Mask).is_some();
        let mut acl = self.clone();
        for entry in &mut acl.0 {
            entry.permissions = match entry.tag {
                Tag::UserObject => (mode >> 6) & 7,
                Tag::Mask => (mode >> 3) & 7,
                Tag::GroupObject if !has_mask => (mode >> 3) & 7,
                Tag::Other => mode & 7,
                _ => entry.permissions,
            };
        }
        acl
    }

    /// What a new file gets if this is its directory's default list and `mode` was asked for: its list,
    /// `None` if the mode says it all, and its nine permission bits. The umask does not apply.
    #[must_use]
    pub fn inherit(&self, mode: u16) -> (Option<Self>, u16) {
        let has_mask = self.permissions(Tag::Mask).is_some();
        let mut acl = self.clone();
        for entry in &mut acl.0 {
            entry.permissions &= match entry.tag {
                Tag::UserObject => mode >> 6,
                Tag::Mask => mode >> 3,
                Tag::GroupObject if !has_mask => mode >> 3,
                Tag::Other => mode,
                _ => 7,
            } & 7;
        }
        let (mode, complete) = acl.mode();
        ((!complete).then_some(acl), mode)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Acl {
        let entry = |tag, permissions, id| AclEntry { tag, permissions, id };
        Acl(alloc::vec![
            entry(Tag::UserObject, 7, None),
            entry(Tag::User, 6, Some(1000)),
            entry(Tag::GroupObject, 5, None),
            entry(Tag::Group, 4, Some(50)),
            entry(Tag::Mask, 6, None),
            entry(Tag::Other, 1, None),
        ])
    }

    #[test]
    fn both_forms_hold_the_same_list() {
        let acl = sample();
        assert_eq!(acl.to_disk().len(), 4 + 4 * 4 + 2 * 8);
        assert_eq!(acl.to_call().len(), 4 + 6 * 8);
        assert_eq!(Acl::from_disk(&acl.to_disk()).unwrap(), acl);
        assert_eq!(Acl::from_call(&acl.to_call()).unwrap(), Some(acl));
        assert_eq!(Acl::from_call(&2_u32.to_le_bytes()).unwrap(), None);
    }

    #[test]
    fn the_mask_is_the_groups_part_of_the_mode() {
        let acl = sample();
        assert_eq!(acl.mode(), (0o761, false));
        assert_eq!(acl.with_mode(0o640).mode(), (0o640, false));
        let (inherited, mode) = acl.inherit(0o644);
        assert_eq!(mode, 0o640);
        assert_eq!(inherited.unwrap().permissions(Tag::User), Some(6));
        let minimal = Acl(acl
            .0
            .into_iter()
            .filter(|entry| matches!(entry.tag, Tag::UserObject | Tag::GroupObject | Tag::Other))
            .collect());
        assert_eq!(minimal.mode(), (0o751, true));
        assert_eq!(minimal.inherit(0o600), (None, 0o600));
    }

    #[test]
    fn broken_lists_are_refused() {
        let disk = sample().to_disk();
        let whole = [4, 8, 16, 20, 28, 32];
        for len in (0..disk.len()).filter(|len| !whole.contains(len)) {
            assert!(Acl::from_disk(&disk[..len]).is_err(), "cut to {len}");
        }
        let mut unordered = sample();
        unordered.0.swap(0, 2);
        assert!(Acl::from_call(&unordered.to_call()).is_err());
        let mut unmasked = sample();
        unmasked.0.remove(4);
        assert!(Acl::from_call(&unmasked.to_call()).is_err());
    }
}
