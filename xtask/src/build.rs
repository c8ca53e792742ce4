//! `build`: the objects, then the release daemon with the object embedded, and the testbed's program.

use std::{
    ffi::OsString,
    path::Path,
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result};

use crate::{
    build_ebpf,
    context::{Context, run as run_command, step},
    tools::{self, Use},
};

/// Builds everything that runs.
///
/// # Errors
/// A tool is missing, or a build fails.
pub(crate) fn run(context: &Context) -> Result<()> {
    tools::ensure(context, &[Use::Ebpf])?;
    build(context)
}

/// Builds the objects and the daemon, which is all that the tests need of a release.
///
/// # Errors
/// A build fails.
pub(crate) fn build_daemon(context: &Context) -> Result<()> {
    build_ebpf::build(context)?;
    step("build the release daemon");
    run_command(context.cargo().args(["build", "--release", "--package", "retry-userspace"]))
}

/// The same for a verb that has made sure of its tools.
///
/// # Errors
/// A build fails.
pub(crate) fn build(context: &Context) -> Result<()> {
    build_ebpf::build(context)?;
    step("build the release daemon and the testbed");
    run_command(context.cargo().args([
        "build",
        "--release",
        "--package",
        "retry-userspace",
        "--package",
        "retry-testbed",
    ]))
}

/// Builds, then runs a part of the testbed's program as root; its exit code is the verb's.
///
/// # Errors
/// A tool is missing, a build fails, or there is no way to root.
pub(crate) fn run_testbed(context: &Context, part: &str, arguments: &[OsString]) -> Result<ExitCode> {
    // A user's mistake in the options needs no minute of building; root is asked for before it, too.
    let mut command = context.as_root(context.testbed(), context.program_environment())?;
    tools::ensure(context, &[Use::Ebpf, Use::Fabric])?;
    build(context)?;
    command.arg(part).args(arguments);
    step(format_args!("retry-testbed {part}"));
    let code = exit_code(&mut command);
    context.give_back()?;
    code
}

/// The exit code of a command, which is the verb's.
///
/// # Errors
/// It cannot be started.
pub(crate) fn exit_code(command: &mut Command) -> Result<ExitCode> {
    let program = Path::new(command.get_program()).display().to_string();
    let status = command.status().with_context(|| format!("cannot start {program}"))?;
    // Ended by a signal: a failure like any other.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_exit_code_is_the_verbs() {
        let code = |script: &str| format!("{:?}", exit_code(Command::new("sh").args(["-c", script])).expect("sh"));
        assert_eq!(code("exit 0"), format!("{:?}", ExitCode::SUCCESS));
        assert_eq!(code("exit 3"), format!("{:?}", ExitCode::from(3)));
        assert_eq!(code("kill -9 $$"), format!("{:?}", ExitCode::FAILURE));
    }
}
