//! Values as operators write them. Each parser says in its error what it accepts.

use std::net::{Ipv6Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::Flag;

/// Go's notation: `300ms`, `1m30s`, `1.5h`, `0`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    const ACCEPTED: &str = "a duration such as 300ms, 10s, 1m30s or 1.5h is accepted";
    let refuse = || ACCEPTED.to_owned();
    let text = text.strip_prefix('+').unwrap_or(text);
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut total_ns: u128 = 0;
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or_else(refuse)?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, next) = after.split_at(letters);
        let unit_ns: u128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => 3_600_000_000_000,
            _ => return Err(refuse()),
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() || fraction.len() > 18 || fraction.contains('.') {
            return Err(refuse());
        }
        let part = |digits: &str| {
            if digits.is_empty() { Ok(0) } else { digits.parse::<u64>().map(u128::from) }
        };
        let scale = 10u128.pow(u32::try_from(fraction.len()).map_err(|_| refuse())?);
        let whole = part(whole).map_err(|_| refuse())?;
        let fraction = part(fraction).map_err(|_| refuse())?;
        total_ns += whole * unit_ns + fraction * unit_ns / scale;
        rest = next;
    }
    u64::try_from(total_ns).map(Duration::from_nanos).map_err(|_| refuse())
}

/// A duration within bounds, named as the operator would write them.
pub(super) fn duration_in(text: &str, least: (Duration, &str), most: (Duration, &str)) -> Result<Duration, String> {
    let value = duration(text)?;
    if value < least.0 || value > most.0 {
        return Err(format!("{} to {} is accepted", least.1, most.1));
    }
    Ok(value)
}

/// A whole number within bounds.
pub(super) fn number<T>(text: &str, accepted: RangeInclusive<T>) -> Result<T, String>
where
    T: std::str::FromStr + PartialOrd + std::fmt::Display,
{
    match text.parse::<T>() {
        Ok(value) if accepted.contains(&value) => Ok(value),
        _ => Err(format!("a whole number from {} to {} is accepted", accepted.start(), accepted.end())),
    }
}

/// `0x000B` or `11`.
pub(super) fn hex_or_decimal(text: &str) -> Result<u16, String> {
    let parsed = match text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        Some(hex) => u16::from_str_radix(hex, 16),
        None => text.parse(),
    };
    parsed.map_err(|_| "0x0000 to 0xFFFF, or the same in decimal, is accepted".to_owned())
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
    let refuse = || "16m to 64g is accepted (k, m, g, or bytes)".to_owned();
    let lower = text.to_ascii_lowercase();
    let (digits, shift) = match lower.as_bytes().last() {
        Some(b'k') => (&lower[..lower.len() - 1], 10),
        Some(b'm') => (&lower[..lower.len() - 1], 20),
        Some(b'g') => (&lower[..lower.len() - 1], 30),
        _ => (lower.as_str(), 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|n| n.checked_mul(1 << shift)).ok_or_else(refuse)?;
    if (16 << 20..=64 << 30).contains(&bytes) { Ok(bytes) } else { Err(refuse()) }
}

/// One of several words.
pub(super) fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    words.iter().find(|(word, _)| *word == text).map(|(_, value)| *value).ok_or_else(|| {
        let all: Vec<&str> = words.iter().map(|(word, _)| *word).collect();
        format!("{} is accepted", all.join(", "))
    })
}

/// An IPv6 address that can be a unicast source, or nothing.
pub(super) fn optional_address(text: &str) -> Result<Option<Ipv6Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    match text.parse::<Ipv6Addr>() {
        Ok(address) if !address.is_multicast() && !address.is_unspecified() => Ok(Some(address)),
        _ => Err("an IPv6 unicast address such as fd10::20 is accepted".to_owned()),
    }
}

/// `:9400`, `[::1]:9400`, `127.0.0.1:9400`.
pub(super) fn listen_address(text: &str) -> Result<SocketAddr, String> {
    let whole = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
    whole.parse().map_err(|_| ":port or address:port is accepted, IPv6 addresses in brackets".to_owned())
}

/// An absolute path: the daemon's working directory is nobody's choice.
pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    if text.starts_with('/') { Ok(text.into()) } else { Err("an absolute path is accepted".to_owned()) }
}

/// True when a text says what a setting's default says: `1m` is `60s`, `0` is `false`.
pub(super) fn same(flag: &Flag, text: &str) -> bool {
    fn read<T: PartialEq, E>(parse: impl Fn(&str) -> Result<T, E>, text: &str, default: &str) -> bool {
        matches!((parse(text), parse(default)), (Ok(text), Ok(default)) if text == default)
    }
    text == flag.default
        || if flag.switch {
            read(boolean, text, flag.default)
        } else {
            read(duration, text, flag.default) || read(str::parse::<f64>, text, flag.default)
        }
}

/// Names separated by commas: at least one, at most 16, none twice.
pub(super) fn interfaces(text: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = text.split(',').map(|name| name.trim().to_owned()).collect();
    let twice = names.iter().enumerate().any(|(i, name)| names[..i].contains(name));
    if twice || names.len() > 16 || names.iter().any(String::is_empty) {
        return Err("1 to 16 interface names, comma separated, none twice, are accepted".to_owned());
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn durations_are_gos() {
        let ms = Duration::from_millis;
        for (text, expected) in [
            ("0", ms(0)),
            ("0s", ms(0)),
            ("300ms", ms(300)),
            ("10s", ms(10_000)),
            ("1m30s", ms(90_000)),
            ("1.5h", ms(5_400_000)),
            (".5s", ms(500)),
            ("1h1m1s1ms", ms(3_661_001)),
            ("+5s", ms(5_000)),
        ] {
            assert_eq!(duration(text), Ok(expected), "{text}");
        }
        for text in ["", "5", "s", "1x", "-5s", "1..5s", "1 s", ".s", "5s3", "99999999999999999999s", "1e3s"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn sizes() {
        assert_eq!(ring_size("256m"), Ok(256 << 20));
        assert_eq!(ring_size("8G"), Ok(8 << 30));
        assert_eq!(ring_size("16777216"), Ok(16 << 20));
        for text in ["", "15m", "65g", "m", "-1m", "1t", "99999999999999g"] {
            assert!(ring_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn listen_addresses() {
        assert_eq!(listen_address(":9400"), Ok("[::]:9400".parse().unwrap()));
        assert_eq!(listen_address("127.0.0.1:1"), Ok("127.0.0.1:1".parse().unwrap()));
        assert!(listen_address("9400").is_err());
    }

    proptest! {
        #[test]
        fn any_sum_of_parts_is_read(h in 0u64..1000, m in 0u64..1000, s in 0u64..1000, ms in 0u64..1000) {
            let total = Duration::from_millis(((h * 60 + m) * 60 + s) * 1000 + ms);
            prop_assert_eq!(duration(&format!("{h}h{m}m{s}s{ms}ms")), Ok(total));
        }

        #[test]
        fn no_text_panics(text in ".{0,20}") {
            let _ = duration(&text);
            let _ = ring_size(&text);
            let _ = listen_address(&text);
            let _ = interfaces(&text);
            let _ = hex_or_decimal(&text);
        }
    }
}
