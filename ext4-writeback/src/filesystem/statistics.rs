//! What a mounted file system did, in figures.

use ext4_journal::FastCommitStatistics;

use crate::base::counters::Counters;
use crate::filesystem::Filesystem;
use crate::volume::fast_commit::reason::FastCommitReasons;

impl Filesystem {
    /// What the data path did since the mount.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.inner.volume.counters.snapshot()
    }

    /// What the journal did since the mount; `None` without a journal, and for a read-only mount.
    #[must_use]
    pub fn journal_statistics(&self) -> Option<ext4_journal::Statistics> {
        self.inner.volume.journal.as_ref().map(|journal| journal.statistics())
    }

    /// What fast commits did since the mount, and what led to full ones: by the journal's reasons and by the file
    /// system's own.
    #[must_use]
    pub fn fast_commit_statistics(&self) -> (FastCommitStatistics, FastCommitReasons) {
        let journal = self.inner.volume.journal.as_ref().map(|journal| journal.statistics().fast_commits);
        (journal.unwrap_or_default(), self.inner.volume.fast_commits.reasons())
    }
}
