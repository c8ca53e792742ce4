//! Finds the kernel object that the daemon embeds: `RETRY_EBPF_OBJECT`, else where `cargo xtask build-ebpf` puts it.
//! Without one an empty file is embedded, and the daemon says so when asked for XDP.
//!
//! Finds the commit too: `RETRY_COMMIT`, else what git says, else `unknown`; and the build date, so that a build from the same
//! commit is the same: `SOURCE_DATE_EPOCH` (seconds of Unix time), else the commit's date, else `unknown`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=RETRY_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object =
        env::var_os("RETRY_EBPF_OBJECT").map_or_else(|| manifest.join("../target/bpf/retry-ebpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("retry-ebpf.o");
    if object.exists() {
        fs::copy(&object, &embedded)?;
    } else {
        fs::write(&embedded, [])?;
    }
    println!("cargo::rustc-env=RETRY_EBPF_EMBED={}", embedded.display());
    println!("cargo::rustc-env=RETRY_COMMIT={}", commit());
    println!("cargo::rustc-env=RETRY_BUILD_DATE={}", build_date());
    Ok(())
}

/// `2026-11-29`, in UTC.
fn build_date() -> String {
    println!("cargo::rerun-if-env-changed=SOURCE_DATE_EPOCH");
    let seconds = env::var("SOURCE_DATE_EPOCH").ok().or_else(|| git(&["show", "-s", "--format=%ct", "HEAD"]));
    seconds
        .and_then(|seconds| line(Command::new("date").args(["--utc", "--date", &format!("@{seconds}"), "+%F"])))
        .unwrap_or_else(|| "unknown".to_owned())
}

/// The commit that is built. A build from an archive, or without git, has none.
fn commit() -> String {
    println!("cargo::rerun-if-env-changed=RETRY_COMMIT");
    if let Ok(commit) = env::var("RETRY_COMMIT") {
        return commit;
    }
    // It changes with every commit and every checkout.
    if let Some(log) = git(&["rev-parse", "--path-format=absolute", "--git-path", "logs/HEAD"])
        && Path::new(&log).exists()
    {
        println!("cargo::rerun-if-changed={log}");
    }
    git(&["rev-parse", "--short=12", "HEAD"]).unwrap_or_else(|| "unknown".to_owned())
}

fn git(arguments: &[&str]) -> Option<String> {
    line(Command::new("git").args(arguments))
}

/// What a command prints, if it succeeds and prints something.
fn line(command: &mut Command) -> Option<String> {
    let output = command.output().ok().filter(|output| output.status.success())?;
    let line = String::from_utf8(output.stdout).ok()?.trim().to_owned();
    (!line.is_empty()).then_some(line)
}
