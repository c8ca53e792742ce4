//! The daemon behind the status page.

use std::sync::Arc;

use super::management::Management;
use super::reload::Reload;
use super::state::State;
use crate::admin::status::{Details, Handover, StatusSource};
use crate::beacon::registry::SharedRegistry;
use crate::metrics::{Snapshot, Source};
use crate::privileges::Rights;
use crate::settings::{Settings, XdpMode};
use crate::store::Store;

/// What the page reaches. It changes nothing.
pub(super) struct StatusPage {
    state: Arc<State>,
    store: Option<Store>,
    registry: Arc<SharedRegistry>,
    reload: Arc<Reload>,
    handover: Handover,
    /// They do not change while the daemon runs.
    rights: Rights,
}

impl StatusPage {
    /// Of the parts that the management API reaches too.
    pub(super) fn new(settings: &Settings, management: &Management, rights: Rights) -> Self {
        Self {
            state: Arc::clone(&management.state),
            store: management.store.clone(),
            registry: Arc::clone(&management.registry),
            reload: Arc::clone(&management.reload),
            handover: Handover {
                on: settings.xdp.handover && settings.xdp.mode != XdpMode::Off,
                bpf_lease: settings.xdp.bpf_lease,
                daemon_lease: settings.xdp.daemon_lease,
            },
            rights,
        }
    }
}

impl Source for StatusPage {
    fn snapshot(&self) -> Snapshot {
        self.state.snapshot()
    }
}

impl StatusSource for StatusPage {
    fn details(&self) -> Details {
        let in_force = self.reload.in_force();
        let limits = in_force.describe().iter();
        Details {
            interfaces: self.state.interfaces(),
            peers: self.registry.endpoints().iter().map(Into::into).collect(),
            store_why: self.store.as_ref().and_then(Store::why),
            limits: limits
                .filter(|one| one.flag.name.starts_with("rl-"))
                .map(|one| (one.flag.name, one.value.clone()))
                .collect(),
            handover: self.handover,
            rights: self.rights.clone(),
        }
    }
}
