//! The settings as the daemon uses them: typed, checked, in the order in which a frame and then a NACK meets them.

use std::sync::Arc;

use super::error::SettingsError;
use super::live::Change;
use super::rows::{Flag, Rows};
use super::source::{SetBy, Values};
use super::table::{
    Acl, Admin, Beacon, Cache, Dedup, Egress, Files, Ingress, Limits, Nack, Privileges, Proxy, Redis, Repair, Ssm,
    Telemetry, Xdp,
};

/// All settings, checked one by one and together. Each part stands in a file of its name in `settings/table/`, and each
/// field there at the row that fills it.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where frames come from.
    pub ingress: Ingress,
    /// Whose frames are joined by name.
    pub ssm: Ssm,
    /// How frames are kept.
    pub cache: Cache,
    /// How NACKs are taken.
    pub nack: Nack,
    /// Whose datagrams are looked at.
    pub acl: Acl,
    /// How multicast leaves.
    pub egress: Egress,
    /// What a hit gets.
    pub repair: Repair,
    /// Who may ask how often.
    pub limits: Limits,
    /// How Redis is reached.
    pub redis: Redis,
    /// How instances keep out of each other's way.
    pub dedup: Dedup,
    /// Which upstream endpoints are asked for missing frames.
    pub proxy: Proxy,
    /// How the endpoint is announced.
    pub beacon: Beacon,
    /// Where NACKs are answered.
    pub xdp: Xdp,
    /// HTTP, and the end.
    pub admin: Admin,
    /// Logs and traces.
    pub telemetry: Telemetry,
    /// What the process may do.
    pub privileges: Privileges,
    /// Where settings are written.
    pub files: Files,
    pub(super) described: Vec<Described>,
    /// What the next start will use.
    pub(super) waiting: Vec<Change>,
    /// What they were read from.
    pub(super) values: Arc<Values>,
}

/// One setting as it is in force.
#[derive(Clone, Debug)]
pub struct Described {
    /// The setting: name, variable, meaning.
    pub flag: &'static Flag,
    /// The value in force as text, without the passwords of URLs; empty when it is not set.
    pub value: String,
    /// Who set it.
    pub set_by: SetBy,
    /// The value that the files have by now, where that needs a restart.
    pub after_restart: Option<String>,
}

impl Settings {
    /// The settings as each stands alone; `checks` has the rules between them. The order of the parts is the order of
    /// `-help` and of docs/configuration.md.
    pub(super) fn read(rows: &mut Rows<'_>) -> Result<Self, SettingsError> {
        Ok(Self {
            ingress: Ingress::read(rows)?,
            ssm: Ssm::read(rows)?,
            cache: Cache::read(rows)?,
            nack: Nack::read(rows)?,
            acl: Acl::read(rows)?,
            egress: Egress::read(rows)?,
            repair: Repair::read(rows)?,
            limits: Limits::read(rows)?,
            redis: Redis::read(rows)?,
            dedup: Dedup::read(rows)?,
            proxy: Proxy::read(rows)?,
            beacon: Beacon::read(rows)?,
            xdp: Xdp::read(rows)?,
            admin: Admin::read(rows)?,
            telemetry: Telemetry::read(rows)?,
            privileges: Privileges::read(rows)?,
            files: Files::read(rows)?,
            described: Vec::new(),
            waiting: Vec::new(),
            values: Arc::default(),
        })
    }

    pub(super) fn in_force(&self, flag: &'static Flag, values: &Values) -> Described {
        let decides = match flag.name {
            name if name.starts_with("cache-ttl-") => Cache::ttl_source(name, |name| values.is_set(name)),
            "dedup-repeat-after" if self.dedup.repeat_after == self.dedup.window && !values.is_set(flag.name) => {
                "dedup-window"
            }
            name => name,
        };
        let value = match flag.name {
            // What 0 stands for.
            "nack-workers" => self.nack.workers.to_string(),
            "proxy-workers" => self.proxy.workers.to_string(),
            "egress-hoplimit" => self.egress.hop_limit.to_string(),
            "instance" => self.telemetry.instance.clone(),
            "log-level" => self.telemetry.level.as_str().to_ascii_lowercase(),
            _ => super::error::shown(values.text(decides)),
        };
        Described { flag, value, set_by: values.set_by(decides), after_restart: None }
    }
}
