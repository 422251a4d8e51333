//! `ext4 journal dump`: shows the log, block by block.
//!
//! Blocks are printed as they are read: a log of any size takes the memory of one block.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ext4_core::Timestamp;
use ext4_journal::{FastCommitBlock, Inspection, LogBlock, LogBlockContent, LogChecksum, LogPart, TagEntry};
use ext4_tools::display::{exact_time, full_time};
use serde::Serialize;
use serde_json::json;

use crate::context::{Context, naming};
use crate::output::stdout;

const EXAMPLES: &str = "\
Examples:
  ext4 journal dump disk.img              what a replay reads
  ext4 journal dump --all disk.img        also older transactions that are still in the log
  ext4 journal dump --json disk.img | jq '.blocks[] | select(.type == \"revoke\")'";

/// Show the transactions in the log: images, revoked blocks, commit times
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Dump {
    /// Image file or block device
    image: PathBuf,
    /// Also what no recovery reads: old transactions, and parts of them
    #[arg(short, long)]
    all: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

impl Dump {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let inspection = context.opener.inspect_journal(&self.image).await;
        let inspection = inspection.map_err(|error| naming(&self.image, error.into()))?;
        let dumped = if self.json {
            as_json(&inspection, self.all).await
        } else {
            as_text(&inspection, self.all).await
        };
        dumped.map_err(|error| naming(&self.image, error))
    }
}

async fn as_text(inspection: &Inspection, all: bool) -> anyhow::Result<()> {
    let mut out = Vec::new();
    let header = inspection.header();
    let summary = inspection.summary();
    writeln!(
        out,
        "Journal of {} blocks of {} bytes, {}",
        header.blocks,
        header.block_size.bytes(),
        if header.features.is_empty() { "no features".into() } else { header.features.join(" ") }
    )?;
    if header.start == 0 {
        writeln!(out, "The log is empty; the next transaction is {} or later", header.sequence)?;
    } else {
        writeln!(out, "The log starts at block {} with transaction {}", header.start, header.sequence)?;
    }
    let mut part = LogPart::Committed;
    let mut blocks = inspection.blocks(all);
    while let Some(block) = blocks.next().await? {
        if block.part != part {
            part = block.part;
            writeln!(out, "\n{}", heading(part))?;
        }
        text_block(&mut out, &block)?;
        print(&mut out)?;
    }
    if header.start != 0 {
        let end = summary.end;
        let images = summary.images;
        writeln!(
            out,
            "\nThe committed part ends before block {}, transaction {}: {}",
            end.block, end.transaction, end.reason
        )?;
        writeln!(out, "{} transactions with {images} images", summary.transactions)?;
    }
    if let Some(damage) = &summary.damage {
        writeln!(out, "Damaged: {damage}")?;
    }
    let mut fast_commits = inspection.fast_commits(all);
    let mut first = true;
    while let Some(block) = fast_commits.next().await? {
        if std::mem::take(&mut first) {
            writeln!(
                out,
                "\nFast commits (replayed if they belong to transaction {})",
                fast_commits.expected()
            )?;
        }
        text_fast_commit(&mut out, &block)?;
        print(&mut out)?;
    }
    print(&mut out)?;
    Ok(())
}

/// Writes the gathered text to standard output, whose lock is not held while the log is read.
fn print(gathered: &mut Vec<u8>) -> anyhow::Result<()> {
    let mut out = stdout();
    out.write_all(gathered)?;
    out.flush()?;
    gathered.clear();
    Ok(())
}

fn heading(part: LogPart) -> &'static str {
    match part {
        LogPart::Committed => "Committed:",
        LogPart::Unfinished => "Unfinished, not replayed:",
        LogPart::Dropped => "After the damage, not replayed:",
        LogPart::Old => "Old, not replayed:",
    }
}

fn text_block(out: &mut Vec<u8>, block: &LogBlock) -> std::io::Result<()> {
    let LogBlock { block: at, transaction, checksum, content, .. } = block;
    let sum = checksum_text(*checksum);
    match content {
        LogBlockContent::Descriptor(tags) => {
            writeln!(out, "block {at}: transaction {transaction}, descriptor of {} images{sum}", tags.len())?;
            for tag in tags {
                let TagEntry { target, image, .. } = tag;
                let escaped = if tag.is_escaped() { ", escaped" } else { "" };
                let revoked = if tag.revoked { ", revoked" } else { "" };
                let sum = checksum_text(tag.checksum);
                writeln!(out, "  block {image}: image of block {target}{escaped}{revoked}{sum}")?;
            }
        }
        LogBlockContent::Revoke(Some(blocks)) => {
            writeln!(out, "block {at}: transaction {transaction}, revokes {} blocks{sum}", blocks.len())?;
            for block in blocks {
                writeln!(out, "  revoked: block {block}")?;
            }
        }
        LogBlockContent::Revoke(None) => {
            writeln!(out, "block {at}: transaction {transaction}, a revoke list longer than its block{sum}")?;
        }
        LogBlockContent::Commit { seconds, nanoseconds } => {
            let time = full_time(timestamp(*seconds, *nanoseconds));
            writeln!(out, "block {at}: transaction {transaction}, commit, {time}{sum}")?;
        }
        LogBlockContent::Unknown(kind) => {
            writeln!(out, "block {at}: transaction {transaction}, unknown type {kind}")?;
        }
    }
    Ok(())
}

fn text_fast_commit(out: &mut Vec<u8>, block: &FastCommitBlock) -> std::io::Result<()> {
    writeln!(out, "block {}:", block.block)?;
    for (offset, tag, checksum) in &block.tags {
        // The text of the tag contains the stored checksum.
        let wrong = checksum.filter(LogChecksum::is_wrong).and_then(|checksum| checksum.computed);
        let wrong =
            wrong.map_or(String::new(), |computed| format!(" (wrong: it should be {computed:#010x})"));
        writeln!(out, "  {offset:>5}: {tag}{wrong}")?;
    }
    if let Some((offset, problem)) = &block.problem {
        writeln!(out, "  {offset:>5}: {problem}")?;
    }
    Ok(())
}

fn checksum_text(checksum: Option<LogChecksum>) -> String {
    match checksum {
        None => String::new(),
        Some(LogChecksum { stored, computed: None }) => format!(", checksum {stored:#x}"),
        Some(LogChecksum { stored, computed: Some(computed) }) if stored == computed => {
            format!(", checksum {stored:#x}")
        }
        Some(LogChecksum { stored, computed: Some(computed) }) => {
            format!(", checksum {stored:#x} is wrong (it should be {computed:#x})")
        }
    }
}

fn timestamp(seconds: u64, nanoseconds: u32) -> Timestamp {
    Timestamp { seconds: seconds.cast_signed(), nanoseconds: nanoseconds.min(999_999_999) }
}

#[derive(Serialize)]
struct JsonTag {
    block: u64,
    log_block: u32,
    flags: u16,
    escaped: bool,
    revoked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<JsonChecksum>,
}

#[derive(Serialize)]
struct JsonChecksum {
    stored: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    computed: Option<u32>,
    ok: Option<bool>,
}

impl From<LogChecksum> for JsonChecksum {
    fn from(checksum: LogChecksum) -> Self {
        let LogChecksum { stored, computed } = checksum;
        Self { stored, computed, ok: computed.map(|computed| computed == stored) }
    }
}

async fn as_json(inspection: &Inspection, all: bool) -> anyhow::Result<()> {
    let (header, summary) = (inspection.header(), inspection.summary());
    let journal = json!({
        "uuid": uuid::Uuid::from_bytes(header.uuid).to_string(),
        "block_size": header.block_size.bytes(),
        "blocks": header.blocks,
        "fast_commit_blocks": header.fast_commit_blocks,
        "first": header.first,
        "sequence": header.sequence,
        "start": header.start,
        "errno": header.errno,
        "features": header.features,
    });
    let end = json!({
        "block": summary.end.block,
        "transaction": summary.end.transaction.0,
        "reason": summary.end.reason.to_string(),
        "transactions": summary.transactions,
        "images": summary.images,
        "damage": summary.damage.as_ref().map(ToString::to_string),
    });
    let mut out = Vec::new();
    write!(out, "{{\"journal\": {journal},\n\"blocks\": [")?;
    let mut blocks = inspection.blocks(all);
    let mut separator = "\n";
    while let Some(block) = blocks.next().await? {
        write!(out, "{separator}{}", json_block(block))?;
        separator = ",\n";
        print(&mut out)?;
    }
    write!(out, "],\n\"end\": {end},\n\"fast_commits\": [")?;
    let mut fast_commits = inspection.fast_commits(all);
    separator = "\n";
    while let Some(block) = fast_commits.next().await? {
        write!(out, "{separator}{}", json_fast_commit(&block))?;
        separator = ",\n";
        print(&mut out)?;
    }
    writeln!(out, "]}}")?;
    print(&mut out)
}

fn json_block(block: LogBlock) -> serde_json::Value {
    let part = match block.part {
        LogPart::Committed => "committed",
        LogPart::Unfinished => "unfinished",
        LogPart::Dropped => "dropped",
        LogPart::Old => "old",
    };
    let mut value = match block.content {
        LogBlockContent::Descriptor(tags) => {
            let tag = |tag: TagEntry| JsonTag {
                block: tag.target.0,
                log_block: tag.image,
                flags: tag.flags,
                escaped: tag.is_escaped(),
                revoked: tag.revoked,
                checksum: tag.checksum.map(JsonChecksum::from),
            };
            json!({"type": "descriptor", "tags": tags.into_iter().map(tag).collect::<Vec<_>>()})
        }
        LogBlockContent::Revoke(blocks) => {
            let blocks = blocks.map(|blocks| blocks.iter().map(|block| block.0).collect::<Vec<_>>());
            json!({"type": "revoke", "revoked": blocks})
        }
        LogBlockContent::Commit { seconds, nanoseconds } => {
            json!({"type": "commit", "time": exact_time(timestamp(seconds, nanoseconds))})
        }
        LogBlockContent::Unknown(kind) => json!({"type": kind}),
    };
    value["block"] = block.block.into();
    value["transaction"] = block.transaction.0.into();
    value["part"] = part.into();
    if let Some(checksum) = block.checksum {
        value["checksum"] = json!(JsonChecksum::from(checksum));
    }
    value
}

fn json_fast_commit(block: &FastCommitBlock) -> serde_json::Value {
    let tags: Vec<_> = block
        .tags
        .iter()
        .map(|(offset, tag, checksum)| {
            let ok = checksum.map(|checksum| !checksum.is_wrong());
            json!({"offset": offset, "tag": tag.name(), "text": tag.to_string(), "ok": ok})
        })
        .collect();
    let problem = block.problem.as_ref().map(|(offset, problem)| format!("byte {offset}: {problem}"));
    json!({"block": block.block, "tags": tags, "problem": problem})
}
