//! Where the metrics are served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::router;
use crate::metrics::Source;
use crate::settings::Settings;
use crate::telemetry::LogLevel;

/// Where the metrics are served.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Config {
    /// `metrics-addr`; port 0 takes a free one.
    pub address: SocketAddr,
}

impl From<&Settings> for Config {
    fn from(settings: &Settings) -> Self {
        Self { address: settings.admin.metrics_addr }
    }
}

/// The bound address; connections wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener(TcpListener);

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// What the system returns.
    pub(crate) async fn bind(config: Config) -> io::Result<Self> {
        TcpListener::bind(config.address).await.map(Self)
    }

    /// Serves the numbers of `source` and the log level, in a task that goes on until it is aborted.
    pub(crate) fn serve(self, source: Arc<dyn Source>, log_level: LogLevel) -> JoinHandle<io::Result<()>> {
        let http = axum::serve(self.0, router(source, log_level));
        tokio::spawn(async move { http.await })
    }
}
