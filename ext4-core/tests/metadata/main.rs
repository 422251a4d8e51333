//! Directories, extended attributes and orphans on file systems that mke2fs and the kernel made.

#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

mod attributes;
mod corpus;
mod directories;
mod fixture;
mod kernel;
mod orphans;
