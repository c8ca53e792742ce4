//! What tests, the testbed and the bench use of the daemon's parts; the daemon itself is [`run`](crate::run).
//!
//! Nothing here is an interface for other programs: it changes with the parts.

/// Who may ask: the tables of the lists.
pub mod acl {
    pub use crate::acl::{Acl, Rules, RulesError, Size, Tables};
}

/// HTTP on `-metrics-addr` and `-admin-addr`.
pub mod admin {
    pub use crate::admin::{router, routes, serve::serve};

    /// What the status page shows beside the numbers.
    pub mod status {
        pub use crate::admin::status::{Details, Handover, InterfaceUse, Peer, StatusSource};
        pub use crate::privileges::Rights;
    }

    /// The management API.
    pub mod manage {
        pub use crate::admin::manage::{
            Backend, BackendError, ConfigOutcome, ConfigRefused, LONGEST_FRAME, Members, PutError, PutOutcome,
            RedisMembers, RedisNode, StoredFrame, Whence, router, routes,
        };
    }
}

/// The command lines, as manual pages and completions show them: the daemon's, and then that of each verb, by its whole name
/// (`retry-endpoint status`).
pub fn command_lines() -> Vec<clap::Command> {
    vec![
        crate::settings::command(),
        crate::handover::detach::arguments(),
        crate::ask::command(),
        crate::recovery::probe::command(),
        crate::handover::status::arguments(),
        crate::top::command(),
        crate::verify_log::command(),
        crate::watch::command(),
        crate::firewall::command(),
    ]
}

/// Endpoints heard by ADVERT.
pub mod beacon {
    /// Their list.
    pub mod registry {
        pub use crate::beacon::registry::Endpoint;
    }
}

/// What the daemon counts.
pub mod counters {
    pub use crate::counters::{StoredBySource, UserCounters};
}

/// The XDP programs, as the daemon loads and attaches them.
pub mod datapath {
    pub use crate::datapath::{
        Config, Datapath, DatapathError, DrawnNacks, EgressInterface, Events, Found, Interfaces, KernelFill,
        KernelSources, Mode, Parts,
    };

    /// The records that a running daemon's kernel program writes.
    pub mod watch {
        pub use crate::datapath::watch::PinnedWatch;
    }

    /// The maps of a running daemon, from another process.
    pub mod pinned {
        pub use crate::datapath::pinned::{PinnedLog, Words, latency};
    }
}

/// What the daemon answers.
pub mod engine {
    pub use crate::engine::{Config, Engine};
}

/// The limits.
pub mod limits {
    pub use crate::limits::ByteTables;
}

/// The frame log, over memory that the caller brings.
pub mod framelog {
    pub use crate::framelog::{Log, Memory, NewFrame, Pages, Put, Record, Removed, Sizes, Writer, adopt, open};
}

/// The numbers that the daemon shows.
pub mod metrics {
    pub use crate::metrics::{Snapshot, Source, StoreUse, Upstream, XdpReason};
    pub use crate::talkers::{Talker, Top};

    /// As Prometheus text, or OpenMetrics.
    pub mod prometheus {
        pub use crate::metrics::prometheus::{Format, encode};
    }

    /// Each with its name and labels.
    pub mod samples {
        pub use crate::metrics::samples::{Kind, samples};
    }
}

/// What the process may do.
pub mod privileges {
    pub use crate::privileges::filter_system_calls;
    pub use crate::settings::SeccompMode;
}

/// The settings.
pub mod settings {
    pub use crate::settings::{
        AdminToken, Change, Described, Redis, RedisNode, Retry, RetryPolicy, Settings, all, default_file, reference,
    };
}

/// The shared store.
pub mod store {
    pub use crate::store::{Claim, Config, Store, StoreError, Unavailable};
}

/// Logs and exporters.
pub mod telemetry {
    pub use crate::telemetry::{Config, LogLevel, LogLevelError, init};

    /// The exporter of metrics and traces.
    pub mod otlp {
        pub use crate::telemetry::otlp::{Config, Exporter, OtlpError};
    }

    /// Traces of NACKs.
    pub mod trace {
        pub use crate::telemetry::trace::NackTracer;
    }
}

/// The check of a running daemon's frame log.
pub mod verify_log {
    pub use crate::verify_log::Report;
}
