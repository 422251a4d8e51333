//! Random operations on names, against a tree of plain data: every errno, every attribute, after every
//! remount and crash, and e2fsck's verdict each time. A failure names the seed that replays it.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod common;
#[path = "common/model.rs"]
mod model;

use ext4_core::Timestamp;
use ext4_core::device::simulated::Image;
use ext4_core::format::inode::FileType;
use ext4_test_support::tools::{have, mke2fs_image};
use ext4_writeback::{
    Credentials, Error, File, Filesystem, MountOptions, NewInode, RenameFlags, SetAttributes, SetMode,
};
use model::{Model, Outcome};

struct Run {
    random: fastrand::Rng,
    model: Model,
    context: String,
    /// Files that are open, with their node; unlinked ones live on through them.
    open: Vec<(File, usize)>,
    /// Also files with content.
    data: bool,
}

fn outcome<T>(result: Result<T, Error>) -> Outcome<T> {
    result.map_err(|error| match error {
        Error::Posix { errno, .. } => errno,
        error => panic!("not an errno of the interface: {error}"),
    })
}

impl Run {
    fn name(&mut self) -> Vec<u8> {
        match self.random.u32(..100) {
            0..70 => format!("n{}", self.random.u32(..12)).into_bytes(),
            70..97 => {
                let number = self.random.u32(..400);
                format!("{number:03}-{}", "long name ".repeat(1 + number as usize % 20)).into_bytes()
            }
            97 => vec![b'x'; 255],
            98 => vec![b'x'; 256],
            _ => (128..=255).collect(),
        }
    }

    fn directory(&mut self) -> usize {
        let directories = self.model.directories();
        directories[self.random.usize(..directories.len())]
    }

    fn anything(&mut self) -> usize {
        let all = self.model.reachable();
        all[self.random.usize(..all.len())]
    }

    /// A name that is likely to be there.
    fn existing(&mut self) -> (usize, Vec<u8>) {
        let directory = self.directory();
        let names: Vec<_> = self.model.nodes[directory].entries.keys().cloned().collect();
        if names.is_empty() || self.random.u32(..10) == 0 {
            return (directory, self.name());
        }
        let name = names[self.random.usize(..names.len())].clone();
        if name == b"lost+found" { (directory, self.name()) } else { (directory, name) }
    }

    fn random_bytes(&mut self, len: usize) -> Vec<u8> {
        (0..len).map(|_| self.random.u8(1..)).collect()
    }

    async fn step(&mut self, filesystem: &Filesystem) {
        match self.random.u32(..100) {
            0..35 => self.make(filesystem).await,
            35..42 => self.link(filesystem).await,
            42..58 => self.remove(filesystem).await,
            58..78 => self.rename(filesystem).await,
            78..86 => self.set_attributes(filesystem).await,
            86..94 => self.set_xattr(filesystem).await,
            94..97 => self.open_or_close(filesystem).await,
            _ if self.data => self.write(filesystem).await,
            _ => {}
        }
    }

    async fn make(&mut self, filesystem: &Filesystem) {
        let directory = if self.random.u32(..8) == 0 { self.anything() } else { self.directory() };
        let name = self.name();
        let file_type = match self.random.u32(..20) {
            0..8 => FileType::Regular,
            8..13 => FileType::Directory,
            13..17 => FileType::Symlink,
            17 => FileType::Fifo,
            18 => FileType::BlockDevice,
            _ => FileType::CharacterDevice,
        };
        let owner = Credentials {
            uid: self.random.u32(..100_000),
            gid: self.random.u32(..100_000),
            mode: self.random.u16(..0o10000),
        };
        let mut new = NewInode::new(file_type, owner);
        new.device = (self.random.u32(..4096), self.random.u32(..1 << 20));
        if file_type == FileType::Symlink {
            let len = match self.random.u32(..3) {
                0 => self.random.usize(1..70),
                1 => [59, 60, 61][self.random.usize(..3)],
                _ => self.random.usize(1..1023),
            };
            new.target = self.random_bytes(len);
        }
        for number in 0..self.random.u32(..3) {
            let len = self.random.usize(..60);
            new.xattrs.push((format!("user.made{number}").into_bytes(), self.random_bytes(len)));
        }
        let expected = self.model.check_new(directory, &name);
        let parent = &self.model.nodes[directory];
        let made = outcome(filesystem.create_with(parent.number, &name, new.clone()).await);
        assert_eq!(made.map(drop), expected, "{}: make {file_type:?} {name:?}", self.context);
        let Ok(number) = made else { return };
        let mut node = Model::node(file_type, number, owner.mode, directory);
        (node.uid, node.gid, node.device) = (owner.uid, owner.gid, new.device);
        if parent.mode & 0o2000 != 0 {
            node.gid = parent.gid;
            node.mode |= if file_type == FileType::Directory { 0o2000 } else { 0 };
        }
        node.links = if file_type == FileType::Directory { 2 } else { 1 };
        node.content = new.target;
        node.xattrs = new.xattrs.into_iter().collect();
        self.model.insert(directory, &name, node);
    }

    async fn link(&mut self, filesystem: &Filesystem) {
        let (target, directory, name) = (self.anything(), self.directory(), self.name());
        let numbers = (self.model.nodes[target].number, self.model.nodes[directory].number);
        let expected = match name.len() {
            0..256 => self.model.link(target, directory, &name),
            _ => Err(ext4_core::Errno::ENAMETOOLONG),
        };
        let linked = outcome(filesystem.link(numbers.0, numbers.1, &name).await);
        assert_eq!(linked, expected, "{}: link {numbers:?} {name:?}", self.context);
    }

    async fn remove(&mut self, filesystem: &Filesystem) {
        let (directory, name) = self.existing();
        let rmdir = match self.model.nodes[directory].entries.get(&name) {
            Some(index) => self.model.is_dir(*index) != (self.random.u32(..10) == 0),
            None => self.random.bool(),
        };
        let number = self.model.nodes[directory].number;
        let removed = match rmdir {
            true => filesystem.rmdir(number, &name).await,
            false => filesystem.unlink(number, &name).await,
        };
        let expected = match name.len() {
            0..256 => self.model.remove(directory, &name, rmdir),
            _ => Err(ext4_core::Errno::ENAMETOOLONG),
        };
        assert_eq!(outcome(removed), expected, "{}: remove {number} {name:?}", self.context);
    }

    async fn rename(&mut self, filesystem: &Filesystem) {
        let (from, from_name) = self.existing();
        let (to, to_name) =
            if self.random.bool() { self.existing() } else { (self.directory(), self.name()) };
        let flags = match self.random.u32(..6) {
            0 => RenameFlags { no_replace: true, exchange: false },
            1 | 2 => RenameFlags { no_replace: false, exchange: true },
            _ => RenameFlags::default(),
        };
        let numbers = (self.model.nodes[from].number, self.model.nodes[to].number);
        let renamed = outcome(filesystem.rename((numbers.0, &from_name), (numbers.1, &to_name), flags).await);
        let expected = if from_name.len() > 255 || to_name.len() > 255 {
            Err(ext4_core::Errno::ENAMETOOLONG)
        } else {
            self.model.rename((from, &from_name), (to, &to_name), flags)
        };
        let context = format!("{}: rename {numbers:?} {from_name:?} {to_name:?} {flags:?}", self.context);
        assert_eq!(renamed, expected, "{context}");
    }

    async fn set_attributes(&mut self, filesystem: &Filesystem) {
        let index = self.anything();
        let random = &mut self.random;
        let mtime = Timestamp { seconds: random.i64(-(1 << 31)..1 << 31), nanoseconds: 0 };
        let mut changes = SetAttributes::new().mode(random.u16(..0o10000));
        changes.uid = random.bool().then(|| random.u32(..));
        changes.mtime = random.bool().then_some(mtime);
        let node = &mut self.model.nodes[index];
        filesystem.set_attributes(node.number, &changes).await.unwrap();
        node.mode = changes.mode.unwrap_or(node.mode);
        node.uid = changes.uid.unwrap_or(node.uid);
        if node.file_type != FileType::Directory && changes.mtime.is_some() {
            node.mtime = changes.mtime;
        }
    }

    async fn set_xattr(&mut self, filesystem: &Filesystem) {
        let index = self.anything();
        let name = format!("user.{}", "name".repeat(1 + self.random.usize(..6))).into_bytes();
        let len = match self.random.u32(..3) {
            0 => self.random.usize(..20),
            1 => self.random.usize(..100),
            _ => self.random.usize(..300),
        };
        let value = self.random_bytes(len);
        let node = &mut self.model.nodes[index];
        if self.random.u32(..3) == 0 {
            let expected = node.xattrs.remove(&name).map(drop).ok_or(ext4_core::Errno::ENODATA);
            let removed = outcome(filesystem.removexattr(node.number, &name).await);
            assert_eq!(removed, expected, "{}: remove attribute of {}", self.context, node.number);
            return;
        }
        match outcome(filesystem.setxattr(node.number, &name, &value, SetMode::Any).await) {
            Ok(()) => drop(node.xattrs.insert(name, value)),
            Err(errno) => assert_eq!(errno, ext4_core::Errno::ENOSPC, "{}", self.context),
        }
    }

    async fn open_or_close(&mut self, filesystem: &Filesystem) {
        if self.open.len() > 3 {
            self.open.swap_remove(self.random.usize(..self.open.len()));
            return;
        }
        let index = self.anything();
        if self.model.nodes[index].file_type == FileType::Regular {
            self.open.push((filesystem.open(self.model.nodes[index].number).await.unwrap(), index));
        }
    }

    async fn write(&mut self, filesystem: &Filesystem) {
        let index = self.anything();
        let len = self.random.usize(..40_000);
        let content = self.random_bytes(len);
        let node = &mut self.model.nodes[index];
        if node.file_type != FileType::Regular {
            return;
        }
        let file = filesystem.open(node.number).await.unwrap();
        file.set_len(0).await.unwrap();
        assert_eq!(file.write_at(0, &content).await.unwrap(), content.len());
        node.content = content;
        node.mtime = None;
    }
}

async fn random_operations(image: Image, seed: u64, data: bool, rounds: usize, journal: bool) {
    let mut image = image;
    let mut run = Run {
        random: fastrand::Rng::with_seed(seed),
        model: Model { nodes: Vec::new() },
        context: format!("seed {seed}"),
        open: Vec::new(),
        data,
    };
    for round in 0..rounds {
        run.context = format!("seed {seed} round {round}");
        // A small cache: inodes and blocks come and go.
        let options = MountOptions::new().cache(4 << 20).commit_interval(None);
        let mounted = common::mount_with(&image, options).await;
        let filesystem = mounted.filesystem.clone();
        if round == 0 {
            run.model = Model::read(&filesystem).await;
        }
        run.model.compare(&filesystem, &format!("{} after mounting", run.context)).await;
        for _ in 0..150 {
            run.step(&filesystem).await;
        }
        for (file, index) in std::mem::take(&mut run.open) {
            let attributes = file.metadata().await.unwrap();
            assert_eq!(attributes.links, run.model.nodes[index].links, "{}", run.context);
        }
        run.model.compare(&filesystem, &run.context).await;
        if journal && run.random.bool() {
            filesystem.sync().await.unwrap();
            drop(filesystem);
            image = mounted.crash();
        } else {
            drop(filesystem);
            image = mounted.unmount_clean(&run.context).await;
        }
    }
    let mounted = common::mount(&image).await;
    run.model.compare(&mounted.filesystem, "at the end").await;
    assert!(run.model.reachable().len() > 20 * rounds, "hardly anything was made");
    mounted.unmount_clean("at the end").await;
}

async fn model_test(arguments: &[&str], data: bool, seed: u64) {
    if !have(&["mkfs.ext4", "e2fsck"]) {
        return;
    }
    let image = mke2fs_image(arguments, "64M");
    random_operations(image, seed, data, 8, !arguments.contains(&"^has_journal")).await;
}

#[tokio::test]
async fn default_features() {
    model_test(&[], true, 1).await;
}

#[tokio::test]
async fn blocks_of_1_kib() {
    model_test(&["-b", "1024"], true, 2).await;
}

#[tokio::test]
async fn blocks_of_2_kib_without_orphan_file() {
    model_test(&["-b", "2048", "-O", "^orphan_file"], true, 3).await;
}

#[tokio::test]
async fn with_orphan_file() {
    model_test(&["-O", "orphan_file"], true, 4).await;
}

#[tokio::test]
async fn without_journal() {
    model_test(&["-b", "1024", "-O", "^has_journal"], true, 5).await;
}

#[tokio::test]
async fn inodes_of_128_bytes_without_checksums() {
    model_test(&["-b", "1024", "-I", "128", "-O", "^metadata_csum,^64bit,uninit_bg"], true, 6).await;
}
