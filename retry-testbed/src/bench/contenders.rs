//! A rig for each of those that are compared, so that they take turns without being started anew.

use std::time::Duration;

use super::rig::{Load, Raised, Reflector, Rig, Stretch};
use anyhow::Result;

/// What a server on a socket is offered first, a second, and the most that it is offered.
const FIRST_OFFER: f64 = 120e3;
const LAST_OFFER: f64 = 1e6;

/// The rigs of one run.
pub(crate) struct Contenders {
    /// Where the reflector stands.
    pub(crate) reflector: Rig,
    /// Where the daemon under test stands.
    pub(crate) subject: Rig,
    /// Where the plain server stands.
    pub(crate) plain: Rig,
    /// Where the daemon with `-xdp off` stands.
    pub(crate) socket: Rig,
    reflects: Reflector,
    _raised: Raised,
}

impl Contenders {
    /// Makes them, with links of this MTU, and attaches the reflector.
    pub(crate) fn new(mtu: u16) -> Result<Self> {
        let raised = Raised::new()?;
        let reflector = Rig::new(mtu)?;
        let reflects = reflector.reflector()?;
        Ok(Self {
            reflector,
            subject: Rig::new(mtu)?,
            plain: Rig::new(mtu)?,
            socket: Rig::new(mtu)?,
            reflects,
            _raised: raised,
        })
    }

    /// Loads the reflector as fast as it goes. Returns how many packets it sent back.
    ///
    /// Counted where they are sent, whether the client's end took them in or not.
    pub(crate) fn reflect(&mut self, stretch: &Stretch) -> Result<(Load, u64)> {
        let before = self.reflects.count()?;
        let load = self.reflector.load(stretch)?;
        Ok((load, self.reflects.count()? - before))
    }
}

/// The highest rate of a server on a socket, which a flood would only starve: it is offered more and more until it
/// answers less than nine tenths of it, twice. Returns the rate offered when it answered most.
pub(crate) fn best_offer(rig: &mut Rig, stretch: &Stretch, count: fn(&Load) -> u64) -> Result<f64> {
    let (mut best, mut offer, mut over) = ((0.0, FIRST_OFFER), FIRST_OFFER, 0);
    while over < 2 && offer < LAST_OFFER {
        let load = rig.load(&Stretch { rate: Some(offer), time: Duration::from_millis(150), ..*stretch })?;
        let answered = count(&load);
        let rate = load.rate_by_socket(answered);
        if rate > best.0 {
            best = (rate, offer);
        }
        if answered * 10 < load.sent * 9 {
            over += 1;
        }
        offer *= 1.2;
    }
    Ok(best.1)
}
