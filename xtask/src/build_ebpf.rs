//! `build-ebpf`: the objects for the kernel.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};

use crate::{
    context::{Context, run as run_command, step},
    ebpf_toolchain::{TARGET, Toolchain},
    tools::{self, Use},
};

/// Builds the objects and puts them under `target/bpf/`.
///
/// # Errors
/// A tool is missing, or the build fails.
pub(crate) fn run(context: &Context) -> Result<()> {
    tools::ensure(context, &[Use::Ebpf])?;
    build(context)
}

/// The same for a verb that has made sure of its tools.
///
/// # Errors
/// The build fails.
pub(crate) fn build(context: &Context) -> Result<()> {
    step("build the eBPF objects");
    one(context, &["--bins"], "retry-ebpf", &context.ebpf_object())?;
    keep(&built(context, "retry-bench"), &context.bench_object())?;
    // The tests upgrade from one to the other.
    one(context, &["--bin", "retry-ebpf", "--features", "linear"], "retry-ebpf", &context.linear_object())
}

/// Builds the object that the daemon loads, and no other.
///
/// # Errors
/// The build fails.
pub(crate) fn build_object(context: &Context) -> Result<()> {
    step("build the eBPF object");
    one(context, &["--bin", "retry-ebpf"], "retry-ebpf", &context.ebpf_object())
}

fn one(context: &Context, targets: &[&str], name: &str, object: &Path) -> Result<()> {
    let toolchain = Toolchain::find().context("no eBPF compiler")?;
    run_command(toolchain.cargo(context, "build")?.args(["--profile", "bpf"]).args(targets))?;
    keep(&built(context, name), object)
}

/// Where cargo puts a program for the kernel.
fn built(context: &Context, name: &str) -> PathBuf {
    context.target.join("bpf-build").join(TARGET).join("bpf").join(name)
}

/// Copies only what changed: a new date would make cargo build the daemon again.
fn keep(from: &Path, to: &Path) -> Result<()> {
    let new = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let write = || {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(to, new)
    };
    write().with_context(|| format!("cannot write {}", to.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unchanged_object_keeps_its_date() {
        let directory = std::env::temp_dir().join(format!("xtask-keep-{}", std::process::id()));
        let (from, to) = (directory.join("from"), directory.join("made/to"));
        fs::create_dir_all(&directory).expect("a directory");
        fs::write(&from, "one").expect("written");
        keep(&from, &to).expect("copied");
        let old = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(&to).expect("it is there").set_modified(old).expect("its date");
        keep(&from, &to).expect("the same");
        assert_eq!(fs::metadata(&to).expect("it is there").modified().expect("a date"), old);
        fs::write(&from, "two").expect("written");
        keep(&from, &to).expect("copied");
        assert_eq!(fs::read(&to).expect("it is there"), b"two");
        assert!(keep(&directory.join("none"), &to).is_err());
        fs::remove_dir_all(directory).expect("cleaned");
    }
}
