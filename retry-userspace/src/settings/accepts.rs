//! What a setting accepts: its type, unit and bounds in words for the documents, and the parser that holds a text to them.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use super::values;

type Parse<T> = Box<dyn Fn(&str) -> Result<T, String>>;

/// The type, unit and bounds of a setting.
pub(super) struct Accepts<T> {
    /// In words, such as "1ms to 1h".
    pub(super) words: String,
    /// True when `-name` alone means `-name=true`.
    pub(super) is_switch: bool,
    /// The text's value; the error says what is accepted.
    pub(super) parse: Parse<T>,
}

/// A bound of durations, and how an operator would write it.
pub(super) type Bound = (Duration, &'static str);

pub(super) const ZERO: Bound = (Duration::ZERO, "0");
pub(super) const MILLISECOND: Bound = (Duration::from_millis(1), "1ms");
pub(super) const TENTH: Bound = (Duration::from_millis(100), "100ms");
pub(super) const SECOND: Bound = (Duration::from_secs(1), "1s");
pub(super) const HOUR: Bound = (Duration::from_secs(3600), "1h");
/// What the field's configuration bounds by nothing is accepted up to here: no sum of times and no word overflows.
pub(super) const YEAR: Bound = (Duration::from_secs(365 * 24 * 3600), "8760h");

/// What `parse` reads, described by `words`.
pub(super) fn any<T: 'static>(
    words: impl Into<String>,
    parse: impl Fn(&str) -> Result<T, String> + 'static,
) -> Accepts<T> {
    Accepts { words: words.into(), is_switch: false, parse: Box::new(parse) }
}

/// True or false; a switch needs no value on the command line.
pub(super) fn switch() -> Accepts<bool> {
    Accepts { is_switch: true, ..any("true, false", values::boolean) }
}

/// A whole number within bounds.
pub(super) fn whole<T>(bounds: RangeInclusive<T>) -> Accepts<T>
where
    T: FromStr + PartialOrd + Display + Clone + 'static,
{
    let words = format!("{} to {}", bounds.start(), bounds.end());
    any(words, move |text| values::number(text, bounds.clone()))
}

/// A UDP port.
pub(super) fn port() -> Accepts<u16> {
    whole(1..=u16::MAX)
}

/// A duration within bounds.
pub(super) fn time(least: Bound, most: Bound) -> Accepts<Duration> {
    any(format!("{} to {}", least.1, most.1), move |text| values::duration_in(text, least, most))
}

/// One of several words.
pub(super) fn one_of<T: Copy + 'static>(words: &'static [(&'static str, T)]) -> Accepts<T> {
    let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
    any(all.join(", "), move |text| values::word(text, words))
}

/// What `accepts` does, or nothing.
pub(super) fn optional<T: 'static>(accepts: Accepts<T>) -> Accepts<Option<T>> {
    let Accepts { words, parse, .. } = accepts;
    any(words, move |text| if text.is_empty() { Ok(None) } else { parse(text).map(Some) })
}
