//! The RPM package, by rpmbuild, from the same tree as the Debian package.

use std::{fmt::Write as _, fs, process::Command};

use anyhow::{Context as _, Result};

use super::{
    Release,
    deb::{DESCRIPTION, HOMEPAGE, SUMMARY, script},
    files::{SETTINGS, Staged},
};
use crate::context::{Context, run as run_command, step};

/// Builds `target/dist/retry-endpoint-VERSION-1.x86_64.rpm`.
///
/// # Errors
/// rpmbuild fails, or the disk is full.
pub(super) fn build(context: &Context, staged: &Staged, release: &Release) -> Result<()> {
    step("build the RPM package");
    let work = context.dist().join("rpmbuild");
    fs::create_dir_all(&work).context("make a directory for rpmbuild")?;
    let spec = work.join("retry-endpoint.spec");
    fs::write(&spec, text(context, staged, release)?).context("write the spec file")?;
    let mut command = Command::new("rpmbuild");
    let define = |name: &str, value: &str| ["--define".to_owned(), format!("{name} {value}")];
    command.args(["-bb", "--quiet", "--target", "x86_64"]);
    command.args(define("_topdir", &work.display().to_string()));
    command.args(define("_rpmdir", &context.dist().display().to_string()));
    command.args(define("_rpmfilename", "%{NAME}-%{VERSION}-%{RELEASE}.%{ARCH}.rpm"));
    command.arg(&spec).env("SOURCE_DATE_EPOCH", release.epoch.to_string());
    run_command(&mut command)?;
    fs::remove_dir_all(work).context("clear rpmbuild's directory")
}

fn text(context: &Context, staged: &Staged, Release { version, .. }: &Release) -> Result<String> {
    let mut files = String::new();
    for path in &staged.paths {
        let kind = if path == SETTINGS { "%config(noreplace) " } else { "" };
        let _ = writeln!(files, "{kind}/{path}");
    }
    let (installed, removing, removed) =
        (script(context, "installed.sh")?, script(context, "removing.sh")?, script(context, "removed.sh")?);
    let root = staged.root.display();
    Ok(format!(
        "# What rpmbuild would change: the program is stripped, the pages are compressed, and the same tree is to make\n\
         # the same package.\n\
         %global __os_install_post %{{nil}}\n%global debug_package %{{nil}}\n%global _build_id_links none\n\
         %global _binary_payload w6.gzdio\n%global _buildhost localhost\n\
         %global use_source_date_epoch_as_buildtime 1\n%global clamp_mtime_to_source_date_epoch 1\n\
         %global source_date_epoch_from_changelog 0\n\n\
         Name: retry-endpoint\nVersion: {version}\nRelease: 1\nSummary: {SUMMARY}\n\
         License: Apache-2.0 AND GPL-2.0-only\nURL: {HOMEPAGE}\nRequires: systemd\nAutoReqProv: no\n\n\
         %description\n{DESCRIPTION}\n\n\
         %install\ncp -a '{root}/.' %{{buildroot}}\n\n\
         %post\n{installed}\n%preun\n[ \"$1\" -eq 0 ] || exit 0\n{removing}\n\
         %postun\n[ \"$1\" -eq 0 ] || exit 0\n{removed}\n%files\n{files}"
    ))
}
