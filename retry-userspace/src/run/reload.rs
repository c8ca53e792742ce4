//! Settings that change while the daemon runs: what was read again and can stand is given to the parts that go by it.
//!
//! A change is judged whole before anything of it is made. It comes to the kernel program and to the daemon's engine one after the
//! other, each word of it at once: a NACK in between is judged by what it finds.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use retry_common::abi;
use retry_common::counter::Counter;
use rustls::ServerConfig;

use super::confine;
use super::state::State;
use crate::acl;
use crate::admin::manage::auth::CurrentToken;
use crate::admin::tls::{self, Tls, TlsError};
use crate::beacon::BeaconSender;
use crate::datapath::Changeable;
use crate::engine;
use crate::framelog::Lives;
use crate::limits::Changed;
use crate::nack::Server;
use crate::recovery::Recovery;
use crate::settings::{Change, Reread, Settings, SettingsError};
use crate::telemetry::LogLevel;

/// How long a NACK may be under way that has read a limit before its change.
const LAST_NACKS: Duration = Duration::from_millis(20);

/// The settings in force, and the parts that go by those that change.
pub(super) struct Reload {
    in_force: ArcSwap<Settings>,
    /// One change at a time.
    turn: Mutex<()>,
    reached: Reached,
}

/// The parts that go by settings that change.
pub(super) struct Reached {
    pub(super) state: Arc<State>,
    pub(super) server: Arc<Server>,
    pub(super) lives: Arc<Lives>,
    pub(super) recovery: Option<Recovery>,
    /// Recoveries are claimed per listener.
    pub(super) claims_per_asker: Arc<AtomicBool>,
    pub(super) log_level: LogLevel,
    /// What the kernel program was given at the start.
    pub(super) answers: abi::Settings,
    /// It is bound before the other parts are built.
    pub(super) http: OnceLock<Admits>,
    /// It is opened last.
    pub(super) beacon: OnceLock<Arc<BeaconSender>>,
}

/// Whom the HTTP addresses serve.
#[derive(Clone, Debug)]
pub(super) struct Admits {
    pub(super) token: CurrentToken,
    pub(super) tls: Option<Tls>,
}

impl Admits {
    /// As the settings have it.
    ///
    /// # Errors
    /// The files of TLS cannot be used.
    pub(super) fn open(settings: &Settings) -> Result<Self, TlsError> {
        let tls = settings.admin.tls.as_ref().map(Tls::open).transpose()?;
        Ok(Self { token: CurrentToken::new(settings.admin.token.as_ref()), tls })
    }
}

/// What came of a reading that can stand.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    /// What has changed.
    pub(super) changed: Vec<Change>,
    /// What needs a restart.
    pub(super) waiting: Vec<Change>,
}

impl Reload {
    /// Of a daemon that goes by `settings`.
    pub(super) fn new(settings: &Settings, reached: Reached) -> Self {
        reached.state.read_settings();
        Self { in_force: ArcSwap::from_pointee(settings.clone()), turn: Mutex::default(), reached }
    }

    /// The beacon goes by changes, too, from now on.
    pub(super) fn reach_beacon(&self, beacon: &Arc<BeaconSender>) {
        // There is one in the life of a daemon.
        let _ = self.reached.beacon.set(Arc::clone(beacon));
    }

    /// HTTP goes by changes, too, from now on.
    pub(super) fn reach_http(&self, admits: Admits) {
        let _ = self.reached.http.set(admits);
    }

    /// The settings in force.
    pub(super) fn in_force(&self) -> Arc<Settings> {
        self.in_force.load_full()
    }

    /// Reads the files again and makes what changes while the daemon runs be in force. It waits for a change that is under way, and
    /// for NACKs that are.
    ///
    /// # Errors
    /// What was read cannot stand: nothing has changed.
    pub(super) fn read_again(&self, why: &str) -> Result<Outcome, SettingsError> {
        self.take(why, |settings| {
            let read = settings.read_again()?;
            // The names of these files stay, and what they have need not.
            let offered = offered_by(&read.settings)?;
            Ok((read, offered))
        })
    }

    /// As [`Reload::read_again`], with values of the management API: they hold until the files are read again. `None` ends one.
    ///
    /// # Errors
    /// One of them cannot stand, or needs a restart: nothing has changed.
    pub(super) fn set(&self, values: &BTreeMap<String, Option<String>>) -> Result<Outcome, SettingsError> {
        self.take("the management API", |settings| Ok((settings.overridden(values)?, None)))
    }

    fn take(
        &self,
        why: &str,
        read: impl FnOnce(&Settings) -> Result<(Reread, Option<ServerConfig>), SettingsError>,
    ) -> Result<Outcome, SettingsError> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let old = self.in_force();
        let read = read(&old).and_then(|read| self.reached.put_lists(&old, &read.0.settings).map(|()| read));
        let (Reread { settings, changed }, offered) = read.inspect_err(|error| {
            tracing::warn!(why, %error, "settings were read and refused: nothing has changed");
            self.reached.state.count(Counter::ConfigRefused, 1);
        })?;
        let waiting = settings.waiting().to_vec();
        let is_new = !changed.is_empty() || waiting != old.waiting();
        self.reached.apply(&old, &settings);
        self.reached.admit(&settings, offered);
        self.in_force.store(Arc::new(settings));
        tracing::info!(why, changed = told(&changed), "settings were read");
        if !waiting.is_empty() {
            tracing::warn!(settings = told(&waiting), "these settings have changed and need a restart");
        }
        self.reached.state.read_settings();
        self.reached.state.count(if is_new { Counter::ConfigReloaded } else { Counter::ConfigUnchanged }, 1);
        Ok(Outcome { changed, waiting })
    }
}

impl Reached {
    /// Puts the lists of who may ask in force, if they are others: the one change that can fail, so it comes first.
    fn put_lists(&self, old: &Settings, new: &Settings) -> Result<(), SettingsError> {
        if old.acl == new.acl {
            return Ok(());
        }
        let acl = &self.server.acl;
        acl.set_source(acl::Source::from(new));
        acl::load(acl, &self.server.counters).map(drop).map_err(|error| {
            acl.set_source(acl::Source::from(old));
            SettingsError::Lists(error.to_string())
        })
    }

    /// Whom HTTP serves from the next request, and the next handshake, on.
    fn admit(&self, new: &Settings, offered: Option<ServerConfig>) {
        let Some(http) = self.http.get() else { return };
        http.token.set(new.admin.token.as_ref());
        if let (Some(tls), Some(offered)) = (&http.tls, offered) {
            tls.offer(offered);
        }
        confine::look_at_secrets(new);
    }

    /// Gives what has changed to the parts that go by it.
    fn apply(&self, old: &Settings, new: &Settings) {
        let (before, after) = (Changeable::from(old), Changeable::from(new));
        if before != after {
            self.lives.set(after.life_ms);
            self.server.engine.change(engine::Config::from(new, &after.within(self.answers)));
            if let Some(datapath) = self.state.datapath().as_mut() {
                datapath.change(&after);
            }
            let limits = Changed::between((&before.limits, &before.bytes), (&after.limits, &after.bytes));
            if limits.any() {
                // What was counted by the former limit says nothing of the new one, and a NACK under way may still count by it.
                std::thread::sleep(LAST_NACKS);
                self.server.engine.forget(limits);
                if let Some(datapath) = self.state.datapath().as_ref() {
                    datapath.forget(limits);
                }
            }
        }
        if old.repair.multicast != new.repair.multicast {
            self.claims_per_asker.store(!new.repair.multicast, Ordering::Relaxed);
        }
        if let Some(recovery) = &self.recovery {
            recovery.set_unicast(new.repair.unicast);
        }
        if let Some(beacon) = self.beacon.get()
            && beacon.announce(new)
        {
            self.state.announce.notify_one();
        }
        if old.telemetry.level != new.telemetry.level
            && let Err(error) = self.log_level.set(new.telemetry.level.as_str())
        {
            tracing::warn!(%error, "the log level cannot be changed");
        }
    }
}

/// What the files of TLS offer by now.
fn offered_by(settings: &Settings) -> Result<Option<ServerConfig>, SettingsError> {
    let offered = settings.admin.tls.as_ref().map(tls::read).transpose();
    offered.map_err(|error| SettingsError::Tls(error.to_string()))
}

/// Changes in one line.
fn told(changes: &[Change]) -> String {
    let words = |value: &str| if value.is_empty() { "not set".to_owned() } else { value.to_owned() };
    let each = changes.iter().map(|one| format!("-{} {} -> {}", one.name, words(&one.from), words(&one.to)));
    if changes.is_empty() { "nothing".to_owned() } else { each.collect::<Vec<_>>().join(", ") }
}
