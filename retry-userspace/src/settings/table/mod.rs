//! Every setting once: one file per part of [`Settings`](super::Settings), and in it the part's fields and their rows. A
//! row stands at the field that it fills.

mod admin;
mod beacon;
mod cache;
mod dedup;
mod egress;
mod ingress;
mod limits;
mod nack;
mod proxy;
mod redis;
mod repair;
mod retry;
mod ssm;
mod telemetry;
mod xdp;

pub use admin::{Admin, AdminToken};
pub use beacon::Beacon;
pub use cache::{Backend, Cache};
pub use dedup::{Dedup, DedupMode};
pub use egress::Egress;
pub use ingress::Ingress;
pub use limits::Limits;
pub use nack::Nack;
pub use proxy::{Proxy, ProxySelect};
pub use redis::Redis;
pub use repair::Repair;
pub use retry::{Retry, RetryPolicy};
pub use ssm::Ssm;
pub use telemetry::{LogFormat, Telemetry};
pub use xdp::{FillMode, Xdp, XdpMode};
