//! One packet through a loaded XDP program by `BPF_PROG_TEST_RUN`: action and bytes out, nothing attached.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::programs::{TestRun as _, TestRunAttrs, TestRunOptions, Xdp};

/// Longest packet: what does not fit one buffer with the kernel's own headers is spread over several.
pub const LONGEST: usize = 9_300;

/// What an XDP program said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// An error inside the program.
    Aborted,
    /// Dropped.
    Drop,
    /// Passed on to the stack.
    Pass,
    /// Sent back where it came from.
    Tx,
    /// Redirected.
    Redirect,
    /// None of the kernel's actions.
    Other(u32),
}

impl From<u32> for Action {
    fn from(value: u32) -> Self {
        match value {
            0 => Self::Aborted,
            1 => Self::Drop,
            2 => Self::Pass,
            3 => Self::Tx,
            4 => Self::Redirect,
            other => Self::Other(other),
        }
    }
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// The program's verdict.
    pub action: Action,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Time of one run, averaged over the repeats.
    pub duration: Duration,
}

/// Runs the program once over a packet of 14 to [`LONGEST`] bytes.
///
/// `ingress` is the index of the interface (of the calling thread's namespace) that the packet seems to come in by;
/// without it the kernel takes `lo`. A redirect is not carried out and devmap programs do not run.
///
/// # Errors
/// The kernel refuses: no CAP_NET_ADMIN or CAP_BPF, a packet out of bounds, no such interface.
pub fn run(program: &Xdp, packet: &[u8], ingress: Option<u32>) -> Result<Outcome> {
    run_repeated(program, packet, ingress, 1)
}

/// As [`run`], `repeat` times over the same buffer: each run sees what the one before it left.
///
/// # Errors
/// As [`run`].
pub fn run_repeated(program: &Xdp, packet: &[u8], ingress: Option<u32>, repeat: u32) -> Result<Outcome> {
    ensure!((14..=LONGEST).contains(&packet.len()), "a packet of {} bytes, accepted are 14 to {LONGEST}", packet.len());
    let context = ingress.map(|index| context(packet.len(), index)).transpose()?;
    let mut out = vec![0; 16_384];
    let result = program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            ctx_in: context.as_ref().map(<[u8; 24]>::as_slice),
            repeat,
            ..TestRunOptions::default()
        })
        .context("BPF_PROG_TEST_RUN")?;
    out.truncate(usize::try_from(result.data_size_out)?);
    Ok(Outcome { action: result.return_value.into(), packet: out, duration: result.duration })
}

/// Feeds copies of a packet to the program as if they came in by the interface, and lets the kernel carry out what it says (live frames, Linux 5.18).
///
/// The pages of the packets are reused without being reset: the program sees its own changes again unless it rewrites
/// the whole packet. A call idles for about 27 ms, so take many repeats at once. Returns the time that the call took.
///
/// # Errors
/// As [`run`].
pub fn run_live(program: &Xdp, packet: &[u8], ingress: u32, repeat: u32) -> Result<Duration> {
    run_live_in_batches(program, packet, ingress, repeat, 64)
}

/// As [`run_live`], with as many packets (1 to 256) handed over at a time as `batch` says: few for an even pace.
///
/// # Errors
/// As [`run`].
pub fn run_live_in_batches(program: &Xdp, packet: &[u8], ingress: u32, repeat: u32, batch: u32) -> Result<Duration> {
    let context = context(packet.len(), ingress)?;
    let start = std::time::Instant::now();
    program
        .test_run(TestRunOptions {
            data_in: Some(packet),
            ctx_in: Some(&context),
            repeat,
            attrs: TestRunAttrs::new().xdp_live_frames(batch),
            ..TestRunOptions::default()
        })
        .context("BPF_PROG_TEST_RUN with live frames")?;
    Ok(start.elapsed())
}

/// `struct xdp_md`: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex, in the machine's byte order.
fn context(length: usize, ingress: u32) -> Result<[u8; 24]> {
    let mut context = [0; 24];
    context[4..8].copy_from_slice(&u32::try_from(length)?.to_ne_bytes());
    context[12..16].copy_from_slice(&ingress.to_ne_bytes());
    Ok(context)
}

#[cfg(test)]
mod tests {
    use super::{Action, context};

    #[test]
    fn actions_have_the_kernels_numbers() {
        let all = [0, 1, 2, 3, 4, 5].map(Action::from);
        let wanted = [Action::Aborted, Action::Drop, Action::Pass, Action::Tx, Action::Redirect, Action::Other(5)];
        assert_eq!(all, wanted);
    }

    #[test]
    fn the_context_holds_length_and_interface() {
        let context = context(64, 7).expect("short");
        assert_eq!(context[4..8], 64u32.to_ne_bytes());
        assert_eq!(context[12..16], 7u32.to_ne_bytes());
        assert_eq!(context.iter().filter(|byte| **byte != 0).count(), 2);
    }
}
