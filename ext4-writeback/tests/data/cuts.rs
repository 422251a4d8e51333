//! The moments of a recording at which the power goes, and the states that the device may be left in, judged.
//!
//! The short form takes some of the moments, by a seed that is fixed; with `EXT4_LONG_TESTS=1` every one:
//! after each write that was handed to the device, each flush that ended, each mark. Each call says how many
//! there were and how many it looked at.
//!
//! A moment leaves several states: nothing of what may be lost is lost, all of it is, and some of it, whole
//! or torn. Neighbouring moments often leave the same one: that is recovered once, and what had been made
//! durable is checked at each.
//!
//! A recording with hardly a moment in it, a moment without a state, and a file that is in no state fail the
//! test: it would have seen nothing.

use std::collections::VecDeque;
use std::time::Instant;

use super::common::long_tests;
use super::crash::recovered;
use ext4_core::device::simulated::{Cut, DistinctStates, Image, Recording};
use ext4_core::format::superblock::Superblock;

/// Decides which moments the short form looks at.
const SEED: u64 = 1;
/// How many moments a recording has at least.
const FEWEST_MOMENTS: usize = 3;
/// How many states are known again. The same state comes back soon or never.
const REMEMBERED: usize = 32;

/// `seeds` of a workload; five times as many in the long form.
pub fn seeds(seeds: &[u64]) -> Vec<u64> {
    let rounds = if long_tests() { 5 } else { 1 };
    (0..rounds).flat_map(|round| seeds.iter().map(move |seed| seed + 1000 * round)).collect()
}

/// The numbers, ascending, of `wanted` of `count` moments: the first, the last, and one by chance of each of
/// as many equal parts as that takes.
pub fn sampled(count: usize, wanted: usize) -> Vec<usize> {
    if wanted >= count {
        return (0..count).collect();
    }
    let mut random = fastrand::Rng::with_seed(SEED);
    let part = |i: usize| i * count / wanted;
    let mut numbers: Vec<usize> = (0..wanted).map(|i| random.usize(part(i)..part(i + 1))).collect();
    numbers[0] = 0;
    numbers.push(count - 1);
    numbers.dedup();
    numbers
}

/// The chosen moments of `recording`: all in the long form, else `wanted`.
fn chosen_cuts(recording: &Recording, wanted: usize) -> impl Iterator<Item = Cut<'_>> {
    let count = recording.cuts().count();
    let numbers = sampled(count, if long_tests() { count } else { wanted });
    let mut cuts = recording.cuts();
    let mut next = 0;
    numbers.into_iter().map_while(move |number| {
        let cut = cuts.nth(number - next);
        next = number + 1;
        cut
    })
}

/// The states that a cut may leave. Not a torn superblock, which no ext4 mounts: it is two sectors, and the
/// kernel's is no other.
fn states(cut: &Cut<'_>) -> Vec<Image> {
    let mut states = all_states(cut);
    states.retain(|image| {
        let mut superblock = [0; 1024];
        image.read(1024, &mut superblock);
        Superblock::parse(&superblock).is_ok()
    });
    states
}

fn all_states(cut: &Cut<'_>) -> Vec<Image> {
    match cut.uncertain() {
        0 => vec![cut.with_all()],
        // Torn or not.
        1 => vec![cut.with_none(), cut.with_all(), cut.variant(1)],
        _ => {
            let variants = 1..=if long_tests() { 4 } else { 2 };
            [cut.with_none(), cut.with_all()]
                .into_iter()
                .chain(variants.map(|seed| cut.variant(seed)))
                .collect()
        }
    }
}

/// Recovers what the chosen moments (`wanted` in the short form) of `recording` leave, by `look`, and has
/// `check` judge what it found at each.
pub async fn judge<T>(
    recording: &Recording,
    wanted: usize,
    look: impl AsyncFn(Image) -> T,
    mut check: impl FnMut(&Cut<'_>, &T),
) {
    let began = Instant::now();
    let count = recording.cuts().count();
    assert!(count >= FEWEST_MOMENTS, "a recording of {count} moments");
    let (mut moments, mut recovered) = (0, 0);
    let mut distinct = DistinctStates::new();
    let mut known: VecDeque<(u64, T)> = VecDeque::new();
    for cut in chosen_cuts(recording, wanted) {
        moments += 1;
        let states = states(&cut);
        assert!(!states.is_empty(), "event {}: every state has a torn superblock", cut.position());
        for image in states {
            let fingerprint = distinct.fingerprint(&image);
            let place = match known.iter().position(|(other, _)| *other == fingerprint) {
                Some(place) => place,
                None => {
                    recovered += 1;
                    known.push_front((fingerprint, look(image).await));
                    known.truncate(REMEMBERED);
                    0
                }
            };
            check(&cut, &known[place].1);
        }
    }
    println!(
        "{}: {moments} of {count} cuts, {recovered} states in {:.1} s",
        std::thread::current().name().unwrap_or("a test"),
        began.elapsed().as_secs_f64()
    );
    let expected = if long_tests() { count } else { wanted.min(count) };
    assert!(moments >= expected, "{moments} of {count} moments were judged, {expected} were asked for");
}

/// [`judge`] for the bytes of one file. `check` is told which marks were passed, and what the file holds:
/// `None` if there is no such file.
pub async fn at_every_cut(
    recording: &Recording,
    wanted: usize,
    name: &str,
    check: impl Fn(&dyn Fn(&str) -> bool, Option<&[u8]>),
) {
    let look = async |image: Image| {
        let mut found = None;
        recovered(image, name, |bytes| found = bytes).await;
        found
    };
    let mut found = 0;
    judge(recording, wanted, look, |cut, bytes| {
        found += usize::from(bytes.is_some());
        check(&|mark| cut.has_passed(mark), bytes.as_deref());
    })
    .await;
    assert!(found > 0, "{name} is in no state");
}

#[test]
fn the_short_form_takes_the_first_the_last_and_some_between() {
    let some = sampled(1000, 60);
    assert!((60..=61).contains(&some.len()), "{some:?}");
    assert_eq!((some[0], some[some.len() - 1]), (0, 999));
    assert!(
        some.is_sorted_by(|a, b| a < b) && some.windows(2).all(|pair| pair[1] - pair[0] < 40),
        "{some:?}"
    );
    assert_eq!(some, sampled(1000, 60), "the same ones each time");
    assert_eq!(sampled(5, 60), [0, 1, 2, 3, 4]);
}
