//! The floors of this crate, as ARCHITECTURE.md has them: a folder names only folders of lower floors, no
//! file names an item through lib.rs, and no files need each other in a circle.

use std::path::Path;

use ext4_test_support::layers::{Source, floors_in};

#[test]
fn folders_name_lower_floors_only_and_files_form_no_circle() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("../ARCHITECTURE.md")).expect("ARCHITECTURE.md");
    let source = Source::read(&root.join("src"));
    assert!(source.names() > 100, "only {} names were read", source.names());
    let violations: Vec<_> =
        source.check_layers(&floors_in(&page, "ext4-journal")).iter().map(ToString::to_string).collect();
    assert!(violations.is_empty(), "upward imports:\n{}", violations.join("\n"));
    let circle = source.largest_circle();
    assert!(circle.is_empty(), "these files need each other: {circle:?}");
}
