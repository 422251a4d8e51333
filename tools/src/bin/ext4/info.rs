//! `ext4 info`: shows the superblock and the journal's superblock, with the keys and the order of `dumpe2fs
//! -h`.
//!
//! Nothing is mounted or recovered: the command shows what is on the device.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ext4_core::format::features::{Compat, Incompat, RoCompat};
use ext4_core::format::superblock::{self, ErrorRecord, Superblock};
use ext4_core::meta::extent_tree::MappingState;
use ext4_core::meta::{SuperblockInfo, block_map, inline_data, inode_table};
use ext4_core::{Error, InodeNumber, LogicalBlock};
use ext4_journal::JournalHeader;
use ext4_tools::display::ctime;
use nix::unistd::{Gid, Group, Uid, User};
use serde_json::{Map, Value};

use crate::context::{Context, naming};
use crate::output::{print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 info disk.img
  ext4 info --json disk.img | jq .filesystem_uuid
  ext4 --offset 1M info whole-disk.img";

/// Show superblock and journal, as dumpe2fs -h does
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Info {
    /// Image file or block device
    image: PathBuf,
    /// As JSON: the same keys in snake case
    #[arg(long)]
    json: bool,
}

/// Keys and values in the order of dumpe2fs.
#[derive(Default)]
struct Lines(Vec<(&'static str, String)>);

impl Lines {
    fn add(&mut self, key: &'static str, value: impl ToString) {
        self.0.push((key, value.to_string()));
    }
}

impl Info {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let info =
            context.opener.load(&self.image).await.map_err(|error| naming(&self.image, error.into()))?;
        let superblock = info.superblock();
        let mut lines = Lines::default();
        identity(&mut lines, &superblock);
        space(&mut lines, &superblock);
        history(&mut lines, &superblock);
        inodes(&mut lines, &superblock);
        errors(&mut lines, &superblock);
        extras(&mut lines, &superblock);
        if superblock.features.compat.contains(Compat::HAS_JOURNAL) && superblock.journal_inum != 0 {
            let header = journal_header(&info, superblock.journal_inum).await;
            journal(&mut lines, &header.map_err(|error| naming(&self.image, error.into()))?);
        }
        if self.json { print_json(&json(&lines)) } else { print(&lines) }
    }
}

fn print(lines: &Lines) -> anyhow::Result<()> {
    let mut out = stdout();
    for (key, value) in &lines.0 {
        // dumpe2fs prints a tab after this key.
        let pad = if *key == "Inode size" {
            "\t          ".to_string()
        } else {
            " ".repeat(25_usize.saturating_sub(key.len()))
        };
        writeln!(out, "{key}:{pad}{value}")?;
    }
    out.flush()?;
    Ok(())
}

fn json(lines: &Lines) -> Map<String, Value> {
    let key = |text: &str| {
        let words: String = text
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { ' ' })
            .collect();
        words.split_whitespace().collect::<Vec<_>>().join("_")
    };
    let value = |key: &str, text: &str| match text.trim().parse::<i64>() {
        _ if key.ends_with("features") => text.split_whitespace().filter(|word| *word != "(none)").collect(),
        Ok(number) => Value::from(number),
        Err(_) => Value::from(text.trim()),
    };
    lines.0.iter().map(|(name, text)| (key(name), value(name, text))).collect()
}

fn text(bytes: &[u8], missing: &str) -> String {
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    if text.is_empty() { missing.into() } else { ext4_tools::display::escaped(text) }
}

fn identity(lines: &mut Lines, superblock: &Superblock) {
    lines.add("Filesystem volume name", text(&superblock.volume_name, "<none>"));
    lines.add("Last mounted on", text(&superblock.last_mounted, "<not available>"));
    lines.add("Filesystem UUID", uuid::Uuid::from_bytes(superblock.uuid));
    lines.add("Filesystem magic number", format!("0x{:04X}", superblock::MAGIC));
    let revision = match superblock.rev_level {
        0 => "original",
        1 => "dynamic",
        _ => "unknown",
    };
    lines.add("Filesystem revision #", format!("{} ({revision})", superblock.rev_level));
    let names = superblock.features.names();
    lines.add("Filesystem features", if names.is_empty() { "(none)".into() } else { names.join(" ") });
    if superblock.flags != 0 {
        let named = [
            (superblock::FLAG_SIGNED_HASH, "signed_directory_hash "),
            (superblock::FLAG_UNSIGNED_HASH, "unsigned_directory_hash "),
            (superblock::FLAG_TEST_FILESYSTEM, "test_filesystem "),
        ];
        let found: String =
            named.iter().filter(|(flag, _)| superblock.flags & flag != 0).map(|(_, name)| *name).collect();
        lines.add("Filesystem flags", if found.is_empty() { "(none)".into() } else { found });
    }
    lines.add("Default mount options", mount_options(superblock.default_mount_opts));
    lines.add("Filesystem state", state(superblock.state));
    lines.add(
        "Errors behavior",
        match superblock.errors {
            superblock::ERRORS_CONTINUE => "Continue",
            superblock::ERRORS_READ_ONLY => "Remount read-only",
            superblock::ERRORS_PANIC => "Panic",
            _ => "Unknown (continue)",
        },
    );
    let system = ["Linux", "Hurd", "Masix", "FreeBSD", "Lites"];
    let known = usize::try_from(superblock.creator_os).ok().and_then(|number| system.get(number));
    lines.add("Filesystem OS type", known.copied().unwrap_or("(unknown os)"));
}

/// The default mount options in the superblock, in the order of their bits; the journal mode comes first.
/// Source: mke2fs.conf(5), tune2fs(8) `-o`.
fn mount_options(options: u32) -> String {
    const JOURNAL_MODE: u32 = 0x60;
    let mode = match options & JOURNAL_MODE {
        0x20 => Some("journal_data"),
        0x40 => Some("journal_data_ordered"),
        0x60 => Some("journal_data_writeback"),
        _ => None,
    };
    let named = [
        (0x1, "debug"),
        (0x2, "bsdgroups"),
        (0x4, "user_xattr"),
        (0x8, "acl"),
        (0x10, "uid16"),
        (0x100, "nobarrier"),
        (0x200, "block_validity"),
        (0x400, "discard"),
        (0x800, "nodelalloc"),
    ];
    let words = named.iter().filter(|(flag, _)| options & flag != 0).map(|(_, name)| *name);
    let words: Vec<&str> = mode.into_iter().chain(words).collect();
    if words.is_empty() { "(none)".into() } else { words.join(" ") }
}

fn state(state: u16) -> String {
    let clean = if state & superblock::STATE_VALID != 0 { "clean" } else { "not clean" };
    let errors = if state & superblock::STATE_ERROR != 0 { " with errors" } else { "" };
    format!("{clean}{errors}")
}

fn space(lines: &mut Lines, superblock: &Superblock) {
    let features = superblock.features;
    let block_size = superblock.block_size.bytes();
    let bigalloc = features.ro_compat.contains(RoCompat::BIGALLOC);
    let cluster_size = 1024_u64 << superblock.log_cluster_size.min(32);
    lines.add("Inode count", superblock.inodes_count);
    lines.add("Block count", superblock.blocks_count);
    lines.add("Reserved block count", superblock.r_blocks_count);
    if superblock.overhead_blocks != 0 {
        lines.add("Overhead clusters", superblock.overhead_blocks);
    }
    lines.add("Free blocks", superblock.free_blocks_count);
    lines.add("Free inodes", superblock.free_inodes_count);
    lines.add("First block", superblock.first_data_block);
    lines.add("Block size", block_size);
    lines.add(if bigalloc { "Cluster size" } else { "Fragment size" }, cluster_size);
    if features.bit64() {
        lines.add("Group descriptor size", superblock.desc_size);
    }
    if superblock.reserved_gdt_blocks != 0 {
        lines.add("Reserved GDT blocks", superblock.reserved_gdt_blocks);
    }
    lines.add("Blocks per group", superblock.blocks_per_group);
    lines.add(
        if bigalloc { "Clusters per group" } else { "Fragments per group" },
        superblock.clusters_per_group,
    );
    lines.add("Inodes per group", superblock.inodes_per_group);
    lines.add("Inode blocks per group", superblock.inode_table_blocks());
    if superblock.raid_stride != 0 {
        lines.add("RAID stride", superblock.raid_stride);
    }
    if superblock.raid_stripe_width != 0 {
        lines.add("RAID stripe width", superblock.raid_stripe_width);
    }
    if superblock.first_meta_bg != 0 {
        lines.add("First meta block group", superblock.first_meta_bg);
    }
    if superblock.log_groups_per_flex != 0 {
        lines.add("Flex block group size", superblock.groups_per_flex());
    }
}

fn history(lines: &mut Lines, superblock: &Superblock) {
    if superblock.mkfs_time != 0 {
        lines.add("Filesystem created", ctime(superblock.mkfs_time));
    }
    lines.add("Last mount time", if superblock.mtime == 0 { "n/a".into() } else { ctime(superblock.mtime) });
    lines.add("Last write time", ctime(superblock.wtime));
    lines.add("Mount count", superblock.mnt_count);
    lines.add("Maximum mount count", superblock.max_mnt_count.cast_signed());
    lines.add("Last checked", ctime(superblock.lastcheck));
    let interval = superblock.checkinterval;
    lines.add("Check interval", format!("{interval} ({})", interval_words(interval)));
    if interval != 0 {
        lines.add("Next check after", ctime(superblock.lastcheck.saturating_add(interval.into())));
    }
    if superblock.kbytes_written != 0 {
        lines.add("Lifetime writes", lifetime(superblock.kbytes_written));
    }
    let user = User::from_uid(Uid::from_raw(superblock.def_resuid)).ok().flatten();
    let user = user.map_or_else(|| "user unknown".into(), |user| format!("user {}", user.name));
    lines.add("Reserved blocks uid", format!("{} ({user})", superblock.def_resuid));
    let group = Group::from_gid(Gid::from_raw(superblock.def_resgid)).ok().flatten();
    let group = group.map_or_else(|| "group unknown".into(), |group| format!("group {}", group.name));
    lines.add("Reserved blocks gid", format!("{} ({group})", superblock.def_resgid));
}

/// An interval as dumpe2fs shows it: `2 weeks, 1 day, 3:04:05`; a month has 30 days.
fn interval_words(seconds: u32) -> String {
    let mut rest = seconds;
    let mut words = Vec::new();
    for (unit, name) in [(30 * 86_400, "month"), (7 * 86_400, "week"), (86_400, "day")] {
        let count = rest / unit;
        rest %= unit;
        if count > 0 {
            words.push(format!("{count} {name}{}", if count > 1 { "s" } else { "" }));
        }
    }
    if rest > 0 {
        words.push(format!("{}:{:02}:{:02}", rest / 3600, rest / 60 % 60, rest % 60));
    }
    if words.is_empty() { "<none>".into() } else { words.join(", ") }
}

/// Kilobytes in the unit that dumpe2fs chooses: each unit up to 8,192 of it, rounded to the nearest.
fn lifetime(kilobytes: u64) -> String {
    let units = [(13, 0, "kB"), (23, 10, "MB"), (33, 20, "GB"), (43, 30, "TB")];
    let (shift, unit) = units
        .iter()
        .find(|(limit, ..)| kilobytes < 1 << limit)
        .map_or((40, "PB"), |(_, shift, unit)| (*shift, *unit));
    let half = if shift == 0 { 0 } else { 1_u64 << (shift - 1) };
    format!("{} {unit}", kilobytes.saturating_add(half) >> shift)
}

fn inodes(lines: &mut Lines, superblock: &Superblock) {
    if superblock.rev_level > 0 {
        lines.add("First inode", superblock.first_ino);
        lines.add("Inode size", superblock.inode_size);
        if superblock.min_extra_isize != 0 {
            lines.add("Required extra isize", superblock.min_extra_isize);
        }
        if superblock.want_extra_isize != 0 {
            lines.add("Desired extra isize", superblock.want_extra_isize);
        }
    }
    if superblock.features.incompat.contains(Incompat::INLINE_DATA) {
        // The extra isize of a new inode.
        let extra = superblock.want_extra_isize.max(superblock.min_extra_isize);
        let most = inline_data::most(superblock.inode_size, extra);
        lines.add(
            "Inline data",
            format!("up to {most} bytes in an inode: 60 in i_block, the rest in system.data"),
        );
    }
    if superblock.journal_uuid != [0; 16] {
        lines.add("Journal UUID", uuid::Uuid::from_bytes(superblock.journal_uuid));
    }
    if superblock.journal_inum != 0 {
        lines.add("Journal inode", superblock.journal_inum);
    }
    if superblock.journal_dev != 0 {
        lines.add("Journal device", format!("0x{:04x}", superblock.journal_dev));
    }
    if superblock.last_orphan != 0 {
        lines.add("First orphan inode", superblock.last_orphan);
    }
    if superblock.features.compat.contains(Compat::DIR_INDEX) || superblock.def_hash_version != 0 {
        let names =
            ["legacy", "half_md4", "tea", "legacy_unsigned", "half_md4_unsigned", "tea_unsigned", "siphash"];
        let version = superblock.def_hash_version;
        let name = names
            .get(usize::from(version))
            .map_or_else(|| format!("HASHALG_{version}"), |name| (*name).into());
        lines.add("Default directory hash", name);
    }
    if superblock.hash_seed != [0; 4] {
        let mut bytes = [0; 16];
        for (four, word) in bytes.chunks_exact_mut(4).zip(superblock.hash_seed) {
            four.copy_from_slice(&word.to_le_bytes());
        }
        lines.add("Directory Hash Seed", uuid::Uuid::from_bytes(bytes));
    }
    match superblock.jnl_backup_type {
        0 => {}
        1 => lines.add("Journal backup", "inode blocks"),
        other => lines.add("Journal backup", format!("type {other}")),
    }
}

fn errors(lines: &mut Lines, superblock: &Superblock) {
    if superblock.error_count != 0 {
        lines.add("FS Error count", superblock.error_count);
    }
    const FIRST: [&str; 6] = [
        "First error time",
        "First error function",
        "First error line #",
        "First error inode #",
        "First error block #",
        "First error err",
    ];
    const LAST: [&str; 6] = [
        "Last error time",
        "Last error function",
        "Last error line #",
        "Last error inode #",
        "Last error block #",
        "Last error err",
    ];
    error(lines, FIRST, &superblock.first_error);
    error(lines, LAST, &superblock.last_error);
}

fn error(lines: &mut Lines, keys: [&'static str; 6], record: &ErrorRecord) {
    let [time, function, line, inode, block, code] = keys;
    if record.time == 0 {
        return;
    }
    lines.add(time, ctime(record.time));
    lines.add(function, text(&record.function, ""));
    lines.add(line, record.line);
    if record.inode != 0 {
        lines.add(inode, record.inode);
    }
    if record.block != 0 {
        lines.add(block, record.block);
    }
    if record.code != 0 {
        // Source: kernel documentation, "Super Block" (s_first_error_errcode).
        const NAMES: [&str; 17] = [
            "",
            "UNKNOWN",
            "EIO",
            "ENOMEM",
            "EFSBADCRC",
            "EFSCORRUPTED",
            "ENOSPC",
            "ENOKEY",
            "EROFS",
            "EFBIG",
            "EEXIST",
            "ERANGE",
            "EOVERFLOW",
            "EBUSY",
            "ENOTDIR",
            "ENOTEMPTY",
            "ESHUTDOWN",
        ];
        let name = NAMES.get(usize::from(record.code)).copied();
        lines.add(code, name.map_or_else(|| format!("UNKNOWN_ERRCODE_{}", record.code), Into::into));
    }
}

fn extras(lines: &mut Lines, superblock: &Superblock) {
    let features = superblock.features;
    if features.incompat.contains(Incompat::MMP) {
        lines.add("MMP block number", superblock.mmp_block);
        lines.add("MMP update interval", superblock.mmp_interval);
    }
    for (key, inode) in [
        ("User quota inode", superblock.usr_quota_inum),
        ("Group quota inode", superblock.grp_quota_inum),
        ("Project quota inode", superblock.prj_quota_inum),
    ] {
        if inode != 0 {
            lines.add(key, inode);
        }
    }
    if features.metadata_csum() {
        let kind =
            if superblock.checksum_type == superblock::CHECKSUM_TYPE_CRC32C { "crc32c" } else { "unknown" };
        lines.add("Checksum type", kind);
        lines.add("Checksum", format!("0x{:08x}", superblock.stored_checksum()));
    }
    if features.incompat.contains(Incompat::CSUM_SEED) {
        lines.add("Checksum seed", format!("0x{:08x}", superblock.checksum_seed));
    }
    if features.compat.contains(Compat::ORPHAN_FILE) {
        lines.add("Orphan file inode", superblock.orphan_file_inum);
    }
}

async fn journal_header(info: &SuperblockInfo, number: u32) -> ext4_core::Result<JournalHeader> {
    let inode = inode_table::read_inode(info, InodeNumber(number)).await?;
    let block_size = info.block_size();
    let available = u32::try_from(inode.size >> block_size.bits()).unwrap_or(u32::MAX);
    let MappingState::Written(block) = block_map::lookup(info, &inode, LogicalBlock(0)).await?.state else {
        return Err(Error::corrupt(format!("inode {number}: journal"), "its first block is not there"));
    };
    let byte = block.byte(block_size).unwrap_or(u64::MAX);
    let image = info.device().read_at(byte, block_size.len()).await?;
    JournalHeader::parse(&image, block_size, available)
}

fn journal(lines: &mut Lines, header: &JournalHeader) {
    let features = if header.features.is_empty() { "(none)".into() } else { header.features.join(" ") };
    lines.add("Journal features", features);
    let kilobytes = u64::from(header.blocks) * u64::from(header.block_size.bytes()) / 1024;
    lines.add(
        "Total journal size",
        if kilobytes < 8192 { format!("{kilobytes}k") } else { format!("{}M", kilobytes >> 10) },
    );
    lines.add("Total journal blocks", header.blocks);
    lines.add("Max transaction length", header.blocks - header.fast_commit_blocks);
    lines.add("Fast commit length", header.fast_commit_blocks);
    if header.first != 1 {
        lines.add("Journal first block", header.first);
    }
    lines.add("Journal sequence", format!("0x{:08x}", header.sequence));
    lines.add("Journal start", header.start);
    if header.users != 1 {
        lines.add("Journal number of users", header.users);
    }
    if header.features.contains(&"journal_checksum") {
        lines.add("Journal checksum type", "crc32");
    }
    if let Some(checksum) = header.checksum {
        lines.add("Journal checksum type", "crc32c");
        lines.add("Journal checksum", format!("0x{checksum:08x}"));
    }
    if header.errno != 0 {
        lines.add("Journal errno", header.errno);
    }
}
