//! Fast commits that the kernel and e2fsprogs left are replayed.
#![allow(clippy::unwrap_used, reason = "what fails here is a failed test")]

mod common;
#[path = "common/manifest.rs"]
mod manifest;

use std::path::{Path, PathBuf};

use ext4_core::device::simulated::Image;
use ext4_writeback::MountOptions;

#[tokio::test]
async fn explore() {
    let directory = PathBuf::from(std::env::var_os("EXT4_FC").unwrap());
    let mut names: Vec<_> = std::fs::read_dir(&directory).unwrap().map(|e| e.unwrap().path()).collect();
    names.sort();
    for path in names.into_iter().filter(|path| path.extension().is_some_and(|e| e == "img")) {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        let image = Image::from_file(&path).unwrap();
        let device = std::sync::Arc::new(ext4_core::device::MemoryDevice::from_image(image));
        let mounted = ext4_writeback::Filesystem::mount(device.clone() as _, MountOptions::default()).await;
        let fs = match mounted {
            Ok(fs) => fs,
            Err(error) => {
                println!("== {name}: {error}");
                continue;
            }
        };
        let ours = manifest::of_filesystem(&fs).await;
        fs.unmount().await.unwrap();
        println!("== {name}");
        let out = directory.join(format!("{name}.ours"));
        device.image().to_file(&out).unwrap();
        let fsck = common::run("e2fsck", &["-fn", out.to_str().unwrap()]);
        println!(
            "e2fsck {:?} {}",
            fsck.status.code(),
            if fsck.status.success() {
                String::new()
            } else {
                String::from_utf8_lossy(&fsck.stdout).into_owned()
            }
        );
        for reference in ["before", "replay"] {
            let file = if reference == "before" {
                format!("{name}.before.jsonl.gz")
            } else {
                format!("{name}.jsonl.gz")
            };
            let theirs = manifest::read(&directory.join(file));
            let diff = manifest::differences(&ours, &theirs, |_, facts, key| {
                facts["type"] == "dir" && matches!(key, "mtime" | "ctime")
            });
            println!("-- {reference}: {} lines", diff.len());
            for line in diff.iter().take(12) {
                println!("   {line}");
            }
        }
    }
    let _ = Path::new("");
}
