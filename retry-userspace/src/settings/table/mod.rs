//! Every setting once: one file per part of [`Settings`](super::Settings), and in it the part's fields and their rows. A
//! row stands at the field that it fills.

mod acl;
mod admin;
mod beacon;
mod cache;
mod dedup;
mod egress;
mod files;
mod ingress;
mod limits;
mod nack;
mod privileges;
mod proxy;
mod redis;
mod repair;
mod retry;
mod ssm;
mod telemetry;
mod xdp;

pub(crate) use acl::Acl;
pub use admin::AdminToken;
pub(crate) use admin::{Admin, AdminTls};
pub(crate) use beacon::{Beacon, ControlGroupCompat};
pub(crate) use cache::{Backend, Cache};
pub(crate) use dedup::{Dedup, DedupMode};
pub(crate) use egress::Egress;
pub(crate) use files::Files;
pub(crate) use ingress::Ingress;
pub(crate) use limits::Limits;
pub(crate) use nack::Nack;
pub(crate) use privileges::Privileges;
pub use privileges::SeccompMode;
pub(crate) use proxy::{Proxy, ProxySelect};
pub use redis::Redis;
pub(crate) use repair::Repair;
pub use retry::{Retry, RetryPolicy};
pub(crate) use ssm::Ssm;
pub(crate) use telemetry::{LogFormat, Telemetry};
pub(crate) use xdp::{FillMode, Xdp, XdpMode};
