//! Values as operators write them: numbers, sizes, words, switches. Each parser says in its error what it accepts.

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use retry_common::limits::Rate;

use super::duration;

/// A duration within bounds, named as the operator would write them.
pub(super) fn duration_in(text: &str, least: (Duration, &str), most: (Duration, &str)) -> Result<Duration, String> {
    let value = duration::parse(text)?;
    if value < least.0 || value > most.0 {
        return Err(format!("{} to {} is accepted", least.1, most.1));
    }
    Ok(value)
}

/// A whole number within bounds. Helm prints large ones with an exponent: `1e+06`.
pub(super) fn number<T>(text: &str, accepted: RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    let value = text.parse::<T>().ok().or_else(|| without_exponent(text)?.parse().ok());
    match value {
        Some(value) if accepted.contains(&value) => Ok(value),
        _ => Err(format!("a whole number from {} to {} is accepted", accepted.start(), accepted.end())),
    }
}

/// The digits of a whole number that is written with an exponent.
fn without_exponent(text: &str) -> Option<String> {
    let value = text.contains(['e', 'E']).then(|| text.parse::<f64>().ok())??;
    (value.is_finite() && value.fract() == 0.0).then(|| format!("{value:.0}"))
}

/// A number of at least 0 in millionths; `None` when it is none, above 10^12, or so small that it would count as 0.
pub(super) fn millionths(text: &str) -> Option<u64> {
    let value = text.parse::<f64>().ok().filter(|value| (0.0..=1e12).contains(value))?;
    let rounded = format!("{value:.6}").replace('.', "").parse().ok()?;
    (rounded > 0 || value == 0.0).then_some(rounded)
}

/// A rate in tokens per second, also a fraction; 0 is no limit.
pub(super) fn rate(text: &str) -> Result<Rate, String> {
    /// A token per nanosecond.
    const HIGHEST: u64 = 1_000_000_000 * MILLION;
    match millionths(text) {
        Some(0) => Ok(Rate::OFF),
        Some(rate @ 1..=HIGHEST) => Ok(Rate::every(HIGHEST / rate)),
        _ => Err("0, or a number from 0.000001 to 1000000000, is accepted".to_owned()),
    }
}

const MILLION: u64 = 1_000_000;

/// A share: 0 to 1.
pub(super) fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.0..=1.0).contains(&value) => Ok(value),
        _ => Err("a number from 0 to 1 is accepted".to_owned()),
    }
}

/// A factor of growth: 1 to 10.
pub(super) fn factor(text: &str) -> Result<f32, String> {
    match text.parse::<f32>() {
        Ok(value) if (1.0..=10.0).contains(&value) => Ok(value),
        _ => Err("a number from 1 to 10 is accepted".to_owned()),
    }
}

/// A path from the root.
pub(super) fn absolute_path(text: &str) -> Result<PathBuf, String> {
    match text {
        text if text.starts_with('/') => filled(text, "an absolute path").map(Into::into),
        _ => Err("an absolute path is accepted".to_owned()),
    }
}

/// The path of a file, or nothing.
pub(super) fn optional_path(text: &str) -> Result<Option<PathBuf>, String> {
    match text {
        "" => Ok(None),
        text => filled(text, "the path of a file").map(|path| Some(path.into())),
    }
}

/// As [`optional_path`], for a path that is shown.
pub(super) fn optional_text_path(text: &str) -> Result<Option<String>, String> {
    match text {
        "" => Ok(None),
        text => filled(text, "the path of a file").map(Some),
    }
}

/// `0x000B` or `11`.
pub(super) fn hex_or_decimal(text: &str) -> Result<u16, String> {
    let (digits, radix) = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => (hex, 16),
        None => (text, 10),
    };
    // A sign is no digit, though the parser takes it for one.
    let parsed = if digits.starts_with('+') { None } else { u16::from_str_radix(digits, radix).ok() };
    parsed.ok_or_else(|| "0x0000 to 0xFFFF, or the same in decimal, is accepted".to_owned())
}

/// `true`, `false` and Go's other ways to say so.
pub(super) fn boolean(text: &str) -> Result<bool, String> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err("true or false is accepted".to_owned()),
    }
}

/// `64m`, `8g`, `262144k` or bytes; between 16 MiB and 64 GiB.
pub(super) fn ring_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'k' | b'K') => (&text[..text.len() - 1], 10),
        Some(b'm' | b'M') => (&text[..text.len() - 1], 20),
        Some(b'g' | b'G') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift));
    bytes
        .filter(|bytes| (16 << 20..=64 << 30).contains(bytes))
        .ok_or_else(|| "16m to 64g is accepted (k, m, g, or bytes)".to_owned())
}

/// One of several words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("{} is accepted", all.join(", "))
    })
}

/// Any text but the empty one.
pub(super) fn filled(text: &str, what: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_control) {
        return Err(format!("{what} is accepted"));
    }
    Ok(text.to_owned())
}

/// The parts of a comma list. What a template leaves empty, such as the end after a last comma, is no part.
pub(super) fn parts(text: &str) -> impl Iterator<Item = &str> {
    text.split(',').map(str::trim).filter(|part| !part.is_empty())
}

/// Names separated by commas: at least one, at most 16, none twice.
pub(super) fn interfaces(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = parts(text).map(str::to_owned).collect();
    let twice = names.iter().enumerate().any(|(i, name)| names[..i].contains(name));
    if twice || names.is_empty() || names.len() > 16 || names.iter().any(|name| filled(name, "").is_err()) {
        return Err("1 to 16 interface names, comma separated, none twice, are accepted".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn sizes() {
        for (text, bytes) in
            [("256m", 256 << 20), ("8G", 8 << 30), ("64g", 64 << 30), ("16384k", 16 << 20), ("16777216", 16 << 20)]
        {
            assert_eq!(ring_size(text), Ok(bytes), "{text}");
        }
        for text in ["", "15m", "65g", "16777215", "m", "-1m", "1t", "256MiB", "1.5g", "1 g", "99999999999999g", "1µ"]
        {
            assert!(ring_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn group_ids() {
        for (text, id) in [("0x000B", 11), ("0Xb", 11), ("11", 11), ("0", 0), ("65535", 0xFFFF), ("0xFFFF", 0xFFFF)] {
            assert_eq!(hex_or_decimal(text), Ok(id), "{text}");
        }
        for text in ["", "0x", "0x10000", "65536", "B", "-1", "+1", "0x+1", "1.0"] {
            assert!(hex_or_decimal(text).is_err(), "{text}");
        }
    }

    #[test]
    fn interface_lists() {
        assert_eq!(interfaces("eth0, eth1"), Ok(vec!["eth0".to_owned(), "eth1".to_owned()]));
        assert_eq!(interfaces("eth0,"), Ok(vec!["eth0".to_owned()]));
        assert_eq!(interfaces("eth0,,eth1"), Ok(vec!["eth0".to_owned(), "eth1".to_owned()]));
        for text in ["", ",", " , ", "eth0,eth0", "eth0, eth0", "a,b,c,d,e,f,g,h,i,j,k,l,m,n,o,p,q"] {
            assert!(interfaces(text).is_err(), "{text}");
        }
    }

    #[test]
    fn whole_numbers_as_helm_prints_them() {
        for (text, value) in
            [("1e+06", 1_000_000), ("1.234567e+06", 1_234_567), ("5E2", 500), ("7", 7), ("-1e+01", -10)]
        {
            assert_eq!(number(text, i64::MIN..=i64::MAX), Ok(value), "{text}");
        }
        for text in ["1.5e+00", "1e", "e6", "1e999", "1.0", "0x1e3", "inf", "1e-1", "1 e3"] {
            assert!(number(text, i64::MIN..=i64::MAX).is_err(), "{text}");
        }
        assert!(number("1e+06", 0..=65_535u32).is_err(), "the bounds hold");
    }

    #[test]
    fn rates_may_be_fractions() {
        let every = |nanoseconds| Ok(Rate::every(nanoseconds));
        for (text, expected) in [
            ("0", Ok(Rate::OFF)),
            ("0.0", Ok(Rate::OFF)),
            ("100", Ok(Rate::from(100))),
            ("3", Ok(Rate::from(3))),
            ("1000000000", every(1)),
            ("1e+06", every(1_000)),
            ("0.5", every(2_000_000_000)),
            ("2.5", every(400_000_000)),
            ("0.000001", every(1_000_000_000_000_000)),
        ] {
            assert_eq!(rate(text), expected, "{text}");
        }
        for text in ["", "-1", "-0.5", "0.0000001", "1000000001", "NaN", "inf", "1/2", "0,5", "5%"] {
            assert!(rate(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(share("0"), Ok(0.0));
        assert_eq!(share("0.25"), Ok(0.25));
        for text in ["", "1.1", "-0.1", "NaN", "inf", "50%"] {
            assert!(share(text).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn bounds_hold(value: u32, least in 0u32..1000, most in 1000u32..100_000) {
            let read = number(&value.to_string(), least..=most);
            prop_assert_eq!(read.is_ok(), (least..=most).contains(&value));
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,20}") {
            let _ = (ring_size(&text), interfaces(&text), hex_or_decimal(&text), boolean(&text), share(&text), rate(&text));
        }
    }
}
