//! The listener of the API, and its end.

use std::future::IntoFuture;
use std::io;
use std::time::Duration;

use axum::Router;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves `router` until `cancel`; then takes no new connection, and gives requests under way `patience` to end. Those
/// that take longer are waited for no more: they end with the runtime.
///
/// # Errors
/// What the system returns for the listener.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
    patience: Duration,
) -> io::Result<()> {
    let serving = axum::serve(listener, router).with_graceful_shutdown(cancel.clone().cancelled_owned());
    let too_late = async {
        cancel.cancelled().await;
        tokio::time::sleep(patience).await;
    };
    tokio::select! {
        ended = serving.into_future() => ended,
        () = too_late => {
            tracing::warn!(?patience, "requests of the management API did not end in time");
            Ok(())
        }
    }
}
