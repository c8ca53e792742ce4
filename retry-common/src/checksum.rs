//! Ones'-complement sums (RFC 1071): of bytes, of stored sums, and the UDP checksum over IPv6 (RFC 8200 section 8.1).

/// Folds a sum of 16-bit words into 16 bits.
#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "two folds of 32 bits leave 16")]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The sum of two folded sums.
#[inline(always)]
pub const fn add(a: u16, b: u16) -> u16 {
    fold(a as u64 + b as u64)
}

/// The sum of `bytes`, folded, not inverted. An odd last byte is padded with zero.
pub fn partial(bytes: &[u8]) -> u16 {
    let (words, rest) = bytes.as_chunks::<8>();
    // 2^31 words would have to come together before this overflows.
    let mut sum = 0u64;
    for word in words {
        let word = u64::from_be_bytes(*word);
        sum += (word >> 32) + (word & 0xffff_ffff);
    }
    let mut last = [0u8; 8];
    for (to, from) in last.iter_mut().zip(rest) {
        *to = *from;
    }
    let word = u64::from_be_bytes(last);
    fold(sum + (word >> 32) + (word & 0xffff_ffff))
}

/// The sum of 16 bytes: an address, or an answer.
#[inline(always)]
pub const fn partial_16(bytes: &[u8; 16]) -> u16 {
    fold(sum_16(bytes))
}

/// The sum of 64 bytes: a NACK.
#[inline(always)]
pub const fn partial_64(bytes: &[u8; 64]) -> u16 {
    let ([a, b, c, d], _) = bytes.as_chunks::<16>() else { return 0 };
    fold(sum_16(a) + sum_16(b) + sum_16(c) + sum_16(d))
}

#[inline(always)]
#[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart")]
const fn sum_16(bytes: &[u8; 16]) -> u64 {
    let both = u128::from_be_bytes(*bytes);
    let (high, low) = ((both >> 64) as u64, both as u64);
    (high >> 32) + (high & 0xffff_ffff) + (low >> 32) + (low & 0xffff_ffff)
}

/// What stands in the checksum field of a UDP datagram over IPv6 that a device is to finish: the sum of the pseudo-header
/// (RFC 8200 section 8.1), not inverted. `payload_len` is in bytes.
#[inline(always)]
pub const fn udp_ipv6_unfinished(source: &[u8; 16], destination: &[u8; 16], payload_len: u16) -> u16 {
    fold(pseudo_header(source, destination, payload_len))
}

#[inline(always)]
const fn pseudo_header(source: &[u8; 16], destination: &[u8; 16], payload_len: u16) -> u64 {
    const UDP: u64 = 17;
    sum_16(source) + sum_16(destination) + UDP + payload_len as u64 + 8
}

/// The checksum field of a UDP datagram over IPv6 whose payload has `payload_len` bytes and the sum `payload_partial`.
#[inline(always)]
pub const fn udp_ipv6(
    source: &[u8; 16],
    destination: &[u8; 16],
    source_port: u16,
    destination_port: u16,
    payload_len: u16,
    payload_partial: u16,
) -> u16 {
    // The length stands in the pseudo-header and in the UDP header.
    let sum = pseudo_header(source, destination, payload_len)
        + payload_len as u64
        + 8
        + source_port as u64
        + destination_port as u64
        + payload_partial as u64;
    // 0 would say that there is no checksum.
    match !fold(sum) {
        0 => 0xffff,
        checksum => checksum,
    }
}

/// The checksum after one 16-bit word has changed (RFC 1624, equation 3).
#[inline(always)]
pub const fn update(checksum: u16, old_word: u16, new_word: u16) -> u16 {
    !fold(!checksum as u64 + !old_word as u64 + new_word as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    extern crate std;
    use std::vec::Vec;

    /// RFC 1071 section 4.1, word by word.
    fn rfc1071(bytes: &[u8]) -> u16 {
        let mut sum = 0u32;
        for pair in bytes.chunks(2) {
            sum += u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0));
            sum = (sum & 0xffff) + (sum >> 16);
        }
        u16::try_from(sum).unwrap()
    }

    /// RFC 8200 section 8.1: a checksum of zero is sent as 0xffff.
    #[test]
    fn a_checksum_is_never_zero() {
        let address = [0; 16];
        // What the pseudo-header and the UDP header add up to without payload: the rest of it makes 0xffff.
        let headers = 17 + 2 * 8;
        assert_eq!(udp_ipv6(&address, &address, 0, 0, 0, 0xffff - headers), 0xffff);
        assert_eq!(udp_ipv6(&address, &address, 0, 0, 0, 0xfffe - headers), 0x0001);
    }

    proptest! {
        #[test]
        fn partial_is_rfc1071(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
            prop_assert_eq!(partial(&bytes), rfc1071(&bytes));
        }

        #[test]
        fn sums_of_even_parts_add_up(bytes in prop::collection::vec(any::<u8>(), 0..400), cut in 0usize..200) {
            let (head, rest) = bytes.split_at((2 * cut).min(bytes.len()));
            prop_assert_eq!(add(partial(head), partial(rest)), rfc1071(&bytes));
        }

        #[test]
        fn sixteen_bytes_are_summed_like_any_others(bytes: [u8; 16]) {
            prop_assert_eq!(partial_16(&bytes), rfc1071(&bytes));
        }

        #[test]
        fn sixty_four_bytes_are_summed_like_any_others(bytes: [u8; 64]) {
            prop_assert_eq!(partial_64(&bytes), rfc1071(&bytes));
        }

        #[test]
        fn fold_is_the_remainder_with_zero_only_for_zero(sum: u64) {
            // Ones' complement counts modulo 2^16 - 1, with 0xffff in place of 0.
            let expected = match u16::try_from(sum % 0xffff).unwrap() { 0 if sum != 0 => 0xffff, other => other };
            prop_assert_eq!(fold(sum), expected);
        }

        #[test]
        fn udp_is_rfc1071_over_the_pseudo_header(
            source: [u8; 16], destination: [u8; 16], ports: (u16, u16), payload in prop::collection::vec(any::<u8>(), 0..300),
        ) {
            let length = u16::try_from(payload.len()).unwrap();
            let checksum = udp_ipv6(&source, &destination, ports.0, ports.1, length, partial(&payload));
            let mut all: Vec<u8> = Vec::new();
            all.extend(source);
            all.extend(destination);
            all.extend(u32::from(length + 8).to_be_bytes());
            all.extend([0, 0, 0, 17]);
            all.extend(ports.0.to_be_bytes());
            all.extend(ports.1.to_be_bytes());
            all.extend((length + 8).to_be_bytes());
            all.extend([0, 0]);
            all.extend(&payload);
            let expected = match !rfc1071(&all) { 0 => 0xffff, other => other };
            prop_assert_eq!(checksum, expected);
        }

        #[test]
        fn update_equals_summing_anew(mut bytes in prop::collection::vec(any::<u8>(), 2..40), word: u16) {
            prop_assume!(bytes.len() % 2 == 0 && bytes.iter().skip(2).any(|b| *b != 0));
            let before = !rfc1071(&bytes);
            let old = u16::from_be_bytes([bytes[0], bytes[1]]);
            bytes[..2].copy_from_slice(&word.to_be_bytes());
            prop_assert_eq!(update(before, old, word), !rfc1071(&bytes));
        }
    }
}
