//! `dist`: what is given to operators, in `target/dist`: a static daemon, Debian and RPM packages, a container image, checksums
//! and a list of what is inside.

mod deb;
mod files;
mod image;
mod rpm;
mod sbom;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    build_ebpf,
    context::{Context, output, run as run_command, step},
    tools::{self, Use},
};

/// What the daemon is built for: static, with its own resolver of names, for every Linux of this machine's processor.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";
/// The largest that the daemon may be, in bytes.
const LARGEST: u64 = 20 * 1024 * 1024;

/// What all artifacts tell of themselves.
#[derive(Debug)]
struct Release {
    /// `version` of the workspace.
    version: String,
    /// The date of everything that has one, in seconds of Unix time: the same commit makes the same files.
    epoch: u64,
    /// The commit, or `unknown` outside a git tree.
    commit: String,
}

/// Builds everything.
///
/// # Errors
/// A tool is missing, or a build fails.
pub(crate) fn run(context: &Context) -> Result<()> {
    tools::ensure(context, &[Use::Ebpf, Use::Dist])?;
    build_ebpf::build(context)?;
    build(context)
}

/// The same for a verb that has made sure of its tools and built the objects.
///
/// # Errors
/// A build fails.
pub(crate) fn build(context: &Context) -> Result<()> {
    let release = Release::find(context)?;
    let directory = context.dist();
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).context("clear target/dist"),
        _ => fs::create_dir_all(&directory)?,
    }
    let daemon = daemon(context, &release)?;
    let generated = generate(context)?;
    let staged = files::stage(context, &daemon, &generated, &release)?;
    deb::build(context, &staged, &release)?;
    rpm::build(context, &staged, &release)?;
    image::build(context, &daemon, &release)?;
    sbom::write(context, &release)?;
    for directory in [staged.root, generated] {
        fs::remove_dir_all(directory).context("clear what the packages were made from")?;
    }
    sums(&directory)?;
    step(format_args!("see {}", directory.display()));
    Ok(())
}

impl Release {
    fn find(context: &Context) -> Result<Self> {
        let metadata = output(context.cargo().args(["metadata", "--no-deps", "--format-version=1"]))?;
        let metadata: serde_json::Value = serde_json::from_str(&metadata).context("cargo metadata")?;
        let packages = metadata["packages"].as_array().context("cargo metadata has no packages")?;
        let daemon = packages.iter().find(|package| package["name"] == "retry-userspace");
        let version = daemon.and_then(|package| package["version"].as_str()).context("no version")?.to_owned();
        let epoch = match std::env::var("SOURCE_DATE_EPOCH") {
            Ok(epoch) => epoch,
            Err(_) => {
                let mut git = Command::new("git");
                output(git.args(["show", "-s", "--format=%ct", "HEAD"]).current_dir(&context.root))
                    .context("no date: not a git tree; set SOURCE_DATE_EPOCH")?
            }
        };
        let epoch = epoch.trim().parse().context("SOURCE_DATE_EPOCH is a number of seconds")?;
        let mut git = Command::new("git");
        let commit = output(git.args(["rev-parse", "HEAD"]).current_dir(&context.root));
        let commit = commit.map_or_else(|_| "unknown".to_owned(), |commit| commit.trim().to_owned());
        Ok(Self { version, epoch, commit })
    }
}

/// Builds the static daemon and takes what only a debugger needs out of a copy of it.
fn daemon(context: &Context, release: &Release) -> Result<PathBuf> {
    step(format_args!("build the static daemon for {TARGET}"));
    let mut command = context.cargo();
    command.args(["build", "--release", "--target", TARGET, "--package", "retry-userspace"]);
    // The one dependency with code in C needs no C library's headers beyond the compiler's: no compiler for musl is needed.
    command.env("CC_x86_64_unknown_linux_musl", "cc");
    run_command(&mut command)?;
    let daemon = context.dist().join("retry-endpoint");
    let built = context.target.join(TARGET).join("release/retry-endpoint");
    run_command(Command::new("strip").arg("-o").arg(&daemon).arg(&built))?;
    let size = fs::metadata(&daemon)?.len();
    ensure!(size <= LARGEST, "{} has {size} bytes, and may have {LARGEST}", daemon.display());
    ensure!(tools::is_static(&daemon), "{} is not static", daemon.display());
    set_date(&daemon, release)?;
    Ok(daemon)
}

/// Manual pages, completions and the file of settings, by the code that the daemon parses its command line with.
fn generate(context: &Context) -> Result<PathBuf> {
    let generated = context.dist().join("generated");
    step("generate manual pages, completions and the file of settings");
    let mut command = context.cargo();
    command
        .args(["run", "--quiet", "--package", "retry-userspace", "--example", "package_files", "--"])
        .arg(&generated);
    run_command(&mut command)?;
    Ok(generated)
}

/// Writes `SHA256SUMS`, which `sha256sum --check` reads.
fn sums(directory: &Path) -> Result<()> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name());
    }
    names.sort_unstable();
    let sums = output(Command::new("sha256sum").args(&names).current_dir(directory))?;
    fs::write(directory.join("SHA256SUMS"), sums).context("write SHA256SUMS")
}

fn set_date(file: &Path, release: &Release) -> Result<()> {
    let date = std::time::UNIX_EPOCH + std::time::Duration::from_secs(release.epoch);
    fs::File::open(file).and_then(|file| file.set_modified(date)).with_context(|| format!("date of {}", file.display()))
}
