//! Builds test binaries as the user, and runs those that need no root.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::{
    context::{Context, shown, step},
    test::libtest::{self, Outcome},
};

/// The packages with tests. Always all of them: cargo would build shared dependencies anew, with other features, for another
/// selection.
const PACKAGES: [&str; 4] = ["retry-common", "retry-userspace", "retry-testbed", "xtask"];

/// The longest test takes two minutes; one that hangs must not hold up all others for good. Seconds.
const TIME_LIMIT: u64 = 600;
/// Seconds of traffic in the suite `stress`, where a developer wants more than its usual ones.
pub(crate) const STRESS_SECONDS: &str = "RETRY_STRESS_SECONDS";

/// A test binary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binary {
    /// Package and target.
    pub(crate) name: String,
    /// The executable.
    pub(crate) path: PathBuf,
    /// The package's directory, where cargo runs tests.
    pub(crate) directory: PathBuf,
}

/// Builds the tests of these targets (`--lib`, `--test NAME` …).
///
/// # Errors
/// The build fails.
pub(crate) fn build(context: &Context, targets: &[&str]) -> Result<Vec<Binary>> {
    step(format_args!("build tests: {}", targets.join(" ")));
    let mut command = context.cargo();
    command.args(["test", "--no-run", "--message-format=json-render-diagnostics"]);
    for package in PACKAGES {
        command.args(["--package", package]);
    }
    command.args(targets);
    let output =
        command.stderr(Stdio::inherit()).output().with_context(|| format!("cannot start {}", shown(&command)))?;
    ensure!(output.status.success(), "{}: {}", output.status, shown(&command));
    Ok(executables(&String::from_utf8_lossy(&output.stdout)))
}

/// The test executables that cargo names in its messages.
fn executables(messages: &str) -> Vec<Binary> {
    messages.lines().filter_map(|line| executable(&serde_json::from_str(line).ok()?)).collect()
}

fn executable(message: &Value) -> Option<Binary> {
    (message["reason"] == "compiler-artifact" && message["profile"]["test"] == true).then_some(())?;
    let directory = Path::new(message["manifest_path"].as_str()?).parent()?.to_owned();
    let package = directory.file_name()?.to_string_lossy();
    let target = message["target"]["name"].as_str()?;
    let kind = message["target"]["kind"][0].as_str()?;
    Some(Binary {
        name: format!("{package}/{kind}/{target}"),
        path: PathBuf::from(message["executable"].as_str()?),
        directory,
    })
}

/// Runs one binary as the user, to its end or until [`time_limit`]: then it counts as broken off.
///
/// # Errors
/// It cannot be started.
pub(crate) fn run(context: &Context, binary: &Binary, filter: &[String]) -> Result<Outcome> {
    let mut command = Command::new("timeout");
    command.envs(context.program_environment());
    command.args(["--signal=KILL", &time_limit().to_string()]).arg(&binary.path).arg("--show-output");
    command.args(filter).current_dir(&binary.directory);
    let (text, status) = printed(command)?;
    let mut outcome = libtest::parse(&text);
    if !outcome.complete || status.success() != outcome.failed.is_empty() {
        // Crashed, or ended by a test: all that is left to read is what it printed.
        outcome.complete = false;
        outcome.failures = format!("{} ended with {status}:\n{text}", binary.path.display());
    }
    Ok(outcome)
}

/// How long one process with tests may take, in seconds.
pub(crate) fn time_limit() -> u64 {
    let stress = std::env::var(STRESS_SECONDS).ok().and_then(|text| text.parse::<u64>().ok());
    TIME_LIMIT + stress.unwrap_or(0)
}

/// Runs the command to its end: all that it and its children wrote, in the order in which a terminal would show it, and its
/// status.
///
/// # Errors
/// It cannot be started.
pub(crate) fn printed(mut command: Command) -> Result<(String, ExitStatus)> {
    let (mut reader, writer) = io::pipe()?;
    command.stdin(Stdio::null()).stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(&command)))?;
    // The command holds the pipe's other end, and the reader waits for the last one to close.
    drop(command);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut reader, &mut bytes)?;
    let status = child.wait()?;
    Ok((String::from_utf8_lossy(&bytes).into_owned(), status))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn test_executables_are_found_among_cargos_messages() {
        let messages = r#"{"reason":"compiler-artifact","manifest_path":"/w/retry-common/Cargo.toml","target":{"kind":["lib"],"name":"retry_common"},"profile":{"test":false},"executable":null}
{"reason":"compiler-artifact","manifest_path":"/w/retry-common/Cargo.toml","target":{"kind":["lib"],"name":"retry_common"},"profile":{"test":true},"executable":"/t/debug/deps/retry_common-1"}
{"reason":"compiler-artifact","manifest_path":"/w/retry-userspace/Cargo.toml","target":{"kind":["bin"],"name":"retry-endpoint"},"profile":{"test":false},"executable":"/t/debug/retry-endpoint"}
no message
{"reason":"build-finished","success":true}"#;
        let found = executables(messages);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].name, "retry-common/lib/retry_common");
        assert_eq!(found[0].path, Path::new("/t/debug/deps/retry_common-1"));
        assert_eq!(found[0].directory, Path::new("/w/retry-common"));
    }

    #[test]
    fn a_program_that_is_no_test_is_not_complete() {
        let context = Context::new(true).expect("a workspace");
        let run = |path: &str| {
            let binary = Binary { name: path.to_owned(), path: path.into(), directory: "/".into() };
            run(&context, &binary, &[])
        };
        let outcome = run("/bin/false").expect("it starts");
        assert!(!outcome.complete);
        assert!(outcome.failures.contains("exit status: 1"), "{}", outcome.failures);
        let outcome = run("/no/such/program").expect("timeout starts");
        assert!(!outcome.complete);
        assert!(outcome.failures.contains("No such file"), "{}", outcome.failures);
    }
}
