//! The plain server's limits: a token bucket for each address, a window for each frame.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
};

use retry_common::limits::{TokenBucket, Window};

/// One multiplication: addresses need no better hash here.
#[derive(Default)]
struct Mix(u64);

impl Hasher for Mix {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u64::from(*byte)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "the halves are taken apart")]
    fn write_u128(&mut self, value: u128) {
        let mixed = ((value >> 64) as u64 ^ value as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ (mixed >> 29);
    }
}

/// Buckets by address, and what they allow.
pub(super) struct Limits {
    bucket: TokenBucket,
    window: Window,
    addresses: HashMap<u128, u64, BuildHasherDefault<Mix>>,
}

impl Limits {
    /// As far out of reach as those of the daemon under test.
    pub(super) fn out_of_reach() -> Self {
        Self {
            bucket: TokenBucket::new(1_000_000_000, 1_000_000),
            window: Window::new(Window::MAX, 100_000_000),
            addresses: HashMap::default(),
        }
    }

    /// Takes a token of an address.
    pub(super) fn admit(&mut self, address: [u8; 16], now_ns: u64) -> bool {
        let state = self.addresses.entry(u128::from_be_bytes(address)).or_default();
        self.bucket.take(*state, now_ns).map(|new| *state = new).is_some()
    }

    /// What a frame's window allows.
    pub(super) const fn window(&self) -> Window {
        self.window
    }
}
