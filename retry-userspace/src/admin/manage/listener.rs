//! Where the API is served.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::auth::CurrentToken;
use super::{Backend, routed};
use crate::admin::serve::serve_by;
use crate::admin::tls::Tls;
use crate::settings::Settings;

/// Where the API is served, and to which callers.
#[derive(Clone, Debug)]
pub(crate) struct Config {
    /// `admin-addr`; port 0 takes a free one.
    pub address: SocketAddr,
    /// The token that every request has to carry, if any.
    pub token: CurrentToken,
    /// TLS, if any.
    pub tls: Option<Tls>,
    /// `shutdown-grace`: how long requests may go on after the end has begun.
    pub grace: Duration,
}

impl Config {
    /// As the settings ask, with the token and the TLS in force; `None` without `-admin-addr`.
    #[must_use]
    pub(crate) fn from(settings: &Settings, token: &CurrentToken, tls: Option<&Tls>) -> Option<Self> {
        let admin = &settings.admin;
        admin.addr.map(|address| Self { address, token: token.clone(), tls: tls.cloned(), grace: admin.shutdown_grace })
    }
}

/// The bound address; connections wait until it is served.
#[derive(Debug)]
pub(crate) struct Listener {
    socket: TcpListener,
    token: CurrentToken,
    tls: Option<Tls>,
    grace: Duration,
}

impl Listener {
    /// Binds the address.
    ///
    /// # Errors
    /// What the system returns.
    pub(crate) async fn bind(config: Config) -> io::Result<Self> {
        let Config { address, token, tls, grace } = config;
        Ok(Self { socket: TcpListener::bind(address).await?, token, tls, grace })
    }

    /// Serves the API over `backend`, in a task that ends with `cancel`: requests under way have their grace.
    pub(crate) fn serve(self, backend: Arc<dyn Backend>, cancel: CancellationToken) -> JoinHandle<io::Result<()>> {
        tokio::spawn(serve_by(self.socket, self.tls, routed(backend, self.token), cancel, self.grace))
    }
}
