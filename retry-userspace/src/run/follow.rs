//! Follows the interfaces: carries out what [`crate::interfaces`] plans, and says what keeps the daemon from serving.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::build::Work;
use super::state::State;
use crate::beacon::{self, BeaconSender};
use crate::datapath::{Attachments, Datapath, DatapathError, Interfaces, Mode};
use crate::fabric::{Fabric, Names};
use crate::ingress::subscription::{Rejoin, Subscription};
use crate::interfaces::delivery::{Delivery, Judgement};
use crate::interfaces::plan::{Plan, Seen, Wanted, plan};
use crate::interfaces::watch::{Change, Watch};
use crate::metrics::XdpReason;
use crate::nack::Server;
use crate::net::interface::{Interface, own_addresses};
use crate::repair;
use crate::settings::{Settings, XdpMode};

/// Between two attempts at what the kernel refused.
const BACK_OFF: Duration = Duration::from_secs(1);

/// ADVERTs that leave, one per look, once the daemon is ready again: the first ones find a link that has just come up.
const ANNOUNCEMENTS: u8 = 3;
/// From a refusal of what was redirected to the first probe, and the longest time between two probes.
const PROBES: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(64));

/// What follows.
pub(super) struct Follower {
    settings: Settings,
    state: Arc<State>,
    server: Arc<Server>,
    beacon: Option<Arc<BeaconSender>>,
    /// The data groups and the beacon groups.
    data: Option<Rejoin>,
    beacons: Rejoin,
    /// What stands; `None` while it does not.
    stands: Option<Fabric>,
    names: Names,
    /// Index of the interface that the sockets are joined on.
    joined_on: u32,
    /// The kernel program goes by the interfaces that stand.
    adapted: bool,
    /// Addresses of this host that it knows.
    own: BTreeSet<Ipv6Addr>,
    announcements: u8,
    tries: Tries,
    delivery: Deliveries,
}

/// What was tried last.
#[derive(Default)]
struct Tries {
    attach: Option<Instant>,
    rejoin: Option<Instant>,
    /// Why not.
    rejoin_failed: Option<String>,
    attach_failed: Option<String>,
}

/// Whether interfaces take what the kernel program redirects to them.
#[derive(Default)]
struct Deliveries {
    counts: Delivery,
    /// The interfaces are as they were when they were last probed.
    probed: bool,
    /// One that takes nothing.
    refusal: Option<Refusal>,
    /// Between the last refusal and its probe.
    wait: Duration,
}

struct Refusal {
    why: String,
    probe_at: Instant,
}

/// A veth pair drops what is longer than either end's MTU, in both directions, and says nothing.
fn too_narrow(interface: &Interface) -> String {
    let Interface { name, mtu, .. } = interface;
    let reach = interface.reach();
    format!(
        "interface {name}: its MTU is {mtu}, and the other end of the veth pair takes packets of up to {reach} bytes: frames \
         whose packets are longer, and too short to be fragmented, are not sent; give both ends the same MTU"
    )
}

impl Follower {
    /// Of parts that stand on `fabric`, as it was found at the start.
    pub(super) fn new(
        settings: &Settings,
        fabric: &Fabric,
        state: &Arc<State>,
        beacon: Option<&Arc<BeaconSender>>,
        work: &Work,
    ) -> Self {
        Self {
            settings: settings.clone(),
            state: Arc::clone(state),
            server: Arc::clone(&work.server),
            beacon: beacon.cloned(),
            data: work.joins.first().map(Subscription::rejoin),
            beacons: work.beacons.subscription.rejoin(),
            stands: Some(fabric.clone()),
            names: Names {
                ingress: fabric.ingress.name.clone(),
                // It stays what it was at the start, also where the settings leave it to an interface.
                nack_addr: Some(fabric.nack_addr),
                ..Names::from(settings)
            },
            joined_on: fabric.ingress.index,
            adapted: true,
            own: BTreeSet::new(),
            announcements: 0,
            tries: Tries::default(),
            delivery: Deliveries::default(),
        }
    }

    /// Follows until `cancel`.
    pub(super) async fn run(mut self, cancel: CancellationToken) {
        let mut told_blind = false;
        while !cancel.is_cancelled() {
            let mut watch = match Watch::open() {
                Ok(watch) => watch,
                Err(error) => {
                    if !std::mem::replace(&mut told_blind, true) {
                        tracing::error!(%error, "changes of interfaces are not followed: tried again every second");
                    }
                    tokio::time::sleep(BACK_OFF).await;
                    continue;
                }
            };
            loop {
                match watch.look(&self.names).await {
                    Ok(seen) => {
                        told_blind = false;
                        // Joining and attaching wait for other users of the network stack.
                        let step = tokio::task::spawn_blocking(move || {
                            self.step(&seen);
                            self
                        });
                        let Ok(stepped) = step.await else { return };
                        self = stepped;
                    }
                    Err(error) => {
                        if !std::mem::replace(&mut told_blind, true) {
                            tracing::error!(%error, "the interfaces cannot be looked at: tried again every second");
                        }
                    }
                }
                let changed = watch.changed(|change| self.concerns(change));
                let go_on = tokio::select! {
                    () = cancel.cancelled() => return,
                    go_on = changed => go_on,
                };
                if !go_on {
                    break;
                }
            }
        }
    }

    fn concerns(&self, change: &Change) -> bool {
        match change {
            Change::Link(name) => {
                *name == self.names.ingress
                    || self.names.egress.contains(name)
                    || self.stands.as_ref().is_some_and(|fabric| fabric.nack.name == *name)
            }
            Change::Address(_) => true,
        }
    }

    /// One look, at the start.
    pub(super) async fn look_once(mut self) -> Self {
        let seen = match Watch::open() {
            Ok(mut watch) => watch.look(&self.names).await,
            Err(error) => Err(error),
        };
        match seen {
            // What it does may take its time; nothing else runs yet.
            Ok(seen) => tokio::task::block_in_place(|| self.step(&seen)),
            Err(error) => tracing::error!(%error, "the interfaces cannot be looked at: tried again"),
        }
        self
    }

    /// Does what has to be done now.
    fn step(&mut self, seen: &Seen) {
        let attachments = self.state.datapath().as_ref().map(Datapath::attachments);
        let attachments = attachments.as_ref().map(|one| one.lock().unwrap_or_else(PoisonError::into_inner));
        let groups = self.data.iter().chain([&self.beacons]).flat_map(Rejoin::groups).collect();
        let program = attachments.as_ref().map(|attachments| attachments.program_id());
        let wanted = Wanted { names: self.names.clone(), program, groups };
        let Plan { mut problems, fabric, rejoin, attach } = plan(&wanted, self.joined_on, seen);

        let Some(fabric) = fabric else {
            self.stands = None;
            if attachments.is_some() {
                self.suspend(XdpReason::Interface, "an interface or an address of the settings is missing");
            }
            self.state.set_problems(problems);
            return;
        };
        let is_new = self.stands.as_ref() != Some(&fabric);
        if is_new {
            self.adapted = false;
            self.delivery = Deliveries::default();
        }
        let mut warnings: Vec<String> = fabric.narrow().map(too_narrow).collect();
        if let Some(mut attachments) = attachments {
            self.adapt(&fabric);
            self.own(&own_addresses(&seen.interfaces, fabric.nack.index));
            // A link that is down takes nothing, and is told of already.
            if problems.is_empty() && self.adapted && attachments.mode() == Mode::Native {
                warnings.extend(self.judge(&attachments, &fabric));
            }
            self.serve(&mut attachments, &attach, &mut problems);
        }
        self.rejoin(rejoin);
        problems.extend(self.tries.rejoin_failed.clone());
        if is_new {
            self.take_over(fabric);
        }
        self.state.set_warnings(warnings);
        if self.state.set_problems(problems) {
            self.announcements = ANNOUNCEMENTS;
        }
        if let Some(left) = self.announcements.checked_sub(1) {
            self.announcements = left;
            // Listeners that have given us up hear of us at once.
            self.state.announce.notify_one();
        }
    }

    /// The kernel answers where it can, or the daemon's socket does.
    fn serve(&mut self, attachments: &mut Attachments, missing: &[(String, u32)], problems: &mut Vec<String>) {
        let mode = attachments.mode();
        let is_auto = self.settings.xdp.mode == XdpMode::Auto;
        if let Some(refusal) = &self.delivery.refusal {
            if is_auto {
                attachments.detach_all();
                self.suspend(XdpReason::Delivery, &refusal.why);
                return;
            }
            problems.push(format!("-xdp {}: {}", mode.name(), refusal.why));
        }
        self.attach(attachments, missing);
        let failed = self.tries.attach_failed.clone().map(|why| (XdpReason::Attach, why));
        let gone = || (!self.adapted).then(|| (XdpReason::Interface, "an interface has gone again".to_owned()));
        match failed.or_else(gone) {
            None => self.resume(mode),
            Some((reason, why)) => {
                self.suspend(reason, &why);
                if !is_auto {
                    problems.push(format!("-xdp {}: {why}", mode.name()));
                }
            }
        }
    }

    /// Sockets go by these interfaces from now on.
    fn take_over(&mut self, fabric: Fabric) {
        self.server.sender.reconfigure(repair::Config::from(&self.settings, &fabric));
        if let Err(error) = self.server.sender.limit_packets(fabric.packet_limit()) {
            tracing::warn!(%error, "packets longer than a veth peer's MTU are lost");
        }
        if let (Some(beacon), Some(config)) = (&self.beacon, beacon::Config::from(&self.settings, &fabric)) {
            beacon.leave_by(config.interface, config.source);
        }
        self.state.leave_from(&fabric);
        tracing::info!(
            ingress = fabric.ingress.index,
            nack = fabric.nack.index,
            max_frame = fabric.max_frame(),
            "the interfaces as they are now are in use"
        );
        self.stands = Some(fabric);
    }

    /// Finds out whether interfaces take what is redirected to them; returns what is to be told of those that lose some.
    fn judge(&mut self, attachments: &Attachments, fabric: &Fabric) -> Vec<String> {
        let now = Instant::now();
        let is_due = match &self.delivery.refusal {
            Some(refusal) => now >= refusal.probe_at,
            None => !self.delivery.probed,
        };
        if is_due {
            let refused = self.probe(attachments, fabric);
            self.delivery.probed = true;
            self.delivery.refusal = None;
            self.delivery.counts.forget();
            if let Some(interface) = refused {
                self.refuse(&interface);
            }
        }
        self.state.reckon(fabric);
        let mut warnings = Vec::new();
        for (interface, sent) in self.state.delivered() {
            match self.delivery.counts.judge(&interface, now.into_std(), sent) {
                Judgement::Takes => {}
                Judgement::Loses => warnings.push(format!(
                    "interface {interface}: its driver does not take a tenth or more of the packets of the kernel program \
                     (bre_xdp_xmit_drops_total): the other end is too slow, or has a smaller MTU"
                )),
                Judgement::Refuses if self.delivery.refusal.is_none() => self.refuse(&interface),
                Judgement::Refuses => {}
            }
        }
        warnings
    }

    fn refuse(&mut self, interface: &str) {
        let (first, longest) = PROBES;
        self.delivery.wait = (self.delivery.wait * 2).clamp(first, longest);
        let why = format!(
            "interface {interface}: its driver takes no packet of the kernel program; the other end of a veth pair has to have GRO \
             on (`ethtool -K IFACE gro on` there) or an XDP program of its own"
        );
        self.delivery.refusal = Some(Refusal { why, probe_at: Instant::now() + self.delivery.wait });
    }

    /// Sends one frame by each interface; the name of one that does not take it. Where nothing can be found out, all do.
    fn probe(&self, attachments: &Attachments, fabric: &Fabric) -> Option<String> {
        // As the kernel tells of it, without what is lost before.
        let counted = |name: &str| {
            let all = self.state.datapath().as_ref().map(Datapath::delivered)?;
            all.into_iter().find(|(interface, _)| interface == name).map(|(_, sent)| sent)
        };
        let interfaces = [&fabric.nack].into_iter().chain(fabric.egress.iter().map(|egress| &egress.interface));
        let all = fabric.attach_to();
        for interface in interfaces {
            let place = all.iter().position(|(_, index)| *index == interface.index)?;
            let before = counted(&interface.name)?;
            if let Err(error) = attachments.probe(place, interface.index, interface.mac.unwrap_or_default()) {
                tracing::debug!(%error, "interfaces cannot be probed");
                return None;
            }
            let after = counted(&interface.name)?;
            if after != before {
                self.state.ledger().probed(&interface.name);
            }
            // It may not even have been queued for the driver.
            if after.packets == before.packets {
                return Some(interface.name.clone());
            }
        }
        None
    }

    /// Attaches the program where it is missing, a second after the last attempt at the earliest.
    fn attach(&mut self, attachments: &mut Attachments, missing: &[(String, u32)]) {
        if missing.is_empty() {
            self.tries.attach_failed = None;
            return;
        }
        if self.tries.attach.is_some_and(|last| last.elapsed() < BACK_OFF) {
            self.tries.attach_failed.get_or_insert_with(|| "the program was detached from an interface".to_owned());
            return;
        }
        self.tries.attach = Some(Instant::now());
        for (name, index) in missing {
            match attachments.attach(name, *index) {
                Ok(()) => tracing::info!(interface = name, index, "the kernel program is attached again"),
                Err(error) => {
                    self.refused(&error);
                    return;
                }
            }
        }
        self.tries.attach_failed = None;
    }

    fn refused(&mut self, error: &DatapathError) {
        let why = error.to_string();
        if self.tries.attach_failed.as_ref() != Some(&why) {
            tracing::warn!(error = why, "the kernel program cannot be attached again: tried every second");
        }
        self.tries.attach_failed = Some(why);
    }

    /// The kernel program leaves NACKs that claim to come from these addresses to the stack.
    fn own(&mut self, own: &BTreeSet<Ipv6Addr>) {
        if self.own == *own {
            return;
        }
        let told = self.state.datapath().as_mut().map(|datapath| datapath.set_own(own));
        if let Some(Err(error)) = told {
            tracing::warn!(%error, "the kernel program does not know all addresses of this host");
        }
        self.own.clone_from(own);
    }

    /// The kernel program goes by these interfaces from now on.
    fn adapt(&mut self, fabric: &Fabric) {
        if self.adapted {
            return;
        }
        match self.state.datapath().as_mut().map(|datapath| datapath.adapt(&Interfaces::from(fabric))) {
            Some(Err(error)) => tracing::warn!(%error, "the kernel program cannot go by the interfaces: tried again"),
            Some(Ok(())) | None => self.adapted = true,
        }
    }

    fn rejoin(&mut self, wanted: Option<u32>) {
        let Some(index) = wanted else {
            self.tries.rejoin_failed = None;
            return;
        };
        if self.tries.rejoin.is_some_and(|last| last.elapsed() < BACK_OFF) && self.joined_on == index {
            return;
        }
        self.tries.rejoin = Some(Instant::now());
        match self.data.iter().chain([&self.beacons]).try_for_each(|one| one.on(index)) {
            Ok(()) => {
                tracing::info!(index, "the groups are joined again");
                self.joined_on = index;
                self.tries.rejoin_failed = None;
            }
            Err(error) => {
                let why = error.to_string();
                if self.tries.rejoin_failed.as_ref() != Some(&why) {
                    tracing::error!(error = why, "the groups cannot be joined again: tried every second");
                }
                self.tries.rejoin_failed = Some(why);
            }
        }
    }

    fn suspend(&self, reason: XdpReason, why: &str) {
        if let Some(datapath) = self.state.datapath().as_mut() {
            datapath.suspend();
        }
        if self.state.set_mode("off", reason, why) {
            tracing::warn!(xdp = "off", reason = why, "the daemon's socket answers NACKs");
        }
    }

    fn resume(&self, mode: Mode) {
        let (reason, asked) = match self.settings.xdp.mode {
            XdpMode::Auto => (XdpReason::Auto, "-xdp auto"),
            XdpMode::Native => (XdpReason::Asked, "-xdp native"),
            XdpMode::Skb => (XdpReason::Asked, "-xdp skb"),
            XdpMode::Off => return,
        };
        if self.state.set_mode(mode.name(), reason, asked) {
            if let Some(datapath) = self.state.datapath().as_mut() {
                datapath.resume();
            }
            self.state.renew_leases(&self.settings.xdp);
            tracing::info!(xdp = mode.name(), reason = asked, "the kernel answers NACKs");
        }
    }
}
