//! The corpus: images that others made and what the reference implementations see in them.
//!
//! It is not part of the project and lies beside it, in `../shared/corpus`: `e2fsprogs` and `syzkaller` hold
//! packed images in `images` and findings about each in `expected`; `make_kernel_corpus.sh` lets the kernel
//! make more.

use std::path::{Path, PathBuf};

use crate::settings::{kernel_corpora, skip};
use crate::tools::{can_mount, command, find, succeed, unpacked};

/// The collections in the corpus, each a directory with `images` and `expected`.
const COLLECTIONS: [&str; 3] = ["e2fsprogs", "syzkaller/seeds", "syzkaller/repros"];

/// How many images the collections hold at least, all together. Images are added to them, none is taken away.
const LEAST_IMAGES: usize = 170;

/// The directory of the corpus, or `None` if it is missing: the test is to be skipped, which this function
/// says.
///
/// # Panics
/// If it is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn corpus() -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/corpus");
    if !path.is_dir() {
        skip("the corpus (../shared/corpus beside the project)");
        return None;
    }
    Some(path)
}

/// One packed image of a collection.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PackedImage {
    /// The file.
    pub path: PathBuf,
    /// The findings about it: `NAME.json` and others begin with this path.
    expected: PathBuf,
}

impl PackedImage {
    /// The name, without what says how it is packed.
    #[must_use]
    pub fn name(&self) -> String {
        self.expected.file_name().unwrap().to_string_lossy().into_owned()
    }

    /// The file of findings about the image that ends in `suffix` (`json`, `tree.jsonl.gz`); it may not be
    /// there.
    #[must_use]
    pub fn expected(&self, suffix: &str) -> PathBuf {
        self.expected.with_file_name(format!("{}.{suffix}", self.name()))
    }

    /// The image's bytes.
    ///
    /// # Panics
    /// If it cannot be unpacked.
    #[must_use]
    #[track_caller]
    pub fn content(&self) -> Vec<u8> {
        unpacked(&self.path)
    }
}

/// All images of the collections, in the order of their paths: never fewer than the collections are known to
/// hold. None if the corpus, gzip or bzip2 is missing: the test is to be skipped, which this function says.
///
/// # Panics
/// If a collection has become smaller, or something is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn packed_images() -> Option<Vec<PackedImage>> {
    let corpus = corpus()?;
    for tool in ["gzip", "bzip2"] {
        if find(tool).is_none() {
            skip(tool);
            return None;
        }
    }
    let mut found = Vec::new();
    for collection in COLLECTIONS {
        let directory = corpus.join(collection).join("images");
        let entries =
            std::fs::read_dir(&directory).unwrap_or_else(|error| panic!("{}: {error}", directory.display()));
        for entry in entries {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            // A few are not one image: an archive of two.
            if !name.ends_with(".tar") {
                found.push(PackedImage {
                    path,
                    expected: corpus.join(collection).join("expected").join(name),
                });
            }
        }
    }
    found.sort();
    assert!(found.len() >= LEAST_IMAGES, "{} images in {}", found.len(), corpus.display());
    Some(found)
}

/// The image `name` of e2fsprogs' collection in `corpus`.
///
/// # Panics
/// If there is no such image.
#[must_use]
#[track_caller]
pub fn e2fsprogs_image(corpus: &Path, name: &str) -> PackedImage {
    let collection = corpus.join("e2fsprogs");
    let path = |packing: &str| collection.join("images").join(format!("{name}.{packing}"));
    let path = ["gz", "bz2"].map(path).into_iter().find(|path| path.exists());
    let path = path.unwrap_or_else(|| panic!("{name} is not in {}", collection.display()));
    PackedImage { path, expected: collection.join("expected").join(name) }
}

/// Lets the kernel make the images whose names match the regular expression `names`, into the directory
/// `into`. `seed` chooses their contents.
///
/// Returns false if the corpus, root or a tool is missing: the test is to be skipped, which this function
/// says.
///
/// # Panics
/// If the script fails, or something is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn make_kernel_images(into: &Path, names: &str, seed: u64) -> bool {
    let Some(corpus) = corpus() else { return false };
    let tools = ["bash", "python3", "mkfs.ext4", "debugfs", "e2fsck", "gzip"];
    if !crate::tools::have(&tools) || !can_mount() {
        return false;
    }
    let mut script = command("bash");
    script.arg(corpus.join("make_kernel_corpus.sh")).arg(into).arg(names).env("SEED", seed.to_string());
    succeed(&mut script);
    true
}

/// Directories with images that the kernel made: those that `EXT4_KERNEL_CORPUS` names, or one below `work`
/// for each of `seeds`, in which the images that match `names` are made now. None if the test is to be
/// skipped.
///
/// # Panics
/// If the script fails, or something is missing and `CI` is set.
#[must_use]
#[track_caller]
pub fn kernel_images(work: &Path, names: &str, seeds: &[u64]) -> Option<Vec<PathBuf>> {
    if !kernel_corpora().is_empty() {
        return Some(kernel_corpora().to_vec());
    }
    let mut made = Vec::new();
    for seed in seeds {
        let directory = work.join(seed.to_string());
        if !make_kernel_images(&directory, names, *seed) {
            return None;
        }
        made.push(directory);
    }
    Some(made)
}

/// The images (`NAME.img`) in `directories` whose name begins with one of `prefixes`, in the order of their
/// paths.
///
/// # Panics
/// If a directory cannot be read or holds no such image.
#[must_use]
#[track_caller]
pub fn images_named(directories: &[PathBuf], prefixes: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for directory in directories {
        let before = found.len();
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            let wanted = prefixes.iter().any(|prefix| name.starts_with(prefix));
            if wanted && path.extension().is_some_and(|extension| extension == "img") {
                found.push(path);
            }
        }
        assert!(found.len() > before, "{} holds no image {prefixes:?}", directory.display());
    }
    found.sort();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_has_findings() {
        let Some(images) = packed_images() else { return };
        let with_findings = images.iter().filter(|image| image.expected("json").exists()).count();
        assert_eq!(with_findings, images.len());
    }

    #[test]
    fn images_of_e2fsprogs_are_found_by_name() {
        let Some(corpus) = corpus() else { return };
        let image = e2fsprogs_image(&corpus, "j_recover_fast_commit");
        assert_eq!(image.name(), "j_recover_fast_commit");
        assert!(image.expected("kernel.jsonl.gz").exists());
        assert!(image.content().len() > 1 << 20);
    }
}
