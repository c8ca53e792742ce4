//! Why the daemon did not start, or stopped: the line that the operator acts on.

use std::io;
use std::net::SocketAddr;

use super::memory::TooLittle;
use crate::acl::RulesError;
use crate::admin::tls::TlsError;
use crate::datapath::DatapathError;
use crate::fabric::FabricError;
use crate::ingress::joins::JoinError;
use crate::ingress::tee::TeeError;
use crate::net::nack_socket;
use crate::recovery::{ProxyError, StateDirectoryError};
use crate::store::StoreError;
use crate::telemetry::otlp::OtlpError;

/// Why the daemon did not start, or stopped.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The settings do not fit this host.
    #[error(transparent)]
    Fabric(#[from] FabricError),
    /// XDP was asked for and cannot be had.
    #[error("-xdp {mode}: {source}")]
    Datapath {
        /// The mode asked for.
        mode: &'static str,
        /// Why not.
        source: DatapathError,
    },
    /// The frame log's memory cannot be had.
    #[error("-cache-memory: cannot map {bytes} bytes: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: usize,
        /// The system's words.
        source: io::Error,
    },
    /// There is less memory than the frame log asks for.
    #[error(transparent)]
    TooLittleMemory(#[from] TooLittle),
    /// The limit tables' memory cannot be had.
    #[error("-limit-table-entries {entries}: cannot map the limit tables: {source}")]
    Limits {
        /// Entries asked for.
        entries: u32,
        /// The system's words.
        source: io::Error,
    },
    /// The lists of who may ask cannot stand.
    #[error(transparent)]
    Acl(#[from] RulesError),
    /// The groups cannot be joined.
    #[error(transparent)]
    Join(#[from] JoinError),
    /// The NACK socket cannot be opened.
    #[error("-nack-addr, -nack-port: {0}")]
    NackSocket(#[from] nack_socket::OpenError),
    /// The HTTP address cannot be bound.
    #[error("-metrics-addr {address}: {source}")]
    Admin {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// The beacon socket cannot be opened.
    #[error("beacon: {0}")]
    Beacon(io::Error),
    /// The management API's address cannot be bound.
    #[error("-admin-addr {address}: {source}")]
    Management {
        /// The address.
        address: SocketAddr,
        /// The system's words.
        source: io::Error,
    },
    /// The files of the management API's TLS cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The settings of the shared store cannot stand.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The directory of `-state-dir` cannot be used.
    #[error(transparent)]
    StateDirectory(#[from] StateDirectoryError),
    /// Recovery cannot be started.
    #[error(transparent)]
    Proxy(#[from] ProxyError),
    /// Nothing can be sent to the collector.
    #[error(transparent)]
    Otlp(#[from] OtlpError),
    /// The tee socket cannot be had.
    #[error(transparent)]
    Tee(#[from] TeeError),
    /// The kernel takes no filter of system calls.
    #[error("-seccomp {mode}: the kernel takes no filter of system calls: {source}; use -seccomp off")]
    Seccomp {
        /// `on` or `log`.
        mode: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("cannot start a thread: {0}")]
    Thread(io::Error),
    /// A worker ended before the shutdown.
    #[error("{worker} stopped: {why}")]
    Worker {
        /// Its name.
        worker: String,
        /// What it said.
        why: String,
    },
}
