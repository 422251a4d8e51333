//! Reservations: room for a handle that starts later.
//!
//! Whoever submits data writes knows that a handle will be wanted when they end, and that it must not have to wait then:
//! pages stay under writeback until it has run, and what waits for those pages may be what would make room. So the room
//! is set aside before. jbd2 calls it a reserved handle.
//!
//! What is set aside is log space: for each reservation as much as a transaction needs that holds nothing else. Invariant,
//! kept by every admission (`need` counts images, descriptors, revoke blocks and the commit block):
//!
//! ```text
//!   need(running) + sum of need(reservation) + what the committing one still has to be given  <=  free log blocks
//! ```
//!
//! - A start moves a reservation's part to the running transaction, and `need(running + r) <= need(running) + need(r)`:
//!   two parts of one transaction share its commit block. So no start has to ask for space.
//! - A commit takes from the log at most what it was counted with; the reservations' part stays free for the transactions
//!   after it, however many those are.
//! - It does not count against the size of the running transaction (a quarter of the log), which is only a wish: a
//!   transaction that reservations join may be larger by as much as all of them, a quarter of the log at most.
//!
//! A start waits only while a transaction is locked: for handles that are open, which wait for nothing.
//!
//! Whoever holds a reservation may start and hold ordinary handles; to ask for a second reservation may wait for ever.

use std::sync::Arc;

use ext4_core::{Errno, Error, Result};

use crate::handle::Handle;
use crate::journal::{Journal, Mode, State};
use crate::queue::{Kind, Queue, Turn};
use crate::transaction::{Phase, log_blocks};

/// All reservations together.
#[derive(Debug, Default)]
pub(crate) struct Reservations {
    /// Log blocks of those that have room or wait for it.
    promised: u32,
    /// Log blocks set aside.
    pub(crate) log_blocks: u32,
    /// Who waits to be promised some.
    pub(crate) queue: Queue,
}

/// Room for a handle that starts later. Dropping it gives the room back.
#[derive(Debug)]
pub struct Reservation {
    journal: Arc<Journal>,
    credits: u32,
    log_blocks: u32,
    /// The log blocks are set aside.
    granted: bool,
}

impl Journal {
    /// Sets room aside for a handle of `credits` credits; waits for it where the log is full. No handle may be held.
    ///
    /// # Errors
    /// `ENOSPC` for more than half of [`Journal::max_credits`], otherwise as [`Journal::start`].
    pub async fn reserve(self: &Arc<Self>, credits: u32) -> Result<Reservation> {
        if credits > self.max_credits() / 2 {
            return Err(Error::posix(
                Errno::ENOSPC,
                format!("a reservation of {credits} blocks; there may be {}", self.max_credits() / 2),
            ));
        }
        let mut reservation = self.promise(credits).await?;
        self.wait_for_room(|state, _| {
            if !self.has_room(state, 0, reservation.log_blocks) {
                return Ok(None);
            }
            state.reservations.log_blocks += reservation.log_blocks;
            Ok(Some(()))
        })
        .await?;
        reservation.granted = true;
        Ok(reservation)
    }

    /// Waits until there are few enough reservations for one more.
    async fn promise(self: &Arc<Self>, credits: u32) -> Result<Reservation> {
        let turn = Turn::take(self, Kind::Reservations);
        turn.first().await;
        loop {
            let mut room = std::pin::pin!(self.wake.room.notified());
            room.as_mut().enable();
            {
                let mut state = self.state.lock();
                state.check()?;
                let log_blocks = log_blocks(&state.layout, credits, 1);
                let promised = state.reservations.promised;
                if promised == 0 || promised + log_blocks <= self.max_credits() {
                    state.reservations.promised += log_blocks;
                    let journal = Arc::clone(self);
                    return Ok(Reservation { journal, credits, log_blocks, granted: false });
                }
            }
            room.await;
        }
    }
}

impl State {
    /// Takes a reservation off the books.
    fn unreserve(&mut self, reservation: &mut Reservation) {
        self.reservations.promised -= std::mem::take(&mut reservation.log_blocks);
    }
}

impl Reservation {
    /// The credits that are set aside.
    #[must_use]
    pub fn credits(&self) -> u32 {
        self.credits
    }

    /// Starts the handle. Never waits for log space, and never fails for lack of it. `operation` names it in assertions.
    ///
    /// # Errors
    /// [`Error::Aborted`] where the journal has stopped, `EROFS` where it does not run any more.
    pub async fn start(mut self, operation: &'static str) -> Result<Handle> {
        let journal = Arc::clone(&self.journal);
        loop {
            let mut room = std::pin::pin!(journal.wake.room.notified());
            room.as_mut().enable();
            {
                let mut state = journal.state.lock();
                state.check()?;
                if state.mode != Mode::Running {
                    return Err(Error::posix(Errno::EROFS, format!("{operation}: the journal does not run")));
                }
                if state.running.as_ref().is_none_or(|running| running.phase() == Phase::Running) {
                    state.reservations.log_blocks -= self.log_blocks;
                    self.granted = false;
                    state.unreserve(&mut self);
                    let (id, begun) = journal.admit(&mut state, self.credits);
                    drop(state);
                    journal.admitted(begun);
                    journal.wake.room.notify_waiters();
                    return Ok(Handle::new(&journal, operation, id, self.credits));
                }
            }
            room.await;
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.log_blocks == 0 {
            return;
        }
        let journal = Arc::clone(&self.journal);
        {
            let mut state = journal.state.lock();
            if self.granted {
                state.reservations.log_blocks -= self.log_blocks;
            }
            state.unreserve(self);
        }
        journal.wake.room.notify_waiters();
    }
}
