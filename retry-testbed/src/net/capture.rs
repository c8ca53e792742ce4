//! Raw packets on an interface of a namespace: a capture on a thread of its own, and a socket that sends any bytes.

use std::{
    fs::File,
    io::{self, IoSliceMut, Write},
    mem,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use nix::errno::Errno;
use pcap_file::pcap::{PcapPacket, PcapWriter};

use crate::net::{
    netns::Netns,
    packet::{Packet, ParsedPacket},
};

/// Longest packet that is kept whole.
const SNAP: usize = 65_600;

/// One packet as it was seen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Captured {
    /// When the capture's thread read it.
    pub time: SystemTime,
    /// The interface sent it; otherwise it came in.
    pub outgoing: bool,
    /// The whole Ethernet frame, its VLAN tags included.
    pub bytes: Vec<u8>,
}

/// A running capture of everything that comes in, and on request of what goes out.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    packets: Arc<Mutex<Vec<Captured>>>,
    thread: Option<JoinHandle<()>>,
}

impl Capture {
    /// Starts to capture what comes in on an interface.
    ///
    /// # Errors
    /// No such interface, or not root.
    pub fn start(ns: &Netns, interface: &str) -> Result<Self> {
        Self::start_with(ns, interface, false)
    }

    /// As [`Capture::start`], also with what the interface sends.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn start_with(ns: &Netns, interface: &str, outgoing: bool) -> Result<Self> {
        let socket = open(ns, interface, u16::to_be(0x0003))?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_AUXDATA, 1)?;
        if !outgoing {
            set_option(&socket, libc::SOL_PACKET, libc::PACKET_IGNORE_OUTGOING, 1)?;
        }
        set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        // The thread looks at its stop flag this often.
        nix::sys::socket::setsockopt(
            &socket,
            nix::sys::socket::sockopt::ReceiveTimeout,
            &nix::sys::time::TimeVal::new(0, 20_000),
        )?;
        let stop = Arc::new(AtomicBool::new(false));
        let packets = Arc::new(Mutex::new(Vec::new()));
        let thread = thread::spawn({
            let (stop, packets) = (Arc::clone(&stop), Arc::clone(&packets));
            move || {
                let mut buffer = vec![0; SNAP];
                while !stop.load(Ordering::Relaxed) {
                    if let Some(captured) = receive(&socket, &mut buffer) {
                        packets.lock().unwrap_or_else(PoisonError::into_inner).push(captured);
                    }
                }
            }
        });
        Ok(Self { stop, packets, thread: Some(thread) })
    }

    /// What was captured since the last call.
    #[must_use]
    pub fn take(&self) -> Vec<Captured> {
        mem::take(&mut self.packets.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A copy of what was captured since the last [`Capture::take`].
    #[must_use]
    pub fn seen(&self) -> Vec<Captured> {
        self.packets.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until at least `count` packets that `wanted` accepts are there, or `patience` is over, and takes all packets.
    #[must_use]
    pub fn wait(&self, count: usize, patience: Duration, wanted: impl Fn(&Captured) -> bool) -> Vec<Captured> {
        let deadline = Instant::now() + patience;
        loop {
            let packets = self
                .packets
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .iter()
                .filter(|packet| wanted(packet))
                .count();
            if packets >= count || Instant::now() >= deadline {
                return self.take();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        if thread::panicking() {
            match dump(&self.take()) {
                Ok(path) => eprintln!("captured packets: {}", path.display()),
                Err(error) => eprintln!("no capture file: {error:#}"),
            }
        }
    }
}

/// The UDP datagrams among captured packets, each fully verified; other protocols (neighbour discovery, MLD) are left out.
///
/// # Errors
/// What is wrong with the first UDP packet that is not right.
pub fn datagrams(packets: &[Captured]) -> Result<Vec<ParsedPacket>, String> {
    packets.iter().filter(|packet| is_udp(&packet.bytes)).map(|packet| Packet::check(&packet.bytes)).collect()
}

/// Whether this is UDP over IPv6 without extension headers, right or broken, behind any VLAN tags.
#[must_use]
pub fn is_udp(bytes: &[u8]) -> bool {
    without_tags(bytes).and_then(|packet| packet.get(6)) == Some(&17)
}

/// The IPv6 packet in an Ethernet frame with any number of VLAN tags.
#[must_use]
pub fn without_tags(frame: &[u8]) -> Option<&[u8]> {
    let mut at = 12;
    while matches!(frame.get(at..at + 2), Some([0x81, 0x00] | [0x88, 0xA8])) {
        at += 4;
    }
    let packet = frame.get(at + 2..)?;
    (frame.get(at..at + 2) == Some(&[0x86, 0xDD])).then_some(packet)
}

/// Writes packets as a pcap file into the directory for temporary files and returns its path.
///
/// # Errors
/// The file cannot be written.
pub fn dump(packets: &[Captured]) -> Result<PathBuf> {
    // Another test may have the same process id, in a namespace of its own.
    let path = tempfile::Builder::new().prefix("retry-testbed-").suffix(".pcap").tempfile()?.into_temp_path().keep()?;
    write_pcap(&path, packets)?;
    Ok(path)
}

/// Writes packets as a pcap file.
///
/// # Errors
/// The file cannot be written.
pub fn write_pcap(path: &Path, packets: &[Captured]) -> Result<()> {
    let file = File::create(path).with_context(|| format!("create {}", path.display()))?;
    let mut writer = PcapWriter::new(io::BufWriter::new(file))?;
    for packet in packets {
        let time = packet.time.duration_since(UNIX_EPOCH).unwrap_or_default();
        let length = u32::try_from(packet.bytes.len())?;
        writer.write_packet(&PcapPacket::new(time, length, &packet.bytes))?;
    }
    writer.into_writer().flush()?;
    Ok(())
}

/// Sends any bytes as an Ethernet frame.
#[derive(Debug)]
pub struct RawSender {
    socket: OwnedFd,
    /// Frames go out behind a `virtio_net_hdr`.
    has_header: bool,
}

impl RawSender {
    /// A sender on an interface of a namespace.
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn open(ns: &Netns, interface: &str) -> Result<Self> {
        let socket = open(ns, interface, 0)?;
        Ok(Self { socket, has_header: false })
    }

    /// As [`RawSender::open`], for frames whose UDP checksum the device is to finish ([`RawSender::send_unfinished`]).
    ///
    /// # Errors
    /// As [`Capture::start`].
    pub fn open_unfinished(ns: &Netns, interface: &str) -> Result<Self> {
        let socket = open(ns, interface, 0)?;
        set_option(&socket, libc::SOL_PACKET, libc::PACKET_VNET_HDR, 1)?;
        Ok(Self { socket, has_header: true })
    }

    /// Sends one frame.
    ///
    /// # Errors
    /// Shorter than an Ethernet header, longer than the interface's MTU, or the interface is down.
    pub fn send(&self, frame: &[u8]) -> Result<()> {
        ensure!(!self.has_header, "this sender sends unfinished frames only");
        self.send_bytes(frame)
    }

    /// Sends one UDP datagram over IPv6 as a local stack does: it says that the device is to finish the checksum, whose field
    /// holds the sum of the pseudo-header. `udp` is where the UDP header starts.
    ///
    /// # Errors
    /// As [`RawSender::send`]; the sender was opened with [`RawSender::open`].
    pub fn send_unfinished(&self, frame: &[u8], udp: u16) -> Result<()> {
        // linux/virtio_net.h: VIRTIO_NET_HDR_F_NEEDS_CSUM; where the checksum lies within the UDP header.
        const NEEDS_CSUM: u8 = 1;
        const OFFSET: u16 = 6;
        ensure!(self.has_header, "this sender sends finished frames only");
        let mut bytes = vec![NEEDS_CSUM, 0, 0, 0, 0, 0];
        bytes.extend(udp.to_ne_bytes());
        bytes.extend(OFFSET.to_ne_bytes());
        bytes.extend(frame);
        self.send_bytes(&bytes)
    }

    fn send_bytes(&self, frame: &[u8]) -> Result<()> {
        nix::sys::socket::send(self.socket.as_raw_fd(), frame, nix::sys::socket::MsgFlags::empty())
            .with_context(|| format!("send a frame of {} bytes", frame.len()))?;
        Ok(())
    }
}

/// An AF_PACKET socket bound to an interface; protocol 0 receives nothing.
pub(crate) fn open(ns: &Netns, interface: &str, protocol: u16) -> Result<OwnedFd> {
    let index = i32::try_from(ns.interface_index(interface)?)?;
    ns.enter(|| {
        // SAFETY: a system call that takes three numbers.
        let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        let raw = Errno::result(raw)?;
        // SAFETY: the kernel just returned this descriptor, and nothing else owns it.
        let socket = unsafe { OwnedFd::from_raw_fd(raw) };
        let address = libc::sockaddr_ll {
            sll_family: libc::AF_PACKET.unsigned_abs().try_into().unwrap_or(0),
            sll_protocol: protocol,
            sll_ifindex: index,
            sll_hatype: 0,
            sll_pkttype: 0,
            sll_halen: 0,
            sll_addr: [0; 8],
        };
        let length = libc::socklen_t::try_from(size_of_val(&address))?;
        // SAFETY: the pointer and the length describe `address`, which outlives the call.
        let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
        Errno::result(bound)?;
        anyhow::Ok(socket)
    })
    .with_context(|| format!("packet socket on {interface}"))
}

fn set_option(socket: &OwnedFd, level: i32, name: i32, value: i32) -> Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value))?;
    // SAFETY: the pointer and the length describe `value`, which outlives the call.
    let set = unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), length) };
    Errno::result(set)?;
    Ok(())
}

/// Reads one packet, or nothing when none came for a while. The kernel takes the outermost VLAN tag out of the bytes and hands it over beside them: it is put back.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Option<Captured> {
    #[repr(C, align(8))]
    struct Control([u8; 128]);
    let mut control = Control([0; 128]);
    // SAFETY: all-zero bytes are a valid address structure.
    let mut from: libc::sockaddr_ll = unsafe { mem::zeroed() };
    let mut slice = [IoSliceMut::new(buffer)];
    // SAFETY: all-zero bytes are a valid message header.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_name = (&raw mut from).cast();
    message.msg_namelen = libc::socklen_t::try_from(size_of_val(&from)).ok()?;
    message.msg_iov = slice.as_mut_ptr().cast();
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len();
    // SAFETY: the header points at buffers that outlive the call, with their lengths; IoSliceMut has the layout of iovec.
    let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &raw mut message, 0) };
    let length = usize::try_from(length).ok()?;
    let tag = vlan_tag(&message);
    let mut bytes = buffer.get(..length)?.to_vec();
    if let (Some((tpid, tci)), true) = (tag, length >= 12) {
        let [a, b] = tpid.to_be_bytes();
        let [c, d] = tci.to_be_bytes();
        bytes.splice(12..12, [a, b, c, d]);
    }
    Some(Captured { time: SystemTime::now(), outgoing: from.sll_pkttype == libc::PACKET_OUTGOING, bytes })
}

fn vlan_tag(message: &libc::msghdr) -> Option<(u16, u16)> {
    // SAFETY: the kernel filled the control buffer that the header describes.
    let mut header = unsafe { libc::CMSG_FIRSTHDR(message) };
    while !header.is_null() {
        // SAFETY: a non-null header from CMSG_FIRSTHDR or CMSG_NXTHDR lies inside the control buffer.
        let current = unsafe { header.read_unaligned() };
        if current.cmsg_level == libc::SOL_PACKET && current.cmsg_type == libc::PACKET_AUXDATA {
            // SAFETY: the data of a header follows it in the control buffer.
            let data = unsafe { libc::CMSG_DATA(header) };
            // SAFETY: a message of this type carries exactly this structure, at any alignment.
            let aux = unsafe { data.cast::<libc::tpacket_auxdata>().read_unaligned() };
            let tagged = aux.tp_status & libc::TP_STATUS_VLAN_VALID != 0;
            let known = aux.tp_status & libc::TP_STATUS_VLAN_TPID_VALID != 0;
            let tpid = if known { aux.tp_vlan_tpid } else { 0x8100 };
            return tagged.then_some((tpid, aux.tp_vlan_tci));
        }
        // SAFETY: both pointers belong to the control buffer that the kernel filled.
        header = unsafe { libc::CMSG_NXTHDR(message, header) };
    }
    None
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::{Captured, datagrams, is_udp, write_pcap};
    use crate::net::packet::{Checksum, PacketBuilder};

    fn captured(builder: &PacketBuilder) -> Captured {
        Captured { time: SystemTime::now(), outgoing: false, bytes: builder.build() }
    }

    #[test]
    fn only_udp_is_checked_and_a_broken_one_is_an_error() {
        let good = PacketBuilder::udp(
            "[fd10::1]:9300".parse().expect("an address"),
            "[fd10::2]:40000".parse().expect("an address"),
            b"answer",
        )
        .vlan(5);
        let mut other = good.clone();
        other.protocol = 58;
        let both = [captured(&good), captured(&other)];
        assert!(!is_udp(&both[1].bytes));
        assert_eq!(datagrams(&both).expect("right").len(), 1);
        let mut broken = good;
        broken.checksum = Checksum::Partial;
        assert!(datagrams(&[captured(&broken)]).is_err());
    }

    #[test]
    fn a_dump_reads_back() {
        let packet = captured(&PacketBuilder::udp(
            "[fd10::1]:9300".parse().expect("an address"),
            "[ff05::b:1]:9001".parse().expect("an address"),
            &[1; 400],
        ));
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("x.pcap");
        write_pcap(&path, std::slice::from_ref(&packet)).expect("written");
        let file = std::fs::File::open(&path).expect("there");
        let mut reader = pcap_file::pcap::PcapReader::new(file).expect("a pcap");
        let read = reader.next_packet().expect("one").expect("whole");
        assert_eq!(read.data, packet.bytes);
        assert!(reader.next_packet().is_none());
    }
}
