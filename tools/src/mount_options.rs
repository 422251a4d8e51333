//! Mount options as mount(8) takes them: `-o alloc=publish,nodelalloc,data_err=abort`.
//!
//! The names are those of ext4(5), and of the kernel's `vm.` sysctls for the limits on dirty data; an option
//! without a counterpart there has a name of its own. Of two options that contradict each other the later one
//! counts, as with mount(8). An unknown option is an error that names it, so that a misspelt option is not
//! silently ignored.

use std::path::PathBuf;
use std::time::Duration;

use ext4_writeback::{Allocation, MountOptions, OnError};

use crate::size::parse_size;

/// The options that `-o` takes, as a help text.
pub const HELP: &str = "\
Mount options (-o, separated by commas; the later one counts):
  alloc=unwritten|publish             map new blocks unwritten before their data is written, or after it
  delalloc|nodelalloc                 allocate blocks at writeback, or at the write
  data_err=ignore|abort               what a failed write of file data does to the journal
  errors=continue|remount-ro|panic    what an error in the metadata does
  lazytime|nolazytime                 write times with the next other change of the inode, or at once
  relatime|noatime                    update access times, or not
  commit=SECONDS                      time between commits; 0: the default
  barrier[=0|1]|nobarrier             flush the device's cache, or not
  discard|nodiscard                   discard freed blocks, or not
  fast_commit|nofast_commit           fsync uses fast commits if the file system has them, or not
  erase_journal                       zero the log at unmount
  last_mounted=PATH                   mount point recorded in the superblock
  dirty_bytes=SIZE, dirty_background_bytes=SIZE
  dirty_writeback_centisecs=NUMBER, dirty_expire_centisecs=NUMBER
                                      as the vm. sysctls of the same names
  overlay_limit=SIZE                  memory for a recovery that must not write to the device
  journal_path=PATH                   as --journal-device
  noload|norecovery                   as --noload
  ro                                  read only: a command that writes fails
  rw, defaults                        no effect";

/// Mount options in the order they were given.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MountOptionList(Vec<MountOption>);

#[derive(Clone, PartialEq, Eq, Debug)]
enum MountOption {
    Defaults,
    ReadOnly(bool),
    NoLoad,
    JournalPath(PathBuf),
    Allocation(Allocation),
    DelayedAllocation(bool),
    DataErrorAborts(bool),
    Errors(OnError),
    LazyTime(bool),
    AccessTimes(bool),
    Commit(Duration),
    Barrier(bool),
    Discard(bool),
    FastCommit(bool),
    EraseJournal,
    LastMounted(Vec<u8>),
    DirtyBytes(usize),
    DirtyBackgroundBytes(usize),
    WritebackInterval(Duration),
    DirtyExpiry(Duration),
    OverlayLimit(u64),
}

impl MountOptionList {
    /// Parses options separated by commas.
    ///
    /// # Errors
    /// A message that names the option, if it is unknown or its value is invalid.
    pub fn parse(text: &str) -> Result<Self, String> {
        text.split(',')
            .filter(|option| !option.is_empty())
            .map(parse_option)
            .collect::<Result<_, _>>()
            .map(Self)
    }

    /// Concatenates `lists`.
    #[must_use]
    pub fn joined(lists: Vec<Self>) -> Self {
        Self(lists.into_iter().flat_map(|list| list.0).collect())
    }

    /// Returns true if there are no options.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns true if the mount is read-only: `ro`, and no `rw` after it.
    #[must_use]
    pub fn read_only(&self) -> bool {
        let asked = |option: &MountOption| match option {
            MountOption::ReadOnly(read_only) => Some(*read_only),
            _ => None,
        };
        self.0.iter().rev().find_map(asked).unwrap_or(false)
    }

    /// Returns true if the journal is ignored (`noload`).
    #[must_use]
    pub fn noload(&self) -> bool {
        self.0.contains(&MountOption::NoLoad)
    }

    /// The path of an external journal (`journal_path`).
    #[must_use]
    pub fn journal_path(&self) -> Option<PathBuf> {
        let asked = |option: &MountOption| match option {
            MountOption::JournalPath(path) => Some(path.clone()),
            _ => None,
        };
        self.0.iter().rev().find_map(asked)
    }

    /// Applies the options to `options`, except those that decide how devices are opened:
    /// [`Self::read_only`], [`Self::noload`] and [`Self::journal_path`].
    pub fn apply(&self, options: &mut MountOptions) {
        for option in &self.0 {
            match option.clone() {
                MountOption::Defaults
                | MountOption::ReadOnly(_)
                | MountOption::NoLoad
                | MountOption::JournalPath(_) => {}
                MountOption::Allocation(allocation) => options.allocation = allocation,
                MountOption::DelayedAllocation(on) => options.delayed_allocation = on,
                MountOption::DataErrorAborts(on) => options.data_error_aborts = on,
                MountOption::Errors(errors) => options.errors = Some(errors),
                MountOption::LazyTime(on) => options.lazytime = on,
                MountOption::AccessTimes(on) => options.access_times = on,
                MountOption::Commit(interval) => options.commit_interval = Some(interval),
                MountOption::Barrier(on) => options.barrier = on,
                MountOption::Discard(on) => options.discard = on,
                MountOption::FastCommit(on) => options.fast_commit = on,
                MountOption::EraseJournal => options.erase_journal = true,
                MountOption::LastMounted(path) => options.last_mounted = Some(path),
                MountOption::DirtyBytes(bytes) => options.dirty_bytes = Some(bytes),
                MountOption::DirtyBackgroundBytes(bytes) => options.dirty_background_bytes = Some(bytes),
                MountOption::WritebackInterval(interval) => options.writeback_interval = interval,
                MountOption::DirtyExpiry(age) => options.dirty_expiry = age,
                MountOption::OverlayLimit(bytes) => options.overlay_limit = bytes,
            }
        }
    }
}

fn parse_option(text: &str) -> Result<MountOption, String> {
    let option = match text.split_once('=') {
        None => flag(text),
        Some((name, value)) => with_value(text, name, value)?,
    };
    option.ok_or_else(|| format!("unknown mount option '{text}'"))
}

/// Parses an option without a value; `None` if it is unknown.
fn flag(name: &str) -> Option<MountOption> {
    Some(match name {
        "defaults" => MountOption::Defaults,
        "ro" => MountOption::ReadOnly(true),
        "rw" => MountOption::ReadOnly(false),
        "noload" | "norecovery" => MountOption::NoLoad,
        "delalloc" => MountOption::DelayedAllocation(true),
        "nodelalloc" => MountOption::DelayedAllocation(false),
        "lazytime" => MountOption::LazyTime(true),
        "nolazytime" => MountOption::LazyTime(false),
        "relatime" => MountOption::AccessTimes(true),
        "noatime" => MountOption::AccessTimes(false),
        "barrier" => MountOption::Barrier(true),
        "nobarrier" => MountOption::Barrier(false),
        "discard" => MountOption::Discard(true),
        "nodiscard" => MountOption::Discard(false),
        "fast_commit" => MountOption::FastCommit(true),
        "nofast_commit" => MountOption::FastCommit(false),
        "erase_journal" => MountOption::EraseJournal,
        _ => return None,
    })
}

/// Parses `name=value`; `None` if the name is unknown.
fn with_value(text: &str, name: &str, value: &str) -> Result<Option<MountOption>, String> {
    let one_of = |values: &str| format!("mount option '{text}': {name} is one of {values}");
    let number =
        || value.parse::<u32>().map_err(|_| format!("mount option '{text}': '{value}' is not a number"));
    let centiseconds = || match number()? {
        0 => Err(format!("mount option '{text}': 0 is too short")),
        number => Ok(Duration::from_millis(u64::from(number) * 10)),
    };
    let bytes = || parse_size(value).map_err(|error| format!("mount option '{text}': {error}"));
    let memory = || bytes().map(|bytes| usize::try_from(bytes).unwrap_or(usize::MAX));
    Ok(Some(match name {
        "alloc" => MountOption::Allocation(match value {
            "unwritten" => Allocation::Unwritten,
            "publish" => Allocation::Publish,
            _ => return Err(one_of("unwritten, publish")),
        }),
        "data_err" => MountOption::DataErrorAborts(match value {
            "ignore" => false,
            "abort" => true,
            _ => return Err(one_of("ignore, abort")),
        }),
        "errors" => MountOption::Errors(match value {
            "continue" => OnError::Continue,
            "remount-ro" => OnError::RemountReadOnly,
            "panic" => OnError::Panic,
            _ => return Err(one_of("continue, remount-ro, panic")),
        }),
        "barrier" => MountOption::Barrier(match value {
            "0" => false,
            "1" => true,
            _ => return Err(one_of("0, 1")),
        }),
        "commit" => MountOption::Commit(match number()? {
            0 => Duration::from_secs(5),
            seconds => Duration::from_secs(seconds.into()),
        }),
        "journal_path" if !value.is_empty() => MountOption::JournalPath(value.into()),
        "last_mounted" if value.len() <= LAST_MOUNTED_LEN => MountOption::LastMounted(value.into()),
        "last_mounted" => return Err(format!("mount option '{text}': more than {LAST_MOUNTED_LEN} bytes")),
        "dirty_bytes" => MountOption::DirtyBytes(memory()?),
        "dirty_background_bytes" => MountOption::DirtyBackgroundBytes(memory()?),
        "dirty_writeback_centisecs" => MountOption::WritebackInterval(centiseconds()?),
        "dirty_expire_centisecs" => MountOption::DirtyExpiry(centiseconds()?),
        "overlay_limit" => MountOption::OverlayLimit(bytes()?),
        _ => return Ok(None),
    }))
}

/// Bytes for a path in the superblock (`s_last_mounted`), less the terminating zero.
const LAST_MOUNTED_LEN: usize = 63;

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

    use super::*;

    /// The default mount options with `text` applied, in their debug form.
    fn applied(text: &str) -> String {
        let mut options = MountOptions::default();
        MountOptionList::parse(text).unwrap().apply(&mut options);
        format!("{options:?}")
    }

    #[test]
    fn every_option_sets_what_it_names() {
        for (text, shown) in [
            ("alloc=publish", "allocation: Publish"),
            ("nodelalloc", "delayed_allocation: false"),
            ("data_err=abort", "data_error_aborts: true"),
            ("errors=continue", "errors: Some(Continue)"),
            ("errors=remount-ro", "errors: Some(RemountReadOnly)"),
            ("errors=panic", "errors: Some(Panic)"),
            ("lazytime", "lazytime: true"),
            ("relatime", "access_times: true"),
            ("commit=30", "commit_interval: Some(30s)"),
            ("nobarrier", "barrier: false"),
            ("barrier=0", "barrier: false"),
            ("discard", "discard: true"),
            ("nofast_commit", "fast_commit: false"),
            ("erase_journal", "erase_journal: true"),
            ("last_mounted=/a", "last_mounted: Some([47, 97])"),
            ("dirty_bytes=1M", "dirty_bytes: Some(1048576)"),
            ("dirty_background_bytes=4K", "dirty_background_bytes: Some(4096)"),
            ("dirty_writeback_centisecs=50", "writeback_interval: 500ms"),
            ("dirty_expire_centisecs=100", "dirty_expiry: 1s"),
            ("overlay_limit=2M", "overlay_limit: 2097152"),
        ] {
            assert!(applied(text).contains(shown), "{text}: {}", applied(text));
            assert!(!applied("").contains(shown), "{text} is no change");
        }
    }

    #[test]
    fn the_later_option_counts() {
        for text in [
            "alloc=publish,alloc=unwritten",
            "nodelalloc,delalloc",
            "data_err=abort,data_err=ignore",
            "lazytime,nolazytime",
            "relatime,noatime",
            "commit=1,commit=0",
            "nobarrier,barrier,barrier=0,barrier=1",
            "discard,nodiscard",
            "nofast_commit,fast_commit",
            "defaults,,rw",
        ] {
            assert_eq!(applied(text), applied(""), "{text}");
        }
        assert!(MountOptionList::parse("rw,ro").unwrap().read_only());
        assert!(!MountOptionList::parse("ro,rw").unwrap().read_only());
        let lists = ["ro", "norecovery,journal_path=/j"].map(|text| MountOptionList::parse(text).unwrap());
        let list = MountOptionList::joined(lists.into());
        assert!(list.read_only() && list.noload());
        assert_eq!(list.journal_path(), Some("/j".into()));
    }

    #[test]
    fn what_is_not_known_is_named() {
        for (text, words) in [
            ("lazytime,nodealloc", "unknown mount option 'nodealloc'"),
            ("alloc", "unknown mount option 'alloc'"),
            ("lazytime=1", "unknown mount option 'lazytime=1'"),
            ("alloc=now", "'alloc=now': alloc is one of unwritten, publish"),
            ("commit=x", "'x' is not a number"),
            ("commit=-1", "'-1' is not a number"),
            ("dirty_bytes=1X", "unknown suffix 'X'"),
            ("dirty_expire_centisecs=0", "too short"),
            ("journal_path=", "unknown mount option"),
        ] {
            let error = MountOptionList::parse(text).unwrap_err();
            assert!(error.contains(words), "{text}: {error}");
        }
        assert!(MountOptionList::parse(&format!("last_mounted={}", "x".repeat(64))).is_err());
    }
}
