//! Builds test binaries as the user and runs them, as the user or as root.

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// The longest suite takes three minutes; a test that hangs must not hold up all others for good. Seconds.
const TIME_LIMIT: u64 = 1200;
/// Seconds of traffic in the suite `stress`, where a developer wants more than its usual ones.
const STRESS_SECONDS: &str = "RETRY_STRESS_SECONDS";

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

/// Runs one binary to its end, or until [`TIME_LIMIT`]: then it counts as broken off.
///
/// # Errors
/// It cannot be started.
pub(crate) fn run(context: &Context, binary: &Binary, as_root: bool, filter: &[String]) -> Result<Outcome> {
    let mut environment = context.program_environment();
    let mut limit = TIME_LIMIT;
    if let Some(seconds) = std::env::var_os(STRESS_SECONDS) {
        limit += seconds.to_str().and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
        environment.push((STRESS_SECONDS, seconds.into()));
    }
    // A program of its own, because it may have to end one of root's.
    let mut command = if as_root {
        context.as_root("timeout", environment)?
    } else {
        let mut command = Command::new("timeout");
        command.envs(environment);
        command
    };
    command.args(["--signal=KILL", &limit.to_string()]).arg(&binary.path).arg("--show-output");
    if as_root {
        // Namespaces and programs in the kernel: one test at a time, or they measure each other.
        command.arg("--test-threads=1");
    }
    command.args(filter).current_dir(&binary.directory).stdin(Stdio::null());
    // One pipe for both, as a terminal would show them.
    let (mut reader, writer) = io::pipe()?;
    command.stdout(writer.try_clone()?).stderr(writer);
    let mut child = command.spawn().with_context(|| format!("cannot start {}", shown(&command)))?;
    // The command holds the pipe's other end, and the reader waits for the last one to close.
    drop(command);
    let mut bytes = Vec::new();
    io::Read::read_to_end(&mut reader, &mut bytes)?;
    let status = child.wait()?;
    let text = String::from_utf8_lossy(&bytes);
    let mut outcome = libtest::parse(&text);
    if !outcome.complete || status.success() != outcome.failed.is_empty() {
        // Crashed, or ended by a test: all that is left to read is what it printed.
        outcome.complete = false;
        outcome.failures = format!("{} ended with {status}:\n{text}", binary.path.display());
    }
    Ok(outcome)
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
            run(&context, &binary, false, &[])
        };
        let outcome = run("/bin/false").expect("it starts");
        assert!(!outcome.complete);
        assert!(outcome.failures.contains("exit status: 1"), "{}", outcome.failures);
        let outcome = run("/no/such/program").expect("timeout starts");
        assert!(!outcome.complete);
        assert!(outcome.failures.contains("No such file"), "{}", outcome.failures);
    }
}
