//! Where the server's core spends its time, by `perf`.

use std::{path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};

use super::rig::SERVER_CORE;

/// Says what to install when `perf` is not there.
pub(crate) fn available() -> Result<()> {
    let found = Command::new("perf").arg("--version").output();
    ensure!(
        found.is_ok_and(|output| output.status.success()),
        "--profile needs perf: install linux-perf (Debian) or linux-tools-generic (Ubuntu)"
    );
    Ok(())
}

/// Samples the server's core for `time` and writes the report to `profile-<case>.txt`.
pub(crate) fn record(directory: &Path, case: &str, time: Duration) -> Result<()> {
    let data = directory.join(format!("profile-{case}.data"));
    let seconds = format!("{:.2}", time.as_secs_f64());
    let output = Command::new("perf")
        .args(["record", "--quiet", "--freq", "1999", "--call-graph", "fp", "--cpu", &SERVER_CORE.to_string()])
        .arg("--output")
        .arg(&data)
        .args(["--", "sleep", &seconds])
        .output()
        .context("perf record")?;
    ensure!(output.status.success(), "perf record: {}", String::from_utf8_lossy(&output.stderr).trim());
    let output = Command::new("perf")
        .args(["report", "--stdio", "--no-children", "--percent-limit", "0.5", "--input"])
        .arg(&data)
        .output()
        .context("perf report")?;
    ensure!(output.status.success(), "perf report: {}", String::from_utf8_lossy(&output.stderr).trim());
    std::fs::write(directory.join(format!("profile-{case}.txt")), output.stdout)?;
    std::fs::remove_file(&data)?;
    Ok(())
}
