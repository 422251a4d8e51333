//! Merged ioends: a group of one inode's ioends that are contiguous in the file and on the device, converted
//! in one step (kernel: `iomap_ioend_try_merge`).

use std::ops::Range;

use ext4_core::meta::credits;
use ext4_core::{BlockNumber, BlockSize, LogicalBlock};

use crate::cache::ioend::{Ioend, Kind};
use crate::writeback::completion::publish::STEP_CREDITS;

/// Credits for one ioend: its conversion and its inode.
pub(crate) const CREDITS: u32 = credits::EXTENT + credits::INODE;

/// Ioends that are contiguous in the file and on the device.
pub(crate) struct Group {
    /// Blocks of the file.
    pub blocks: Range<LogicalBlock>,
    /// The first byte of the file.
    pub offset: u64,
    /// The byte behind the last.
    pub end: u64,
    pub kind: Kind,
    /// The first block on the device.
    pub physical: BlockNumber,
    /// Blocks before this one are published.
    pub published: LogicalBlock,
    /// True if a commit was made already to free space for its metadata.
    pub(crate) retried: bool,
    /// The ioends, in the order of the file.
    pub members: Vec<Ioend>,
}

impl Group {
    /// Credits for one step of its publication or conversion.
    pub(crate) fn credits(&self) -> u32 {
        if self.kind == Kind::Picked { STEP_CREDITS } else { CREDITS }
    }

    /// The byte up to which i_disksize may move: the end of the published part of picked blocks, the end
    /// otherwise.
    pub(crate) fn done_end(&self, block_size: BlockSize) -> u64 {
        match self.kind {
            Kind::Picked if self.published == self.blocks.start => 0,
            Kind::Picked => self.end.min(self.published.byte(block_size)),
            Kind::Overwrite | Kind::Unwritten => self.end,
        }
    }
}

/// Sorts `ioends` into the order of the file and merges those that are contiguous.
pub(crate) fn merge(mut ioends: Vec<Ioend>) -> Vec<Group> {
    ioends.sort_by_key(|ioend| (ioend.offset, ioend.id));
    let mut groups: Vec<Group> = Vec::new();
    for ioend in ioends {
        if let Some(group) = groups.last_mut()
            && let Some(last) = group.members.last()
            && group.kind == ioend.kind
            && last.end() == ioend.offset
            && last.physical.offset(u64::from(last.blocks.end - last.blocks.start)) == ioend.physical
        {
            group.blocks.end = ioend.blocks.end;
            group.end = ioend.end();
            group.members.push(ioend);
            continue;
        }
        groups.push(Group {
            blocks: ioend.blocks.clone(),
            offset: ioend.offset,
            end: ioend.end(),
            kind: ioend.kind,
            physical: ioend.physical,
            published: ioend.blocks.start,
            retried: false,
            members: vec![ioend],
        });
    }
    groups
}
