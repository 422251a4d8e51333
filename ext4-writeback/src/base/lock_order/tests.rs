use std::pin::pin;
use std::sync::Arc;
use std::task::Waker;

use super::*;

const ALL: [Level; 8] = [
    Level::Freeze,
    Level::Rename,
    Level::Inode,
    Level::Mapping,
    Level::Writeback,
    Level::Folio,
    Level::Handle,
    Level::Data,
];

/// What the panic of `operation` says; `None` if it ends without one.
async fn panic_of(operation: impl Future<Output = ()> + Send + 'static) -> Option<String> {
    let error = tokio::spawn(operation).await.err()?.into_panic();
    Some(error.downcast_ref::<String>().cloned().unwrap_or_default())
}

/// Takes a lock of level `first` and then asks for one of level `second`.
async fn take_both(first: Level, second: Level) {
    let (outer, inner) = (OrderedRwLock::new(first, ()), OrderedMutex::new(second, ()));
    scoped(async {
        let _outer = outer.read().await;
        tokio::task::yield_now().await;
        let _inner = inner.lock().await;
    })
    .await;
}

#[tokio::test]
async fn each_wrong_order_panics_and_each_right_one_does_not() {
    let mut wrong = 0;
    for first in ALL {
        for second in ALL {
            let is_wrong =
                first > second || first == second && ![Level::Inode, Level::Folio].contains(&first);
            wrong += u32::from(is_wrong);
            let said = panic_of(take_both(first, second)).await;
            let expected =
                is_wrong.then(|| format!("lock order: {second:?} is asked for while {first:?} is held"));
            assert_eq!(said, expected, "{first:?}, then {second:?}");
        }
    }
    assert_eq!(wrong, 8 * 7 / 2 + 6);
}

#[tokio::test]
async fn a_lock_that_was_given_back_is_forgotten_on_whatever_thread_it_was_dropped() {
    let lock = Arc::new(RwLock::new(()));
    scoped(async move {
        let guard = Guard::new(Arc::clone(&lock).write_owned().await, Rank::new(Level::Data));
        std::thread::spawn(move || drop(guard)).join().expect("drops");
        drop(OrderedRwLock::new(Level::Freeze, ()).write().await);
    })
    .await;
}

#[tokio::test]
async fn a_lock_that_was_tried_for_out_of_order_is_held_all_the_same() {
    let said = panic_of(scoped(async {
        let (data, folio) = (OrderedRwLock::new(Level::Data, ()), OrderedRwLock::new(Level::Folio, ()));
        let freeze = OrderedRwLock::new(Level::Freeze, ());
        let _data = data.try_read().expect("free");
        drop(folio.try_write().expect("free"));
        let _freeze = freeze.read().await;
    }))
    .await;
    assert_eq!(said.as_deref(), Some("lock order: Freeze is asked for while Data is held"));
}

#[tokio::test]
async fn a_part_answers_for_the_locks_of_its_operation_only_while_that_waits_for_it() {
    let ask_for_folio = || {
        Scoped::part(Box::pin(async {
            tokio::task::yield_now().await;
            drop(OrderedMutex::new(Level::Folio, ()).lock().await);
        }))
    };
    let said = panic_of(scoped(async move {
        let _handle = Rank::new(Level::Handle).taken();
        ask_for_folio().await;
    }))
    .await;
    assert_eq!(said.as_deref(), Some("lock order: Folio is asked for while Handle is held"));

    // The operation stops waiting, and the runtime polls the part.
    scoped(async move {
        let _handle = Rank::new(Level::Handle).taken();
        let mut part = ask_for_folio();
        assert!(pin!(&mut part).poll(&mut Context::from_waker(Waker::noop())).is_pending());
        tokio::spawn(part).await.expect("does not panic");
    })
    .await;
}

#[tokio::test]
async fn operations_that_one_task_polls_together_have_nothing_to_do_with_each_other() {
    let (data, freeze) = (OrderedRwLock::new(Level::Data, ()), OrderedRwLock::new(Level::Freeze, ()));
    let first = scoped(async {
        let _data = data.write().await;
        tokio::task::yield_now().await;
    });
    let second = scoped(async {
        tokio::task::yield_now().await;
        drop(freeze.write().await);
    });
    tokio::join!(first, second);
    // Nor do those of a file system whose device is a file of this one.
    scoped(async {
        let _data = data.write().await;
        scoped(async { drop(freeze.write().await) }).await;
    })
    .await;
}

#[tokio::test]
async fn the_inode_that_is_being_made_may_be_locked_beside_its_directory() {
    let (child, parent) = (OrderedRwLock::new(Level::Data, ()), OrderedRwLock::new(Level::Data, ()));
    scoped(async {
        let _child = child.write_unfound().await;
        let _parent = parent.write().await;
    })
    .await;
}

#[tokio::test]
async fn a_handle_is_counted_in_its_own_operation_only() {
    scoped(async {
        let token = Rank::new(Level::Handle).taken();
        scoped(async { assert_no_handle("another operation") }).await;
        drop(token);
        assert_no_handle("after the handle");
    })
    .await;
    assert_no_handle("outside");
}

#[tokio::test]
#[should_panic(expected = "lock order: waiting for data I/O while Handle is held")]
async fn k_47_waiting_for_a_folio_under_a_handle_panics() {
    scoped(async {
        let _token = Rank::new(Level::Handle).taken();
        tokio::task::yield_now().await;
        assert_no_handle("waiting for data I/O");
    })
    .await;
}
