//! The places of the counters, which a daemon takes over from an earlier version.

use retry_common::abi::LAYOUT;
use retry_common::counter::Counter;

#[test]
fn counters_keep_their_places_within_a_layout() {
    let (layout, names) = include_str!("counters.txt").split_once('\n').expect("a first line");
    assert_eq!(layout, format!("layout {LAYOUT}"), "list the counters of this layout anew");
    let here: Vec<String> = Counter::ALL.iter().map(|counter| format!("{counter:?}")).collect();
    let before: Vec<&str> = names.lines().collect();
    assert!(here.len() >= before.len(), "a counter has gone: raise LAYOUT");
    assert_eq!(here[..before.len()], before[..], "a new counter goes to the end, or LAYOUT is raised");
    assert_eq!(here.len(), before.len(), "list the new counters in tests/counters.txt");
}
