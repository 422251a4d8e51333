//! The life of transactions while the journal runs: a file for each phase.
//!
//! `handle` joins the running transaction, `queue` keeps the order of the handles that wait for room,
//! `commit` writes a transaction to the log, `fast_commit` makes fsync short, `checkpoint` writes committed
//! blocks to their places.

pub(crate) mod checkpoint;
pub(crate) mod commit;
pub(crate) mod fast_commit;
pub(crate) mod handle;
pub(crate) mod queue;
