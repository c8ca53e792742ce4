//! docs/configuration.md names settings that there are. Its tables are generated, and `cargo xtask check` holds them.

use super::*;

const DOCS: &str = include_str!("../../../../docs/configuration.md");

#[test]
fn no_setting_is_named_that_is_none() {
    for word in DOCS.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
        if let Some(name) = word.strip_prefix('-')
            && name.contains('-')
            && name.starts_with(|c: char| c.is_ascii_lowercase())
        {
            let is_flag = rows::find(name).is_some() || name == source::CHECK_CONFIG;
            assert!(is_flag, "docs/configuration.md names {word}");
        }
    }
}

#[test]
fn the_tables_have_one_row_per_setting() {
    let text = reference();
    for flag in all() {
        let begin = format!("| `{}`", flag.name);
        let rows: Vec<&str> = text.lines().filter(|line| line.starts_with(&begin)).collect();
        let [row] = rows.as_slice() else { panic!("{}: {rows:?}", flag.name) };
        let cells: Vec<&str> = row.trim_matches('|').split(" | ").map(str::trim).collect();
        assert!(cells.len() == 7 && cells.iter().all(|cell| !cell.is_empty()), "{row}");
    }
}
