//! `check`: formatting, lints and documentation, every warning an error. The first suite of `test`.

use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result};

use crate::{
    context::{Context, run as run_command, step},
    ebpf_toolchain::Toolchain,
    tools::{self, Use},
};

/// The parts, in their order; each counts as one test.
pub(crate) const PARTS: [&str; 4] = ["fmt", "clippy", "clippy-ebpf", "docs"];

/// Runs every part, also after one that failed.
///
/// # Errors
/// A tool is missing.
pub(crate) fn run(context: &Context) -> Result<ExitCode> {
    tools::ensure(context, &[Use::Check])?;
    let mut clean = true;
    for part in PARTS {
        if let Err(error) = run_part(context, part) {
            step(format_args!("check {part}: {error:#}"));
            clean = false;
        }
    }
    Ok(if clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Runs one part; what it found goes to standard error.
///
/// # Errors
/// It found something.
pub(crate) fn run_part(context: &Context, part: &str) -> Result<()> {
    step(format_args!("check {part}"));
    run_command(&mut command(context, part)?)
}

fn command(context: &Context, part: &str) -> Result<Command> {
    let mut command = context.cargo();
    match part {
        "fmt" => {
            command.args(["fmt", "--all", "--check"]);
        }
        "clippy" => {
            command.args(["clippy", "--workspace", "--all-targets", "--keep-going", "--quiet", "--", "-D", "warnings"]);
        }
        // On the host, above, most of that crate is what a lint never sees: code for the kernel's target.
        "clippy-ebpf" => {
            command = Toolchain::find().context("no eBPF compiler")?.cargo(context, "clippy")?;
            command.args(["--bins", "--keep-going", "--quiet", "--", "-D", "warnings"]);
        }
        "docs" => {
            command
                .args(["doc", "--workspace", "--no-deps", "--keep-going", "--quiet"])
                .env("RUSTDOCFLAGS", "-D warnings");
        }
        other => anyhow::bail!("check has no part {other}"),
    }
    Ok(command)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::shown;

    #[test]
    fn every_part_has_a_command_and_warnings_are_errors() {
        let context = Context::new(true).expect("a workspace");
        assert!(shown(&command(&context, "clippy").expect("known")).ends_with("-D warnings"));
        let docs = command(&context, "docs").expect("known");
        assert!(
            docs.get_envs()
                .any(|(name, value)| name == "RUSTDOCFLAGS" && value.is_some_and(|flags| flags == "-D warnings"))
        );
        assert!(command(&context, "nonsense").is_err());
        assert!(command(&context, "fmt").is_ok());
    }
}
