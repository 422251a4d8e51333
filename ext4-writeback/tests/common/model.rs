//! A file system as plain data: what a sequence of operations must lead to, and which errno each must give.

use std::collections::{BTreeMap, BTreeSet};

use ext4_core::format::inode::FileType;
use ext4_core::{Errno, InodeNumber, Timestamp};
use ext4_writeback::{Filesystem, RenameFlags};

/// One inode.
#[derive(Clone, Debug)]
pub struct Node {
    pub file_type: FileType,
    pub number: InodeNumber,
    pub mode: u16,
    pub uid: u32,
    pub gid: u32,
    pub links: u32,
    /// Set by the test and not changed since.
    pub mtime: Option<Timestamp>,
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    pub device: (u32, u32),
    /// A file's content, a symlink's target.
    pub content: Vec<u8>,
    /// A directory's entries, and its parent.
    pub entries: BTreeMap<Vec<u8>, usize>,
    pub parent: usize,
}

/// The whole tree. Nodes are never removed from the list, so that an index stays good.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: Vec<Node>,
}

pub type Outcome<T = ()> = Result<T, Errno>;

impl Model {
    /// A root directory, with what mke2fs puts there.
    pub async fn read(filesystem: &Filesystem) -> Self {
        let mut model = Self { nodes: vec![Self::node(FileType::Directory, InodeNumber::ROOT, 0o755, 0)] };
        model.nodes[0].links = 2;
        if let Ok(number) = filesystem.lookup(InodeNumber::ROOT, b"lost+found").await {
            let index = model.insert(0, b"lost+found", Self::node(FileType::Directory, number, 0o700, 0));
            model.nodes[index].links = 2;
        }
        model
    }

    pub fn node(file_type: FileType, number: InodeNumber, mode: u16, parent: usize) -> Node {
        Node {
            file_type,
            number,
            mode,
            uid: 0,
            gid: 0,
            links: 1,
            mtime: None,
            xattrs: BTreeMap::new(),
            device: (0, 0),
            content: Vec::new(),
            entries: BTreeMap::new(),
            parent,
        }
    }

    pub fn is_dir(&self, index: usize) -> bool {
        self.nodes[index].file_type == FileType::Directory
    }

    /// Directories that have a name.
    pub fn directories(&self) -> Vec<usize> {
        self.reachable().into_iter().filter(|index| self.is_dir(*index)).collect()
    }

    /// Everything that has a name.
    pub fn reachable(&self) -> Vec<usize> {
        let mut found = BTreeSet::from([0]);
        let mut pending = vec![0];
        while let Some(directory) = pending.pop() {
            for child in self.nodes[directory].entries.values() {
                if found.insert(*child) && self.is_dir(*child) {
                    pending.push(*child);
                }
            }
        }
        found.into_iter().collect()
    }

    /// The errno, if any, of making a name.
    pub fn check_new(&self, directory: usize, name: &[u8]) -> Outcome {
        if name.len() > 255 {
            return Err(Errno::ENAMETOOLONG);
        }
        if !self.is_dir(directory) {
            return Err(Errno::ENOTDIR);
        }
        if self.nodes[directory].links == 0 {
            return Err(Errno::ENOENT);
        }
        if self.nodes[directory].entries.contains_key(name) { Err(Errno::EEXIST) } else { Ok(()) }
    }

    /// Adds a node under a name that is free.
    pub fn insert(&mut self, directory: usize, name: &[u8], node: Node) -> usize {
        let index = self.nodes.len();
        if node.file_type == FileType::Directory {
            self.nodes[directory].links += 1;
        }
        self.nodes.push(node);
        self.nodes[directory].entries.insert(name.to_vec(), index);
        index
    }

    pub fn link(&mut self, target: usize, directory: usize, name: &[u8]) -> Outcome {
        if self.is_dir(target) {
            return Err(Errno::EPERM);
        }
        self.check_new(directory, name)?;
        self.nodes[target].links += 1;
        self.nodes[directory].entries.insert(name.to_vec(), target);
        Ok(())
    }

    pub fn remove(&mut self, directory: usize, name: &[u8], rmdir: bool) -> Outcome {
        if !self.is_dir(directory) {
            return Err(Errno::ENOTDIR);
        }
        let victim = *self.nodes[directory].entries.get(name).ok_or(Errno::ENOENT)?;
        if self.is_dir(victim) != rmdir {
            return Err(if rmdir { Errno::ENOTDIR } else { Errno::EISDIR });
        }
        if rmdir && !self.nodes[victim].entries.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.nodes[directory].entries.remove(name);
        self.drop_link(victim);
        if rmdir {
            self.nodes[directory].links -= 1;
        }
        Ok(())
    }

    fn drop_link(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        node.links = if node.file_type == FileType::Directory { 0 } else { node.links - 1 };
    }

    fn is_above(&self, upper: usize, lower: usize) -> bool {
        let mut current = lower;
        loop {
            if current == upper {
                return true;
            }
            if current == 0 {
                return false;
            }
            current = self.nodes[current].parent;
        }
    }

    pub fn rename(&mut self, from: (usize, &[u8]), to: (usize, &[u8]), flags: RenameFlags) -> Outcome {
        if !self.is_dir(from.0) || !self.is_dir(to.0) {
            return Err(Errno::ENOTDIR);
        }
        let source = *self.nodes[from.0].entries.get(from.1).ok_or(Errno::ENOENT)?;
        let target = self.nodes[to.0].entries.get(to.1).copied();
        if flags.no_replace && target.is_some() {
            return Err(Errno::EEXIST);
        }
        if flags.exchange && target.is_none() {
            return Err(Errno::ENOENT);
        }
        if self.is_dir(source) && self.is_above(source, to.0) {
            return Err(Errno::EINVAL);
        }
        if let Some(target) = target
            && self.is_dir(target)
            && self.is_above(target, from.0)
        {
            return Err(if flags.exchange { Errno::EINVAL } else { Errno::ENOTEMPTY });
        }
        if target == Some(source) {
            return Ok(());
        }
        if let Some(target) = target {
            if flags.exchange {
                self.place(from, target);
                self.place(to, source);
                if self.is_dir(source) {
                    self.nodes[from.0].links -= 1;
                    self.nodes[to.0].links += 1;
                }
                if self.is_dir(target) {
                    self.nodes[to.0].links -= 1;
                    self.nodes[from.0].links += 1;
                }
                return Ok(());
            }
            match (self.is_dir(source), self.is_dir(target)) {
                (true, false) => return Err(Errno::ENOTDIR),
                (false, true) => return Err(Errno::EISDIR),
                (true, true) if !self.nodes[target].entries.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            }
            if self.is_dir(target) {
                self.nodes[to.0].links -= 1;
            }
            self.drop_link(target);
        }
        self.nodes[from.0].entries.remove(from.1);
        self.place(to, source);
        if self.is_dir(source) {
            self.nodes[from.0].links -= 1;
            self.nodes[to.0].links += 1;
        }
        Ok(())
    }

    fn place(&mut self, at: (usize, &[u8]), index: usize) {
        self.nodes[at.0].entries.insert(at.1.to_vec(), index);
        if self.is_dir(index) {
            self.nodes[index].parent = at.0;
        }
    }

    /// Compares everything with what the file system shows.
    pub async fn compare(&self, filesystem: &Filesystem, context: &str) {
        for index in self.reachable() {
            self.compare_node(filesystem, index, context).await;
        }
    }

    async fn compare_node(&self, filesystem: &Filesystem, index: usize, context: &str) {
        let node = &self.nodes[index];
        let context = format!("{context}: inode {} ({:?})", node.number, node.file_type);
        let attributes = filesystem.attributes(node.number).await.unwrap();
        assert_eq!(attributes.file_type, node.file_type, "{context}");
        assert_eq!(attributes.mode & 0o7777, node.mode, "{context}");
        assert_eq!((attributes.uid, attributes.gid), (node.uid, node.gid), "{context}");
        assert_eq!(attributes.links, node.links, "{context}: links");
        if let Some(mtime) = node.mtime {
            assert_eq!(attributes.mtime, mtime, "{context}: mtime");
        }
        let mut names = filesystem.listxattr(node.number).await.unwrap();
        names.sort();
        assert_eq!(names, node.xattrs.keys().cloned().collect::<Vec<_>>(), "{context}");
        for (name, value) in &node.xattrs {
            assert_eq!(&filesystem.getxattr(node.number, name).await.unwrap(), value, "{context}");
        }
        match node.file_type {
            FileType::Directory => self.compare_directory(filesystem, index, &context).await,
            FileType::Symlink => {
                assert_eq!(filesystem.readlink(node.number).await.unwrap(), node.content, "{context}");
                assert_eq!(attributes.size, node.content.len() as u64, "{context}");
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                assert_eq!(attributes.device, Some(node.device), "{context}");
            }
            FileType::Regular => {
                assert_eq!(attributes.size, node.content.len() as u64, "{context}: size");
                if !node.content.is_empty() {
                    let file = filesystem.open(node.number).await.unwrap();
                    let mut content = vec![0; node.content.len()];
                    assert_eq!(file.read_at(0, &mut content).await.unwrap(), content.len(), "{context}");
                    assert!(content == node.content, "{context}: content differs");
                }
            }
            FileType::Fifo | FileType::Socket => {}
        }
    }

    async fn compare_directory(&self, filesystem: &Filesystem, index: usize, context: &str) {
        let node = &self.nodes[index];
        let mut found = BTreeMap::new();
        let mut position = 0;
        loop {
            let entries = filesystem.readdir(node.number, position, 17).await.unwrap();
            let Some(last) = entries.last() else { break };
            position = last.next;
            for entry in entries {
                let expected = match &entry.name[..] {
                    b"." => node.number,
                    b".." => self.nodes[node.parent].number,
                    _ => {
                        let seen = found.insert(entry.name.clone(), entry.inode);
                        assert!(seen.is_none(), "{context}: {:?} twice", entry.name);
                        continue;
                    }
                };
                assert_eq!(entry.inode, expected, "{context}: {:?}", entry.name);
            }
        }
        let expected: BTreeMap<_, _> =
            node.entries.iter().map(|(name, index)| (name.clone(), self.nodes[*index].number)).collect();
        assert_eq!(found, expected, "{context}");
        for (name, number) in &expected {
            assert_eq!(filesystem.lookup(node.number, name).await.unwrap(), *number, "{context}");
        }
    }
}
