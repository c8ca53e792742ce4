//! The listeners on real sockets, and a client that holds every answer against docs/openapi.json.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::Method;
use retry_userspace::parts::admin::manage::router;
use retry_userspace::parts::admin::{self, serve};
use retry_userspace::parts::settings::AdminToken;
use retry_userspace::parts::telemetry::LogLevel;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::contract;
use crate::daemon::OverLog;

/// Longest wait for what must come.
pub(crate) const SOON: Duration = Duration::from_secs(20);

/// The two listeners of the daemon.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Listener {
    /// `-admin-addr`.
    Api,
    /// `-metrics-addr`.
    Metrics,
}

/// A listener, served until the end of the test.
pub(crate) struct Api {
    pub(crate) backend: Arc<OverLog>,
    pub(crate) address: SocketAddr,
    pub(crate) cancel: CancellationToken,
    pub(crate) runtime: Runtime,
    pub(crate) serving: Option<JoinHandle<std::io::Result<()>>>,
    listener: Listener,
}

impl Api {
    pub(crate) fn open() -> Self {
        Self::with(None, SOON)
    }

    pub(crate) fn with(token: Option<&str>, patience: Duration) -> Self {
        let token = token.map(|token| AdminToken(token.into()));
        Self::serve(Listener::Api, patience, |backend| router(backend, token))
    }

    pub(crate) fn metrics(log_level: LogLevel) -> Self {
        Self::serve(Listener::Metrics, SOON, |backend| admin::router(backend, log_level, None))
    }

    fn serve(listener: Listener, patience: Duration, router: impl FnOnce(Arc<OverLog>) -> Router) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        let runtime = runtime.expect("a runtime");
        let backend = Arc::new(OverLog::new());
        let socket = runtime.block_on(TcpListener::bind("[::1]:0")).expect("loopback");
        let address = socket.local_addr().expect("bound");
        let cancel = CancellationToken::new();
        let serving = Some(runtime.spawn(serve(socket, router(Arc::clone(&backend)), cancel.clone(), patience)));
        Self { backend, address, cancel, runtime, serving, listener }
    }

    pub(crate) fn call(&self, method: Method, path: &str) -> Answer {
        self.send(Request::new(method, path))
    }

    pub(crate) fn put(&self, path: &str, body: &[u8]) -> Answer {
        self.send(Request { body: body.to_vec(), ..Request::new(Method::PUT, path) })
    }

    pub(crate) fn send(&self, request: Request) -> Answer {
        let mut connection = self.start(&request);
        // A server that has seen enough may close before it has read everything.
        drop(connection.stream.write_all(&request.body));
        connection.finish()
    }

    /// Sends the head of a request and nothing of its body.
    pub(crate) fn start(&self, request: &Request) -> Connection {
        let mut stream = TcpStream::connect_timeout(&self.address, SOON).expect("connected");
        stream.set_read_timeout(Some(SOON)).expect("an option");
        let Request { method, path, headers, body } = request;
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n", self.address);
        for (name, value) in headers {
            head.push_str(&format!("{name}: {value}\r\n"));
        }
        if !body.is_empty() {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        head.push_str("\r\n");
        stream.write_all(head.as_bytes()).expect("sent");
        Connection { stream, listener: self.listener, method: method.clone(), path: path.clone() }
    }

    /// The end of [`serve`].
    pub(crate) fn ended(&mut self) -> std::io::Result<()> {
        let serving = self.serving.take().expect("only once");
        self.runtime.block_on(async { tokio::time::timeout(SOON, serving).await }).expect("it ends").expect("no panic")
    }
}

/// Waits until `count` is above 0.
pub(crate) fn until_above_0(count: &AtomicUsize) {
    let mut patience = SOON.as_millis();
    while count.load(Ordering::SeqCst) == 0 {
        assert!(patience > 0, "it does not come");
        patience -= 1;
        std::thread::sleep(Duration::from_millis(1));
    }
}

pub(crate) struct Request {
    pub(crate) method: Method,
    pub(crate) path: String,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: Method, path: &str) -> Self {
        Self { method, path: path.to_owned(), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.push((name, value.to_owned()));
        self
    }
}

pub(crate) struct Connection {
    pub(crate) stream: TcpStream,
    listener: Listener,
    method: Method,
    path: String,
}

impl Connection {
    /// Reads the answer, and holds it against the document.
    pub(crate) fn finish(mut self) -> Answer {
        let mut all = Vec::new();
        self.stream.read_to_end(&mut all).expect("an answer");
        let end = all.windows(4).position(|four| four == b"\r\n\r\n").expect("a head");
        let head = String::from_utf8(all[..end].to_vec()).expect("ASCII");
        let mut lines = head.lines();
        let status = lines.next().and_then(|line| line.split(' ').nth(1)).and_then(|word| word.parse().ok());
        let headers = lines.filter_map(|line| line.split_once(": "));
        let answer = Answer {
            status: status.expect("a status"),
            headers: headers.map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned())).collect(),
            body: all[end + 4..].to_vec(),
        };
        contract::check(self.listener, &self.method, &self.path, &answer);
        answer
    }
}

#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(there, _)| there == name).map(|(_, value)| value.as_str())
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).expect("JSON")
    }

    /// Status, and the word for programs.
    pub(crate) fn error(&self) -> (u16, String) {
        (self.status, self.json()["error"].as_str().expect("a word").to_owned())
    }
}
