//! A rig for each of those that are compared, so that they take turns without being started anew.

use std::time::Duration;

use anyhow::Result;
use aya::Ebpf;

use super::rig::{Load, Rig, Stretch};

/// The rigs of one run.
pub(crate) struct Rigs {
    /// Where the reflector stands.
    pub(crate) reflector: Rig,
    /// Where the daemon under test stands.
    pub(crate) subject: Rig,
    /// Where the plain server stands.
    pub(crate) plain: Rig,
    /// Where the daemon with `-xdp off` stands.
    pub(crate) socket: Rig,
    /// The reflector stays attached as long as this lives.
    _reflector: Ebpf,
}

impl Rigs {
    /// Makes them and attaches the reflector.
    pub(crate) fn new() -> Result<Self> {
        let reflector = Rig::new()?;
        let attached = reflector.reflector()?;
        Ok(Self { reflector, subject: Rig::new()?, plain: Rig::new()?, socket: Rig::new()?, _reflector: attached })
    }
}

/// The highest rate of a server on a socket, which a flood would only starve: it is offered more and more until it
/// answers no more. Returns the rate offered then.
pub(crate) fn best_offer(rig: &mut Rig, stretch: &Stretch, count: fn(&Load) -> u64) -> Result<f64> {
    let (mut best, mut offer, mut worse) = ((0.0, 40e3), 40e3, 0);
    while worse < 2 && offer < 1e6 {
        let load = rig.load(&Stretch { rate: Some(offer), time: Duration::from_millis(150), ..*stretch })?;
        let answered = load.rate_by_socket(count(&load));
        if answered > best.0 * 1.01 {
            (best, worse) = ((answered, offer), 0);
        } else {
            worse += 1;
        }
        offer *= 1.2;
    }
    Ok(best.1)
}
