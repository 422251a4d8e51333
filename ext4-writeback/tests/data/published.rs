//! Direct publication (`alloc=publish`) and files of indirect blocks: what holds for unwritten blocks holds for them.

use super::common::*;
use super::{crash, model, stress};
use ext4_core::Errno;
use ext4_writeback::MountOptions;

const WAYS: [Way; 2] = [Way::Publish, Way::Indirect];

#[tokio::test]
async fn g_3_g_11_appended_and_synced_data_is_there_without_a_gap() {
    for way in WAYS {
        crash::appends_and_syncs(way).await;
    }
}

#[tokio::test]
async fn g_4_strict_the_size_moves_over_published_data_only() {
    for way in WAYS {
        crash::scattered_appends(way).await;
    }
}

#[tokio::test]
async fn g_6_what_lies_behind_the_end_never_shows() {
    for way in WAYS {
        crash::what_lies_behind_the_end(way).await;
    }
}

#[tokio::test]
async fn g_7_g_8_what_was_cut_off_never_comes_back() {
    for way in WAYS {
        crash::what_was_cut_off(way).await;
    }
}

#[tokio::test]
async fn g_1_g_2_g_5_g_16_every_byte_is_zero_or_was_written_there() {
    if !have_tools() {
        return;
    }
    for way in WAYS {
        for seed in [21, 22] {
            crash::random_workload(way, seed, true).await;
        }
    }
}

#[tokio::test]
async fn g_17_the_same_without_delayed_allocation() {
    if !have_tools() {
        return;
    }
    for way in WAYS {
        crash::random_workload(way, 23, false).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes() {
    if !have_tools() {
        return;
    }
    for way in WAYS {
        for block_size in [1024, 4096] {
            for delayed_allocation in [true, false] {
                let options = MountOptions { delayed_allocation, ..way.mounted(options()) };
                let image = way.image(48, block_size, &[], 0xaa);
                model::run_on(model::seed(), image, block_size, options, 700).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_agree_with_arrays_of_bytes_with_little_memory() {
    if !have_tools() {
        return;
    }
    for way in WAYS {
        let options = MountOptions { cache: 6 << 20, ..way.mounted(options()) };
        let image = way.image(48, 1024, &[], 0xaa);
        model::run_on(model::seed(), image, 1024, options, 700).await;
    }
}

#[tokio::test]
async fn files_agree_with_arrays_of_bytes_without_a_flusher() {
    if !have_tools() {
        return;
    }
    for way in WAYS {
        let options = MountOptions { commit_interval: None, cache: 12 << 20, ..way.mounted(options()) };
        model::run_on(model::seed(), way.image(48, 4096, &[], 0xaa), 4096, options, 500).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_tasks_on_sixteen_files() {
    if !have_tools() {
        return;
    }
    let options = || MountOptions { cache: 16 << 20, ..options() };
    for way in WAYS {
        stress::stress(way, 64, options(), false, &[]).await;
        stress::stress(way, 16, options(), false, &[Errno::ENOSPC]).await;
        for round in 0..4 {
            println!("round {round}, {way:?}");
            stress::stress(way, 64, options(), true, &[Errno::EIO]).await;
        }
    }
}
