//! Attempts and waits in tokio's paused time; the breaker's own clock is the system's.

use std::sync::atomic::{AtomicU32, Ordering};

use proptest::prelude::*;
use tokio::time::Instant;

use super::*;

fn settings(policy: RetryPolicy) -> Settings {
    Settings {
        policy,
        attempts: 3,
        delay: Duration::from_millis(100),
        factor: 2.0,
        max_delay: Duration::from_secs(5),
        jitter: false,
        breaker: 0,
        breaker_open: Duration::from_millis(50),
    }
}

async fn always<T>(
    retry: &Retry,
    outcome: impl Fn(u32) -> Result<T, Failure<&'static str>>,
) -> Result<T, GaveUp<&'static str>> {
    let outcome = &outcome;
    retry.run(&CancellationToken::new(), |attempt| async move { outcome(attempt) }).await
}

#[tokio::test(start_paused = true)]
async fn the_waits_grow_and_the_last_error_is_kept() {
    let retry = Retry::new(&settings(RetryPolicy::Exponential));
    let start = Instant::now();
    let errors = ["first", "second", "third"];
    let gave_up = always::<()>(&retry, |attempt| Err(Failure::Transient(errors[attempt as usize - 1]))).await;
    assert_eq!(gave_up, Err(GaveUp::Exhausted { last: "third", attempts: 3 }));
    // tokio rounds up to its own milliseconds.
    assert!((300..=302).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    assert_eq!(gave_up.expect_err("failed").to_string(), "third (after 3 attempts)");
}

#[tokio::test(start_paused = true)]
async fn a_success_ends_it() {
    let retry = Retry::new(&settings(RetryPolicy::Exponential));
    let got = always(&retry, |attempt| if attempt < 2 { Err(Failure::Transient("no")) } else { Ok(attempt) }).await;
    assert_eq!(got, Ok(2));
}

#[tokio::test(start_paused = true)]
async fn none_is_one_attempt() {
    let retry = Retry::new(&settings(RetryPolicy::None));
    let gave_up = always::<()>(&retry, |_| Err(Failure::Transient("no"))).await;
    assert_eq!(gave_up, Err(GaveUp::Exhausted { last: "no", attempts: 1 }));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_stands_is_never_tried_again() {
    let retry = Retry::new(&settings(RetryPolicy::Exponential));
    let start = Instant::now();
    let gave_up = always::<()>(&retry, |_| Err(Failure::Definitive("WRONGPASS"))).await;
    assert_eq!(gave_up, Err(GaveUp::Definitive { error: "WRONGPASS", attempts: 1 }));
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_cancellation_ends_a_wait_and_an_attempt_at_once() {
    let retry = Retry::new(&Settings { delay: Duration::from_secs(4), ..settings(RetryPolicy::Exponential) });
    for in_wait in [true, false] {
        let cancel = CancellationToken::new();
        let start = Instant::now();
        let run = retry.run(&cancel, |_| async move {
            if in_wait { Err::<(), _>(Failure::Transient("no")) } else { std::future::pending().await }
        });
        let later = async {
            tokio::time::sleep(Duration::from_millis(10)).await;
            cancel.cancel();
        };
        let (gave_up, ()) = tokio::join!(run, later);
        let last = in_wait.then_some("no");
        assert_eq!(gave_up, Err(GaveUp::Cancelled { last, attempts: 1 }));
        assert!((10..=12).contains(&start.elapsed().as_millis()), "{:?}", start.elapsed());
    }
}

#[tokio::test]
async fn the_breaker_opens_lets_one_through_and_closes() {
    let retry = Retry::new(&Settings { breaker: 2, ..settings(RetryPolicy::None) });
    let no = |_| Err::<(), _>(Failure::Transient("no"));
    assert!(always(&retry, no).await.is_err() && !retry.is_open());
    assert!(always(&retry, no).await.is_err() && retry.is_open());
    let made = AtomicU32::new(0);
    let count = |_| {
        made.fetch_add(1, Ordering::Relaxed);
        Ok(())
    };
    // Clones share it.
    let gave_up = always(&retry.clone(), count).await;
    assert_eq!(gave_up, Err(GaveUp::BreakerOpen { last: None, attempts: 0 }));
    assert_eq!(made.load(Ordering::Relaxed), 0);

    tokio::time::sleep(Duration::from_millis(80)).await;
    let cancel = CancellationToken::new();
    let first = retry.run(&cancel, |_| async {
        // While this one finds out, no other call gets through.
        assert!(matches!(always(&retry, count).await, Err(GaveUp::BreakerOpen { .. })));
        Ok::<_, Failure<&str>>(())
    });
    assert_eq!(first.await, Ok(()));
    assert!(!retry.is_open());
    assert_eq!(always(&retry, count).await, Ok(()));
}

#[tokio::test]
async fn failures_with_a_success_between_them_leave_it_closed() {
    let retry = Retry::new(&Settings { breaker: 2, ..settings(RetryPolicy::None) });
    for _ in 0..3 {
        assert!(always::<()>(&retry, |_| Err(Failure::Transient("no"))).await.is_err());
        assert_eq!(always(&retry, |_| Ok(())).await, Ok(()));
    }
    assert!(!retry.is_open());
}

#[tokio::test]
async fn an_attempt_from_before_it_opened_does_not_close_it() {
    let retry = Retry::new(&Settings { breaker: 1, ..settings(RetryPolicy::None) });
    let cancel = CancellationToken::new();
    let late = retry.run(&cancel, |_| async {
        assert!(always::<()>(&retry, |_| Err(Failure::Transient("no"))).await.is_err());
        Ok::<_, Failure<&str>>(())
    });
    assert_eq!(late.await, Ok(()));
    assert!(retry.is_open());
}

#[tokio::test]
async fn a_failed_probe_opens_it_again_and_a_definitive_answer_closes_it() {
    let retry = Retry::new(&Settings { breaker: 1, ..settings(RetryPolicy::None) });
    let no = |_| Err::<(), _>(Failure::Transient("no"));
    for _ in 0..2 {
        assert!(always(&retry, no).await.is_err());
        assert!(matches!(always(&retry, no).await, Err(GaveUp::BreakerOpen { .. })));
        tokio::time::sleep(Duration::from_millis(80)).await;
    }
    assert!(always::<()>(&retry, |_| Err(Failure::Definitive("MISS"))).await.is_err());
    assert!(!retry.is_open());
}

#[tokio::test]
async fn a_cancelled_probe_leaves_the_next_one_to_find_out() {
    let retry = Retry::new(&Settings { breaker: 1, ..settings(RetryPolicy::None) });
    assert!(always::<()>(&retry, |_| Err(Failure::Transient("no"))).await.is_err());
    tokio::time::sleep(Duration::from_millis(80)).await;
    let cancel = CancellationToken::new();
    cancel.cancel();
    let cancelled = retry.run(&cancel, |_| std::future::pending::<Result<(), Failure<&str>>>()).await;
    assert_eq!(cancelled, Err(GaveUp::Cancelled { last: None, attempts: 1 }));
    assert_eq!(always(&retry, |_| Ok(())).await, Ok(()));
}

proptest! {
    #[test]
    fn waits_stay_within_their_bounds(
        attempts in 1u32..20, delay in 1u64..1_000, most in 1u64..5_000, factor in 1.0f32..10.0, jitter: bool,
    ) {
        let (delay, max_delay) = (Duration::from_millis(delay), Duration::from_millis(most));
        let settings = Settings { attempts, delay, max_delay, factor, jitter, ..settings(RetryPolicy::Exponential) };
        let waits: Vec<Duration> = Exponential::new(&settings).waits().collect();
        prop_assert_eq!(waits.len(), attempts as usize - 1);
        prop_assert!(waits.iter().all(|wait| *wait <= max_delay), "{:?}", waits);
    }
}
