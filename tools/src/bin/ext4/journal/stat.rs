//! `ext4 journal stat`: shows the journal's superblock and the size and state of the log.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ext4_journal::Finding;
use ext4_journal::Inspection;
use serde::Serialize;

use crate::context::{Context, naming};
use crate::output::{print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 journal stat disk.img
  ext4 journal stat --json /dev/sdx1 | jq .transactions";

/// Show size, features and state of the log
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Stat {
    /// Image file or block device
    image: PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Numbers {
    uuid: String,
    features: Vec<&'static str>,
    block_size: u32,
    blocks: u32,
    first_block: u32,
    ring_blocks: u32,
    fast_commit_blocks: u32,
    max_transaction_blocks: u32,
    users: u32,
    errno: i32,
    #[serde(skip_serializing_if = "Option::is_none")]
    checksum: Option<String>,
    sequence: u32,
    start: u32,
    needs_recovery: bool,
    transactions: u32,
    images: u64,
    metadata_blocks: usize,
    used_blocks: u32,
    free_blocks: u32,
    fast_commits: u32,
    end_block: u32,
    end_transaction: u32,
    end_reason: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    damage: Option<String>,
}

impl Stat {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let numbers = async {
            let inspection = context.opener.inspect_journal(&self.image).await?;
            numbers(&inspection).await
        };
        let numbers = numbers.await.map_err(|error| naming(&self.image, error.into()))?;
        if self.json { print_json(&numbers) } else { print(&numbers) }
    }
}

async fn numbers(inspection: &Inspection) -> ext4_core::Result<Numbers> {
    let (header, summary) = (inspection.header(), inspection.summary());
    let mut fast_commits = 0;
    let mut blocks = inspection.fast_commits(false);
    while let Some(block) = blocks.next().await? {
        // A fast commit ends with a tail tag; the tag's checksum shows that the fast commit is whole.
        let whole = block.tags.iter().filter(|(_, _, checksum)| checksum.is_some_and(|sum| !sum.is_wrong()));
        fast_commits += u32::try_from(whole.count()).unwrap_or(u32::MAX);
    }
    Ok(Numbers {
        uuid: uuid::Uuid::from_bytes(header.uuid).to_string(),
        features: header.features.clone(),
        block_size: header.block_size.bytes(),
        blocks: header.blocks,
        first_block: header.first,
        ring_blocks: summary.ring,
        fast_commit_blocks: header.fast_commit_blocks,
        max_transaction_blocks: summary.ring / 4,
        users: header.users,
        errno: header.errno,
        checksum: header.checksum.map(|checksum| format!("{checksum:#010x}")),
        sequence: header.sequence,
        start: header.start,
        needs_recovery: header.start != 0,
        transactions: summary.transactions,
        images: summary.images,
        metadata_blocks: summary.metadata_blocks,
        used_blocks: summary.used,
        free_blocks: summary.ring.saturating_sub(summary.used),
        fast_commits,
        end_block: summary.end.block,
        end_transaction: summary.end.transaction.0,
        end_reason: summary.end.reason.to_string(),
        damage: summary.damage.as_ref().map(Finding::to_string),
    })
}

fn print(numbers: &Numbers) -> anyhow::Result<()> {
    let mut out = stdout();
    let features = if numbers.features.is_empty() { "(none)".into() } else { numbers.features.join(" ") };
    let blocks = |count: u32| {
        format!("{count} blocks ({} KiB)", u64::from(count) * u64::from(numbers.block_size) / 1024)
    };
    let mut lines: Vec<(&str, String)> = vec![
        ("UUID", numbers.uuid.clone()),
        ("Features", features),
        ("Block size", numbers.block_size.to_string()),
        ("Size", blocks(numbers.blocks)),
        ("Log", format!("{}, from block {}", blocks(numbers.ring_blocks), numbers.first_block)),
        ("Fast-commit area", blocks(numbers.fast_commit_blocks)),
        ("Largest transaction", blocks(numbers.max_transaction_blocks)),
        ("Users", numbers.users.to_string()),
        ("Errno", numbers.errno.to_string()),
    ];
    if let Some(checksum) = &numbers.checksum {
        lines.push(("Checksum", checksum.clone()));
    }
    lines.push(("Needs recovery", if numbers.needs_recovery { "yes" } else { "no" }.into()));
    if numbers.needs_recovery {
        lines.push(("Starts at", format!("block {}, transaction {}", numbers.start, numbers.sequence)));
        lines.push(("Transactions", numbers.transactions.to_string()));
        lines.push(("Images", numbers.images.to_string()));
        lines.push(("Used", blocks(numbers.used_blocks)));
        lines.push(("Free", blocks(numbers.free_blocks)));
        lines.push(("Fast commits", numbers.fast_commits.to_string()));
        let Numbers { end_block, end_transaction, end_reason, .. } = numbers;
        lines.push(("Ends at", format!("block {end_block}, transaction {end_transaction}: {end_reason}")));
    } else {
        lines.push(("Next transaction", numbers.sequence.to_string()));
    }
    if let Some(damage) = &numbers.damage {
        lines.push(("Damage", damage.clone()));
    }
    for (key, value) in lines {
        writeln!(out, "{:<22}{value}", format!("{key}:"))?;
    }
    out.flush()?;
    Ok(())
}
