//! `demo`: the daemon on a private fabric with loss. The options are the program's: `cargo xtask demo --help`.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::{build, context::Context};

/// Builds and runs the demo.
///
/// # Errors
/// A tool is missing, a build fails, or there is no way to root.
pub(crate) fn run(context: &Context, arguments: &[OsString]) -> Result<ExitCode> {
    build::run_testbed(context, "demo", arguments)
}
