//! Where the API is served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Backend, router, serve};
use crate::settings::{AdminToken, Settings};

/// How long requests may go on after the end has begun.
const REQUESTS_END: Duration = Duration::from_secs(2);

/// Where the API is served, and to which callers.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `admin-addr`; port 0 takes a free one.
    pub address: SocketAddr,
    /// The token that every request has to carry, if any.
    pub token: Option<AdminToken>,
}

impl Config {
    /// As the settings ask; `None` without `-admin-addr`.
    #[must_use]
    pub(crate) fn from(settings: &Settings) -> Option<Self> {
        settings.admin.addr.map(|address| Self { address, token: settings.admin.token.clone() })
    }
}

/// The bound address; connections wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    token: Option<AdminToken>,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// What the system returns.
    pub(crate) async fn bind(config: Config) -> io::Result<Self> {
        Ok(Self { socket: TcpListener::bind(config.address).await?, token: config.token })
    }

    /// Serves the API over `backend`, in a task that ends with `cancel`: requests under way have two seconds.
    pub(crate) fn serve(self, backend: Arc<dyn Backend>, cancel: CancellationToken) -> JoinHandle<io::Result<()>> {
        tokio::spawn(serve(self.socket, router(backend, self.token), cancel, REQUESTS_END))
    }
}
