//! `docs`: what is generated in docs/, from what the code says. `check reference` compares instead of writing.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::context::{Context, output, step};

/// Below its mark, this document has the tables of all settings.
const CONFIGURATION: &str = "docs/configuration.md";
/// Everything behind this line is generated.
const MARK: &str = "<!-- the settings: written by cargo xtask docs -->\n";

/// Writes the generated text.
///
/// # Errors
/// The program that prints it cannot be built or run, or the document has no mark.
pub(crate) fn run(context: &Context) -> Result<()> {
    let (path, old) = configuration(context)?;
    let new = with_tables(&old, &tables(context)?)?;
    if new == old {
        step(format_args!("{CONFIGURATION} is current"));
        return Ok(());
    }
    step(format_args!("write {CONFIGURATION}"));
    fs::write(&path, new).with_context(|| format!("write {}", path.display()))
}

/// Compares the generated text with what the code says now.
///
/// # Errors
/// The document is stale, or as for [`run`].
pub(crate) fn check(context: &Context) -> Result<()> {
    let (_, old) = configuration(context)?;
    let new = with_tables(&old, &tables(context)?)?;
    let Some((is, should)) = first_difference(&old, &new) else { return Ok(()) };
    bail!("{CONFIGURATION} is stale: run `cargo xtask docs`\n- {is}\n+ {should}")
}

fn configuration(context: &Context) -> Result<(PathBuf, String)> {
    let path = context.root.join(CONFIGURATION);
    let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
    Ok((path, text))
}

/// The tables, printed by the code that the daemon parses its settings with.
fn tables(context: &Context) -> Result<String> {
    let mut command = context.cargo();
    command.args(["run", "--quiet", "--package", "retry-userspace", "--example", "settings_reference"]);
    output(&mut command)
}

fn with_tables(document: &str, tables: &str) -> Result<String> {
    let (head, _) =
        document.split_once(MARK).with_context(|| format!("{CONFIGURATION} has no line {}", MARK.trim()))?;
    Ok(format!("{head}{MARK}{tables}"))
}

/// The first line that differs, as it is and as it should be.
fn first_difference<'a>(is: &'a str, should: &'a str) -> Option<(&'a str, &'a str)> {
    let (mut is, mut should) = (is.lines(), should.lines());
    loop {
        match (is.next(), should.next()) {
            (None, None) => return None,
            (is, should) if is != should => return Some((is.unwrap_or_default(), should.unwrap_or_default())),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_below_the_mark_is_replaced() {
        let document = format!("# Configuration\n\n{MARK}old\n");
        let new = with_tables(&document, "\n## New\n").expect("a mark");
        assert_eq!(new, format!("# Configuration\n\n{MARK}\n## New\n"));
        assert!(with_tables("no mark", "").is_err());
    }

    #[test]
    fn a_stale_line_is_named() {
        assert_eq!(first_difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(first_difference("a\nb\n", "a\nc\n"), Some(("b", "c")));
        assert_eq!(first_difference("a\nb\n", "a\n"), Some(("b", "")));
        assert_eq!(first_difference("a\n", "a\nb\n"), Some(("", "b")));
    }
}
