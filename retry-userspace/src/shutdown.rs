//! The end of the daemon.

use std::future::Future;

use tokio::signal::unix::{SignalKind, signal as on};

/// Completes at SIGTERM or SIGINT.
pub async fn signal() {
    let (Ok(mut terminate), Ok(mut interrupt)) = (on(SignalKind::terminate()), on(SignalKind::interrupt())) else {
        tracing::error!("cannot watch for signals: only SIGKILL ends this daemon");
        return std::future::pending().await;
    };
    let _: Option<()> = either(terminate.recv(), interrupt.recv()).await;
}

async fn either<T>(a: impl Future<Output = T>, b: impl Future<Output = T>) -> T {
    tokio::select! {
        out = a => out,
        out = b => out,
    }
}
