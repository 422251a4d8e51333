//! Several tasks write to one mounted file system at the same time, each to a file of its own and all to a
//! shared log; then everything is made durable, the file system is unmounted, mounted again, and read back.
//!
//! `cargo run --example concurrent_writer`

use std::sync::Arc;

use ext4_writeback::{
    Errno, Error, File, Filesystem, MemoryDevice, MkfsOptions, MountOptions, Result, SystemEnvironment, mkfs,
};
use tokio::task::JoinSet;

const WRITERS: usize = 8;
const BLOCKS: usize = 256;
const BLOCK: usize = 16 << 10;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> Result<()> {
    let device = Arc::new(MemoryDevice::new(256 << 20));
    mkfs(device.clone(), &MkfsOptions::default(), &SystemEnvironment).await?;
    let options = MountOptions::new().cache(64 << 20);
    let filesystem = Filesystem::mount(device.clone(), options.clone()).await?;
    filesystem.create_dir("/data").await?;
    let log = Arc::new(filesystem.create_path("/log").await?);

    let mut writers = JoinSet::new();
    for writer in 0..WRITERS {
        writers.spawn(write(filesystem.clone(), Arc::clone(&log), writer));
    }
    while let Some(ended) = writers.join_next().await {
        ended.map_err(|error| Error::posix(Errno::EIO, error.to_string()))??;
    }
    drop(log);
    filesystem.sync().await?;
    println!("{:#?}", filesystem.counters());
    filesystem.unmount().await?;

    let filesystem = Filesystem::mount(device, options.read_only(true)).await?;
    for writer in 0..WRITERS {
        let content = filesystem.read(format!("/data/{writer}")).await?;
        assert_eq!(content, vec![writer as u8; BLOCKS * BLOCK]);
    }
    let log = String::from_utf8_lossy(&filesystem.read("/log").await?).into_owned();
    assert_eq!(log.lines().count(), WRITERS);
    print!("{log}");
    filesystem.unmount().await
}

/// Writes one file, makes it durable, and says so at the end of the shared log.
async fn write(filesystem: Filesystem, log: Arc<File>, writer: usize) -> Result<()> {
    let file = filesystem.create_path(format!("/data/{writer}")).await?;
    let block = vec![writer as u8; BLOCK];
    for number in 0..BLOCKS {
        file.write_at((number * BLOCK) as u64, &block).await?;
    }
    // Writers that ask at the same time share one commit of the journal.
    file.sync_all().await?;
    log.append(format!("writer {writer}: {} bytes are durable\n", file.len()).as_bytes()).await?;
    Ok(())
}
