//! `ext4 journal replay`: replays the log, up to the last committed transaction, without a mount.

use std::io::Write;
use std::path::PathBuf;

use clap::Args;
use ext4_journal::{EndReason, Finding, Recovery, RecoveryReport};
use ext4_writeback::JournalReplay;
use serde::Serialize;

use crate::context::{Context, ExitReason, naming};
use crate::output::{print_json, stdout};

const EXAMPLES: &str = "\
Examples:
  ext4 journal replay --check disk.img    what a replay would do; nothing is written
  ext4 journal replay disk.img            as the kernel does before it mounts
  ext4 journal replay --salvage disk.img  leave out damaged blocks, as e2fsck does

Without --salvage a damaged log is refused, and nothing is written. With --salvage, damaged images are left
out, the log ends before the first transaction whose own blocks are damaged, and the file system is marked as
one with errors: run e2fsck -f afterwards. Orphan inodes are left to the next mount.

Exit code 0: replayed, or nothing to do; 1: refused or failed; 2: wrong usage; 3: damaged blocks left out.";

/// Replay the log without mounting
#[derive(Args, Debug)]
#[command(after_help = EXAMPLES)]
pub struct Replay {
    /// Image file or block device
    image: PathBuf,
    /// Check the log without writing
    #[arg(long)]
    check: bool,
    /// Leave out damaged blocks instead of refusing the log
    #[arg(long)]
    salvage: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Outcome {
    checked_only: bool,
    transactions: u32,
    first_transaction: u32,
    blocks: u64,
    revoked: u64,
    fast_commits: usize,
    end_block: u32,
    end_transaction: u32,
    end_reason: String,
    findings: Vec<JsonFinding>,
    more_findings: u64,
    error_recorded: bool,
    orphans: usize,
}

#[derive(Serialize)]
struct JsonFinding {
    log_block: u32,
    transaction: u32,
    what: String,
    found: String,
    expected: String,
}

impl From<&Finding> for JsonFinding {
    fn from(finding: &Finding) -> Self {
        Self {
            log_block: finding.block,
            transaction: finding.transaction.0,
            what: finding.what.clone(),
            found: finding.found.clone(),
            expected: finding.expected.clone(),
        }
    }
}

impl Replay {
    pub async fn run(self, context: &Context) -> anyhow::Result<()> {
        let mode = if self.salvage { Recovery::SALVAGE } else { Recovery::NORMAL };
        let mode = if self.check { mode.checking() } else { mode };
        let replay = context.opener.replay_journal(&self.image, mode).await;
        let replay = replay.map_err(|error| naming(&self.image, error.into()))?;
        if self.json {
            print_json(&self.outcome(&replay))?;
        } else {
            self.print(&replay)?;
        }
        let count = replay.report.findings.len() as u64 + replay.report.more_findings;
        if self.salvage && count > 0 {
            let text = format!("{count} damaged places in the log; run e2fsck -f");
            return Err(naming(&self.image, anyhow::Error::new(ExitReason::Salvaged(text))));
        }
        Ok(())
    }

    fn outcome(&self, replay: &JournalReplay) -> Outcome {
        let report = &replay.report;
        Outcome {
            checked_only: self.check,
            transactions: report.transactions,
            first_transaction: report.first.0,
            blocks: report.blocks,
            revoked: report.revoked,
            fast_commits: report.fast_commits.commits.len(),
            end_block: report.end.block,
            end_transaction: report.end.transaction.0,
            end_reason: report.end.reason.to_string(),
            findings: report.findings.iter().map(JsonFinding::from).collect(),
            more_findings: report.more_findings,
            error_recorded: replay.error_recorded,
            orphans: replay.orphans,
        }
    }

    fn print(&self, replay: &JournalReplay) -> anyhow::Result<()> {
        let mut out = stdout();
        let RecoveryReport { transactions, blocks, revoked, end, findings, more_findings, .. } =
            &replay.report;
        if end.reason == EndReason::Empty {
            writeln!(out, "The log is empty: nothing to replay")?;
        } else {
            let done = if self.check { "Would replay" } else { "Replayed" };
            writeln!(
                out,
                "{done} {transactions} transactions: {blocks} blocks, {revoked} more were revoked"
            )?;
            let fast_commits = replay.report.fast_commits.commits.len();
            if fast_commits > 0 {
                writeln!(out, "{done} {fast_commits} fast commits after them")?;
            }
            writeln!(
                out,
                "The log ends before block {}, transaction {}: {}",
                end.block, end.transaction, end.reason
            )?;
        }
        for finding in findings {
            writeln!(out, "Damaged: {finding}")?;
        }
        if *more_findings > 0 {
            writeln!(out, "Damaged: {more_findings} more places")?;
        }
        if replay.error_recorded {
            let marked = if self.check { "would be marked" } else { "is marked" };
            writeln!(out, "The file system {marked} as one with errors")?;
        }
        if replay.orphans > 0 {
            writeln!(
                out,
                "{} inodes were being deleted or truncated: the next mount finishes that",
                replay.orphans
            )?;
        }
        out.flush()?;
        Ok(())
    }
}
