//! How instances that share a store keep from sending the same repair.

use std::time::Duration;

use retry_common::holddown::HoldDown;

use crate::settings::{DedupMode, Settings};

/// Whether they do, and how.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Config {
    /// `dedup-mode`; `None` where instances keep from nothing: without a shared store or a window.
    pub mode: Option<DedupMode>,
    /// `dedup-window`: life of a claim; zero without a mode.
    pub window: Duration,
    /// How long another instance's claim silences us: `dedup-repeat-after`, else the window, and at most as long as the hold-down
    /// table counts; zero without a mode.
    pub repeat_after: Duration,
}

impl Config {
    /// Instances tell each other of their multicast repairs.
    #[must_use]
    pub(crate) fn announces(&self) -> bool {
        self.mode == Some(DedupMode::Eventual)
    }

    /// Instances claim a multicast repair before they send it.
    #[must_use]
    pub(crate) fn is_strict(&self) -> bool {
        self.mode == Some(DedupMode::Strict)
    }
}

impl From<&Settings> for Config {
    fn from(settings: &Settings) -> Self {
        let dedup = &settings.dedup;
        // Whether there are multicast repairs changes while the daemon runs.
        if settings.redis.nodes.is_empty() || dedup.window.is_zero() {
            return Self { mode: None, window: Duration::ZERO, repeat_after: Duration::ZERO };
        }
        let repeat_after = if dedup.repeat_after.is_zero() { dedup.window } else { dedup.repeat_after };
        let longest = Duration::from_nanos(HoldDown::LONGEST_NS);
        Self { mode: Some(dedup.mode), window: dedup.window, repeat_after: repeat_after.min(longest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(flags: &[&str]) -> Config {
        let args = ["retry-endpoint"].iter().chain(flags).map(Into::into);
        Config::from(&Settings::from_args_and_env(args, |_| None::<String>).expect("right settings"))
    }

    #[test]
    fn it_needs_a_store_and_a_window() {
        let store = "-redis-addr=redis1:6379";
        let on = config(&[store, "-dedup-window=30s", "-dedup-mode=strict"]);
        assert_eq!((on.mode, on.window), (Some(DedupMode::Strict), Duration::from_secs(30)));
        for flags in [&["-dedup-window=30s"][..], &[store, "-dedup-window=0s"]] {
            let off = config(flags);
            assert_eq!(off, Config { mode: None, window: Duration::ZERO, repeat_after: Duration::ZERO }, "{flags:?}");
        }
    }

    #[test]
    fn another_instances_claim_silences_for_the_window_unless_told_otherwise() {
        for (flag, seconds) in [("-dedup-repeat-after=2s", 2), ("-dedup-repeat-after=0s", 30)] {
            let config = config(&["-redis-addr=redis1:6379", "-dedup-window=30s", flag]);
            assert_eq!(config.repeat_after, Duration::from_secs(seconds), "{flag}");
        }
        let year = config(&["-redis-addr=redis1:6379", "-dedup-window=8760h", "-dedup-repeat-after=0s"]);
        assert_eq!(year.window, Duration::from_secs(8760 * 3600));
        assert_eq!(year.repeat_after, Duration::from_nanos(HoldDown::LONGEST_NS));
    }
}
