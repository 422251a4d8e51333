//! The tags (EXT4_FC_TAG_*) for the changes that the tracker has.
//!
//! The order is the kernel's: names first, and before CREAT the new inode with its ranges, so that the inode
//! exists when its name comes; then each inode that changed, its ranges before its fields. The fields come
//! last because the replay of a name changes the link count, which the fields correct.

use ext4_core::TransactionId;
use ext4_journal::{FastCommitEntry, FastCommitSource, FastCommitTag, Ineligible};

use crate::volume::fast_commit::reason::Reason;
use crate::volume::fast_commit::track::{Changed, Operation, Record, State, Tracker};

/// Bytes of an inode without extra fields, and the fewest bytes of extra fields that e2fsck needs: their size
/// and the upper half of the checksum.
const BASE_SIZE: usize = 128;

const MIN_EXTRA: usize = 4;

impl FastCommitSource for Tracker {
    fn is_eligible(&self, id: TransactionId) -> bool {
        let state = self.state.lock();
        state.transaction != Some(id) || state.record.ineligible.is_none()
    }

    fn take(&self, id: TransactionId) -> std::result::Result<Vec<FastCommitTag>, Ineligible> {
        let mut state = self.state.lock();
        if state.transaction != Some(id) {
            return Ok(Vec::new());
        }
        match tags(&state) {
            Ok(tags) => {
                state.record.written();
                Ok(tags)
            }
            Err(reason) => {
                // Counted when the transaction was marked.
                if state.record.ineligible.is_none() {
                    self.count(reason);
                }
                Err(Ineligible)
            }
        }
    }
}

fn tags(state: &State) -> std::result::Result<Vec<FastCommitTag>, Reason> {
    let Record { ineligible, entries, inodes, .. } = &state.record;
    if let Some(reason) = ineligible {
        return Err(*reason);
    }
    if inodes.keys().any(|inode| state.truncated.contains_key(inode)) {
        return Err(Reason::Orphan);
    }
    let image = |inode, changed: &Changed| {
        // Its handle failed before the inode was logged.
        let slot = changed.slot.as_ref().ok_or(Reason::Failure)?;
        let image = slot.fixed_fields();
        if slot.size() > BASE_SIZE && image.len() < BASE_SIZE + MIN_EXTRA {
            return Err(Reason::InodeSize);
        }
        Ok(FastCommitTag::Inode { inode, image: image.into() })
    };
    let mut tags = Vec::with_capacity(entries.len() + 2 * inodes.len());
    let mut created = Vec::new();
    for entry in entries {
        let named = FastCommitEntry {
            parent: entry.parent,
            inode: entry.inode,
            name: std::sync::Arc::clone(&entry.name),
        };
        let tag = match entry.operation {
            Operation::Create => {
                // Without the inode its name would lead nowhere.
                let Some(changed) = inodes.get(&entry.inode) else { return Err(Reason::Failure) };
                tags.push(image(entry.inode, changed)?);
                changed.ranges.tags(entry.inode, &mut tags);
                created.push(entry.inode);
                FastCommitTag::Create(named)
            }
            Operation::Link => FastCommitTag::Link(named),
            Operation::Unlink => FastCommitTag::Unlink(named),
        };
        tags.push(tag);
    }
    for (inode, changed) in inodes {
        if !created.contains(inode) {
            changed.ranges.tags(*inode, &mut tags);
        }
        tags.push(image(*inode, changed)?);
    }
    Ok(tags)
}
