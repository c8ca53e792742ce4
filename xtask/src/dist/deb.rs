//! The Debian package, by dpkg-deb.

use std::{fmt::Write as _, fs, os::unix::fs::PermissionsExt as _, process::Command};

use anyhow::{Context as _, Result};

use super::{
    Release,
    files::{SETTINGS, Staged},
};
use crate::context::{Context, output, run as run_command, step};

/// Builds `target/dist/retry-endpoint_VERSION_amd64.deb`.
///
/// # Errors
/// dpkg-deb fails, or the disk is full.
pub(super) fn build(context: &Context, staged: &Staged, release: &Release) -> Result<()> {
    step("build the Debian package");
    let Release { version, epoch, .. } = release;
    let control = staged.root.join("DEBIAN");
    fs::create_dir_all(&control).context("make DEBIAN")?;
    let write = |name: &str, mode: u32, text: &str| {
        let path = control.join(name);
        let written =
            fs::write(&path, text).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
        written.with_context(|| format!("write {}", path.display()))
    };
    let script = |name: &str| script(context, name);
    let kibibytes = staged
        .paths
        .iter()
        .map(|path| fs::metadata(staged.root.join(path)).map_or(0, |found| found.len()))
        .sum::<u64>()
        .div_ceil(1024);
    write(
        "control",
        0o644,
        &format!(
            "Package: retry-endpoint\nVersion: {version}\nArchitecture: amd64\nMaintainer: {MAINTAINER}\n\
             Installed-Size: {kibibytes}\nDepends: systemd\nSection: net\nPriority: optional\nHomepage: {HOMEPAGE}\n\
             Description: {SUMMARY}\n{}",
            DESCRIPTION.lines().fold(String::new(), |mut text, line| {
                let _ = writeln!(text, " {line}");
                text
            })
        ),
    )?;
    write("conffiles", 0o644, &format!("/{SETTINGS}\n"))?;
    let mut sums = Command::new("md5sum");
    let hashed = staged.paths.iter().filter(|path| *path != SETTINGS);
    write("md5sums", 0o644, &output(sums.args(hashed).current_dir(&staged.root))?)?;
    let when = |condition: &str, body: &str| format!("#!/bin/sh\nset -e\n[ {condition} ] || exit 0\n{body}");
    write("postinst", 0o755, &when("\"$1\" = configure", &script("installed.sh")?))?;
    write("prerm", 0o755, &when("\"$1\" = remove", &script("removing.sh")?))?;
    let purge = "if [ \"$1\" = purge ]; then\n    rm -rf /var/lib/retry-endpoint\nfi\n";
    write("postrm", 0o755, &when("\"$1\" = remove ] || [ \"$1\" = purge", &(script("removed.sh")? + purge)))?;
    let package = context.dist().join(format!("retry-endpoint_{version}_amd64.deb"));
    let mut command = Command::new("dpkg-deb");
    command.args(["--root-owner-group", "-Zxz", "-z1", "--build"]).arg(&staged.root).arg(package);
    run_command(command.env("SOURCE_DATE_EPOCH", epoch.to_string()))?;
    fs::remove_dir_all(control).context("clear DEBIAN")
}

/// What both packages run.
pub(super) fn script(context: &Context, name: &str) -> Result<String> {
    let path = context.root.join("deploy/package").join(name);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

/// As both packages name them.
pub(super) const MAINTAINER: &str = "retry-endpoint maintainers <maintainers@retry-endpoint.example>";
pub(super) const HOMEPAGE: &str = "https://github.com/retry-endpoint/retry-endpoint";
pub(super) const SUMMARY: &str = "answers NACKs for multicast frames, from the kernel";
pub(super) const DESCRIPTION: &str = "A publisher numbers the frames of a flow and multicasts them over IPv6. A\n\
    listener that misses a number asks retry-endpoint for it and gets the frame\n\
    again. Hits are answered in the kernel, by an XDP program that reads the same\n\
    memory that the daemon fills.";
