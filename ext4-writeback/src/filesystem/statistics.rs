//! Statistics of a mounted file system: counters of the data path, the journal and fast commits.

use ext4_journal::FastCommitStatistics;

use crate::base::counters::Counters;
use crate::filesystem::Filesystem;
use crate::volume::fast_commit::reason::FastCommitReasons;

impl Filesystem {
    /// The counters of the data path since the mount.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.volume.counters.snapshot()
    }

    /// The journal's statistics since the mount; `None` without a journal, and for a read-only mount.
    #[must_use]
    pub fn journal_statistics(&self) -> Option<ext4_journal::Statistics> {
        self.inner.volume.journal.as_ref().map(|journal| journal.statistics())
    }

    /// The statistics of fast commits since the mount, and how many full commits were made instead, by the
    /// journal's reasons and by the file system's own.
    #[must_use]
    pub fn fast_commit_statistics(&self) -> (FastCommitStatistics, FastCommitReasons) {
        let journal = self.inner.volume.journal.as_ref().map(|journal| journal.statistics().fast_commits);
        (journal.unwrap_or_default(), self.inner.volume.fast_commits.reasons())
    }
}
