//! fio, the yardstick: what the device can do, and what the kernel's ext4 makes of it.

use std::ffi::OsString;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, bail};
use serde_json::Value;

use crate::workload::{Fsync, KernelThreads, Measurement, Workload};

/// # Errors
/// Where fio is not there.
pub fn check() -> anyhow::Result<()> {
    match Command::new("fio").arg("--version").stdout(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        _ => bail!("fio is not installed; it is the yardstick (Debian: apt install fio)"),
    }
}

/// Runs a workload on the raw device, with io_uring, registered buffers and a registered file. `batched`: a quarter of
/// the depth in one submission and waited for together, instead of one after the other.
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

/// Reads or writes a file that is there, as a program does: one call after the other, with `fsync` where the workload
/// asks. What is in memory stays there.
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
    // fio takes a colon for a separator of names.
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
    // Warnings may stand before the object.
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
