//! TODO header.

pub(crate) mod checkpoint;
pub(crate) mod commit;
pub(crate) mod fast_commit;
pub(crate) mod handle;
pub(crate) mod queue;
