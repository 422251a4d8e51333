//! What happens to a transaction while the journal runs: a file for each phase.
//!
//! ```text
//!   Handle ─ modify ─► running transaction ─ commit ─► log ─► checkpoint: blocks to their places
//!     ▲                     └─ fast commit ─► area        │
//!     └─ queue: waits for room ◄──────────────────────────┘
//! ```

mod checkpoint;
mod commit;
mod fast_commit;
mod handle;
mod queue;

pub use handle::Handle;
