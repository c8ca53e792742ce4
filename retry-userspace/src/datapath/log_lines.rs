//! What the kernel program logs with `-debug`.

use aya::Ebpf;
use aya_log::EbpfLogger;

/// The kernel's log lines.
pub struct LogLines(EbpfLogger<&'static dyn log::Log>);

impl LogLines {
    /// `None` where the program logs nothing.
    pub(super) fn open(ebpf: &mut Ebpf) -> Option<Self> {
        EbpfLogger::init(ebpf).ok().map(Self)
    }

    /// Hands the lines since the last call to the daemon's logger.
    pub fn flush(&mut self) {
        self.0.flush();
    }
}
