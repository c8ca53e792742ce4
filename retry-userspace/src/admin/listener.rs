//! Where the metrics are served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::manage::auth::CurrentToken;
use super::routed;
use super::serve::serve;
use super::status::{self, History, StatusSource};
use crate::settings::Settings;
use crate::telemetry::LogLevel;

/// Where the metrics are served.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `metrics-addr`; port 0 takes a free one.
    pub address: SocketAddr,
    /// The token that other hosts need to change the log level; none: they cannot.
    pub token: CurrentToken,
}

impl Config {
    /// As the settings ask, with the token in force.
    pub(crate) fn from(settings: &Settings, token: &CurrentToken) -> Self {
        Self { address: settings.admin.metrics_addr, token: token.clone() }
    }
}

/// The bound address; connections wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    token: CurrentToken,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// What the system returns.
    pub(crate) async fn bind(config: Config) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(config.address).await?, token: config.token })
    }

    /// Serves the numbers of `source`, its status page and the log level, in a task that goes on until it is aborted.
    pub(crate) fn serve(self, source: Arc<dyn StatusSource>, log_level: LogLevel) -> JoinHandle<io::Result<()>> {
        let history = Arc::<History>::default();
        let router = routed(Arc::clone(&source), Arc::clone(&history), log_level, self.token);
        tokio::spawn(async move {
            tokio::select! {
                ended = serve(self.socket, router, CancellationToken::new(), Duration::ZERO) => ended,
                () = status::keep(history, source) => Ok(()),
            }
        })
    }
}
