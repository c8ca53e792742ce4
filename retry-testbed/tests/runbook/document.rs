//! The commands of docs/operations.md, and how a test runs them.

use std::cell::RefCell;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use retry_testbed::net::netns::Netns;
use retry_testbed::scene::binary;

const DOCUMENT: &str = include_str!("../../../docs/operations.md");
/// The section whose first block sets the variables of all others.
const FIRST: &str = "Before you begin";

/// Defines one test per section of the document; the test fails when it leaves one of the section's commands out.
macro_rules! sections {
    ($($title:literal => $body:ident: $test:ident;)*) => {
        /// The sections whose commands are run here.
        pub(crate) const SECTIONS: &[&str] = &[$($title),*];

        $(
            #[test]
            fn $test() {
                if retry_testbed::scene::is_root(stringify!($test)) {
                    let section = crate::document::Section::open($title);
                    $body(&section);
                    section.end();
                }
            }
        )*
    };
}
pub(crate) use sections;

/// Title and commands of each section.
fn all() -> Vec<(String, Vec<String>)> {
    let mut sections: Vec<(String, Vec<String>)> = Vec::new();
    let mut block: Option<Vec<&str>> = None;
    for line in DOCUMENT.lines() {
        let trimmed = line.trim_start();
        match &mut block {
            None if trimmed == "```sh" => block = Some(Vec::new()),
            None => {
                if let Some(title) = line.strip_prefix("## ") {
                    sections.push((title.to_owned(), Vec::new()));
                }
            }
            Some(lines) if trimmed == "```" => {
                let (_, commands) = sections.last_mut().expect("a block stands in a section");
                commands.extend(split(lines));
                block = None;
            }
            Some(lines) => lines.push(line),
        }
    }
    sections
}

/// One command per line; a function is one command, to its closing brace.
fn split(lines: &[&str]) -> Vec<String> {
    let mut commands = Vec::new();
    let mut function: Option<String> = None;
    for line in lines {
        if let Some(mut text) = function.take() {
            text.push('\n');
            text.push_str(line);
            if *line == "}" {
                commands.push(text);
            } else {
                function = Some(text);
            }
        } else if line.ends_with("() {") {
            function = Some((*line).to_owned());
        } else if !line.trim().is_empty() && !line.trim_start().starts_with('#') {
            commands.push(line.trim().to_owned());
        }
    }
    assert_eq!(function, None, "a function ends");
    commands
}

/// The titles of all sections that have commands.
pub(crate) fn sections_with_commands() -> Vec<String> {
    all().into_iter().filter(|(_, commands)| !commands.is_empty()).map(|(title, _)| title).collect()
}

/// Whether a command only sets what others use.
fn is_definition(command: &str) -> bool {
    ["http=", "api=", "PINS=", "seen() {"].iter().any(|start| command.starts_with(start))
}

/// What a command did.
#[derive(Debug)]
pub(crate) struct Said {
    /// Its exit code.
    pub(crate) code: Option<i32>,
    /// Its stdout.
    pub(crate) out: String,
}

impl Said {
    /// Asserts that the output holds all of `words`, and returns it.
    #[track_caller]
    pub(crate) fn shows(&self, words: &[&str]) -> &str {
        for word in words {
            assert!(self.out.contains(word), "no {word:?} in what it shows:\n{}", self.out);
        }
        &self.out
    }
}

/// One section, and which of its commands have been run.
pub(crate) struct Section {
    title: &'static str,
    commands: Vec<String>,
    ran: RefCell<Vec<bool>>,
    definitions: String,
}

impl Section {
    pub(crate) fn open(title: &'static str) -> Self {
        let sections = all();
        let commands_of = |wanted: &str| {
            let found = sections.iter().find(|(one, _)| one == wanted);
            found.expect("a section of this title").1.clone()
        };
        let definitions: Vec<_> = commands_of(FIRST).into_iter().filter(|command| is_definition(command)).collect();
        assert_eq!(definitions.len(), 4, "{definitions:?}");
        let commands: Vec<_> = commands_of(title).into_iter().filter(|command| !is_definition(command)).collect();
        let ran = RefCell::new(vec![false; commands.len()]);
        Self { title, commands, ran, definitions: definitions.join("\n") }
    }

    /// Runs the section's command that has these words, in a namespace, as it stands in the document.
    pub(crate) fn run(&self, ns: &Netns, words: &str) -> Said {
        self.run_with(ns, words, &[])
    }

    /// As [`Section::run`], while `asks` is called again and again.
    #[track_caller]
    pub(crate) fn run_while(&self, ns: &Netns, words: &str, asks: impl Fn() + Sync) -> Said {
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !ended.load(Ordering::Relaxed) {
                    asks();
                    std::thread::sleep(Duration::from_millis(10));
                }
            });
            let said = self.run(ns, words);
            ended.store(true, Ordering::Relaxed);
            said
        })
    }

    /// As [`Section::run`], with the document's examples (names, addresses, numbers) replaced by those of the test. Where two
    /// commands have the words, it is the first that has not been run.
    #[track_caller]
    pub(crate) fn run_with(&self, ns: &Netns, words: &str, examples: &[(&str, &str)]) -> Said {
        let has = |at: &usize| self.commands[*at].contains(words);
        let at = {
            let ran = self.ran.borrow();
            let places = || (0..self.commands.len()).filter(has);
            let place = places().find(|at| !ran[*at]).or_else(|| places().last());
            assert!(place.is_some(), "{}: no command with {words:?} in {:#?}", self.title, self.commands);
            place.expect("seen above")
        };
        self.ran.borrow_mut()[at] = true;
        let mut command = self.commands[at].clone();
        for (example, here) in examples {
            assert!(command.contains(example), "no {example:?} in {command}");
            command = command.replace(example, here);
        }
        let directory = binary().parent().map(Path::to_owned).expect("a directory");
        let path = std::env::var("PATH").expect("a search path");
        let script = format!("{}\n{command}\n", self.definitions);
        let mut shell = ns.command("sh").expect("a command");
        shell.args(["-c", &script]).env("PATH", format!("{}:{path}:/usr/sbin:/sbin", directory.display()));
        let output = shell.stdin(std::process::Stdio::null()).output().expect("sh starts");
        let (out, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        let is_missing = output.status.code() == Some(127) || errors.contains("not found");
        assert!(!is_missing, "a tool is missing: {command}: {errors}");
        println!("$ {command}\n{out}{errors}");
        Said { code: output.status.code(), out: out.into_owned() }
    }

    /// Every command has been run.
    pub(crate) fn end(&self) {
        let left: Vec<_> =
            self.commands.iter().zip(self.ran.borrow().iter()).filter(|(_, ran)| !**ran).map(|(one, _)| one).collect();
        assert!(left.is_empty(), "{}: the test runs none of {left:#?}", self.title);
    }
}
