//! The files of the packages, as one table, and the tree that both packages are made from.

use std::{
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};

use super::{Release, deb::MAINTAINER, set_date};
use crate::context::{Context, output, run as run_command};

/// Where a file's text comes from.
#[derive(Clone, Copy, Debug)]
enum Source {
    /// The daemon.
    Daemon,
    /// A file of the workspace.
    Tree(&'static str),
    /// A file that the daemon's package generates.
    Generated(&'static str),
}

/// One row of the table.
#[derive(Debug)]
pub(super) struct File {
    /// Where it is installed, without the leading slash.
    pub(super) path: &'static str,
    source: Source,
    mode: u32,
}

/// The operator's own file: an upgrade leaves it as it is.
pub(super) const SETTINGS: &str = "etc/default/retry-endpoint";

/// Every file but the manual pages and Debian's changelog.
pub(super) const FILES: &[File] = &[
    File { path: "usr/bin/retry-endpoint", source: Source::Daemon, mode: 0o755 },
    File { path: SETTINGS, source: Source::Generated("default"), mode: 0o644 },
    tree("usr/lib/systemd/system/retry-endpoint.service", "deploy/package/retry-endpoint.service"),
    tree("usr/lib/sysusers.d/retry-endpoint.conf", "deploy/package/sysusers.conf"),
    tree("usr/lib/tmpfiles.d/retry-endpoint.conf", "deploy/package/tmpfiles.conf"),
    tree("usr/lib/sysctl.d/20-retry-endpoint.conf", "deploy/package/sysctl.conf"),
    generated("usr/share/bash-completion/completions/retry-endpoint", "completions/retry-endpoint.bash"),
    generated("usr/share/zsh/vendor-completions/_retry-endpoint", "completions/_retry-endpoint"),
    generated("usr/share/fish/vendor_completions.d/retry-endpoint.fish", "completions/retry-endpoint.fish"),
    tree("usr/share/doc/retry-endpoint/copyright", "deploy/package/copyright"),
    tree("usr/share/doc/retry-endpoint/LICENSE-Apache-2.0", "LICENSE"),
    tree("usr/share/doc/retry-endpoint/LICENSE-GPL-2.0", "LICENSE-GPL-2.0"),
    tree("usr/share/doc/retry-endpoint/CHANGELOG.md", "CHANGELOG.md"),
    tree("usr/share/doc/retry-endpoint/operations.md", "docs/operations.md"),
    tree("usr/share/doc/retry-endpoint/configuration.md", "docs/configuration.md"),
];

const fn tree(path: &'static str, source: &'static str) -> File {
    File { path, source: Source::Tree(source), mode: 0o644 }
}

const fn generated(path: &'static str, source: &'static str) -> File {
    File { path, source: Source::Generated(source), mode: 0o644 }
}

/// The changelog in the form that Debian's tools read.
const CHANGELOG: &str = "usr/share/doc/retry-endpoint/changelog";

/// Where manual pages are installed.
const MANUAL: &str = "usr/share/man/man8";

/// What both packages hold.
#[derive(Debug)]
pub(super) struct Staged {
    /// The tree, as it is to stand below `/`.
    pub(super) root: PathBuf,
    /// Every file's path in it, sorted, without the leading slash.
    pub(super) paths: Vec<String>,
}

/// Copies all files to `target/dist/root`, with the modes and dates that they are installed with.
///
/// # Errors
/// A file is missing, or the disk is full.
pub(super) fn stage(context: &Context, daemon: &Path, generated: &Path, release: &Release) -> Result<Staged> {
    let root = context.dist().join("root");
    let mut paths = Vec::new();
    for file in FILES {
        let from = match file.source {
            Source::Daemon => daemon.to_owned(),
            Source::Tree(path) => context.root.join(path),
            Source::Generated(path) => generated.join(path),
        };
        put(&from, &root.join(file.path), file.mode, release)?;
        paths.push(file.path.to_owned());
    }
    let pages = fs::read_dir(generated.join("man")).context("the manual pages")?;
    for page in pages {
        let page = page.context("a manual page")?;
        let path = format!("{MANUAL}/{}", page.file_name().to_string_lossy());
        let to = root.join(&path);
        put(&page.path(), &to, 0o644, release)?;
        paths.push(compress(&root, &path, release)?);
    }
    let date = output(Command::new("date").args(["--utc", "--rfc-email", &format!("--date=@{}", release.epoch)]))?;
    let entry = format!(
        "retry-endpoint ({}) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- {MAINTAINER}  {}\n",
        release.version,
        date.trim()
    );
    fs::write(root.join(CHANGELOG), entry).context("write the changelog")?;
    paths.push(compress(&root, CHANGELOG, release)?);
    paths.sort_unstable();
    Ok(Staged { root, paths })
}

/// Compresses a file; the path of the new one.
fn compress(root: &Path, path: &str, release: &Release) -> Result<String> {
    // Without name and date in it.
    run_command(Command::new("gzip").args(["-9", "-n", "--force"]).arg(root.join(path)))?;
    let path = format!("{path}.gz");
    set_date(&root.join(&path), release)?;
    Ok(path)
}

fn put(from: &Path, to: &Path, mode: u32, release: &Release) -> Result<()> {
    let put = || {
        to.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::copy(from, to)?;
        fs::set_permissions(to, fs::Permissions::from_mode(mode))
    };
    put().with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    set_date(to, release)
}
