//! The files of `target/dist`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// Where `cargo xtask dist` has put them.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os("RETRY_DIST_DIRECTORY").expect("xtask names the directory of artifacts"))
}

/// The one file whose name ends so.
pub(crate) fn file(end: &str) -> PathBuf {
    let entries = std::fs::read_dir(directory()).expect("readable").map(|entry| entry.expect("an entry").path());
    let found: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    let [file] = &found[..] else { panic!("{} files end with {end}: {found:?}", found.len()) };
    file.clone()
}

/// Standard output of a command that succeeds.
#[track_caller]
pub(crate) fn said(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}
