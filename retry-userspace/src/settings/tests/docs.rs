//! docs/configuration.md says what the program does.

use super::*;

const DOCS: &str = include_str!("../../../../docs/configuration.md");

fn row(flag: &Flag) -> String {
    let code = |text: &str| format!("`{text}`");
    let also = |others: Vec<String>| match others.as_slice() {
        [] => String::new(),
        others => format!(" (also {})", others.join(", ")),
    };
    let name = code(flag.name) + &also(flag.aliases.iter().map(|alias| code(alias)).collect());
    let env = code(&flag.env()) + &also(flag.env_aliases().map(|alias| code(&alias)).collect());
    let default = if flag.default.is_empty() { "not set".to_owned() } else { code(flag.default) };
    format!("| {name} | {env} | {default} | {} | {} |", flag.meaning, flag.consequence)
}

#[test]
fn the_tables_hold_every_setting_and_nothing_else() {
    let mut expected = Vec::new();
    for group in GROUPS {
        expected.push(format!("## {}", group.title));
        expected.extend(group.flags.iter().map(row));
    }
    let (_, tables) = DOCS.split_once("<!-- the settings -->\n").expect("the mark before the tables");
    let found: Vec<&str> = tables.lines().filter(|line| line.starts_with("## ") || line.starts_with("| `")).collect();
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "docs/configuration.md and settings/table.rs differ");
    }
    assert_eq!(found.len(), expected.len(), "rows of docs/configuration.md");
}

#[test]
fn no_setting_is_named_that_is_none() {
    for word in DOCS.split(|c: char| !c.is_ascii_alphanumeric() && c != '-' && c != '_') {
        if let Some(name) = word.strip_prefix('-')
            && name.contains('-')
            && name.starts_with(|c: char| c.is_ascii_lowercase())
        {
            assert!(flags::find(name).is_some(), "docs/configuration.md names {word}");
        }
    }
}
