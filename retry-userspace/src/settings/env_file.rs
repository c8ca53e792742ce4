//! The file of variables (`-env-file`), as systemd reads its `EnvironmentFile=` (systemd.exec(5)).
//!
//! A daemon cannot see that such a file has changed: its environment is that of its start. So it reads the file itself.

use std::collections::HashMap;
use std::io;

use super::error::SettingsError;
use super::text_file;

/// The variables of the file at `path`, by name. A dash before the path means, as with systemd, that the file need not be
/// there; one that this user may not read counts as not there then, but only at the start, where the service manager has read it.
/// `setting` names the file in refusals.
///
/// # Errors
/// The file cannot be read, or a line is none.
pub(super) fn read(path: &str, setting: &str, is_start: bool) -> Result<HashMap<String, String>, SettingsError> {
    let (may_lack, file) = match path.strip_prefix('-') {
        Some(file) => (true, file),
        None => (false, path),
    };
    let refuse = |accepted: String| SettingsError::Value { setting: setting.to_owned(), accepted };
    let text = match text_file::read(file) {
        Ok(text) => text,
        Err(error) if may_lack && error.kind() == io::ErrorKind::NotFound => return Ok(HashMap::new()),
        Err(error) if may_lack && is_start && error.kind() == io::ErrorKind::PermissionDenied => {
            return Ok(HashMap::new());
        }
        Err(error) => return Err(refuse(format!("a readable file is accepted: {error}"))),
    };
    parse(&text).map_err(|line| refuse(format!("line {line}: NAME=VALUE is accepted")))
}

/// Where in a value a character stands.
#[derive(Clone, Copy, Eq, PartialEq)]
enum Quote {
    None,
    Single,
    Double,
}

/// The variables of a text; of one that is set twice the last counts. The error is the number of a line.
fn parse(text: &str) -> Result<HashMap<String, String>, usize> {
    let mut variables = HashMap::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(['#', ';']) {
            continue;
        }
        let (name, begin) = line.split_once('=').ok_or(number + 1)?;
        let name = name.trim_end();
        if name.is_empty() || !name.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'_') {
            return Err(number + 1);
        }
        let value = value(begin, || lines.next().map(|(_, line)| line)).ok_or(number + 1)?;
        variables.insert(name.to_owned(), value);
    }
    Ok(variables)
}

/// A value that begins with `line`; `more` has the lines below it, for a value in quotation marks or behind a backslash. `None`
/// when a quotation mark is not closed.
fn value<'a>(line: &'a str, mut more: impl FnMut() -> Option<&'a str>) -> Option<String> {
    let (mut value, mut quote, mut line) = (String::new(), Quote::None, line.trim_start());
    // Blanks at the end count only inside quotation marks, or behind a backslash.
    let mut kept = 0;
    loop {
        let mut characters = line.chars();
        let mut goes_on = false;
        while let Some(c) = characters.next() {
            match (quote, c) {
                (Quote::None, '\'') => quote = Quote::Single,
                (Quote::None, '"') => quote = Quote::Double,
                (Quote::Single, '\'') | (Quote::Double, '"') => quote = Quote::None,
                (Quote::None | Quote::Double, '\\') => match characters.next() {
                    None => goes_on = true,
                    // Inside double quotation marks a backslash is itself before most characters.
                    Some(c) => {
                        if quote == Quote::Double && !matches!(c, '"' | '\\' | '`' | '$') {
                            value.push('\\');
                        }
                        value.push(c);
                    }
                },
                (_, c) => value.push(c),
            }
            if quote != Quote::None || !c.is_whitespace() {
                kept = value.len();
            }
        }
        if quote != Quote::None && !goes_on {
            value.push('\n');
        } else if !goes_on {
            value.truncate(kept);
            return Some(value);
        }
        line = match more() {
            Some(line) => line,
            None if quote == Quote::None => return Some(value),
            None => return None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `systemd-run -p EnvironmentFile=` of systemd 252 passes them on.
    #[test]
    fn lines_are_read_as_systemd_reads_them() {
        for (text, value) in [
            ("A=1", "1"),
            ("A=1\nA=2\n", "2"),
            ("  A = 1 ", "1"),
            ("A=", ""),
            ("A=a b  c ", "a b  c"),
            ("A=\"a b \"", "a b "),
            ("A='a \\ b'", "a \\ b"),
            ("A=\"a\\\"b\\$c\\d\"", "a\"b$c\\d"),
            ("A=a\\ \\b", "a b"),
            ("A=one\\\ntwo", "onetwo"),
            ("A=\"one\ntwo\"", "one\ntwo"),
            ("A=x'y z'\"w\"", "xy zw"),
            ("A=$HOME", "$HOME"),
            ("A=1 # no comment", "1 # no comment"),
            ("A=b=c", "b=c"),
        ] {
            let read = parse(text).unwrap_or_else(|line| panic!("{text:?}: line {line}"));
            assert_eq!(read.get("A").map(String::as_str), Some(value), "{text:?}");
        }
        assert_eq!(parse("# A=1\n; B=2\n\n   # C=3"), Ok(HashMap::new()));
    }

    #[test]
    fn a_line_that_is_none_is_told_by_its_number() {
        for (text, line) in
            [("A=1\nB", 2), ("export A=1", 1), ("=1", 1), ("A-B=1", 1), ("\nA='x", 2), ("A=1\n\nB=\"x\n", 3)]
        {
            assert_eq!(parse(text), Err(line), "{text:?}");
        }
    }
}
