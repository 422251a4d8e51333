//! Reasons (EXT4_FC_REASON_*) why a transaction has to be committed in full.

macro_rules! reasons {
    ($($(#[$doc:meta])* $name:ident $field:ident $words:literal),+ $(,)?) => {
        /// Changes that have no tag, or none that the kernel, e2fsck and this crate replay alike. The first
        /// ones are the kernel's (`EXT4_FC_REASON_*`; those that no operation here can cause are left out),
        /// the others are ours.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
        pub enum Reason {
            $($(#[$doc])* $name,)+
        }

        impl Reason {
            /// How many reasons there are.
            pub(crate) const COUNT: usize = [$(Self::$name,)+].len();

            /// The reason in words: the kernel's, if it has some.
            #[must_use]
            pub fn words(self) -> &'static str {
                match self {
                    $(Self::$name => $words,)+
                }
            }
        }

        /// How often each reason made a transaction ineligible.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct FastCommitReasons {
            $($(#[$doc])* pub $field: u64,)+
        }

        impl FastCommitReasons {
            pub(crate) fn new(counts: [u64; Reason::COUNT]) -> Self {
                Self { $($field: counts[Reason::$name as usize],)+ }
            }

            /// Each reason with its count.
            #[must_use]
            pub fn counts(&self) -> [(Reason, u64); Reason::COUNT] {
                [$((Reason::$name, self.$field),)+]
            }
        }
    };
}

reasons! {
    /// Extended attributes were changed: they are not in the image of an inode, nor is their block.
    Xattr xattr "Extended attributes changed",
    /// Two names were exchanged.
    CrossRename cross_rename "Cross rename",
    /// There were more changes than are kept in memory.
    NoMemory no_memory "Insufficient memory",
    /// A directory got another name: its `..` has no tag.
    RenameDirectory rename_directory "Dir renamed",
    /// A range was taken out of a file, or put into it: all blocks behind it have other places.
    FallocRange falloc_range "Falloc range op",
    /// The file's data goes through the journal.
    JournalData journal_data "Data journalling",
    /// A directory was made or removed. The kernel's replay leaves link counts and block counts of the two
    /// wrong.
    Directory directory "Directory made or removed",
    /// A directory got another block: e2fsck's replay does not add one.
    DirectoryGrowth directory_growth "Directory grew",
    /// A symlink, device, pipe or socket: what its inode holds in place of a mapping is not replayed.
    SpecialFile special_file "Not a regular file",
    /// A file mapped by indirect blocks or holding its own data: there are tags for extents only.
    Mapping mapping "Not mapped by extents",
    /// Blocks were mapped or unmapped in a file whose extents do not fit into its inode: e2fsck's replay
    /// builds new nodes for them, on blocks that it takes for free and that are not.
    ExtentNodes extent_nodes "Extents outside the inode",
    /// Blocks were mapped or unmapped in a file system with clusters (bigalloc). A tag names blocks; each
    /// replay guesses which clusters are freed or taken with them.
    Clusters clusters "Blocks of clusters",
    /// The last name of an inode that was durable went: e2fsck's replay leaves the inode without a name.
    LastLink last_link "Last link removed",
    /// An inode was on the list of orphans, which has no tag, when it changed, or is being truncated.
    Orphan orphan "Orphan",
    /// An inode number was freed and used again, or its slot holds remains that replay would not clear.
    InodeReuse inode_reuse "Inode used again",
    /// An inode lies in the same block of the table as the journal's: e2fsck's replay takes the content that
    /// the block had before the log was replayed, and writes it back.
    BesideJournal beside_journal "Beside the journal's inode",
    /// The inode is too small for its checksum: e2fsck refuses its image.
    InodeSize inode_size "Inode without extra fields",
    /// An operation failed half way.
    Failure failure "Operation failed",
    /// An operation that is not tracked at all.
    Other other "Other operation",
}
