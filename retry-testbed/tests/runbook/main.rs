//! The runbook works: every shell command of docs/operations.md runs as it stands there, beside a real daemon with XDP in the
//! driver and the kernel's fill, while the fault of its section is there, and shows what the section says that it shows.
//!
//! A section that has commands has a test, and its test runs all of them. Needs root; each test makes namespaces of its own.
#![expect(clippy::print_stdout, reason = "what the commands show is what to read when a test fails")]

mod document;

mod daemon;
mod guides;
mod instances;
mod limits;
mod links;
mod sources;
mod store;

/// A section with commands and no test is found here.
#[test]
fn every_section_with_commands_has_a_test() {
    let tried =
        [daemon::SECTIONS, instances::SECTIONS, limits::SECTIONS, links::SECTIONS, sources::SECTIONS, store::SECTIONS]
            .concat();
    let with_commands = document::sections_with_commands();
    assert!(with_commands.len() > 12, "{with_commands:?}");
    let without: Vec<_> = with_commands.iter().filter(|section| !tried.contains(&section.as_str())).collect();
    assert!(without.is_empty(), "no test runs the commands of {without:?}");
    for section in tried {
        assert!(with_commands.iter().any(|one| one == section), "{section} has no commands");
    }
}
