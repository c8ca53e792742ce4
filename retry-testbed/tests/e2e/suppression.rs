//! 200 listeners miss the same frames: one repair serves them all, and every listener is told that it was sent by multicast.

use retry_testbed::scene::suppression::{self, Counts, Scene};
use retry_testbed::scene::{binary, is_root};

/// Copies on the wire for each frame, at most.
const COPIES: f64 = 1.02;

fn everybody_recovers(counts: &Counts) {
    assert_eq!(counts.complaints, Vec::<String>::new());
    assert_eq!(counts.listeners, 200);
    assert_eq!(counts.recovered, counts.missed, "{counts:?}");
    assert_eq!(counts.acked, counts.asked, "{counts:?}");
}

/// All ask at the same moment, within the hold-down.
fn at_once(xdp: &str) {
    let scene = Scene::at_once(xdp);
    let counts = suppression::run(&binary(), &scene).expect("a scene");
    println!("{xdp}, at once: {:.3} copies a frame; {counts:?}", counts.copies_per_frame());
    everybody_recovers(&counts);
    assert_eq!(counts.frames, scene.frames, "this machine was too busy to ask in time: {counts:?}");
    assert!(counts.copies_per_frame() <= COPIES, "{counts:?}");
    // Every listener asked for every frame, and had an answer of its own to it.
    let asked = 200 * (counts.frames + counts.late_rounds);
    assert_eq!((counts.asked, counts.acked), (asked, asked), "{counts:?}");
    assert_eq!(counts.retransmits + counts.held_down, counts.acks, "{counts:?}");
}

/// Each asks at a moment of its own and loses a tenth of the repairs. How many copies that makes is chance, but never more
/// than one of a frame within its hold-down.
fn spread(scene: &Scene<'_>) -> Counts {
    let counts = suppression::run(&binary(), scene).expect("a scene");
    let (copies, nacks) = (counts.copies_per_frame(), counts.nacks_per_frame());
    println!("{scene:?}: {copies:.3} copies and {nacks:.1} NACKs a frame; {counts:?}");
    everybody_recovers(&counts);
    assert_eq!(counts.frames, scene.frames);
    assert!(counts.lost_repairs > 0, "{counts:?}");
    assert!(copies >= 1.0, "{counts:?}");
    let allowed = counts.copies_allowed(scene.hold_down);
    assert!(counts.most_copies <= allowed, "more than {allowed} copies of a frame: {counts:?}");
    counts
}

/// Who hears a repair in time does not ask: about 3 copies, as the second leaves 2 listeners and the third none.
fn spread_and_stopped(xdp: &str) {
    let counts = spread(&Scene::spread(xdp));
    assert!(counts.copies_per_frame() <= 6.0, "{counts:?}");
}

macro_rules! suppression {
    ($($name:ident: $scene:expr;)*) => { $(
        #[test]
        fn $name() {
            if is_root(stringify!($name)) {
                $scene;
            }
        }
    )* };
}

suppression! {
    two_hundred_at_once_native: at_once("native");
    two_hundred_at_once_off: at_once("off");
    two_hundred_spread_native: spread_and_stopped("native");
    two_hundred_spread_off: spread_and_stopped("off");
    two_hundred_that_ask_all_the_same_native: drop(spread(&Scene::spread_all_the_same("native")));
    two_hundred_that_ask_all_the_same_off: drop(spread(&Scene::spread_all_the_same("off")));
}
