//! What this host and this daemon are, as one event at start.

use super::SERVICE;
use crate::fabric::Fabric;
use crate::metrics::Host;
use crate::net::interface::{self, Interface};
use crate::settings::Settings;

/// The driver of an interface as the kernel says; `-` for one that does not tell, such as the loopback interface.
fn driver(interface: &Interface) -> String {
    interface::driver(&interface.name).unwrap_or_else(|_| "-".to_owned())
}

/// Tells once what runs where.
pub(crate) fn tell(settings: &Settings, fabric: &Fabric, xdp_mode: &str) {
    let host = Host::here(&settings.telemetry.instance);
    let egress = |of: &dyn Fn(&Interface) -> String| {
        let each: Vec<String> = fabric.egress.iter().map(|egress| of(&egress.interface)).collect();
        each.join(",")
    };
    tracing::info!(
        event = "host.inventory",
        service = SERVICE,
        host.name = host.name,
        host.arch = host.arch,
        os.kernel = host.kernel,
        host.cpus = host.cpus,
        host.memory_bytes = host.memory,
        mc_iface = %fabric.ingress.name,
        mc_iface_mtu = fabric.ingress.mtu,
        mc_iface_driver = %driver(&fabric.ingress),
        egress_ifaces = %egress(&|interface| interface.name.clone()),
        egress_mtus = %egress(&|interface| interface.mtu.to_string()),
        egress_drivers = %egress(&|interface| driver(interface)),
        nack_addr = %fabric.nack_addr,
        xdp = xdp_mode,
        cache_memory_bytes = settings.cache.memory.saturating_add(settings.cache.memory_long),
        "host.inventory"
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::tests::{interface, object_of};

    #[test]
    fn one_event_tells_what_runs_where() {
        let (near, far) = (interface("near0", 9000), interface("far0", 1500));
        let source = std::net::Ipv6Addr::LOCALHOST;
        let egress = [&near, &far].map(|interface| crate::fabric::Egress { interface: interface.clone(), source });
        let fabric = Fabric { ingress: near.clone(), nack: near, nack_addr: source, egress: egress.into() };
        let object = object_of(&["-cache-memory=16m", "-cache-memory-long=16m"], |settings| {
            tell(settings, &fabric, "native");
        });
        let host = Host::here("endpoint-1");
        for (name, value) in [
            ("event", "host.inventory".into()),
            ("host.name", host.name.into()),
            ("host.arch", host.arch.into()),
            ("os.kernel", host.kernel.into()),
            ("host.cpus", host.cpus.into()),
            ("host.memory_bytes", host.memory.into()),
            ("mc_iface", "near0".into()),
            ("mc_iface_mtu", 9000.into()),
            ("mc_iface_driver", "-".into()),
            ("egress_ifaces", "near0,far0".into()),
            ("egress_mtus", "9000,1500".into()),
            ("egress_drivers", "-,-".into()),
            ("nack_addr", "::1".into()),
            ("xdp", "native".into()),
            ("cache_memory_bytes", (32 << 20).into()),
        ] {
            let value: serde_json::Value = value;
            assert_eq!(object[name], value, "{name}");
        }
    }
}
