//! Raw NACKs and what comes back to the socket that asked.

use std::{
    net::{SocketAddrV6, UdpSocket},
    time::{Duration, Instant},
};

use retry_common::key::FrameKey;

use crate::{net::fabric::Host, peers::answer::Answer};

/// A socket of a listener that asks.
///
/// # Panics
/// The namespace gives no socket.
#[must_use]
pub fn asker(host: &Host) -> UdpSocket {
    let socket = host.ns.enter(|| UdpSocket::bind(SocketAddrV6::new(host.addr, 0, 0, 0))).expect("a socket");
    socket.set_read_timeout(Some(Duration::from_millis(300))).expect("a timeout");
    socket
}

/// Asks for a frame and returns every datagram that comes back to the socket until `wanted` are there or a listener's patience is over.
///
/// # Panics
/// The NACK does not leave, or an answer comes from another address than it went to.
pub fn ask(socket: &UdpSocket, to: SocketAddrV6, nack: &[u8], wanted: usize) -> Vec<Vec<u8>> {
    socket.send_to(nack, to).expect("a NACK leaves");
    let mut answers = Vec::new();
    let mut buffer = vec![0; 65_536];
    while answers.len() < wanted {
        match socket.recv_from(&mut buffer) {
            Ok((length, from)) => {
                assert_eq!(from, to.into(), "an answer from elsewhere");
                answers.push(buffer[..length].to_vec());
            }
            Err(_) => break,
        }
    }
    answers
}

/// Sends each datagram from a socket of its own, one after the other, and returns what came back to each.
///
/// Reading ends when nothing has come for half a second.
///
/// # Panics
/// As [`ask`].
pub fn ask_each(host: &Host, to: SocketAddrV6, datagrams: &[Vec<u8>]) -> Vec<Vec<Vec<u8>>> {
    let sockets: Vec<UdpSocket> = datagrams.iter().map(|_| asker(host)).collect();
    for (socket, datagram) in sockets.iter().zip(datagrams) {
        socket.set_nonblocking(true).expect("not blocking");
        socket.send_to(datagram, to).expect("it leaves");
    }
    let mut answers = vec![Vec::new(); sockets.len()];
    let mut buffer = vec![0; 65_536];
    let mut last = Instant::now();
    while last.elapsed() < Duration::from_millis(500) {
        for (socket, answers) in sockets.iter().zip(&mut answers) {
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                assert_eq!(from, to.into(), "an answer from elsewhere");
                answers.push(buffer[..length].to_vec());
                last = Instant::now();
            }
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    answers
}

/// What NACKs for these frames got, each: the answers in words, and whether the frame came, byte for byte.
///
/// # Panics
/// A frame came twice or with other bytes, or an answer is none.
pub fn read_answers(answers: &[Vec<u8>], seq_num: u64, frame: &[u8]) -> (Vec<Answer>, bool) {
    let (frames, answers): (Vec<_>, Vec<_>) = answers.iter().partition(|bytes| bytes.len() != 16);
    assert!(frames.len() <= 1 && frames.iter().all(|bytes| bytes.as_slice() == frame), "other bytes than published");
    let answers = answers.iter().map(|bytes| Answer::parse(bytes, seq_num).expect("an answer")).collect();
    (answers, !frames.is_empty())
}

/// A transaction frame of `payload` bytes, in shard 0.
///
/// # Panics
/// `payload` does not fit in 32 bits.
#[must_use]
pub fn frame(key: FrameKey, payload: usize, salt: u8) -> Vec<u8> {
    let mut frame = vec![0; 92];
    frame[..8].copy_from_slice(&[0xE3, 0xE1, 0xF3, 0xE8, 0x02, 0xBF, 2, 0]);
    frame[8..40].fill(0x11);
    frame[40..56].copy_from_slice(&key.to_bytes());
    frame[88..92].copy_from_slice(&u32::try_from(payload).expect("short").to_be_bytes());
    frame.extend((0..payload).map(|at| u8::try_from((at + usize::from(salt)) % 251).expect("below 251")));
    frame
}
