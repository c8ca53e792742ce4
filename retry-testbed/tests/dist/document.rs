//! The commands of docs/install.md.

const DOCUMENT: &str = include_str!("../../../docs/install.md");

/// The section's text.
fn section(title: &str) -> &'static str {
    let (_, rest) = DOCUMENT.split_once(&format!("\n## {title}\n")).unwrap_or_else(|| panic!("no section {title}"));
    rest.split_once("\n## ").map_or(rest, |(section, _)| section)
}

/// The blocks of shell commands of a section.
pub(crate) fn blocks(title: &str) -> Vec<String> {
    let blocks = section(title).split("```sh\n").skip(1);
    blocks.map(|block| block.split_once("```").expect("a block ends").0.to_owned()).collect()
}

/// The titles of the sections that have commands.
pub(crate) fn sections_with_commands() -> Vec<&'static str> {
    let titles = DOCUMENT.lines().filter_map(|line| line.strip_prefix("## "));
    titles.filter(|title| !blocks(title).is_empty()).collect()
}

/// The document's text.
pub(crate) fn text() -> &'static str {
    DOCUMENT
}
