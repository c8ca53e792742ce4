//! The threads of the data path.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;

use super::StartError;

/// Threads that run until they are told to stop.
#[derive(Default)]
pub(super) struct Workers {
    stop: Arc<AtomicBool>,
    /// How many run.
    pub(super) ready: Arc<AtomicUsize>,
    pub(super) threads: Vec<(String, JoinHandle<io::Result<()>>)>,
}

impl Workers {
    /// Starts a thread.
    pub(super) fn start(
        &mut self,
        name: &str,
        work: impl FnOnce(&AtomicBool) -> io::Result<()> + Send + 'static,
    ) -> Result<(), StartError> {
        let (stop, ready) = (Arc::clone(&self.stop), Arc::clone(&self.ready));
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                ready.fetch_add(1, Ordering::Relaxed);
                let result = work(&stop);
                ready.fetch_sub(1, Ordering::Relaxed);
                result
            })
            .map_err(StartError::Thread)?;
        self.threads.push((name.to_owned(), thread));
        Ok(())
    }

    /// The first worker that ended although nobody asked it to.
    pub(super) fn failed(&mut self) -> Option<StartError> {
        let place = self.threads.iter().position(|(_, thread)| thread.is_finished())?;
        let (worker, thread) = self.threads.swap_remove(place);
        let why = match thread.join() {
            Ok(Ok(())) => "it had nothing left to do".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "it panicked".to_owned(),
        };
        Some(StartError::Worker { worker, why })
    }

    /// Tells all of them to stop, and waits.
    pub(super) fn stop(self) {
        self.stop.store(true, Ordering::Relaxed);
        for (worker, thread) in self.threads {
            if !matches!(thread.join(), Ok(Ok(()))) {
                tracing::warn!(worker, "did not end well");
            }
        }
    }
}
