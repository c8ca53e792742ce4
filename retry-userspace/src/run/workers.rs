//! The threads of the data path.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::StartError;
use crate::stop_flag::StopFlag;

/// Between two looks whether a thread has ended.
const LOOK: Duration = Duration::from_millis(2);

/// Threads that run until they are told to stop.
#[derive(Default)]
pub(super) struct Workers {
    stop: StopFlag,
    /// How many run that readiness waits for.
    pub(super) ready: Arc<AtomicUsize>,
    threads: Vec<Worker>,
    /// Those among them that readiness waits for.
    counted: usize,
}

/// A thread.
struct Worker {
    name: String,
    stop: StopFlag,
    /// It is a dead daemon's sign when this thread hangs.
    is_watched: bool,
    thread: JoinHandle<io::Result<()>>,
}

impl Workers {
    /// Others, which count for the same readiness and are told to stop apart.
    pub(super) fn apart(&self) -> Self {
        Self { ready: Arc::clone(&self.ready), ..Self::default() }
    }

    /// Starts a thread that readiness waits for.
    pub(super) fn start(
        &mut self,
        name: &str,
        work: impl FnOnce(&StopFlag) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        let ready = Arc::clone(&self.ready);
        self.start_uncounted(name, move |stop| {
            ready.fetch_add(1, Ordering::Relaxed);
            let result = work(stop);
            ready.fetch_sub(1, Ordering::Relaxed);
            result
        })?;
        self.counted += 1;
        Ok(())
    }

    /// Starts a thread without which the daemon serves as well.
    pub(super) fn start_uncounted(
        &mut self,
        name: &str,
        work: impl FnOnce(&StopFlag) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        let its = self.stop.beside();
        let heard = its.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || work(&heard))
            .map_err(StartError::Thread)?;
        self.threads.push(Worker { name: name.to_owned(), stop: its, is_watched: true, thread });
        Ok(())
    }

    /// As [`Workers::start_uncounted`], for a thread that may take its time.
    pub(super) fn start_unwatched(
        &mut self,
        name: &str,
        work: impl FnOnce(&StopFlag) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        self.start_uncounted(name, work)?;
        if let Some(worker) = self.threads.last_mut() {
            worker.is_watched = false;
        }
        Ok(())
    }

    /// How many readiness waits for.
    pub(super) fn counted(&self) -> usize {
        self.counted
    }

    /// The first worker that ended although it was not asked to.
    pub(super) fn failed(&mut self) -> Option<StartError> {
        let place = self.threads.iter().position(|worker| worker.thread.is_finished())?;
        let Worker { name: worker, thread, .. } = self.threads.swap_remove(place);
        let why = match thread.join() {
            Ok(Ok(())) => "it had nothing left to do".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        Some(StartError::Worker { worker, why })
    }

    /// A thread that has made no step for longer than `patience`.
    pub(super) fn hung(&self, patience: Duration) -> Option<&str> {
        self.threads
            .iter()
            .find(|worker| worker.is_watched && worker.stop.is_overdue(patience))
            .map(|worker| worker.name.as_str())
    }

    /// Tells all of them to stop, and waits for them, but not for ever: the process ends with those that do not.
    pub(super) fn stop(self, patience: Duration) {
        self.stop.ask();
        let deadline = Instant::now() + patience;
        for Worker { name: worker, thread, .. } in self.threads {
            while !thread.is_finished() && Instant::now() < deadline {
                std::thread::sleep(LOOK);
            }
            if !thread.is_finished() {
                tracing::error!(worker, ?patience, "does not end: left behind");
            } else if !matches!(thread.join(), Ok(Ok(()))) {
                tracing::warn!(worker, "did not end well");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    /// A thread that looks whether it is to end makes progress; one that waits for what does not come hangs.
    #[test]
    fn a_thread_that_makes_no_step_hangs() {
        let mut workers = Workers::default();
        let works = |stop: &StopFlag| {
            while !stop.is_asked() {
                std::thread::sleep(LOOK);
            }
            Ok(())
        };
        workers.start("works", works).expect("a thread");
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(workers.hung(Duration::from_millis(200)), None);
        let (_never, forever) = std::sync::mpsc::channel::<()>();
        let hangs = move |_: &StopFlag| {
            let _ = forever.recv();
            Ok(())
        };
        workers.start("hangs", hangs).expect("a thread");
        assert_eq!(workers.hung(Duration::from_millis(200)), None);
        std::thread::sleep(Duration::from_millis(300));
        assert_eq!(workers.hung(Duration::from_millis(200)), Some("hangs"));
        workers.stop(Duration::from_millis(50));
    }

    #[test]
    fn a_thread_that_hangs_does_not_hold_up_the_end() {
        let mut workers = Workers::default();
        let (_never, forever) = std::sync::mpsc::channel::<()>();
        workers
            .start("hangs", move |_| {
                let _ = forever.recv();
                Ok(())
            })
            .expect("a thread");
        let ended = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&ended);
        workers
            .start("ends", move |stop| {
                while !stop.is_asked() {
                    std::thread::sleep(LOOK);
                }
                told.store(true, Ordering::Relaxed);
                Ok(())
            })
            .expect("a thread");
        let start = Instant::now();
        workers.stop(Duration::from_millis(200));
        assert!(start.elapsed() >= Duration::from_millis(200), "it was waited for");
        let deadline = Instant::now() + Duration::from_secs(10);
        while !ended.load(Ordering::Relaxed) && Instant::now() < deadline {
            std::thread::sleep(LOOK);
        }
        assert!(ended.load(Ordering::Relaxed), "all are told before any is waited for");
    }
}
