//! Prefixes of IPv6 addresses as operators write them: on the command line, and in a file of rules.

use std::net::Ipv6Addr;

use retry_common::acl::Prefix;

use super::values::parts;

/// What is accepted as a prefix.
pub(crate) const ACCEPTED: &str =
    "an IPv6 address, or address/length with no bit set behind the length, such as fd10::/64, is accepted";

/// A prefix; an address alone is one of 128 bits.
///
/// # Errors
/// What is accepted.
pub(crate) fn prefix(text: &str) -> Result<Prefix, String> {
    let (address, length) = text.split_once('/').unwrap_or((text, "128"));
    let is_number = !length.is_empty() && length.bytes().all(|digit| digit.is_ascii_digit());
    let length = is_number.then(|| length.parse().ok().filter(|length| *length <= 128)).flatten();
    let (Ok(address), Some(length)) = (address.parse::<Ipv6Addr>(), length) else {
        return Err(ACCEPTED.to_owned());
    };
    Prefix::new(address, length).ok_or_else(|| format!("{ACCEPTED}; perhaps {} is meant", Prefix::of(address, length)))
}

/// Prefixes, comma separated; none is accepted.
pub(super) fn prefixes(text: &str) -> Result<Vec<Prefix>, String> {
    parts(text).map(prefix).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_as_operators_write_them() {
        let shown = |text| prefixes(text).map(|all| all.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "));
        assert_eq!(shown(""), Ok(String::new()));
        assert_eq!(shown("fd10::/64, fd11::1,::/0"), Ok("fd10::/64 fd11::1/128 ::/0".to_owned()));
        assert_eq!(shown("::ffff:10.0.0.0/104"), Ok("::ffff:10.0.0.0/104".to_owned()));
        for text in
            ["fd10::/129", "fd10::/", "fd10::/+4", "fd10::/-1", "10.0.0.0/8", "host", "fd10::/64/1", "fe80::1%eth0"]
        {
            assert_eq!(prefix(text), Err(ACCEPTED.to_owned()), "{text}");
        }
        assert_eq!(prefix("fd10::1/64"), Err(format!("{ACCEPTED}; perhaps fd10::/64 is meant")));
    }
}
