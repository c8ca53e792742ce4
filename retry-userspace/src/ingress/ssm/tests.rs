use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsFd;

use super::*;
use crate::ingress::testing::{PORT, Publisher, add_sources, drain, group, source};
use crate::net::testing::in_namespace;

/// Sends one datagram from each of `sources` to each of `groups`, and checks that exactly those of joined pairs arrive, once.
fn check(joins: &SourceJoins, publisher: &Publisher, sources: Range<u16>, groups: &[Ipv6Addr]) {
    let mut expected = BTreeMap::new();
    for last in sources {
        for group in groups {
            publisher.send(source(last), *group, b"x");
            if joins.contains(&source(last)) {
                expected.insert((source(last), *group), 1);
            }
        }
    }
    let mut arrived = BTreeMap::new();
    for pair in drain(joins.sockets().map(AsFd::as_fd)) {
        *arrived.entry(pair).or_default() += 1;
    }
    assert_eq!(arrived, expected);
}

#[test]
fn each_pair_arrives_once_whatever_comes_and_goes() {
    in_namespace("each_pair_arrives_once_whatever_comes_and_goes", |pair| {
        add_sources(100);
        let groups: Vec<_> = (0..50).map(group).collect();
        // Asked for twice, joined once.
        let mut joins = SourceJoins::new(Delivery::Single, pair.far.index, PORT, &[&groups[..], &groups[..2]].concat());
        for last in 1..=100 {
            joins.join(source(last)).expect("joined");
            joins.join(source(last)).expect("nothing to do");
        }
        assert_eq!(joins.sources().count() * groups.len(), 5_000);
        // Two, as a rule: net.ipv6.mld_max_msf is 64, and cannot be read in a namespace.
        assert!(joins.sockets().count() <= 10, "not one a source");
        let publisher = Publisher::new(&pair, PORT);
        let some = [groups[0], groups[49]];
        check(&joins, &publisher, 1..101, &some);

        let stays = joins.sockets().next().cloned().expect("a socket");
        for last in (1..=100).filter(|last| last % 3 != 0) {
            joins.leave(source(last));
        }
        joins.leave(source(1));
        check(&joins, &publisher, 1..101, &some);
        assert!(joins.sockets().any(|socket| Arc::ptr_eq(socket, &stays)));
        let sockets = joins.sockets().count();
        // Those who come again take the places that became free.
        for last in 1..=100 {
            joins.join(source(last)).expect("joined");
        }
        assert_eq!(joins.sockets().count(), sockets);
        check(&joins, &publisher, 1..101, &some);
        for last in 1..=100 {
            joins.leave(source(last));
        }
        assert_eq!((joins.sources().count(), joins.sockets().count()), (0, 0));
    });
}

#[test]
fn groups_and_sources_are_spread_as_the_kernel_has_room() {
    const NAME: &str = "groups_and_sources_are_spread_as_the_kernel_has_room";
    in_namespace(NAME, |pair| {
        // One setting a namespace since Linux 6.8; before, a namespace does not show it.
        if fs::write("/proc/sys/net/core/optmem_max", "16").is_err() {
            println!("SKIP {NAME}: needs a kernel with net.core.optmem_max a namespace");
            return;
        }
        add_sources(30);
        let groups: Vec<_> = (0..10).map(group).collect();
        let mut joins = SourceJoins::new(Delivery::Single, pair.far.index, PORT, &groups);
        let error = joins.join(source(1)).expect_err("no room");
        assert_eq!(
            error.to_string(),
            "joined 0 of 10 groups on interface far: the kernel has no room for another join in a fresh socket; raise sysctl \
             net.core.optmem_max (now 16 bytes)"
        );
        assert_eq!((joins.sources().count(), joins.sockets().count()), (0, 0));
        let publisher = Publisher::new(&pair, PORT);
        // Room for a few pairs, so that there are more sockets for the groups of a source; and for all groups of a source, but
        // only for some of them once more, so that a refused source has to be taken back. More rows in either case.
        for optmem_max in ["1000", "3000"] {
            fs::write("/proc/sys/net/core/optmem_max", optmem_max).expect("own namespace");
            let mut joins = SourceJoins::new(Delivery::Single, pair.far.index, PORT, &groups);
            for last in 1..=30 {
                joins.join(source(last)).expect("joined");
            }
            assert!(joins.rows.len() > 1 && joins.rows.iter().any(|row| row.sources.len() > 1), "{joins:?}");
            assert_eq!(joins.rows.iter().all(|row| row.cells.len() > 1), optmem_max == "1000", "{joins:?}");
            check(&joins, &publisher, 1..31, &groups);
        }
    });
}

#[test]
fn a_wrong_source_is_named_and_changes_nothing() {
    in_namespace("a_wrong_source_is_named_and_changes_nothing", |pair| {
        let groups = [group(0), "fd00::1".parse().expect("an address")];
        let mut joins = SourceJoins::new(Delivery::Single, pair.far.index, PORT, &groups);
        let error = joins.join(source(1)).expect_err("no group");
        assert!(error.to_string().starts_with("cannot join fd00::1 from fd01::1 on interface far: "), "{error}");
        assert_eq!(joins.sockets().count(), 0);
    });
}

#[test]
fn too_many_sockets_name_the_limit() {
    let error = JoinError::no_socket(PORT, io::Error::from_raw_os_error(libc::EMFILE)).to_string();
    assert!(error.contains("RLIMIT_NOFILE") && error.contains("9001"), "{error}");
    let error = JoinError::no_socket(PORT, io::Error::from_raw_os_error(libc::EACCES)).to_string();
    assert!(!error.contains("RLIMIT_NOFILE"), "{error}");
}
