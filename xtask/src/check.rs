//! `check`: formatting, words, lints, documentation, examples, generated text and dependencies, every warning an error. The first
//! suite of `test`.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    context::{Context, forget_outer_cargo, run as run_command, step},
    docs,
    ebpf_toolchain::{Toolchain, cargo_home},
    tools::{self, Use},
};

/// The parts, in their order; each counts as one test.
pub(crate) const PARTS: [&str; 9] =
    ["fmt", "words", "clippy", "clippy-ebpf", "docs", "examples", "reference", "unused", "deny"];

/// Where the words stand that no other file may use.
const GLOSSARY: &str = "docs/glossary.md";

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
    match part {
        "words" => words(context),
        "reference" => docs::check(context),
        "deny" => {
            run_command(&mut command(context, part)?)?;
            advisories(context)
        }
        part => run_command(&mut command(context, part)?),
    }
}

/// No crate has a hole that the RustSec database tells of. Without the database a line says that this was not checked. It
/// runs after the other checks of `cargo deny`, which fetch what describes the crates, and needs no network itself.
fn advisories(context: &Context) -> Result<()> {
    if fs::read_dir(cargo_home()?.join("advisory-dbs")).is_ok_and(|mut entries| entries.next().is_some()) {
        return run_command(deny(context).args(["--offline", "check", "advisories"]));
    }
    step("check deny: advisories NOT checked: no database at hand (`cargo deny fetch db` gets one)");
    Ok(())
}

/// `cargo deny`, quiet but for errors; it reads `deny.toml`.
fn deny(context: &Context) -> Command {
    let mut command = from_tools(context, "cargo-deny");
    command.args(["--log-level", "error"]);
    command
}

/// A program of `target/tools`, about the workspace.
fn from_tools(context: &Context, name: &str) -> Command {
    let mut command = Command::new(context.target.join("tools/bin").join(name));
    forget_outer_cargo(&mut command);
    command.current_dir(&context.root);
    command
}

/// Code and documents use none of the words that the glossary retires.
fn words(context: &Context) -> Result<()> {
    let read = |path: &Path| fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    let retired = retired(&read(&context.root.join(GLOSSARY))?);
    ensure!(!retired.is_empty(), "{GLOSSARY} has no table of retired words");
    let mut found = Vec::new();
    for path in texts(&context.root)? {
        let name = path.strip_prefix(&context.root).unwrap_or(&path).display().to_string();
        if name == GLOSSARY {
            continue;
        }
        for (number, line) in read(&path)?.lines().enumerate() {
            found.extend(
                retired
                    .iter()
                    .filter(|word| uses(line, word))
                    .map(|word| format!("{name}:{}: \"{word}\": {}", number + 1, line.trim())),
            );
        }
    }
    ensure!(found.is_empty(), "words that {GLOSSARY} retires:\n{}", found.join("\n"));
    Ok(())
}

/// The first cells of the glossary's table of retired words, in lower case.
fn retired(glossary: &str) -> Vec<String> {
    let section = glossary.split_once("## Retired words").map_or("", |(_, section)| section);
    section
        .lines()
        .filter_map(|line| line.strip_prefix("| `")?.split_once('`'))
        .map(|(word, _)| word.to_lowercase())
        .collect()
}

/// True when the line has the word, and not only as a part of another.
fn uses(line: &str, word: &str) -> bool {
    let line = line.to_lowercase();
    let is_letter = |c: char| c.is_alphanumeric() || c == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_letter) && !line[at + word.len()..].starts_with(is_letter))
}

/// Every file of Rust or Markdown below a directory, what is built or hidden aside.
fn texts(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("read {}", directory.display()))?;
    for entry in entries {
        let path = entry.with_context(|| format!("read {}", directory.display()))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            if name != "target" && !name.starts_with('.') {
                found.extend(texts(&path)?);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs" || extension == "md") {
            found.push(path);
        }
    }
    Ok(found)
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
        "examples" => {
            command.args(["test", "--doc", "--workspace", "--exclude=retry-ebpf", "--no-fail-fast", "--quiet"]);
        }
        "unused" => {
            command = from_tools(context, "cargo-shear");
            command.arg("--locked");
        }
        "deny" => {
            command = deny(context);
            command.args(["check", "bans", "licenses", "sources"]);
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
    fn retired_words_are_found_as_whole_words() {
        let glossary = "| `kept` | x |\n## Retired words\n| word | instead |\n| --- | --- |\n| `Old Name` | new |\n| `foo` | bar |\n";
        assert_eq!(retired(glossary), ["old name", "foo"]);
        assert!(uses("// The old name of it.", "old name") && uses("Foo: bar", "foo"));
        assert!(!uses("fool, foo_bar, food", "foo"));
    }

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
