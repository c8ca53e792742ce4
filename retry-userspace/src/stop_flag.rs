//! How a thread is told to end, and how others see that it makes progress.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::clock::{monotonic_ns, nanoseconds};

/// The order to end that a thread looks at between two steps of its work. Each look is noted: a thread that has not looked
/// for long hangs.
///
/// Clones are handles of one thread's.
#[derive(Clone, Debug)]
pub(crate) struct StopFlag {
    /// Shared by all threads that end together.
    asked: Arc<AtomicBool>,
    /// When the thread last looked, nanoseconds of the monotonic clock.
    looked_ns: Arc<AtomicU64>,
}

impl Default for StopFlag {
    fn default() -> Self {
        Self { asked: Arc::default(), looked_ns: Arc::new(AtomicU64::new(monotonic_ns())) }
    }
}

impl StopFlag {
    /// That of another thread that ends together with this one.
    pub(crate) fn beside(&self) -> Self {
        Self { asked: Arc::clone(&self.asked), ..Self::default() }
    }

    /// Orders all threads that end together to end.
    pub(crate) fn ask(&self) {
        self.asked.store(true, Ordering::Relaxed);
    }

    /// True when the thread is to end. For the thread itself: it is a sign of progress.
    pub(crate) fn is_asked(&self) -> bool {
        self.looked_ns.store(monotonic_ns(), Ordering::Relaxed);
        self.asked.load(Ordering::Relaxed)
    }

    /// True when the thread has not looked for longer than `patience`.
    pub(crate) fn is_overdue(&self, patience: Duration) -> bool {
        let looked_ns = self.looked_ns.load(Ordering::Relaxed);
        monotonic_ns().saturating_sub(looked_ns) > nanoseconds(patience)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thread_that_does_not_look_is_overdue() {
        let (one, other) = (StopFlag::default(), StopFlag::default().beside());
        let patience = Duration::from_millis(20);
        std::thread::sleep(patience * 2);
        assert!(one.is_overdue(patience) && other.is_overdue(patience));
        assert!(!one.is_asked());
        assert!(!one.clone().is_overdue(patience), "it has just looked");
        assert!(one.is_overdue(Duration::ZERO));
    }

    #[test]
    fn threads_that_end_together_are_asked_together() {
        let one = StopFlag::default();
        let beside = one.beside();
        one.ask();
        assert!(beside.is_asked() && !StopFlag::default().is_asked());
    }
}
