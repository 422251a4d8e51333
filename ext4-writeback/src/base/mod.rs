//! The base of the crate: lock order, locks, the tokio runtime, counters, mount options. It names nothing
//! else of the crate.

pub(crate) mod counters;
pub(crate) mod lock_order;
pub(crate) mod operation_lock;
pub(crate) mod options;
pub(crate) mod runtime;
