//! The listener's questions: a NACK from a socket of its own, and what comes back to it.

use std::{
    net::{Ipv6Addr, SocketAddrV6, UdpSocket},
    time::Instant,
};

use anyhow::{Context, Result};
use nix::sys::epoll::{EpollEvent, EpollFlags};
use retry_common::key::FrameKey;

use super::{Arrival, Gap, NackSocket, State, Timer, Worker, read_from};
use crate::peers::{
    announce::Advert,
    answer::{Answer, nack},
    journal::key_of,
};

impl Worker {
    /// Takes in what endpoints say of themselves; what is no ADVERT is a manifest, and not for us.
    pub(super) fn read_beacons(&mut self, buffer: &mut [u8]) -> Result<()> {
        while let Some(socket) = &self.beacons {
            let Some((length, _)) = read_from(socket, buffer)? else {
                return Ok(());
            };
            if let Ok(advert) = Advert::parse(buffer.get(..length).unwrap_or_default()) {
                self.known.hear(&advert, Instant::now());
            }
        }
        Ok(())
    }

    /// Sends a NACK from a socket of its own to the next endpoint that has not been asked.
    pub(super) fn ask(&mut self, key: FrameKey) -> Result<()> {
        let order = self.known.order(Instant::now());
        let rank = self.gaps.get(&key).map_or(0, |gap| gap.rank);
        let Some(&endpoint) = rank.checked_rem(order.len()).and_then(|rank| order.get(rank)) else {
            // No endpoint has announced itself so far.
            self.enter(key, State::Paused, self.settings.backoff);
            return Ok(());
        };
        let socket =
            UdpSocket::bind(SocketAddrV6::new(Ipv6Addr::UNSPECIFIED, 0, 0, 0)).context("a socket for a NACK")?;
        socket.set_nonblocking(true)?;
        self.next_token += 1;
        let token = self.next_token;
        let event = EpollEvent::new(EpollFlags::EPOLLIN, token);
        self.epoll.add(&socket, event)?;
        let now = Instant::now();
        // A full queue is a lost NACK, and silence is how a listener learns of those.
        let _ = socket.send_to(&nack(key), endpoint);
        self.sockets.insert(token, NackSocket { socket, key, endpoint });
        let mut old = 0;
        if let Some(gap) = self.gaps.get_mut(&key) {
            gap.attempts += 1;
            gap.first_asked.get_or_insert(now);
            old = std::mem::replace(&mut gap.token, token);
        }
        if old != 0 {
            self.arm(self.settings.drain, Timer::Close { token: old });
        }
        self.stats().nacks += 1;
        self.enter(key, State::Asked, self.settings.answer_wait);
        Ok(())
    }

    pub(super) fn read_answers(&mut self, token: u64, buffer: &mut [u8]) -> Result<()> {
        loop {
            let Some(known) = self.sockets.get(&token) else {
                return Ok(());
            };
            let (key, endpoint) = (known.key, known.endpoint);
            let Some((length, from)) = read_from(&known.socket, buffer)? else {
                return Ok(());
            };
            let bytes = buffer.get(..length).unwrap_or_default();
            self.take_answer(token, (key, endpoint), bytes, from)?;
        }
    }

    /// `asked` is what was asked for, and of whom.
    fn take_answer(
        &mut self,
        token: u64,
        asked: (FrameKey, SocketAddrV6),
        bytes: &[u8],
        from: SocketAddrV6,
    ) -> Result<()> {
        let (key, endpoint) = asked;
        if from.ip() == endpoint.ip() && key_of(bytes) == Some(key) {
            self.take_frame(key, bytes, Arrival::Unicast);
            return Ok(());
        }
        let answer = match Answer::parse(bytes, key.seq_num()) {
            Ok(answer) if (from.ip(), from.port()) == (endpoint.ip(), endpoint.port()) => answer,
            other => {
                let mut stats = self.stats();
                stats.bad_answers += 1;
                let length = bytes.len();
                stats.complain(format!("{length} bytes from {from} for {key}: {other:?}"));
                return Ok(());
            }
        };
        match answer {
            Answer::Ack { .. } => self.stats().acks += 1,
            Answer::Miss => self.stats().misses += 1,
            Answer::Throttled { .. } => self.stats().throttled += 1,
        }
        // Only the answer to the newest NACK of an open gap changes what happens next.
        let waiting = |gap: &&Gap| gap.token == token && gap.state == State::Asked;
        let Some((attempts, rank)) = self.gaps.get(&key).filter(waiting).map(|gap| (gap.attempts, gap.rank)) else {
            return Ok(());
        };
        let endpoints = self.known.order(Instant::now()).len().max(1);
        let rounds = u32::try_from(endpoints)?;
        match answer {
            Answer::Ack { unicast: true, .. } => {
                self.enter(key, State::Promised, self.settings.drain);
            }
            Answer::Ack { .. } => self.enter(key, State::Promised, self.settings.answer_wait),
            // The next endpoint is asked at once, and behind the last the first again, a pause later.
            Answer::Miss if attempts < self.settings.miss_attempts * rounds => {
                if let Some(gap) = self.gaps.get_mut(&key) {
                    gap.rank += 1;
                }
                if (rank + 1) % endpoints != 0 {
                    self.stats().escalations += 1;
                    return self.ask(key);
                }
                self.enter(key, State::Paused, self.settings.backoff);
            }
            Answer::Miss => {
                self.stats().missed += 1;
                self.give_up(key);
            }
            Answer::Throttled { .. } if attempts >= self.settings.attempts => self.give_up(key),
            Answer::Throttled { hold } => self.enter(key, State::Paused, hold),
        }
        Ok(())
    }
}
