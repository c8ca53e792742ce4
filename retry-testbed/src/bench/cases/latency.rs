//! How long a hit takes at a low rate: p50 and p99 of the frame's arrival, one listener, even pace.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};

use crate::bench::{
    contenders::Contenders,
    model::{Measurement, Row, Target},
    options::Settings,
    plain::{Answering, Plain},
    probe::{self, Probe, Probed},
    subject::{self, BY_SOCKET, IN_XDP, LIMITS_OUT_OF_REACH, UNICAST},
};

const LENGTH: usize = 400;
/// NACKs a second, and what the answers are called.
const RATES: [(u32, &str); 2] = [(1_000, "1 k"), (10_000, "10 k")];
/// Frames: each is asked for once in a round.
const FRAMES: u64 = 10_000;
/// Who is asked, in the order of the turns.
const WHO: [&str; 4] = ["reflector", "XDP", "plain", "-xdp off"];
/// Quantile, its name, and how much more than the reflector's it may be, µs.
const QUANTILES: [(f64, &str, f64); 2] = [(0.5, "p50", 10.0), (0.99, "p99", 20.0)];

pub(super) fn measure(name: &str, settings: &Settings, rigs: &mut Contenders) -> Result<Measurement> {
    let fabrics = (rigs.subject.fabric(), rigs.plain.fabric(), rigs.socket.fabric());
    let xdp = subject::start(&settings.binary, &fabrics.0, &[UNICAST, LIMITS_OUT_OF_REACH, IN_XDP])?;
    let socket = subject::start(&settings.binary, &fabrics.2, &[UNICAST, LIMITS_OUT_OF_REACH, BY_SOCKET])?;
    subject::fill(&mut rigs.subject, &xdp, FRAMES, LENGTH)?;
    subject::fill(&mut rigs.socket, &socket, FRAMES, LENGTH)?;
    let answering = Answering { ack: true, unicast: true, multicast: false };
    let _plain = Plain::answering(&fabrics.1, FRAMES, LENGTH, answering)?;

    let time = Duration::from_millis(if settings.quick { 300 } else { 750 });
    let mut found = Measurement::default();
    let (mut answered, mut sent) = (0, 0);
    for (rate, called) in RATES {
        let mut rounds: Vec<[Probed; 4]> = Vec::new();
        for _ in 0..settings.rounds {
            let probe = Probe { rate, time, first: 1, length: LENGTH, reflected: false };
            let round = [
                probe::ask(&rigs.reflector, &Probe { reflected: true, ..probe }).context("the reflector")?,
                probe::ask(&rigs.subject, &probe).context("the daemon")?,
                probe::ask(&rigs.plain, &probe).context("plain")?,
                probe::ask(&rigs.socket, &probe).context("-xdp off")?,
            ];
            for (probed, who) in round.iter().zip(WHO) {
                // What is lost is lost to a full queue of 256 packets while another task had the core.
                ensure!(probed.share() >= 0.5, "{who} answered {} of {} NACKs", probed.answered, probed.sent);
                answered += probed.answered;
                sent += probed.sent;
            }
            rounds.push(round);
        }
        for (quantile, kind, more) in QUANTILES {
            let [reflector, xdp, plain, socket] =
                [0, 1, 2, 3].map(|who| rounds.iter().map(|round| round[who].micros(quantile)).collect::<Vec<f64>>());
            let case = |who| format!("{name}: {who} at {called} NACK/s, {kind}");
            found.rows.push(Row::beside(case("XDP"), "µs", &xdp, ("reflector", &reflector), Target::Above(more)));
            let most = if kind == "p99" { Target::RatioAtMost(1.5) } else { Target::None };
            found.rows.push(Row::beside(case("-xdp off"), "µs", &socket, ("plain", &plain), most));
            found.rows.push(Row::alone(case("reflector"), "µs", &reflector, Target::None));
            found.rows.push(Row::alone(case("plain"), "µs", &plain, Target::None));
        }
    }
    found.notes.push(format!("{answered} of {sent} NACKs answered, each answer compared byte by byte"));
    Ok(found)
}
