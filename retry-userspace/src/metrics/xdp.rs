//! Why XDP is in the mode that it is in, as a label: few values, whatever the kernel says.

use crate::datapath::DatapathError;

/// Why XDP is in its mode. The log and `/readyz` tell it in full.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub enum XdpReason {
    /// `-xdp` asks for this mode.
    #[default]
    Asked,
    /// `-xdp auto` found that the kernel can.
    Auto,
    /// The daemon was built without the kernel program.
    NoObject,
    /// `-bpffs`: no BPF file system, or one that is not safe or cannot be written.
    Bpffs,
    /// Another daemon serves the interface.
    OtherDaemon,
    /// The kernel refused the program: a privilege is missing, the kernel is too old, or its verifier says no.
    Program,
    /// A map of the program could not be made or filled.
    Map,
    /// An interface does not take the program.
    Attach,
    /// An interface or an address of the settings is missing.
    Interface,
    /// An interface takes no packet of the program.
    Delivery,
}

impl XdpReason {
    /// All of them.
    pub const ALL: [Self; 10] = [
        Self::Asked,
        Self::Auto,
        Self::NoObject,
        Self::Bpffs,
        Self::OtherDaemon,
        Self::Program,
        Self::Map,
        Self::Attach,
        Self::Interface,
        Self::Delivery,
    ];

    /// Its word in the label `reason`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Asked => "asked",
            Self::Auto => "auto",
            Self::NoObject => "no_object",
            Self::Bpffs => "bpffs",
            Self::OtherDaemon => "other_daemon",
            Self::Program => "program",
            Self::Map => "map",
            Self::Attach => "attach",
            Self::Interface => "interface",
            Self::Delivery => "delivery",
        }
    }
}

impl From<&DatapathError> for XdpReason {
    fn from(error: &DatapathError) -> Self {
        match error {
            DatapathError::NoObject | DatapathError::Object { .. } => Self::NoObject,
            DatapathError::NoBpffs { .. } | DatapathError::Directory { .. } | DatapathError::Pin { .. } => Self::Bpffs,
            DatapathError::Locked { .. } => Self::OtherDaemon,
            DatapathError::Load(_) => Self::Program,
            // A start that was given up ends before there is a metric of it.
            DatapathError::Map(_) | DatapathError::Fill { .. } | DatapathError::GivenUp => Self::Map,
            DatapathError::Attach { .. } => Self::Attach,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::metrics::Snapshot;
    use crate::metrics::prometheus::{self, Format};

    /// The verifier says thousands of bytes, with any characters in them.
    #[test]
    fn what_the_verifier_says_is_in_no_label() {
        let error = DatapathError::Load(format!("retry_nack: {}", "0: R1=ctx() \\ \"x\" ".repeat(400)));
        let snapshot =
            Snapshot { xdp_reason: XdpReason::from(&error), xdp_why: error.to_string(), ..Snapshot::default() };
        let text = String::from_utf8(prometheus::encode(&snapshot, Format::Text).expect("text")).expect("UTF-8");
        assert!(text.lines().any(|line| line == "bre_xdp_mode{mode=\"\",reason=\"program\"} 1"), "{text}");
        assert!(text.lines().all(|line| line.len() < 1_000), "{text}");
    }

    #[test]
    fn every_reason_has_a_word_of_its_own_and_the_document_has_it() {
        let document = include_str!("../../../docs/metrics.md");
        for (place, reason) in XdpReason::ALL.into_iter().enumerate() {
            assert!(XdpReason::ALL[..place].iter().all(|other| other.name() != reason.name()));
            assert!(document.contains(&format!("| `{}` |", reason.name())), "{}", reason.name());
        }
    }
}
