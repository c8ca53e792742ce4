use proptest::prelude::*;

use super::Observation::{Answer, NoAnswer, Sent, Unreachable};
use super::*;

const SECOND: u64 = 1_000_000_000;

fn after(observations: &[Observation]) -> Health {
    let mut health = Health::new();
    observations.iter().for_each(|one| health.observe(*one, SECOND));
    health
}

#[test]
fn three_unanswered_in_a_row_leave_and_three_answers_return() {
    assert!(after(&[NoAnswer, NoAnswer]).is_up());
    assert!(after(&[NoAnswer, NoAnswer, Answer, NoAnswer, NoAnswer]).is_up());
    let mut health = after(&[NoAnswer, NoAnswer, NoAnswer]);
    for up in [false, false, true] {
        assert!(!health.is_up());
        health.observe(Answer, SECOND);
        assert_eq!(health.is_up(), up);
    }
    let mut relapsed = after(&[NoAnswer, NoAnswer, NoAnswer, Answer, Answer, NoAnswer, Answer, Answer]);
    assert!(!relapsed.is_up(), "answers in a row");
    relapsed.observe(Answer, SECOND);
    assert!(relapsed.is_up());
}

#[test]
fn three_icmp_errors_leave_at_once() {
    assert!(after(&[Unreachable, Unreachable, Answer, Unreachable]).is_up());
    assert!(!after(&[Unreachable, Unreachable, Unreachable]).is_up());
    assert!(after(&[NoAnswer, Unreachable, NoAnswer, Unreachable]).is_up(), "each kind by itself");
}

#[test]
fn eight_seconds_of_silence_after_nacks_leave() {
    let mut health = Health::new();
    for (at, up) in [(0, true), (4, true), (7, true), (8, false)] {
        health.observe(Sent, at * SECOND);
        assert_eq!(health.is_up(), up, "at {at} s");
    }
    let mut answers = Health::new();
    for at in 0..60 {
        answers.observe(Sent, at * SECOND);
        if at % 7 == 6 {
            answers.observe(Answer, at * SECOND + 1);
        }
        assert!(answers.is_up(), "at {at} s");
    }
    assert_eq!(answers.last_answer_ns(), Some(55 * SECOND + 1));
}

#[test]
fn one_lost_nack_before_a_quiet_hour_says_nothing() {
    let mut health = after(&[Sent, NoAnswer]);
    health.observe(Sent, 3600 * SECOND);
    assert!(health.is_up());
    health.observe(NoAnswer, 3601 * SECOND);
    assert!(!health.is_up(), "two lost, and nothing heard for an hour");
}

proptest! {
    /// Hysteresis: between leaving and returning there are three answers, between returning and leaving three failures or
    /// silence.
    #[test]
    fn it_never_flaps(observations in prop::collection::vec(
        prop_oneof![Just(Answer), Just(NoAnswer), Just(Unreachable)], 0..200,
    )) {
        let mut health = Health::new();
        let (mut was_up, mut since) = (true, 0);
        for one in observations {
            health.observe(one, SECOND);
            since += 1;
            if health.is_up() != was_up {
                prop_assert!(since >= 3);
                prop_assert_eq!(health.is_up(), one == Answer);
                (was_up, since) = (health.is_up(), 0);
            }
        }
    }
}
