//! Ten thousand power cuts: work on a mounted file system is recorded, the power goes at every write, and
//! each state that the device can be left in is recovered three times: by us, by `e2fsck -fy`, by the
//! kernel's mount. All three agree, `e2fsck -fn` finds nothing in what they leave, and what had been reported
//! durable is there.
//!
//! A state is judged once, however many cuts lead to it; what was promised is checked at every cut.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod judge;
mod load;
#[path = "../common/tree.rs"]
mod tree;

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use ext4_core::device::simulated::{DistinctStates, Image};
use ext4_test_support::settings::long_tests;
use ext4_test_support::tools::{can_mount, have, mke2fs_image};

use judge::{Judge, Judged};
use load::{Moment, Promises};

/// Variants of each cut in which what was not flushed is lost, kept or torn by chance.
const VARIANTS: u64 = 4;
/// How many judges run side by side.
const JUDGES: usize = 4;

/// File systems that differ in what recovery has to understand.
const FILE_SYSTEMS: &[(&str, &[&str], &str)] = &[
    ("4 KiB blocks", &["-b", "4096", "-J", "size=4"], "12M"),
    ("1 KiB blocks", &["-b", "1024", "-J", "size=1"], "6M"),
    ("no checksums", &["-b", "1024", "-J", "size=1", "-O", "^metadata_csum,^metadata_csum_seed"], "6M"),
    ("32-bit", &["-b", "1024", "-J", "size=1", "-O", "^64bit"], "6M"),
    ("32-bit without checksums", &["-b", "4096", "-J", "size=4", "-O", "^metadata_csum,^64bit"], "12M"),
    ("orphan file", &["-b", "1024", "-J", "size=1", "-O", "orphan_file"], "6M"),
    ("no orphan file", &["-b", "4096", "-J", "size=4", "-O", "^orphan_file"], "12M"),
    ("small inodes", &["-b", "2048", "-I", "128", "-J", "size=2"], "8M"),
];

/// One state, and the moments whose promises it has to keep.
struct Case {
    image: Image,
    context: String,
    moments: Vec<Moment>,
    promises: Arc<Promises>,
}

#[test]
fn whatever_a_power_cut_leaves_is_recovered_alike_by_us_by_e2fsck_and_by_the_kernel() {
    if !have(&["mkfs.ext4", "e2fsck", "losetup"]) {
        return;
    }
    let kernel = can_mount();
    let (seeds, operations) = if long_tests() { (12, 600) } else { (2, 340) };
    let judged = Judged::default();
    let (sender, receiver) = sync_channel::<Case>(64);
    let receiver = Arc::new(Mutex::new(receiver));
    let failed = AtomicBool::new(false);
    let (mut distinct, mut repeated, mut cuts) = (0, 0, 0);
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..JUDGES {
            let receiver = Arc::clone(&receiver);
            let (judged, failed) = (&judged, &failed);
            scope.spawn(move || {
                let _failed = Failed(failed);
                let mut judge = Judge::new(kernel, judged);
                while let Some(case) = next(&receiver, failed) {
                    let Some(tree) = judge.judge(&case.image, &case.context) else { continue };
                    for moment in &case.moments {
                        let compared = case.promises.check(moment, &tree, &case.context);
                        judged.durable_paths.fetch_add(compared, Ordering::Relaxed);
                    }
                }
            });
        }
        // The last judge that goes takes the receiver with it: the sender does not wait for ever.
        drop(receiver);
        'work: for seed in 0..seeds {
            for (name, arguments, size) in FILE_SYSTEMS {
                let (recording, promises) = load::record(mke2fs_image(arguments, size), seed, operations);
                let promises = Arc::new(promises);
                let mut states = DistinctStates::new();
                let mut cases: Vec<Case> = Vec::new();
                let mut known: HashMap<u64, usize> = HashMap::new();
                for cut in recording.cuts() {
                    cuts += 1;
                    let moment = Moment::of(&cut);
                    let some = (0..VARIANTS).map(|seed| cut.variant(seed));
                    for image in [cut.with_none(), cut.with_all()].into_iter().chain(some) {
                        let fingerprint = states.fingerprint(&image);
                        if states.is_new(&image) {
                            known.insert(fingerprint, cases.len());
                            let context = format!("{name}, seed {seed}, cut at event {}", cut.position());
                            let promises = Arc::clone(&promises);
                            cases.push(Case { image, context, moments: vec![moment], promises });
                        } else {
                            let moments = &mut cases[known[&fingerprint]].moments;
                            if moments.last() != Some(&moment) {
                                moments.push(moment);
                            }
                        }
                    }
                }
                distinct += states.distinct();
                repeated += states.repeated();
                println!(
                    "{name}, seed {seed}: {} writes, {} flushes, {} states after {:?}",
                    recording.writes(),
                    recording.flushes(),
                    states.distinct(),
                    began.elapsed()
                );
                for case in cases {
                    if sender.send(case).is_err() {
                        break 'work;
                    }
                }
            }
        }
        drop(sender);
    });
    println!(
        "{cuts} cuts, {distinct} states ({repeated} more had been seen): {judged:?} in {:?}",
        began.elapsed()
    );
    let count = judged.ours.load(Ordering::Relaxed);
    assert_eq!(count + judged.torn_superblocks.load(Ordering::Relaxed), distinct);
    let torn = judged.torn_commits.load(Ordering::Relaxed);
    assert!(torn * 500 < count, "{torn} torn commit blocks are too many to be chance");
    assert!(count >= 10_000, "{count} states are not enough to speak of");
    let paths = judged.durable_paths.load(Ordering::Relaxed);
    assert!(paths > 10 * count, "{paths} paths that had been synced were looked at");
    if kernel {
        assert_eq!(judged.by_kernel.load(Ordering::Relaxed), count);
    }
    assert_eq!(judged.by_e2fsck.load(Ordering::Relaxed) + torn, count);
}

/// The whole file system on the simulated scheduler: commits, flusher, completions and a device that
/// reorders.
#[test]
fn one_seed_is_one_recording() {
    if !have(&["mkfs.ext4"]) {
        return;
    }
    for (name, arguments, size) in [FILE_SYSTEMS[0], FILE_SYSTEMS[5]] {
        let image = mke2fs_image(arguments, size);
        for seed in 0..3 {
            let (first, _) = load::record(image.clone(), seed, 80);
            let (second, _) = load::record(image.clone(), seed, 80);
            assert!(first.events() == second.events(), "{name}, seed {seed}");
        }
        let (other, _) = load::record(image.clone(), 3, 80);
        let (another, _) = load::record(image, 4, 80);
        assert!(other.events() != another.events());
    }
}

/// Says that a judge has failed: the others stop too.
struct Failed<'a>(&'a AtomicBool);

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        self.0.fetch_or(std::thread::panicking(), Ordering::Relaxed);
    }
}

/// The next case; `None` when there are no more, or a judge has failed.
fn next(receiver: &Mutex<Receiver<Case>>, failed: &AtomicBool) -> Option<Case> {
    let case = receiver.lock().ok()?.recv().ok()?;
    (!failed.load(Ordering::Relaxed)).then_some(case)
}
