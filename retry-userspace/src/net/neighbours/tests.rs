//! The gate against the kernel's own tables.

use std::process::Command;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, spawn};

use super::*;
use crate::net::testing::{Pair, SOON, in_namespace};
use crate::stop_flag::StopFlag;

struct Rig {
    gate: Arc<Gate<u32>>,
    stop: StopFlag,
    released: Receiver<Release<u32>>,
    thread: JoinHandle<io::Result<()>>,
}

impl Rig {
    fn start() -> Self {
        let (gate, stop) = (Arc::new(Gate::new().expect("a pipe")), StopFlag::default());
        let (sender, released) = channel();
        let (running, ends) = (Arc::clone(&gate), stop.clone());
        let thread = spawn(move || running.run(&ends, |release| sender.send(release).expect("the test listens")));
        Self { gate, stop, released, thread }
    }

    fn until(&self, what: &str, so: impl Fn(&Gate<u32>) -> bool) {
        let deadline = Instant::now() + SOON;
        while !so(&self.gate) {
            assert!(Instant::now() < deadline, "never: {what}");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(self) {
        self.stop.ask();
        self.thread.join().expect("no panic").expect("no error");
    }
}

fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split(' ')).output().expect("iproute2");
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn to(address: &str) -> SocketAddrV6 {
    SocketAddrV6::new(address.parse().expect("an address"), 9, 0, 0)
}

#[test]
fn a_neighbour_that_does_not_exist_holds_nothing_for_long() {
    in_namespace("a_neighbour_that_does_not_exist_holds_nothing_for_long", |pair: Pair| {
        let rig = Rig::start();
        let absent = to("fd01::99");
        rig.until("the tables are read", |gate| gate.waits_for(absent).is_some());
        let hop = rig.gate.waits_for(absent).expect("not resolved");
        assert_eq!((hop.interface, hop.address), (pair.near.index, *absent.ip()));
        assert_eq!(rig.gate.waits_for(to("fd01::1")), None, "this host");
        assert_eq!(rig.gate.waits_for(to("2001:db8::1")), None, "no route: the kernel says so at once");
        assert!(rig.gate.hold(hop, 1).is_empty());
        assert_eq!(rig.released.recv_timeout(SOON), Ok(Release::Unresolved(1)));
        rig.until("the kernel's table has room again", |_| !ip("-6 neigh show").contains("fd01::99"));
        rig.end();
    });
}

#[test]
fn what_waits_goes_when_its_neighbour_is_resolved() {
    in_namespace("what_waits_goes_when_its_neighbour_is_resolved", |_| {
        let rig = Rig::start();
        let late = to("fd01::77");
        rig.until("the tables are read", |gate| gate.waits_for(late).is_some());
        let hop = rig.gate.waits_for(late).expect("not resolved");
        assert!(rig.gate.hold(hop, 1).is_empty() && rig.gate.hold(hop, 2).is_empty());
        ip("-6 neigh replace fd01::77 lladdr 02:00:00:00:00:77 dev near nud reachable");
        let both: Vec<_> = (0..2).map(|_| rig.released.recv_timeout(SOON)).collect();
        assert_eq!(both, [Ok(Release::Go(1)), Ok(Release::Go(2))]);
        rig.until("it is open", |gate| gate.waits_for(late).is_none());
        ip("-6 neigh del fd01::77 dev near");
        rig.until("it is closed", |gate| gate.waits_for(late).is_some());
        // A gateway that is resolved opens the way to all behind it.
        ip("-6 neigh replace fd01::5 lladdr 02:00:00:00:00:05 dev near nud permanent");
        ip("-6 route add 2001:db8::/32 via fd01::6");
        rig.until("the route is seen", |gate| gate.waits_for(to("2001:db8::1")).is_some());
        ip("-6 route replace 2001:db8::/32 via fd01::5");
        rig.until("the new one is seen", |gate| gate.waits_for(to("2001:db8::1")).is_none());
        rig.end();
    });
}
