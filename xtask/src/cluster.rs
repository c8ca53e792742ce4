//! `cluster`: endpoints on several hosts over a Redis Cluster. The options are the program's: `cargo xtask cluster --help`.

use std::{ffi::OsString, process::ExitCode};

use anyhow::Result;

use crate::{
    build,
    context::Context,
    tools::{self, Use},
};

/// Builds and runs it.
///
/// # Errors
/// A tool is missing, a build fails, or there is no way to root.
pub(crate) fn run(context: &Context, arguments: &[OsString]) -> Result<ExitCode> {
    tools::ensure(context, &[Use::Redis])?;
    build::run_testbed(context, "cluster", arguments)
}
