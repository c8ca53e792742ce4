//! docs/configuration.md is the table of FLAGS.

use super::*;

const DOCUMENT: &str = include_str!("../../../../docs/configuration.md");

/// The row of a setting, as it must stand in the document.
fn row(flag: &Flag) -> String {
    let code = |text: &str| if text.is_empty() { String::new() } else { format!("`{text}`") };
    let names: Vec<String> = std::iter::once(&flag.name).chain(flag.aliases).map(|name| format!("`-{name}`")).collect();
    let variables: Vec<String> =
        std::iter::once(flag.env()).chain(flag.env_aliases()).map(|name| format!("`{name}`")).collect();
    let later = if flag.later { "*Not available yet.* " } else { "" };
    format!("| {} | {} | {} | {later}{} |", names.join(", "), variables.join(", "), code(flag.default), flag.help)
}

#[test]
fn the_table_and_the_flags_are_the_same() {
    let expected: Vec<String> = FLAGS.iter().map(row).collect();
    let written: Vec<&str> = DOCUMENT.lines().filter(|line| line.starts_with("| `-")).collect();
    let first = expected.iter().zip(&written).find(|(expected, written)| expected != *written);
    assert_eq!(first, None, "the first row that differs: as it must be, as it is");
    assert_eq!(written.len(), expected.len(), "the table must read:\n{}", expected.join("\n"));
}

#[test]
fn every_help_is_a_sentence_that_a_table_can_hold() {
    for flag in FLAGS {
        assert!(flag.help.ends_with('.') && !flag.help.contains(['|', '\n']), "-{}: {}", flag.name, flag.help);
    }
}
