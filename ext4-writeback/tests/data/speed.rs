//! How fast the cache takes writes. Not run by default: `cargo test --release -p ext4-writeback --test data
//! speed -- --ignored --nocapture`.

use super::common::*;

/// Seconds this thread has run: the machine may be busy with other things.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").expect("Linux");
    stat.split(' ').next().and_then(|ns| ns.parse::<f64>().ok()).expect("a number") / 1e9
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
async fn cached_write_speed() {
    let options = options().cache(2 << 30);
    let (device, fs) = mount_image(make_image(1024, 4096, &[], 0), options).await;
    let file = create(&fs, "file").await;
    let total: usize = 256 << 20;
    for round in 0..3 {
        for unit in [1 << 10, 4 << 10, 64 << 10, 1 << 20] {
            let data = pattern(1, 0, unit);
            let mut best = f64::MAX;
            let mut best_over = f64::MAX;
            for overwrite in [false, true] {
                if !overwrite {
                    file.set_len(0).await.expect("truncates");
                }
                let start = cpu();
                for at in (0..total).step_by(unit) {
                    file.write_at(at as u64, &data).await.expect("writes");
                }
                let seconds = cpu() - start;
                if overwrite { best_over = seconds } else { best = seconds }
            }
            let mut bytes = vec![0; unit];
            let start = cpu();
            for at in (0..total).step_by(unit) {
                file.read_at(at as u64, &mut bytes).await.expect("reads");
            }
            let read = cpu() - start;
            let calls = (total / unit) as f64;
            println!(
                "round {round} unit {unit:>8}: append {:>8.0} ns/call {:>6.0} MB/s, \
                 overwrite {:>8.0} ns/call {:>6.0} MB/s, read {:>8.0} ns/call",
                best * 1e9 / calls,
                total as f64 / best / 1e6,
                best_over * 1e9 / calls,
                total as f64 / best_over / 1e6,
                read * 1e9 / calls,
            );
        }
    }
    let start = cpu();
    file.sync_all().await.expect("syncs");
    println!("sync {:.3} s {:?}", cpu() - start, fs.counters());
    drop(file);
    finish(&device, fs).await;
}
