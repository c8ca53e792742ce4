//! Ends everything, in the order in which it has to go.

use std::time::Duration;

use super::build::Kept;
use super::spawn::Running;

/// How long the threads of the data path may take to end.
const WORKERS_END: Duration = Duration::from_secs(2);

/// Ends what runs: the management API, the kernel program, the threads, and then the tasks, for which threads may wait.
pub(super) async fn drain(running: Running) {
    let Running { state, workers, metrics, management, manage_until, cancel, .. } = running;
    manage_until.cancel();
    if let Some(management) = management {
        let _ = management.await;
    }
    // Before the threads: from here on nothing is answered from a log that is not filled.
    state.end_datapath();
    // The workers end on threads of their own; what they still wait for is done by tasks of this runtime.
    let stopped = tokio::task::spawn_blocking(move || workers.stop(WORKERS_END)).await;
    if let Err(error) = stopped {
        tracing::warn!(%error, "the workers did not end well");
    }
    cancel.cancel();
    metrics.abort();
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
