//! The progress of a copy: a bar on a terminal, warnings, a line for each durable file.

use std::io::Write;
use std::time::Duration;

use ext4_tools::copy::Report;
use ext4_tools::display::escaped;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Reports progress and warnings on standard error, durable files on standard output.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
    report_durable: bool,
}

impl Progress {
    /// A bar that ends at `bytes`, shown if standard error is a terminal.
    pub fn with_total(bytes: u64) -> Self {
        let bar = ProgressBar::with_draw_target(Some(bytes), ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{bar:30} {bytes}/{total_bytes} {bytes_per_sec} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_bar()),
        );
        Self::start(bar)
    }

    /// A counter, shown if standard error is a terminal.
    pub fn counter() -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(
            ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec} {wide_msg}")
                .unwrap_or_else(|_| ProgressStyle::default_spinner()),
        );
        Self::start(bar)
    }

    fn start(bar: ProgressBar) -> Self {
        if !bar.is_hidden() {
            bar.enable_steady_tick(Duration::from_millis(200));
        }
        Self { bar, report_durable: false }
    }

    /// If `report` is true, prints a line for each durable file.
    pub fn reporting_durable(mut self, report: bool) -> Self {
        self.report_durable = report;
        self
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

impl Report for Progress {
    fn bytes(&self, count: u64) {
        self.bar.inc(count);
    }

    fn entry(&self, path: &[u8]) {
        if !self.bar.is_hidden() {
            self.bar.set_message(escaped(path));
        }
        tracing::info!(path = %escaped(path), "copied");
    }

    fn warning(&self, text: &str) {
        self.bar.suspend(|| eprintln!("ext4: warning: {text}"));
    }

    fn durable(&self, path: &[u8]) {
        if !self.report_durable {
            return;
        }
        let mut out = std::io::stdout().lock();
        let mut line = b"durable ".to_vec();
        line.extend_from_slice(path);
        line.push(b'\n');
        // A reader that has closed the pipe does not stop the copy.
        let _ = out.write_all(&line).and_then(|()| out.flush());
    }
}
