//! fio, the reference: drives the raw device and the kernel's ext4.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::workload::{Fsync, KernelThreads, Measurement, Workload};

/// Checks that fio is installed.
///
/// # Errors
/// fio cannot be run.
pub fn check() -> anyhow::Result<()> {
    match Command::new("fio").arg("--version").stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => bail!("fio is not installed (Debian: apt install fio)"),
    }
}

/// Runs a workload on the raw device, with io_uring, registered buffers and a registered file. If `batched`
/// is true, a quarter of the depth is submitted at once and waited for together; otherwise each transfer
/// alone.
///
/// # Errors
/// Those of fio.
pub fn raw(device: &Path, workload: &Workload, batched: bool) -> anyhow::Result<Measurement> {
    let mut engine =
        ["--ioengine=io_uring", "--fixedbufs", "--registerfiles", "--direct=1", "--invalidate=1"]
            .map(String::from)
            .to_vec();
    if batched {
        let batch = workload.depth.div_ceil(4);
        engine.push(format!("--iodepth_batch_submit={batch}"));
        engine.push(format!("--iodepth_batch_complete_min={batch}"));
    }
    run(device, workload, &engine)
}

/// Reads or writes an existing file with one system call after the other, and fsync if the workload asks for
/// it. The page cache is not invalidated.
///
/// # Errors
/// Those of fio.
pub fn file(path: &Path, workload: &Workload) -> anyhow::Result<Measurement> {
    let engine = ["--ioengine=psync", "--fallocate=none", "--invalidate=0", "--gtod_reduce=1"];
    run(path, workload, &engine.map(String::from))
}

fn run(path: &Path, workload: &Workload, engine: &[String]) -> anyhow::Result<Measurement> {
    let kind = match (workload.random, workload.write) {
        (false, false) => "read",
        (false, true) => "write",
        (true, false) => "randread",
        (true, true) => "randwrite",
    };
    let mut name = OsString::from("--filename=");
    // fio splits names at colons.
    name.push(path.to_string_lossy().replace(':', "\\:"));
    let threads = KernelThreads::now();
    let output = Command::new("fio")
        .args(["--name=bench", "--thread", "--output-format=json", "--randrepeat=0", "--norandommap"])
        .args(["--randseed=1", "--zero_buffers=0", "--refill_buffers=0"])
        .arg(name)
        .arg(format!("--rw={kind}"))
        .arg(format!("--bs={}", workload.block_size))
        .arg(format!("--iodepth={}", workload.depth))
        .arg(format!("--size={}", workload.range))
        .arg(format!("--io_size={}", workload.bytes))
        .arg(format!("--end_fsync={}", u8::from(workload.fsync == Fsync::AtTheEnd)))
        .arg(format!("--fsync={}", u8::from(workload.fsync == Fsync::Each)))
        .args(engine)
        .output()
        .context("run fio")?;
    if !output.status.success() {
        bail!("fio failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    // fio may print warnings before the JSON object.
    let text = String::from_utf8_lossy(&output.stdout);
    let start = text.find('{').unwrap_or(0);
    let parsed: Value = serde_json::from_str(text[start..].trim()).context("read fio's report")?;
    let mut measured = measurement(&parsed, workload)?;
    measured.cpu_seconds += threads.seconds_since();
    Ok(measured)
}

fn measurement(parsed: &Value, workload: &Workload) -> anyhow::Result<Measurement> {
    let job = &parsed["jobs"][0];
    let side = &job[if workload.write { "write" } else { "read" }];
    let number = |value: &Value| value.as_f64().context("a number in fio's report is missing");
    let bytes = number(&side["io_bytes"])?;
    if job["error"].as_i64() != Some(0) || (bytes - workload.bytes as f64).abs() > 0.5 {
        bail!("fio transferred {bytes} of {} bytes, error {}", workload.bytes, job["error"]);
    }
    // Milliseconds, the fsync at the end included (`job_runtime`).
    let seconds = number(&job["job_runtime"])?.max(number(&side["runtime"])?).max(1.0) / 1000.0;
    let share = (number(&job["usr_cpu"])? + number(&job["sys_cpu"])?) / 100.0;
    Ok(Measurement { seconds, cpu_seconds: share * seconds, traffic: None })
}
