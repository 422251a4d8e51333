//! A caller without a tokio runtime gets an error that says so, and no panic.
#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use ext4_core::Errno;
use ext4_core::device::MemoryDevice;
use ext4_core::environment::{SystemEnvironment, TokioRuntime};
use ext4_core::meta::mkfs::MkfsOptions;
use ext4_writeback::filesystem::mkfs;
use ext4_writeback::{Filesystem, MountOptions};

#[test]
fn mounting_without_a_runtime_is_an_error_and_a_runtime_can_be_given() {
    let device = Arc::new(MemoryDevice::new(16 << 20));
    let tokio = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_time().build().unwrap();
    tokio.block_on(mkfs(device.clone(), &MkfsOptions::default(), &SystemEnvironment)).unwrap();

    let mut mounting = Box::pin(Filesystem::mount(device.clone(), MountOptions::default()));
    let polled = mounting.as_mut().poll(&mut Context::from_waker(Waker::noop()));
    let Poll::Ready(Err(error)) = polled else { panic!("mounted without a runtime") };
    assert_eq!(error.errno(), Errno::EINVAL);
    assert!(error.to_string().contains("no tokio runtime: call it inside one"), "{error}");
    drop(mounting);

    let runtime = Some(Arc::new(TokioRuntime::new(tokio.handle().clone())) as _);
    let options = MountOptions { runtime, ..MountOptions::default() };
    tokio.block_on(async { Filesystem::mount(device, options).await.unwrap().unmount().await.unwrap() });
}
