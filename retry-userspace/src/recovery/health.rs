//! Whether an upstream is asked with the others: by consecutive observations, with hysteresis. Pure.

#[cfg(test)]
mod tests;

/// Unanswered NACKs in a row after which it leaves.
const NO_ANSWERS: u8 = 3;
/// Silence after NACKs were sent, after which it leaves.
const SILENCE_NS: u64 = 8_000_000_000;
/// As many at least: one NACK that was lost before a quiet time says nothing.
const SILENT_SENDS: u8 = 2;
/// Answers in a row after which it returns.
const ANSWERS: u8 = 3;
/// ICMP errors in a row after which it leaves at once.
const UNREACHABLES: u8 = 3;

/// What was seen of an upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) enum Observation {
    /// A NACK was sent to it.
    Sent,
    /// It answered: a frame, an ACK, a MISS, a THROTTLED.
    Answer,
    /// It did not answer in time.
    NoAnswer,
    /// The network said that it cannot be reached.
    Unreachable,
}

/// The state of one upstream.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(crate) struct Health {
    up: bool,
    no_answers: u8,
    answers: u8,
    unreachables: u8,
    last_answer_ns: Option<u64>,
    /// When the first NACK was sent since the last answer.
    waiting_since_ns: Option<u64>,
    /// NACKs sent since the last answer.
    unanswered: u8,
}

impl Default for Health {
    fn default() -> Self {
        Self::new()
    }
}

impl Health {
    /// One that nothing is known of is asked.
    #[must_use]
    pub(crate) const fn new() -> Self {
        Self {
            up: true,
            no_answers: 0,
            answers: 0,
            unreachables: 0,
            last_answer_ns: None,
            waiting_since_ns: None,
            unanswered: 0,
        }
    }

    /// True while it is asked with the others.
    #[must_use]
    pub(crate) const fn is_up(&self) -> bool {
        self.up
    }

    /// When it last answered.
    #[must_use]
    pub(crate) const fn last_answer_ns(&self) -> Option<u64> {
        self.last_answer_ns
    }

    /// Takes an observation in.
    pub(crate) fn observe(&mut self, observation: Observation, now_ns: u64) {
        match observation {
            Observation::Sent => {
                // Before this one counts: it may well be answered.
                self.leave_if_silent(now_ns);
                self.waiting_since_ns.get_or_insert(now_ns);
                self.unanswered = self.unanswered.saturating_add(1);
            }
            Observation::Answer => {
                (self.no_answers, self.unreachables, self.unanswered) = (0, 0, 0);
                (self.last_answer_ns, self.waiting_since_ns) = (Some(now_ns), None);
                self.answers = self.answers.saturating_add(1);
                if self.answers >= ANSWERS {
                    self.up = true;
                }
            }
            Observation::NoAnswer => {
                self.answers = 0;
                self.no_answers = self.no_answers.saturating_add(1);
                if self.no_answers >= NO_ANSWERS {
                    self.leave();
                }
                self.leave_if_silent(now_ns);
            }
            Observation::Unreachable => {
                self.answers = 0;
                self.unreachables = self.unreachables.saturating_add(1);
                if self.unreachables >= UNREACHABLES {
                    self.leave();
                }
            }
        }
    }

    fn leave_if_silent(&mut self, now_ns: u64) {
        let silent = self.waiting_since_ns.is_some_and(|since| now_ns.saturating_sub(since) >= SILENCE_NS);
        if silent && self.unanswered >= SILENT_SENDS {
            self.leave();
        }
    }

    const fn leave(&mut self) {
        self.up = false;
        self.answers = 0;
    }
}
