//! The data path says what it does in events that are named as the kernel's tracepoints.

#[path = "data/common.rs"]
mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use common::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Metadata, Subscriber};

/// How often each event came.
#[derive(Clone, Default)]
struct Counted(Arc<Mutex<BTreeMap<String, u64>>>);

struct Message(Option<String>);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if field.name() == "message" {
            self.0 = Some(format!("{value:?}"));
        }
    }
}

impl Subscriber for Counted {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.target().starts_with("ext4_")
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}

    fn record_follows_from(&self, _: &Id, _: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut message = Message(None);
        event.record(&mut message);
        if let Some(name) = message.0 {
            *self.0.lock().expect("no panic while it is locked").entry(name).or_default() += 1;
        }
    }

    fn enter(&self, _: &Id) {}

    fn exit(&self, _: &Id) {}
}

#[test]
fn what_the_data_path_does_is_told_under_the_kernels_names() {
    if !have_e2fsprogs() {
        return;
    }
    let counted = Counted::default();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    tracing::subscriber::with_default(counted.clone(), || {
        runtime.block_on(async {
            let (device, fs) = mount_image(make_image(64, 4096, &[], 0), options()).await;
            let file = create(&fs, "file").await;
            let len = if long_tests() { 16 << 20 } else { 1 << 20 };
            file.write_at(0, &pattern(1, 0, len)).await.expect("writes");
            file.sync_all().await.expect("syncs");
            file.write_at(1 << 20, &pattern(1, 0, 1 << 20)).await.expect("writes");
            file.set_len(1000).await.expect("truncates");
            fs.sync().await.expect("syncs");
            drop(file);
            let file = open(&fs, "file").await;
            assert_eq!(content(&file).await, pattern(1, 0, 1000));
            drop(file);
            finish(&device, fs).await;
        });
    });
    let counted = counted.0.lock().expect("no panic while it is locked");
    println!("{counted:#?}");
    for name in [
        "ext4_da_reserve_space",
        "ext4_da_release_space",
        "ext4_da_write_pages_extent",
        "ext4_writepages",
        "ext4_writepages_result",
        "ext4_convert_unwritten_extents",
        "ext4_es_cache_extent",
        "ext4_es_remove_extent",
        "ext4_truncate_enter",
        "ext4_truncate_exit",
        "ext4_sync_file_enter",
        "ext4_sync_file_exit",
        "ext4_sync_fs",
        "ext4_load_inode",
        "iomap_writeback_folio",
        "iomap_ioend_submit",
        "jbd2_handle_start",
        "jbd2_start_commit",
        "jbd2_end_commit",
    ] {
        assert!(counted.contains_key(name), "no {name}");
    }
    assert_eq!(counted["ext4_sync_file_enter"], counted["ext4_sync_file_exit"]);
    assert_eq!(counted["ext4_writepages"], counted["ext4_writepages_result"]);
}
