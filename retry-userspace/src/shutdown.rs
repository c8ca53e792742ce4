//! The end of the daemon.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal as on};

/// Watches from now on, also before it is awaited, and completes at SIGTERM or SIGINT: a signal that comes while the daemon
/// starts ends it in good order too. To be called on a runtime.
pub fn signal() -> impl Future<Output = ()> + Send {
    let signals = (on(SignalKind::terminate()), on(SignalKind::interrupt()));
    async move {
        let (Ok(mut terminate), Ok(mut interrupt)) = signals else {
            tracing::error!("cannot watch for signals: only SIGKILL ends this daemon");
            return std::future::pending().await;
        };
        let _: Option<()> = either(terminate.recv(), interrupt.recv()).await;
    }
}

async fn either<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    tokio::select! {
        out = a => out,
        out = b => out,
    }
}
