//! The tables of docs/configuration.md, made from the rows.

use std::fmt::Write as _;

use super::rows::{Flag, groups};

/// A heading and a Markdown table per group of settings: what docs/configuration.md has below its mark.
pub fn reference() -> String {
    let mut text = String::new();
    for group in groups() {
        let _ = write!(
            text,
            "\n## {}\n\n| flag | variable | default | accepted | changes | meaning | consequence |\n\
             | --- | --- | --- | --- | --- | --- | --- |\n",
            group.title
        );
        for flag in &group.flags {
            text.push_str(&row(flag));
        }
    }
    text
}

fn row(flag: &Flag) -> String {
    let code = |text: &str| format!("`{text}`");
    let also = |former: Vec<String>| match former.as_slice() {
        [] => String::new(),
        former => format!(" (also {})", former.join(", ")),
    };
    let name = code(flag.name) + &also(flag.aliases.iter().map(|alias| code(alias.flag)).collect());
    let env = code(flag.env) + &also(flag.aliases.iter().map(|alias| code(alias.env)).collect());
    let default = if flag.default.is_empty() { "not set".to_owned() } else { code(flag.default) };
    let changes = if flag.live { "live" } else { "restart" };
    format!(
        "| {name} | {env} | {default} | {} | {changes} | {} | {} |\n",
        flag.accepted, flag.meaning, flag.consequence
    )
}
