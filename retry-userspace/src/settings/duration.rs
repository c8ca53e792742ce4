//! Durations in the notation of Go's `time.ParseDuration`: `300ms`, `1m30s`, `1.5h`, `0`.
//!
//! Our own parser: the crates at hand either know no fractions or accept spaces, words and other notations besides, and
//! then a value that works here would stop the Go program on the next host.

use std::time::Duration;

const ACCEPTED: &str = "a duration such as 300ms, 10s, 1m30s or 1.5h is accepted";

/// Reads a duration that is not negative, at most 2^63 − 1 ns, as Go has it. What is finer than 1 ns is cut off.
///
/// # Errors
/// What is accepted.
pub(crate) fn parse(text: &str) -> Result<Duration, String> {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    match nanoseconds(unsigned) {
        Some(0) => Ok(Duration::ZERO),
        Some(ns) if !text.starts_with('-') => Ok(Duration::from_nanos(ns)),
        _ => Err(ACCEPTED.to_owned()),
    }
}

fn nanoseconds(text: &str) -> Option<u64> {
    if text == "0" {
        return Some(0);
    }
    let mut rest = text;
    let mut total = 0u64;
    loop {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        total = total.checked_add(part(number, unit_ns(unit)?)?)?;
        if next.is_empty() {
            return Some(total).filter(|ns| i64::try_from(*ns).is_ok());
        }
        rest = next;
    }
}

const fn unit_ns(unit: &str) -> Option<u64> {
    Some(match unit.as_bytes() {
        b"ns" => 1,
        // U+00B5 and U+03BC.
        b"us" | b"\xc2\xb5s" | b"\xce\xbcs" => 1_000,
        b"ms" => 1_000_000,
        b"s" => 1_000_000_000,
        b"m" => 60_000_000_000,
        b"h" => 3_600_000_000_000,
        _ => return None,
    })
}

/// `1`, `1.`, `.5` or `1.5` of a unit.
fn part(number: &str, unit_ns: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return None;
    }
    let whole = if whole.is_empty() { 0 } else { whole.parse::<u64>().ok()? };
    // Digit by digit, so that a fraction of any length is read; an hour has 13 digits of nanoseconds.
    let (mut scale, mut of_scale) = (1u64, 0u64);
    for digit in fraction.bytes().take(18) {
        scale *= 10;
        of_scale = of_scale * 10 + u64::from(digit - b'0');
    }
    let cut = u128::from(of_scale) * u128::from(unit_ns) / u128::from(scale);
    whole.checked_mul(unit_ns)?.checked_add(u64::try_from(cut).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn what_go_accepts() {
        let ms = Duration::from_millis;
        let ns = Duration::from_nanos;
        for (text, expected) in [
            ("0", ms(0)),
            ("+0", ms(0)),
            ("-0", ms(0)),
            ("0s", ms(0)),
            ("-0h", ms(0)),
            ("300ms", ms(300)),
            ("10s", ms(10_000)),
            ("+5s", ms(5_000)),
            ("1m30s", ms(90_000)),
            ("30s1m", ms(90_000)),
            ("1.5h", ms(5_400_000)),
            ("1.5h30m", ms(7_200_000)),
            (".5s", ms(500)),
            ("1.s", ms(1_000)),
            ("1h1m1s1ms", ms(3_661_001)),
            ("12us", ns(12_000)),
            ("12µs", ns(12_000)),
            ("12μs", ns(12_000)),
            ("7ns", ns(7)),
            ("1.9ns", ns(1)),
            ("0.333333333333333333333333h", ns(1_199_999_999_999)),
            ("9223372036854775807ns", ns(9_223_372_036_854_775_807)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_go_refuses() {
        for text in [
            "",
            "+",
            "-",
            "5",
            "1.5",
            "s",
            ".",
            ".s",
            "1x",
            "1..5s",
            "1.2.3s",
            "1 s",
            " 1s",
            "1s ",
            "5s3",
            "1e3s",
            "1S",
            "1M",
            "1d",
            "++1s",
            "1s-1s",
            "１s",
            "0x1s",
            "9223372036854775808ns",
            "2562048h",
            "99999999999999999999s",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_negative_time_is_refused() {
        assert_eq!(parse("-5s"), Err(ACCEPTED.to_owned()));
    }

    const UNITS: [(&str, u64); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];

    proptest! {
        #[test]
        fn parts_in_any_order_add_up(parts in prop::collection::vec((0u64..1000, 0usize..7), 1..8)) {
            let text: String = parts.iter().map(|(n, unit)| format!("{n}{}", UNITS[*unit].0)).collect();
            let total: u64 = parts.iter().map(|(n, unit)| n * UNITS[*unit].1).sum();
            prop_assert_eq!(parse(&text), Ok(Duration::from_nanos(total)));
        }

        /// Three decimals of a unit are thousandths of it, cut to whole nanoseconds.
        #[test]
        fn decimals_are_exact(whole in 0u64..1000, thousandths in 0u64..1000, unit in 0usize..7) {
            let (name, ns) = UNITS[unit];
            let expected = Duration::from_nanos(whole * ns + thousandths * ns / 1000);
            prop_assert_eq!(parse(&format!("{whole}.{thousandths:03}{name}")), Ok(expected));
        }

        #[test]
        fn the_grammar_is_accepted(text in r"\+?(([0-9]{1,3}(\.[0-9]{0,25})?|\.[0-9]{1,25})(ns|us|µs|μs|ms|s|m|h)){1,5}") {
            prop_assert!(parse(&text).is_ok(), "{}", text);
        }

        #[test]
        fn a_number_without_unit_is_refused(text in r"([0-9]{1,3}(s|ms))?[0-9]{0,3}[1-9]\.?[0-9]{0,3}") {
            prop_assert!(parse(&text).is_err(), "{}", text);
        }

        #[test]
        fn nothing_else_is_accepted(text in r"[0-9.+\-smhnuµ ]{0,12}") {
            let grammar = |text: &str| {
                let body = text.strip_prefix(['+', '-']).unwrap_or(text);
                body == "0" || !body.is_empty() && takes_all(body)
            };
            if parse(&text).is_ok() {
                prop_assert!(grammar(&text), "{}", text);
            }
        }

        #[test]
        fn no_text_panics(text in "\\PC{0,40}") {
            let _ = parse(&text);
        }
    }

    /// The grammar again, written as a machine that eats one part after the other.
    fn takes_all(text: &str) -> bool {
        if text.is_empty() {
            return true;
        }
        let after_whole = text.trim_start_matches(|c: char| c.is_ascii_digit());
        let after_point = after_whole.strip_prefix('.').unwrap_or(after_whole);
        let after_number = after_point.trim_start_matches(|c: char| c.is_ascii_digit());
        let digits = text.len() - after_number.len() - (after_whole.len() - after_point.len());
        digits > 0
            && UNITS.iter().any(|(unit, _)| {
                after_number.strip_prefix(unit).is_some_and(|rest| {
                    (rest.is_empty() || rest.starts_with(|c: char| c.is_ascii_digit() || c == '.')) && takes_all(rest)
                })
            })
    }
}
