//! Ends everything, in the order in which it has to go.

use std::future::Future;
use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

use super::build::Kept;
use super::spawn::Running;
use crate::settings::Settings;

/// How long the threads of the data path may take to end.
const WORKERS_END: Duration = Duration::from_secs(2);
/// Between two looks whether a NACK still waits.
const LOOK: Duration = Duration::from_millis(20);

/// Ends what runs: the kernel program, the threads that take something new, what is in flight, the threads that finish it,
/// and then the tasks, for which threads may wait. What is in flight has `grace`, or until `hurry`.
pub(super) async fn drain(running: Running, settings: &Settings, grace: Duration, hurry: CancellationToken) {
    let Running { state, server, fill, workers, finishers, metrics, mut management, manage_until, cancel, .. } =
        running;
    let began = Instant::now();
    manage_until.cancel();
    // Before the threads: from here on the kernel leaves nothing to them. Without hand-over it answers nothing any more.
    let is_left = state.leave_datapath(settings.xdp.bpf_lease);
    if is_left {
        tracing::info!(lease = ?settings.xdp.bpf_lease, "the kernel answers and stores until the next daemon takes over");
    } else {
        state.end_datapath();
    }
    // The workers end on threads of their own; what they still wait for is done by tasks of this runtime.
    end_threads(move || {
        workers.stop(WORKERS_END);
        if is_left {
            fill.make_room_for_absence();
        }
    })
    .await;
    let in_flight = async {
        // It keeps to the grace by itself, and says so.
        if let Some(management) = &mut management {
            let _ = management.await;
        }
        while !server.is_idle() {
            tokio::time::sleep(LOOK).await;
        }
    };
    if !within(grace, &hurry, in_flight).await {
        tracing::warn!(after = ?began.elapsed(), "what was in flight is given up");
    }
    end_threads(move || finishers.stop(WORKERS_END)).await;
    if let Some(management) = management {
        management.abort();
    }
    cancel.cancel();
    metrics.abort();
    tracing::info!(after = ?began.elapsed(), "the drain has ended");
}

/// True when `work` was done in time.
async fn within(grace: Duration, hurry: &CancellationToken, work: impl Future<Output = ()>) -> bool {
    // Work that is done already needs no time.
    tokio::select! {
        biased;
        () = work => true,
        () = hurry.cancelled() => false,
        () = tokio::time::sleep(grace) => false,
    }
}

async fn end_threads(stop: impl FnOnce() + Send + 'static) {
    if let Err(error) = tokio::task::spawn_blocking(stop).await {
        tracing::warn!(%error, "the workers did not end well");
    }
}

/// Ends what stands also when the start came to nothing: the kernel program first, then the last export.
pub(super) async fn end(kept: Kept) {
    kept.state.end_datapath();
    if let Some(exporter) = kept.exporter
        && let Err(error) = tokio::task::spawn_blocking(move || exporter.shutdown()).await
    {
        tracing::warn!(%error, "the exporter did not end well");
    }
}
