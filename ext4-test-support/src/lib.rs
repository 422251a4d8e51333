//! What the tests of all crates share. A development dependency only; it is not published.
//!
//! A test that sees nothing must not pass for one that found nothing. From this follow the rules of this
//! crate:
//!
//! - A test whose tool, kernel or corpus is missing is skipped by [`settings::skip`] alone: it prints a line
//!   that `cargo test` shows, and it fails if the environment variable `CI` is set.
//! - A test that loops over images, power cuts or cases asserts how many there were ([`counted::at_least`]).
//! - Tools, the corpus and environment variables are looked for here and nowhere else.

#![allow(clippy::unwrap_used, reason = "a helper fails as the test does")]

pub mod corpus;
pub mod counted;
pub mod layers;
pub mod loop_device;
pub mod settings;
pub mod tools;
