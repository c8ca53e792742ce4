use super::*;
use crate::ingress::testing::{Dns, IMPATIENT, count, with_dns};

fn ip(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd10, 0, 0, 0, 0, 0, 0, last)
}

#[test]
fn a_changed_answer_is_followed_and_the_last_one_stands() {
    with_dns("a_changed_answer_is_followed_and_the_last_one_stands", IMPATIENT, |_, runtime| {
        runtime.block_on(async {
            let counters = Arc::new(UserCounters::default());
            let (out, mut names) = watch::channel(Names::default());
            let asked = ["one.test", "two.test"].map(str::to_owned);
            let hosts = asked.clone().map(Host::Name);
            let (one, two) = (&hosts[..1], &hosts[1..]);
            let dns = Dns::start(&[("one.test", &[ip(1), ip(2)])]).await;
            let refresh = Duration::from_millis(100);
            let keeping = tokio::spawn(keep(BTreeSet::from(asked), refresh, Arc::clone(&counters), out));
            let until = async |names: &mut watch::Receiver<Names>, one_is: &[Ipv6Addr], two_is: &[Ipv6Addr]| {
                let is = |names: &Names| names.of(one).iter().eq(one_is) && names.of(two).iter().eq(two_is);
                let changed = names.wait_for(is);
                tokio::time::timeout(crate::net::testing::SOON, changed).await.expect("soon").expect("kept").of(&hosts)
            };
            assert_eq!(until(&mut names, &[ip(1), ip(2)], &[]).await.len(), 2);
            assert!(count(&counters, Counter::ResolveErrors) >= 1, "the other does not resolve");
            dns.stop().await;
            let dns = Dns::start(&[("one.test", &[ip(2), ip(3)]), ("two.test", &[ip(4)])]).await;
            until(&mut names, &[ip(2), ip(3)], &[ip(4)]).await;
            // One has only an IPv4 address now, the other does not resolve: not one is lost.
            dns.stop().await;
            let dns = Dns::start(&[("one.test", &[])]).await;
            let errors = count(&counters, Counter::ResolveErrors);
            for _ in 0..3 {
                names.changed().await.expect("kept");
                until(&mut names, &[ip(2), ip(3)], &[ip(4)]).await;
            }
            assert!(count(&counters, Counter::ResolveErrors) >= errors + 2);
            dns.stop().await;
            keeping.abort();
        });
    });
}

#[test]
fn addresses_need_no_answer() {
    let hosts = [Host::Address(ip(1)), Host::Name("one.test".to_owned()), Host::Address(ip(1))];
    assert_eq!(Names::default().of(&hosts), BTreeSet::from([ip(1)]));
}
