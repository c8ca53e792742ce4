//! The connection to the store: kept up by one task, used by all, left alone while the breaker is open.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use futures_util::future::try_join_all;
use redis::{Cmd, RedisError, Value};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::fault::{Cause, Fault, is_end, is_refusal, judge};
use super::target::{Connection, Target, bracketed};
use super::{Node, Unavailable};
use crate::backoff::{GaveUp, Retry};
use crate::settings::Redis;

/// How often a connection is tried, so that its loss shows before a request needs it.
pub(super) const PULSE: Duration = Duration::from_secs(2);
/// Pulses in a row without an answer after which the server is taken to be gone. A server that loses its power
/// closes no connection, and TCP alone finds out after a quarter of an hour.
const SILENT: u32 = 2;

/// The state of a node that the cluster has given up.
const FAILED: &str = "failed";

struct Live {
    connection: Connection,
    number: u64,
}

/// The connection.
pub(super) struct Link {
    target: Arc<Target>,
    live: ArcSwapOption<Live>,
    numbers: AtomicU64,
    lost: Notify,
    up: Notify,
    /// Tries again, with the breaker that all share.
    pub(super) retry: Retry,
    /// Tries once, with the same breaker.
    once: Retry,
    op_timeout: Duration,
    /// Why there is no connection, or what the server refuses; `None` while all is well.
    why: Mutex<Option<String>>,
    /// The cause of the loss that was told last; `None` while the store is there.
    told_down: Mutex<Option<Cause>>,
    told_refused: AtomicBool,
    /// Nodes of a cluster that were told to be down.
    down: Mutex<BTreeSet<String>>,
}

impl Link {
    /// Starts the task that keeps it up until `cancel`.
    pub(super) fn start(target: Arc<Target>, redis: &Redis, cancel: CancellationToken) -> Arc<Self> {
        let retry = Retry::new(&redis.retry);
        let link = Arc::new(Self {
            target,
            live: ArcSwapOption::empty(),
            numbers: AtomicU64::new(0),
            lost: Notify::new(),
            up: Notify::new(),
            once: retry.once(),
            retry,
            op_timeout: redis.op_timeout,
            why: Mutex::default(),
            told_down: Mutex::default(),
            told_refused: AtomicBool::new(false),
            down: Mutex::default(),
        });
        tokio::spawn(Arc::clone(&link).keep_up(redis.retry.max_delay, cancel));
        link
    }

    /// There is a connection, and the server answers.
    pub(super) fn is_connected(&self) -> bool {
        self.has_connection() && !self.is_open()
    }

    pub(super) fn has_connection(&self) -> bool {
        self.live.load().is_some()
    }

    pub(super) fn is_open(&self) -> bool {
        self.retry.is_open()
    }

    /// Completes once there is a connection.
    pub(super) async fn connected(&self) {
        while !self.has_connection() {
            // The next pulse, should it have come up between the look and the wait.
            let _ = tokio::time::timeout(Duration::from_millis(100), self.up.notified()).await;
        }
    }

    /// One command with the shared breaker around it, and no second attempt.
    pub(super) async fn ask(&self, command: &Cmd, limit: Duration) -> Result<Value, Unavailable> {
        let answers = self.ask_all([command], limit).await?;
        answers.into_iter().next().ok_or(Unavailable::Failed)
    }

    /// Commands that are one operation, pipelined: all are answered, or the operation has failed once.
    pub(super) async fn ask_all<const N: usize>(
        &self,
        commands: [&Cmd; N],
        limit: Duration,
    ) -> Result<Vec<Value>, Unavailable> {
        if !self.has_connection() {
            return Err(Unavailable::NotConnected);
        }
        let never = CancellationToken::new();
        let attempt = |_| async move {
            let answers = commands.map(|command| self.send(command, limit));
            try_join_all(answers).await.map_err(judge)
        };
        self.once.run(&never, attempt).await.map_err(|gave_up| match gave_up {
            GaveUp::BreakerOpen { .. } => Unavailable::BreakerOpen,
            GaveUp::Exhausted { last: Fault::Late, .. } => Unavailable::Late,
            GaveUp::Exhausted { last: Fault::NotConnected, .. } => Unavailable::NotConnected,
            GaveUp::Definitive { .. } | GaveUp::Exhausted { .. } | GaveUp::Cancelled { .. } => Unavailable::Failed,
        })
    }

    /// One command as it is. A connection that broke, or that leads to what is no master any more, is given up.
    pub(super) async fn send(&self, command: &Cmd, limit: Duration) -> Result<Value, Fault> {
        let Some(live) = self.live.load_full() else {
            return Err(Fault::NotConnected);
        };
        let mut connection = live.connection.clone();
        match tokio::time::timeout(limit, connection.send(command)).await {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_timeout() => Err(Fault::Late),
            Ok(Err(error)) => {
                if is_refusal(&error) {
                    self.tell_refused(&error);
                }
                if !live.connection.heals_itself() && is_end(&error) {
                    self.give_up(live.number, &Fault::Redis(error.clone()));
                }
                Err(Fault::Redis(error))
            }
            Err(_) => Err(Fault::Late),
        }
    }

    fn give_up(&self, number: u64, error: &Fault) {
        let live = self.live.load();
        // Many commands see one connection end.
        if live.as_ref().is_some_and(|live| live.number == number) {
            self.live.store(None);
            self.tell_down(error);
            self.lost.notify_one();
        }
    }

    /// Why there is no connection, or what the server refuses.
    pub(super) fn why(&self) -> Option<String> {
        self.why.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_why(&self, why: Option<String>) {
        *self.why.lock().unwrap_or_else(PoisonError::into_inner) = why;
    }

    /// Once for each cause: a server that is down may come back and refuse us.
    fn tell_down(&self, why: &Fault) {
        self.set_why(Some(why.to_string()));
        let cause = Some(Cause::of(why));
        let mut told = self.told_down.lock().unwrap_or_else(PoisonError::into_inner);
        if *told != cause {
            *told = cause;
            tracing::warn!(error = %why, "-redis-addr: the shared store is lost; frames and dedup are this instance's own until it is back");
        }
    }

    /// True when the store had been told to be lost; from now on it is not.
    fn take_told_down(&self) -> bool {
        self.set_why(None);
        self.told_down.lock().unwrap_or_else(PoisonError::into_inner).take().is_some()
    }

    /// Once for each connection: it lasts until an operator mends it.
    fn tell_refused(&self, why: &RedisError) {
        self.set_why(Some(why.to_string()));
        if !self.told_refused.swap(true, Ordering::Relaxed) {
            tracing::warn!(error = %why, "-redis-addr: the shared store refuses its user what frames and dedup need");
        }
    }

    async fn keep_up(self: Arc<Self>, pause: Duration, cancel: CancellationToken) {
        let mut silent = 0;
        loop {
            let work = async {
                if !self.has_connection() {
                    self.reconnect(pause, &cancel).await;
                    silent = 0;
                }
                // After a first silence the second is not waited for.
                let next = if silent == 0 { PULSE } else { Duration::ZERO };
                tokio::select! {
                    () = self.lost.notified() => {}
                    () = tokio::time::sleep(next) => {
                        silent = if self.pulse().await { 0 } else { silent + 1 };
                        if silent == 0 && self.is_cluster() {
                            self.watch_nodes().await;
                        }
                        if silent == SILENT {
                            self.replace().await;
                            silent = 0;
                        }
                    }
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                () = work => {}
            }
        }
    }

    async fn reconnect(&self, pause: Duration, cancel: &CancellationToken) {
        loop {
            match self.target.connect().await {
                Ok(connection) => return self.begin(connection),
                Err(error) => {
                    self.tell_down(&Fault::Redis(error.clone()));
                    // A password that is wrong stays wrong until the operator mends it.
                    let wait = if is_refusal(&error) {
                        pause.max(Duration::from_secs(1))
                    } else {
                        pause.min(Duration::from_millis(500))
                    };
                    tokio::select! {
                        () = cancel.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                    }
                }
            }
        }
    }

    fn begin(&self, connection: Connection) {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        self.live.store(Some(Arc::new(Live { connection, number })));
        self.up.notify_waiters();
        self.told_refused.store(false, Ordering::Relaxed);
        if self.take_told_down() || number == 0 {
            tracing::info!("-redis-addr: connected to the shared store");
        }
    }

    /// Leaves a connection on which the server is silent. One master of a cluster may be silent while the others serve: there
    /// the next connection, which knows who took over, is made first.
    async fn replace(&self) {
        let Some(live) = self.live.load_full() else {
            return;
        };
        if !live.connection.heals_itself() {
            return self.give_up(live.number, &Fault::Late);
        }
        match self.target.connect().await {
            Ok(connection) => self.begin(connection),
            Err(error) => self.give_up(live.number, &Fault::Redis(error)),
        }
    }

    /// Tries the connection; false when the server does not answer in time. The breaker guards requests, and no request waits for
    /// this: it is asked past the breaker, and closes it when its time has come, so that the store comes back without
    /// a request for it.
    async fn pulse(&self) -> bool {
        let ping = redis::cmd("PING");
        let answer = self.send(&ping, self.op_timeout).await;
        if self.is_open() {
            match answer {
                Ok(_) if self.ask(&ping, self.op_timeout).await.is_ok() => {
                    self.take_told_down();
                    tracing::info!("-redis-addr: the shared store answers again");
                }
                Ok(_) => {}
                Err(ref fault) => self.tell_down(fault),
            }
        }
        !matches!(answer, Err(Fault::Late))
    }

    /// Tells of each node that the cluster gives up or takes back, once. A server that does not let us ask is not complained of.
    async fn watch_nodes(&self) {
        let Some(live) = self.live.load_full() else { return };
        let mut connection = live.connection.clone();
        let answer = tokio::time::timeout(self.op_timeout, connection.send(&cluster_nodes())).await;
        let Some(text) = answer.ok().and_then(Result::ok).and_then(|list| redis::from_redis_value::<String>(list).ok())
        else {
            return;
        };
        let failed = text.lines().filter_map(node).filter(|node| node.link == FAILED);
        let now: BTreeSet<String> = failed.map(|node| node.address).collect();
        let mut down = self.down.lock().unwrap_or_else(PoisonError::into_inner);
        for node in now.difference(&down) {
            tracing::warn!(node, "-redis-addr: the cluster has given a node up");
        }
        for node in down.difference(&now) {
            tracing::info!(node, "-redis-addr: a node that the cluster had given up is back, or has left it");
        }
        *down = now;
    }

    fn is_cluster(&self) -> bool {
        self.live.load().as_ref().is_some_and(|live| live.connection.heals_itself())
    }

    /// The servers behind the store: a cluster's own list, or the one server by its ROLE.
    pub(super) async fn nodes(&self) -> Result<Vec<Node>, Unavailable> {
        if self.is_cluster() {
            let answer = self.ask(&cluster_nodes(), self.op_timeout).await?;
            let text: String = redis::from_redis_value(answer).map_err(|_| Unavailable::Failed)?;
            return Ok(text.lines().filter_map(node).collect());
        }
        let role = match self.ask(&redis::cmd("ROLE"), self.op_timeout).await? {
            Value::Array(parts) => match parts.into_iter().next() {
                Some(Value::BulkString(role)) if role == b"slave" => "replica".to_owned(),
                Some(Value::BulkString(role)) => String::from_utf8_lossy(&role).into_owned(),
                _ => return Err(Unavailable::Failed),
            },
            _ => return Err(Unavailable::Failed),
        };
        let link = "connected".to_owned();
        Ok(vec![Node { address: self.target.address(), role, link, id: None, master: None, slots: Vec::new() }])
    }
}

fn cluster_nodes() -> Cmd {
    let mut command = redis::cmd("CLUSTER");
    command.arg("NODES");
    command
}

/// A line of CLUSTER NODES: id, address@bus,host, flags, master, ping, pong, epoch, link state, slots.
fn node(line: &str) -> Option<Node> {
    let fields: Vec<&str> = line.split_whitespace().collect();
    let [id, address, flags, master, _, _, _, link, slots @ ..] = fields.as_slice() else {
        return None;
    };
    let is = |flag: &str| flags.split(',').any(|one| one == flag);
    // A slot on its way to another node stands in brackets: who serves it is told by the others.
    let range = |slots: &&str| {
        let (first, last) = slots.split_once('-').unwrap_or((slots, slots));
        Some((first.parse().ok()?, last.parse().ok()?))
    };
    Some(Node {
        address: match address.split('@').next().unwrap_or(address).rsplit_once(':') {
            Some((host, port)) => bracketed(host, port),
            None => (*address).to_owned(),
        },
        role: if is("master") { "master" } else { "replica" }.to_owned(),
        link: if is("fail") { FAILED } else { link }.to_owned(),
        id: Some((*id).to_owned()),
        master: (*master != "-").then(|| (*master).to_owned()),
        slots: slots.iter().filter_map(range).collect(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clusters_list_is_read() {
        assert_eq!(node("too short"), None);
        let failed = node("07c3 fd10::3:6379@16379,host master,fail - 1 2 3 disconnected 0-5460 7 [93-<-292f]");
        let failed = failed.expect("a node");
        assert_eq!(
            (failed.address.as_str(), failed.role.as_str(), failed.link.as_str()),
            ("[fd10::3]:6379", "master", "failed")
        );
        assert_eq!((failed.slots.as_slice(), failed.master), (&[(0, 5460), (7, 7)][..], None));
        let replica = node("e7d1 127.0.0.1:30004@31004 slave 67ed 0 1426238317239 4 connected").expect("a node");
        assert_eq!((replica.role.as_str(), replica.link.as_str(), replica.slots.len()), ("replica", "connected", 0));
        assert_eq!((replica.id.as_deref(), replica.master.as_deref()), (Some("e7d1"), Some("67ed")));
    }
}
