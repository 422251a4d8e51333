//! TODO header.

pub(crate) mod counters;
pub(crate) mod lock_order;
pub(crate) mod operation_lock;
pub(crate) mod options;
pub(crate) mod runtime;
