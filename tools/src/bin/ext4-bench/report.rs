//! The report: rounds, medians, ratios; a table for reading, JSON for programs.

use serde::Serialize;

use crate::workload::{Description, Measurement, Traffic};

/// The system under test.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Subject {
    /// Our io_uring backend.
    OursUring,
    /// Our file backend.
    OursFile,
    /// fio on the raw device, one submission for each transfer.
    Raw,
    /// fio on the raw device, submissions in batches. The report keeps the faster of `Raw` and `RawBatched`.
    RawBatched,
    /// The kernel's ext4.
    Kernel,
    /// Our file system with the fast_commit feature.
    OursFastCommit,
    /// The kernel's ext4 with the fast_commit feature.
    KernelFastCommit,
}

impl Subject {
    fn name(self) -> &'static str {
        match self {
            Self::OursUring => "ours-uring",
            Self::OursFile => "ours-file",
            Self::Raw | Self::RawBatched => "raw",
            Self::Kernel => "kernel",
            Self::OursFastCommit => "ours-fc",
            Self::KernelFastCommit => "kernel-fc",
        }
    }
}

/// One line of the report: a workload on one subject.
#[derive(Clone, Debug, Serialize)]
struct Row {
    suite: &'static str,
    workload: String,
    /// Bytes of one transfer.
    block_size: u64,
    subject: &'static str,
    /// The median of the rounds.
    seconds: f64,
    bytes: u64,
    ops: u64,
    cpu_seconds: f64,
    /// Speed as a multiple of the raw device's: the median of the ratios within each round, so that both
    /// sides saw the same machine.
    ratio_to_raw: Option<f64>,
    /// Speed as a multiple of the kernel's ext4 without fast commits.
    ratio_to_kernel: Option<f64>,
    /// Operations per second as a multiple of those with one task.
    ratio_to_one_task: Option<f64>,
    /// Bytes written to the journal per operation.
    journal_bytes_per_op: Option<f64>,
    /// Flushes of the device per operation.
    flushes_per_op: Option<f64>,
}

impl Row {
    /// Operations per second.
    fn rate(&self) -> f64 {
        self.ops as f64 / self.seconds
    }
}

/// The results of a session.
#[derive(Debug)]
pub struct Report {
    rows: Vec<Row>,
    progress: bool,
}

impl Report {
    /// An empty report. If `progress` is true, it prints the name of each workload on standard error as it
    /// begins.
    pub fn new(progress: bool) -> Self {
        Self { rows: Vec::new(), progress }
    }

    /// Measures one workload in `rounds` rounds. Each round measures every subject once, one after the other.
    ///
    /// # Errors
    /// Those of `measure`.
    pub fn measure(
        &mut self,
        suite: &'static str,
        workload: &Description,
        subjects: &[Subject],
        rounds: u32,
        mut measure: impl FnMut(Subject) -> anyhow::Result<Measurement>,
    ) -> anyhow::Result<()> {
        if self.progress {
            eprintln!("{} ({rounds} rounds)", workload.name);
        }
        let mut measured = vec![Vec::new(); subjects.len()];
        for round in 0..rounds as usize {
            // Each round begins with another subject, so that no subject is always the first.
            for number in 0..subjects.len() {
                let turn = (number + round) % subjects.len();
                measured[turn].push(measure(subjects[turn])?);
            }
        }
        let of = |subject: Subject| {
            subjects.iter().position(|other| *other == subject).map(|number| measured[number].as_slice())
        };
        let typical =
            |subject: Subject| of(subject).map(|rounds| median(rounds.iter().map(|round| round.seconds)));
        let raw = match (typical(Subject::Raw), typical(Subject::RawBatched)) {
            (Some(plain), Some(batched)) if batched < plain => Subject::RawBatched,
            _ => Subject::Raw,
        };
        for (subject, rounds) in subjects.iter().zip(&measured) {
            if subject.name() == raw.name() && *subject != raw {
                continue;
            }
            let ratio = |base: Option<&[Measurement]>| {
                let base = base?;
                Some(median(base.iter().zip(rounds).map(|(base, own)| base.seconds / own.seconds)))
            };
            let per_operation = |of: &dyn Fn(&Traffic) -> f64| {
                let figures: Option<Vec<f64>> =
                    rounds.iter().map(|round| round.traffic.as_ref().map(of)).collect();
                Some(median(figures?.into_iter()) / workload.operations as f64)
            };
            self.rows.push(Row {
                suite,
                workload: workload.name.clone(),
                block_size: workload.block_size,
                subject: subject.name(),
                seconds: median(rounds.iter().map(|round| round.seconds)),
                bytes: workload.bytes,
                ops: workload.operations,
                cpu_seconds: median(rounds.iter().map(|round| round.cpu_seconds)),
                ratio_to_raw: ratio(of(raw)),
                ratio_to_kernel: ratio(of(Subject::Kernel)),
                ratio_to_one_task: None,
                journal_bytes_per_op: per_operation(&|traffic| traffic.journal_bytes),
                flushes_per_op: per_operation(&|traffic| traffic.flushes),
            });
        }
        Ok(())
    }

    /// Sets `ratio_to_one_task` in the rows of `workload`: their operations per second as a multiple of those
    /// of `base`.
    pub fn compare(&mut self, workload: &str, base: &str) {
        let rates: Vec<(&'static str, f64)> = self
            .rows
            .iter()
            .filter(|row| row.workload == base)
            .map(|row| (row.subject, row.rate()))
            .collect();
        for row in self.rows.iter_mut().filter(|row| row.workload == workload) {
            let base = rates.iter().find(|(subject, _)| *subject == row.subject);
            row.ratio_to_one_task = base.map(|(_, rate)| row.rate() / rate);
        }
    }

    /// Prints the report on standard output, as JSON if `json` is true.
    ///
    /// # Errors
    /// Those of the conversion to JSON.
    pub fn print(&self, json: bool) -> anyhow::Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(&self.rows)?);
            return Ok(());
        }
        println!(
            "{:24} {:>9} {:11} {:>9} {:>9} {:>9} {:>8} {:>7} {:>9} {:>10} {:>9} {:>9}",
            "workload",
            "block",
            "subject",
            "seconds",
            "MB/s",
            "kIOPS",
            "cpu s",
            "of raw",
            "of kernel",
            "of 1 task",
            "log B/op",
            "flush/op"
        );
        let mut last = "";
        for row in &self.rows {
            if !last.is_empty() && last != row.workload {
                println!();
            }
            last = &row.workload;
            let digits = |value: Option<f64>, digits: usize| {
                value.map_or_else(|| "-".to_owned(), |value| format!("{value:.digits$}"))
            };
            println!(
                "{:24} {:>9} {:11} {:>9.3} {:>9.0} {:>9.1} {:>8.2} {:>7} {:>9} {:>10} {:>9} {:>9}",
                row.workload,
                row.block_size,
                row.subject,
                row.seconds,
                row.bytes as f64 / row.seconds / 1e6,
                row.rate() / 1e3,
                row.cpu_seconds,
                digits(row.ratio_to_raw, 2),
                digits(row.ratio_to_kernel, 2),
                digits(row.ratio_to_one_task, 2),
                digits(row.journal_bytes_per_op, 0),
                digits(row.flushes_per_op, 2)
            );
        }
        Ok(())
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 1 => values[middle],
        _ => f64::midpoint(values[middle - 1], values[middle]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_within_a_round() {
        let workload = Description { name: "w".into(), block_size: 4096, bytes: 8192, operations: 2 };
        let mut report = Report::new(false);
        let mut turn = 0.0;
        let measure = |subject| {
            // The machine gets slower each round, for both subjects; ours takes twice as long.
            turn += 1.0;
            let slow = f64::floor((turn - 1.0) / 2.0) + 1.0;
            let seconds = if subject == Subject::Raw { slow } else { 2.0 * slow };
            Ok(Measurement { seconds, cpu_seconds: 0.0, traffic: None })
        };
        report.measure("backend", &workload, &[Subject::OursUring, Subject::Raw], 3, measure).unwrap();
        assert_eq!(report.rows[0].ratio_to_raw, Some(0.5));
        assert_eq!((report.rows[0].seconds, report.rows[1].seconds), (4.0, 2.0));
        assert_eq!(report.rows[0].ratio_to_kernel, None);
        assert_eq!(report.rows[0].ops, 2);
    }
}
