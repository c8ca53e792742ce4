//! The HTTP server of both addresses: what a client may take of it is bounded, so that the next one is served.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::Router;
use axum::extract::ConnectInfo;
use axum::http::StatusCode;
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::tls::Tls;

/// How long a connection may go without the whole head of a request: before the first one, and between two.
const HEAD: Duration = Duration::from_secs(10);
/// How long a request may take, its body included.
const REQUEST: Duration = Duration::from_secs(60);
/// How long an answer may wait for a client that does not take it.
const UNTAKEN: Duration = Duration::from_secs(30);
/// Connections at a time. One more ends the one that has been without a request for longest.
const MOST_CONNECTIONS: usize = 64;
/// After a connection that could not be taken.
const PAUSE: Duration = Duration::from_millis(100);

/// Serves `router` until `cancel`; then takes no new connection, and gives requests under way `patience` to end. Those
/// that take longer are ended.
///
/// Handlers find the client's address in the request's extensions, as [`ConnectInfo`].
///
/// # Errors
/// None today: a connection that cannot be taken is logged, and tried again.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    cancel: CancellationToken,
    patience: Duration,
) -> io::Result<()> {
    serve_by(listener, None, router, cancel, patience).await
}

/// As [`serve`], over TLS where there is some: a client has as long for its handshake as for the head of a request.
pub(super) async fn serve_by(
    listener: TcpListener,
    tls: Option<Tls>,
    router: Router,
    cancel: CancellationToken,
    patience: Duration,
) -> io::Result<()> {
    let (open, mut tasks) = (Arc::new(Open::default()), JoinSet::new());
    loop {
        let has_room = open.make_room();
        let accepted = tokio::select! {
            () = cancel.cancelled() => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            () = open.changed.notified(), if !has_room => continue,
            accepted = listener.accept(), if has_room => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                if let Err(error) = SockRef::from(&stream).set_tcp_user_timeout(Some(UNTAKEN)) {
                    tracing::debug!(%error, "TCP_USER_TIMEOUT is refused");
                }
                let (open, router, cancel, tls) = (Arc::clone(&open), router.clone(), cancel.clone(), tls.clone());
                tasks.spawn(async move {
                    let (number, connection) = open.enter();
                    match tls {
                        None => serve_one(stream, peer, router, cancel, &open, &connection).await,
                        Some(tls) => {
                            if let Some(stream) = shake(&tls, stream, peer, &cancel, &connection).await {
                                serve_one(stream, peer, router, cancel, &open, &connection).await;
                            }
                        }
                    }
                    open.leave(number);
                });
            }
            Err(error) => {
                // Out of files, mostly: the connection that is idle longest gives one back.
                tracing::warn!(%error, "cannot take an HTTP connection");
                open.end_longest_idle();
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    drop(listener);
    let all_ended = async { while tasks.join_next().await.is_some() {} };
    if tokio::time::timeout(patience, all_ended).await.is_err() {
        tracing::warn!(?patience, "HTTP requests did not end in time");
    }
    Ok(())
}

/// The handshake of TLS; `None` when there is none, in [`HEAD`] or before the connection has to go.
async fn shake(
    tls: &Tls,
    stream: TcpStream,
    peer: SocketAddr,
    cancel: &CancellationToken,
    connection: &Connection,
) -> Option<TlsStream<TcpStream>> {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(HEAD, tls.accept(stream)) => shaken,
        () = connection.end.cancelled() => return None,
        () = cancel.cancelled() => return None,
    };
    match shaken {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a TLS handshake failed"),
        Err(_) => tracing::debug!(%peer, "a TLS handshake did not end in time"),
    }
    None
}

/// Serves one connection until either side ends it.
async fn serve_one(
    stream: impl AsyncRead + AsyncWrite + Unpin,
    peer: SocketAddr,
    router: Router,
    cancel: CancellationToken,
    open: &Arc<Open>,
    connection: &Arc<Connection>,
) {
    let router = TowerToHyperService::new(router);
    let service = service_fn(|mut request: hyper::Request<Incoming>| {
        request.extensions_mut().insert(ConnectInfo(peer));
        let busy = Busy::begin(open, connection);
        let answer = router.call(request);
        async move {
            let _busy = busy;
            match tokio::time::timeout(REQUEST, answer).await {
                Ok(answer) => answer,
                Err(_) => Ok::<Response, Infallible>(StatusCode::REQUEST_TIMEOUT.into_response()),
            }
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD);
    let mut http = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let ended = tokio::select! {
        ended = http.as_mut() => Some(ended),
        () = connection.end.cancelled() => return,
        () = cancel.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            http.as_mut().graceful_shutdown();
            http.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%peer, %error, "an HTTP connection ended");
    }
}

/// The connections that are open.
#[derive(Default)]
struct Open {
    connections: Mutex<Connections>,
    /// Told when one has ended, or has no request any more.
    changed: Notify,
}

#[derive(Default)]
struct Connections {
    next: u64,
    /// By age, the oldest first.
    by_age: BTreeMap<u64, Arc<Connection>>,
}

/// One that is open.
#[derive(Default)]
struct Connection {
    /// Requests under way: none or one.
    requests: AtomicUsize,
    /// Ends it.
    end: CancellationToken,
}

impl Open {
    fn lock(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn enter(&self) -> (u64, Arc<Connection>) {
        let (mut all, connection) = (self.lock(), Arc::<Connection>::default());
        let number = all.next;
        all.next += 1;
        all.by_age.insert(number, Arc::clone(&connection));
        (number, connection)
    }

    fn leave(&self, number: u64) {
        self.lock().by_age.remove(&number);
        self.changed.notify_one();
    }

    /// True when one more may come, for which an idle one may have to go.
    fn make_room(&self) -> bool {
        let is_full = self.lock().by_age.len() >= MOST_CONNECTIONS;
        !is_full || self.end_longest_idle()
    }

    /// Ends the oldest connection without a request; false when each has one.
    fn end_longest_idle(&self) -> bool {
        let mut all = self.lock();
        let idle = all.by_age.iter().find(|(_, one)| one.requests.load(Ordering::Relaxed) == 0).map(|(at, _)| *at);
        let ended = idle.and_then(|number| all.by_age.remove(&number));
        if let Some(connection) = &ended {
            connection.end.cancel();
        }
        ended.is_some()
    }
}

/// A request under way on a connection.
struct Busy {
    open: Arc<Open>,
    connection: Arc<Connection>,
}

impl Busy {
    fn begin(open: &Arc<Open>, connection: &Arc<Connection>) -> Self {
        connection.requests.fetch_add(1, Ordering::Relaxed);
        Self { open: Arc::clone(open), connection: Arc::clone(connection) }
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.connection.requests.fetch_sub(1, Ordering::Relaxed);
        self.open.changed.notify_one();
    }
}
