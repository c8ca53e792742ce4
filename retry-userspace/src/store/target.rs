//! Where the store is: from `-redis-addr` and `-redis-tls-*` to clients, and from them to connections.

use std::path::Path;
use std::sync::{OnceLock, PoisonError};
use std::time::Duration;

use redis::aio::{MultiplexedConnection, PubSub};
use redis::cluster::{ClusterClient, ClusterClientBuilder};
use redis::cluster_async::ClusterConnection;
use redis::sentinel::{SentinelClient, SentinelClientBuilder, SentinelServerType};
use redis::{
    AsyncConnectionConfig, Client, ClientTlsConfig, Cmd, ConnectionAddr, IntoConnectionInfo, RedisError, RedisResult,
    TlsCertificates, TlsMode, Value,
};
use tokio::sync::Mutex;

use super::StoreError;
use crate::settings::{Redis, RedisNode};

/// Port of Sentinels that name none.
const SENTINEL_PORT: u16 = 26379;
/// What the client library gives each Sentinel to connect and to answer; it asks one after the other.
const SENTINEL_TIME: Duration = Duration::from_millis(1_500);
/// Round trips to a cluster: the nodes named, their list, the nodes of the list.
const CLUSTER_STEPS: u32 = 3;

/// A connection to whatever is there. Clones share it, and commands of many tasks are pipelined on it.
#[derive(Clone)]
pub(super) enum Connection {
    /// One server.
    Single(MultiplexedConnection),
    /// A cluster, which the client library keeps track of by itself.
    Cluster(ClusterConnection),
}

impl Connection {
    /// One command. What the server says is wrong is an error here; the bare connection takes it for an answer.
    pub(super) async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        match self {
            Self::Single(connection) => command.query_async(connection).await,
            Self::Cluster(connection) => command.query_async(connection).await,
        }
    }

    /// True when the library finds the way back by itself.
    pub(super) const fn heals_itself(&self) -> bool {
        matches!(self, Self::Cluster(_))
    }
}

enum Kind {
    /// One server, which may turn out to be a node of a cluster.
    Single { client: Box<Client>, cluster: OnceLock<ClusterClient> },
    /// The nodes named, each also as a client of its own to listen at.
    Cluster { client: ClusterClient, nodes: Vec<Client> },
    /// The master that Sentinels name, and its address once they have.
    Sentinel { client: Mutex<SentinelClient>, hosts: u32, master: std::sync::Mutex<String> },
}

/// Where the store is.
pub(super) struct Target {
    kind: Kind,
    node: RedisNode,
    certificates: Option<TlsCertificates>,
    dial_timeout: Duration,
    op_timeout: Duration,
}

impl Target {
    pub(super) fn new(redis: &Redis) -> Result<Self, StoreError> {
        // Of two providers rustls would have to choose; there is one, and it is installed once for all.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let refused = |error: RedisError| StoreError::Client(error.to_string());
        let certificates = certificates(redis)?;
        let client = |node: &RedisNode| open(&node.url, certificates.as_ref()).map_err(refused);
        let first = redis.nodes.first().ok_or_else(|| StoreError::Client("an address is accepted".to_owned()))?;
        let kind = match redis.nodes.as_slice() {
            [one] if one.url.contains("+sentinel://") => {
                let client = sentinels(&one.url, certificates.as_ref()).map_err(refused)?;
                // Its hosts stand between commas.
                let hosts = u32::try_from(one.url.split(',').count()).unwrap_or(u32::MAX);
                Kind::Sentinel { client: Mutex::new(client), hosts, master: std::sync::Mutex::default() }
            }
            [one] => Kind::Single { client: Box::new(client(one)?), cluster: OnceLock::new() },
            nodes => Kind::Cluster {
                client: cluster(nodes, certificates.as_ref(), redis).map_err(refused)?,
                nodes: nodes.iter().map(client).collect::<Result<_, _>>()?,
            },
        };
        let (node, dial_timeout, op_timeout) = (first.clone(), redis.dial_timeout, redis.op_timeout);
        Ok(Self { kind, node, certificates, dial_timeout, op_timeout })
    }

    /// Longest time until there is a connection. One server has `cache-dial-timeout`. Where several are asked, silent
    /// ones must not use up the time of those that answer: the library gives each its own, and this only bounds the sum.
    fn limit(&self) -> Duration {
        let one = self.dial_timeout + self.op_timeout;
        match &self.kind {
            Kind::Single { cluster, .. } if cluster.get().is_none() => self.dial_timeout,
            Kind::Single { .. } | Kind::Cluster { .. } => one * CLUSTER_STEPS,
            // The Sentinels, then what the library does with the master that they name, then our own connection to it.
            Kind::Sentinel { hosts, .. } => SENTINEL_TIME.saturating_mul(hosts.saturating_add(1)) + one,
        }
    }

    /// A connection, within [`Target::limit`].
    pub(super) async fn connect(&self) -> RedisResult<Connection> {
        within(self.limit(), async {
            let config = AsyncConnectionConfig::new()
                .set_connection_timeout(Some(self.dial_timeout))
                .set_response_timeout(Some(self.op_timeout));
            match &self.kind {
                Kind::Cluster { client, .. } => Ok(Connection::Cluster(client.get_async_connection().await?)),
                Kind::Sentinel { client, master, .. } => {
                    let found = client.lock().await.async_get_client().await?;
                    let address = address_of(found.get_connection_info().addr());
                    *master.lock().unwrap_or_else(PoisonError::into_inner) = address;
                    let mut connection = found.get_multiplexed_async_connection_with_config(&config).await?;
                    serves(&mut connection).await?;
                    Ok(Connection::Single(connection))
                }
                Kind::Single { client, cluster: known } => {
                    if let Some(cluster) = known.get() {
                        return Ok(Connection::Cluster(cluster.get_async_connection().await?));
                    }
                    let mut connection = client.get_multiplexed_async_connection_with_config(&config).await?;
                    serves(&mut connection).await?;
                    if !is_cluster_node(&mut connection).await {
                        return Ok(Connection::Single(connection));
                    }
                    let found = builder(std::slice::from_ref(&self.node), self.certificates.as_ref())
                        .connection_timeout(self.dial_timeout)
                        .response_timeout(self.op_timeout)
                        .build()?;
                    // A cluster takes longer to connect to: what is known stands, should the time be over before.
                    let cluster = known.get_or_init(|| found);
                    tracing::info!("-redis-addr is a node of a Redis Cluster: its other nodes are used too");
                    Ok(Connection::Cluster(cluster.get_async_connection().await?))
                }
            }
        })
        .await
    }

    /// A connection to listen at; of the nodes of a cluster, which pass all announcements on, the one whose turn it is.
    pub(super) async fn listen(&self, turn: usize) -> RedisResult<PubSub> {
        let limit = if matches!(self.kind, Kind::Sentinel { .. }) { self.limit() } else { self.dial_timeout };
        within(limit, async {
            match &self.kind {
                Kind::Single { client, .. } => client.get_async_pubsub().await,
                Kind::Cluster { nodes, .. } => match nodes.get(turn.checked_rem(nodes.len()).unwrap_or(0)) {
                    Some(node) => node.get_async_pubsub().await,
                    None => Err(RedisError::from(std::io::Error::other("no node"))),
                },
                Kind::Sentinel { client, .. } => {
                    let master = client.lock().await.async_get_client().await?;
                    master.get_async_pubsub().await
                }
            }
        })
        .await
    }

    /// Host and port of the server that is connected to, for people; of a cluster, the first node named.
    pub(super) fn address(&self) -> String {
        if let Kind::Sentinel { master, .. } = &self.kind {
            return master.lock().unwrap_or_else(PoisonError::into_inner).clone();
        }
        match self.node.url.as_str().into_connection_info() {
            Ok(info) => address_of(info.addr()),
            Err(_) => String::new(),
        }
    }
}

/// What `work` comes to, or that it took too long.
pub(super) async fn within<T>(limit: Duration, work: impl Future<Output = RedisResult<T>>) -> RedisResult<T> {
    tokio::time::timeout(limit, work)
        .await
        .unwrap_or_else(|_| Err(std::io::Error::from(std::io::ErrorKind::TimedOut).into()))
}

/// Whether the server serves us. A server that asks for a password takes the connection all the same, and one that asks for a
/// certificate ends it after the handshake: the first answer shows it.
///
/// # Errors
/// No answer, or NOAUTH. Any other answer stands: the user may lack PING alone.
async fn serves(connection: &mut MultiplexedConnection) -> RedisResult<()> {
    let alive: RedisResult<Value> = redis::cmd("PING").query_async(connection).await;
    match alive {
        Err(error) if error.code().is_none_or(|code| code == "NOAUTH") => Err(error),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Host and port; an IPv6 address stands in brackets.
fn address_of(address: &ConnectionAddr) -> String {
    match address {
        ConnectionAddr::Tcp(host, port) | ConnectionAddr::TcpTls { host, port, .. } => {
            bracketed(host, &port.to_string())
        }
        other => other.to_string(),
    }
}

/// `host:port`, an IPv6 address in brackets (RFC 3986, section 3.2.2).
pub(super) fn bracketed(host: &str, port: &str) -> String {
    let is_bare = host.contains(':') && !host.starts_with('[');
    if is_bare { format!("[{host}]:{port}") } else { format!("{host}:{port}") }
}

/// Some operators give one node of a cluster. A server that does not let us ask is taken for a single one.
async fn is_cluster_node(connection: &mut MultiplexedConnection) -> bool {
    let mut info = redis::cmd("INFO");
    info.arg("cluster");
    let answer: RedisResult<String> = info.query_async(connection).await;
    answer.is_ok_and(|text| text.contains("cluster_enabled:1"))
}

fn open(url: &str, certificates: Option<&TlsCertificates>) -> RedisResult<Client> {
    match certificates.filter(|_| url.starts_with("rediss")) {
        Some(certificates) => Client::build_with_tls(url, certificates.clone()),
        None => Client::open(url),
    }
}

fn builder(nodes: &[RedisNode], certificates: Option<&TlsCertificates>) -> ClusterClientBuilder {
    let builder = ClusterClient::builder(nodes.iter().map(|node| node.url.as_str()));
    match certificates {
        Some(certificates) => builder.certs(certificates.clone()),
        None => builder,
    }
}

fn cluster(nodes: &[RedisNode], certificates: Option<&TlsCertificates>, redis: &Redis) -> RedisResult<ClusterClient> {
    builder(nodes, certificates).connection_timeout(redis.dial_timeout).response_timeout(redis.op_timeout).build()
}

/// `redis+sentinel://[user:password@]host:port,…/name[/database]`: user, password and database are those of the master.
fn sentinels(url: &str, certificates: Option<&TlsCertificates>) -> RedisResult<SentinelClient> {
    let invalid = || RedisError::from(std::io::Error::other("redis+sentinel://host:port,…/name is accepted"));
    let (scheme, rest) = url.split_once("://").ok_or_else(invalid)?;
    let (login, place) = rest.rsplit_once('@').map_or((None, rest), |(login, place)| (Some(login), place));
    let (hosts, path) = place.split_once('/').ok_or_else(invalid)?;
    let (service, database) = path.split_once('/').unwrap_or((path, ""));
    let tls = scheme.starts_with("rediss");
    let plain = |host: &str| -> RedisResult<ConnectionAddr> {
        let info = format!("redis://{host}").into_connection_info()?;
        Ok(match info.addr() {
            // The library's own default is that of a server.
            ConnectionAddr::Tcp(name, 6379) if !host.ends_with(":6379") => {
                ConnectionAddr::Tcp(name.clone(), SENTINEL_PORT)
            }
            other => other.clone(),
        })
    };
    let addresses = hosts.split(',').map(|host| plain(host.trim())).collect::<RedisResult<Vec<_>>>()?;
    let mut builder = SentinelClientBuilder::new(addresses, service, SentinelServerType::Master)?;
    if let Some(login) = login {
        // Percent encoding is the library's business.
        let info = format!("redis://{login}@localhost").into_connection_info()?;
        if let Some(user) = info.redis_settings().username() {
            builder = builder.set_client_to_redis_username(user);
        }
        if let Some(password) = info.redis_settings().password() {
            builder = builder.set_client_to_redis_password(password);
        }
    }
    if let Ok(database) = database.parse() {
        builder = builder.set_client_to_redis_db(database);
    }
    if tls {
        builder =
            builder.set_client_to_redis_tls_mode(TlsMode::Secure).set_client_to_sentinel_tls_mode(TlsMode::Secure);
        if let Some(certificates) = certificates {
            builder = builder
                .set_client_to_redis_certificates(certificates.clone())
                .set_client_to_sentinel_certificates(certificates.clone());
        }
    }
    builder.build()
}

/// The files of `-redis-tls-*`, read.
fn certificates(redis: &Redis) -> Result<Option<TlsCertificates>, StoreError> {
    let read = |setting, path: &Path| {
        std::fs::read(path).map_err(|source| StoreError::File { setting, path: path.display().to_string(), source })
    };
    if redis.tls_ca.is_none() && redis.tls_client.is_none() {
        return Ok(None);
    }
    let client_tls = match &redis.tls_client {
        Some((certificate, key)) => Some(ClientTlsConfig {
            client_cert: read("redis-tls-cert", certificate)?,
            client_key: read("redis-tls-key", key)?,
        }),
        None => None,
    };
    let root_cert = redis.tls_ca.as_deref().map(|path| read("redis-tls-ca", path)).transpose()?;
    Ok(Some(TlsCertificates { client_tls, root_cert }))
}
