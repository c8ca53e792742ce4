//! The project's own chart (`deploy/helm`): it takes the values of the field's chart unchanged, and what it renders works.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use retry_testbed::{
    daemon::http,
    net::netns::host_command,
    scene::{Pins, binary, eventually, is_root},
};
use serde_json::{Value, json};

use super::{
    helm::{FIELDS, INSTANCE, Rendered, helm, template, template_each, validate},
    rendered,
    start::pod,
    values::variable,
};

/// What this chart renders beside the field's environment.
const OURS: (&str, &str) = ("BPFFS", "/sys/fs/bpf");

fn field_with(set: &[&str]) -> Rendered {
    let all = [&INSTANCE[..], set].concat();
    template(Some(FIELDS), &all).map_err(|error| format!("{set:?}: {error}")).expect("it renders")
}

#[test]
fn lint_finds_nothing() {
    let chart = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/retry-endpoint");
    let said = helm(&["lint", "--strict", chart]).expect("it is clean");
    assert!(said.contains("0 chart(s) failed"), "{said}");
}

/// The field's values file as it is, and what its chart renders from it: the same variables in the same order.
#[test]
fn the_fields_values_render_the_fields_environment() {
    let mut environment = field_with(&[]).environment();
    assert_eq!(environment.pop(), Some((OURS.0.to_owned(), OURS.1.to_owned())));
    assert_eq!(environment, rendered());
}

/// A value of the field's file, changed, as helm takes it and as the variable shows it.
fn changed(key: &str, old: &Value) -> (Value, String) {
    let new = match (key, old) {
        ("sourceMode", _) => json!("asm"),
        ("mcScope" | "beaconScope", _) => json!("global"),
        ("cacheBackend", _) => json!("redis"),
        ("logFormat", _) => json!("json"),
        ("logLevel", _) => json!("debug"),
        ("traceSampling", _) => json!(0.25),
        (_, Value::Bool(old)) => json!(!old),
        (_, Value::Number(old)) => json!(old.as_i64().expect("a whole number") + 3),
        (_, Value::String(old)) => json!(format!("{old}7")),
        (_, Value::Array(_)) => json!(["a", "b"]),
        // A switch that is not set.
        (_, Value::Null | Value::Object(_)) => json!(false),
    };
    let shown = match &new {
        Value::Array(parts) => parts.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    (new, shown)
}

/// Each key of `config` changed alone: its variable follows, and no other does.
#[test]
fn every_key_of_config_reaches_its_variable_alone() {
    let text = std::fs::read_to_string(FIELDS).expect("the field's values");
    let values: Value = serde_saphyr::from_str(&text).expect("YAML");
    let mut keys: Vec<(String, Value)> = Vec::new();
    for (key, value) in values["config"].as_object().expect("settings") {
        match value.as_object() {
            Some(inner) => keys.extend(inner.iter().map(|(name, value)| (format!("{key}.{name}"), value.clone()))),
            None => keys.push((key.clone(), value.clone())),
        }
    }
    assert!(keys.len() > 65, "{keys:?}");
    // What is rendered with another key only.
    let needs = |key: &str| match key {
        "proxyEnabled" => vec![],
        key if key.starts_with("proxy") || key == "upstreamRetryEndpoints" => {
            vec!["config.proxyEnabled=true".to_owned()]
        }
        "aerospikeNamespace" | "aerospikeSet" => vec!["config.aerospikeHosts=here:3000".to_owned()],
        "otlpInterval" => vec!["config.otlpEndpoint=here:4317".to_owned()],
        _ => vec![],
    };
    let by_name = |manifests: &Rendered| manifests.environment().into_iter().collect::<BTreeMap<_, _>>();
    let without: BTreeSet<Vec<String>> = keys.iter().map(|(key, _)| needs(key)).collect();
    let without: Vec<_> = without.into_iter().collect();
    let before: BTreeMap<_, _> = without.iter().zip(template_each(&without).iter().map(by_name)).collect();
    let cases: Vec<Vec<String>> = keys
        .iter()
        .map(|(key, old)| [needs(key), vec![format!("config.{key}:={}", changed(key, old).0)]].concat())
        .collect();
    let all = template_each(&cases);
    for ((key, old), after) in keys.iter().zip(all.iter().map(by_name)) {
        let before = &before[&needs(key)];
        let differing: BTreeSet<&String> =
            before.keys().chain(after.keys()).filter(|name| before.get(*name) != after.get(*name)).collect();
        let name = key.split('.').map(variable).collect::<Vec<_>>().join("_");
        match key.as_str() {
            // They bring others along.
            "proxyEnabled" | "aerospikeHosts" | "otlpEndpoint" => assert!(differing.contains(&name), "{differing:?}"),
            _ => assert_eq!(differing, BTreeSet::from([&name]), "{key}"),
        }
        assert_eq!(after.get(&name), Some(&changed(key, old).1), "{key}");
    }
    validate(&all);
}

const POD: &str = "/spec/template/spec";
const CONTAINER: &str = "/spec/template/spec/containers/0";

/// One changed value outside `config`, as `--set` or (with `:=`) `--set-json` takes it, and what it changes: kind, JSON
/// pointer, value.
type Row = (&'static str, &'static str, String, Value);

#[expect(clippy::too_many_lines, reason = "a table")]
fn rows() -> Vec<Row> {
    let pod = |rest: &str| format!("{POD}{rest}");
    let container = |rest: &str| format!("{CONTAINER}{rest}");
    let (deployment, service, account) = ("Deployment", "Service", "ServiceAccount");
    let (monitor, pods) = ("ServiceMonitor", "PodMonitor");
    let network = "/spec/template/metadata/annotations/k8s.v1.cni.cncf.io~1networks";
    vec![
        ("replicaCount=3", deployment, "/spec/replicas".into(), json!(3)),
        ("image.repository=r.example/x", deployment, container("/image"), json!("r.example/x:0.1.0")),
        ("image.tag=v9", deployment, container("/image"), json!("ghcr.io/lightwebinc/retry-endpoint:v9")),
        ("image.pullPolicy=Always", deployment, container("/imagePullPolicy"), json!("Always")),
        (r#"imagePullSecrets:=[{"name":"s"}]"#, deployment, pod("/imagePullSecrets/0/name"), json!("s")),
        ("nameOverride=other", deployment, "/metadata/name".into(), json!("release-other")),
        ("fullnameOverride=whole", deployment, "/metadata/name".into(), json!("whole")),
        ("serviceAccount.create=false", account, String::new(), Value::Null),
        ("serviceAccount.name=me", deployment, pod("/serviceAccountName"), json!("me")),
        (r#"serviceAccount.annotations:={"a":"b"}"#, account, "/metadata/annotations/a".into(), json!("b")),
        (r#"podAnnotations:={"a":"b"}"#, deployment, "/spec/template/metadata/annotations/a".into(), json!("b")),
        (r#"podLabels:={"a":"b"}"#, deployment, "/spec/template/metadata/labels/a".into(), json!("b")),
        ("podSecurityContext.runAsUser=7", deployment, pod("/securityContext/runAsUser"), json!(7)),
        ("podSecurityContext.runAsUser=7", deployment, pod("/initContainers/0/command/1"), json!("7:65532")),
        ("podSecurityContext.runAsGroup=7", deployment, pod("/initContainers/0/command/1"), json!("65532:7")),
        ("podSecurityContext.runAsNonRoot=false", deployment, pod("/securityContext/runAsNonRoot"), json!(false)),
        ("podSecurityContext.fsGroup=7", deployment, pod("/securityContext/fsGroup"), json!(7)),
        (
            "podSecurityContext.seccompProfile.type=Unconfined",
            deployment,
            pod("/securityContext/seccompProfile/type"),
            json!("Unconfined"),
        ),
        (
            "securityContext.capabilities.add={SYS_NICE}",
            deployment,
            container("/securityContext/capabilities/add"),
            json!(["SYS_NICE", "NET_ADMIN", "BPF", "PERFMON", "NET_RAW"]),
        ),
        (
            "securityContext.capabilities.drop={CHOWN}",
            deployment,
            container("/securityContext/capabilities/drop"),
            json!(["CHOWN"]),
        ),
        (
            "securityContext.readOnlyRootFilesystem=false",
            deployment,
            container("/securityContext/readOnlyRootFilesystem"),
            json!(false),
        ),
        ("networking.mode=host", deployment, pod("/hostNetwork"), json!(true)),
        ("networking.mode=unicast", deployment, pod("/hostNetwork"), Value::Null),
        ("networking.mode=unicast", deployment, network.into(), Value::Null),
        ("networking.mode=multus", deployment, container("/env/0/value"), json!("net1")),
        (
            "networking.mode=multus,networking.multus.interface=net7",
            deployment,
            network.into(),
            json!(r#"[{"interface":"net7","name":"mcast-fabric","namespace":"bsv-mcast"}]"#),
        ),
        (
            "networking.mode=multus,networking.multus.networkName=n,networking.multus.namespace=s,networking.multus.fabricIPv6=fd10::20/64",
            deployment,
            network.into(),
            json!(r#"[{"interface":"net1","ips":["fd10::20/64"],"name":"n","namespace":"s"}]"#),
        ),
        ("networking.host.dnsPolicy=Default", deployment, pod("/dnsPolicy"), json!("Default")),
        ("xdp.enabled=false", deployment, pod("/volumes"), Value::Null),
        ("xdp.enabled=false", deployment, pod("/initContainers"), Value::Null),
        ("xdp.enabled=false", deployment, container("/securityContext/capabilities/add"), json!(["NET_ADMIN"])),
        (
            "xdp.capabilities={BPF}",
            deployment,
            container("/securityContext/capabilities/add"),
            json!(["NET_ADMIN", "BPF"]),
        ),
        ("xdp.bpffs.hostPath=/bpf/x", deployment, pod("/volumes/0/hostPath/path"), json!("/bpf/x")),
        ("xdp.bpffs.mountPath=/run/b", deployment, container("/volumeMounts/0/mountPath"), json!("/run/b")),
        ("xdp.bpffs.prepare.enabled=false", deployment, pod("/initContainers"), Value::Null),
        ("xdp.bpffs.prepare.image=i", deployment, pod("/initContainers/0/image"), json!("i")),
        ("service.type=NodePort", service, "/spec/type".into(), json!("NodePort")),
        ("service.metricsPort=9500", service, "/spec/ports/0/port".into(), json!(9500)),
        ("service.metricsPort=9500", deployment, container("/ports/2/containerPort"), json!(9500)),
        ("metrics.enabled=false,metrics.podMonitor.enabled=true", pods, String::new(), Value::Null),
        (
            "metrics.podMonitor.enabled=true,metrics.path=/m",
            pods,
            "/spec/podMetricsEndpoints/0/path".into(),
            json!("/m"),
        ),
        ("metrics.podMonitor.enabled=true", pods, "/spec/podMetricsEndpoints/0/port".into(), json!("metrics")),
        (
            "metrics.podMonitor.enabled=true,metrics.podMonitor.interval=7s",
            pods,
            "/spec/podMetricsEndpoints/0/interval".into(),
            json!("7s"),
        ),
        (
            "metrics.podMonitor.enabled=true,metrics.podMonitor.scrapeTimeout=7s",
            pods,
            "/spec/podMetricsEndpoints/0/scrapeTimeout".into(),
            json!("7s"),
        ),
        (r#"metrics.podMonitor:={"enabled":true,"labels":{"a":"b"}}"#, pods, "/metadata/labels/a".into(), json!("b")),
        (
            r#"metrics.podMonitor:={"enabled":true,"relabelings":[{"action":"drop"}]}"#,
            pods,
            "/spec/podMetricsEndpoints/0/relabelings/0/action".into(),
            json!("drop"),
        ),
        (
            r#"metrics.podMonitor:={"enabled":true,"metricRelabelings":[{"action":"drop"}]}"#,
            pods,
            "/spec/podMetricsEndpoints/0/metricRelabelings/0/action".into(),
            json!("drop"),
        ),
        ("metrics.serviceMonitor.enabled=true", monitor, "/spec/endpoints/0/port".into(), json!("metrics")),
        (
            "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.interval=7s",
            monitor,
            "/spec/endpoints/0/interval".into(),
            json!("7s"),
        ),
        (
            "metrics.serviceMonitor.enabled=true,metrics.serviceMonitor.scrapeTimeout=7s",
            monitor,
            "/spec/endpoints/0/scrapeTimeout".into(),
            json!("7s"),
        ),
        (
            r#"metrics.serviceMonitor:={"enabled":true,"labels":{"a":"b"}}"#,
            monitor,
            "/metadata/labels/a".into(),
            json!("b"),
        ),
        (
            r#"metrics.serviceMonitor:={"enabled":true,"relabelings":[{"action":"drop"}]}"#,
            monitor,
            "/spec/endpoints/0/relabelings/0/action".into(),
            json!("drop"),
        ),
        (
            r#"metrics.serviceMonitor:={"enabled":true,"metricRelabelings":[{"action":"drop"}]}"#,
            monitor,
            "/spec/endpoints/0/metricRelabelings/0/action".into(),
            json!("drop"),
        ),
        ("metrics.podMonitor.enabled=true", pods, "/spec/jobLabel".into(), json!("app.kubernetes.io/name")),
        (
            "metrics.prometheusRule.enabled=true",
            "PrometheusRule",
            "/spec/groups/1/rules/0/alert".into(),
            json!("RetryEndpointDown"),
        ),
        (
            r#"metrics.prometheusRule:={"enabled":true,"labels":{"a":"b"}}"#,
            "PrometheusRule",
            "/metadata/labels/a".into(),
            json!("b"),
        ),
        (
            "metrics.dashboard.enabled=true,metrics.dashboard.labels.grafana_dashboard=x",
            "ConfigMap",
            "/metadata/labels/grafana_dashboard".into(),
            json!("x"),
        ),
        (
            "metrics.dashboard.enabled=true",
            "ConfigMap",
            "/data/retry-endpoint.json".into(),
            json!(include_str!("../../../deploy/grafana/retry-endpoint.json").trim_end()),
        ),
        ("probes.readiness.enabled=false", deployment, container("/readinessProbe"), Value::Null),
        (
            "probes.readiness.initialDelaySeconds=7",
            deployment,
            container("/readinessProbe/initialDelaySeconds"),
            json!(7),
        ),
        ("probes.readiness.periodSeconds=7", deployment, container("/readinessProbe/periodSeconds"), json!(7)),
        ("probes.readiness.timeoutSeconds=7", deployment, container("/readinessProbe/timeoutSeconds"), json!(7)),
        ("probes.readiness.failureThreshold=7", deployment, container("/readinessProbe/failureThreshold"), json!(7)),
        ("probes.liveness.enabled=false", deployment, container("/livenessProbe"), Value::Null),
        (
            "probes.liveness.initialDelaySeconds=7",
            deployment,
            container("/livenessProbe/initialDelaySeconds"),
            json!(7),
        ),
        ("probes.liveness.periodSeconds=7", deployment, container("/livenessProbe/periodSeconds"), json!(7)),
        ("probes.liveness.timeoutSeconds=7", deployment, container("/livenessProbe/timeoutSeconds"), json!(7)),
        ("probes.liveness.failureThreshold=7", deployment, container("/livenessProbe/failureThreshold"), json!(7)),
        ("resources.requests.cpu=7", deployment, container("/resources/requests/cpu"), json!(7)),
        ("resources.requests.memory=7Mi", deployment, container("/resources/requests/memory"), json!("7Mi")),
        ("resources.limits.cpu=7", deployment, container("/resources/limits/cpu"), json!(7)),
        ("resources.limits.memory=7Gi", deployment, container("/resources/limits/memory"), json!("7Gi")),
        (r#"nodeSelector:={"a":"b"}"#, deployment, pod("/nodeSelector/a"), json!("b")),
        (r#"tolerations:=[{"operator":"Exists"}]"#, deployment, pod("/tolerations/0/operator"), json!("Exists")),
        (r#"affinity:={"podAffinity":{}}"#, deployment, pod("/affinity/podAffinity"), json!({})),
        ("priorityClassName=p", deployment, pod("/priorityClassName"), json!("p")),
        (
            r#"topologySpreadConstraints:=[{"maxSkew":1,"topologyKey":"zone","whenUnsatisfiable":"DoNotSchedule"}]"#,
            deployment,
            pod("/topologySpreadConstraints/0/topologyKey"),
            json!("zone"),
        ),
        (
            "updateStrategy.type=Recreate,updateStrategy.rollingUpdate=null",
            deployment,
            "/spec/strategy".into(),
            json!({"type": "Recreate"}),
        ),
        (
            "updateStrategy.rollingUpdate.maxSurge=1",
            deployment,
            "/spec/strategy/rollingUpdate/maxSurge".into(),
            json!(1),
        ),
        (
            "updateStrategy.rollingUpdate.maxUnavailable=2",
            deployment,
            "/spec/strategy/rollingUpdate/maxUnavailable".into(),
            json!(2),
        ),
        ("terminationGracePeriodSeconds=7", deployment, pod("/terminationGracePeriodSeconds"), json!(7)),
        ("config.drainTimeout=1m30.5s", deployment, pod("/terminationGracePeriodSeconds"), json!(91 + 30 + 5)),
        (
            "config.drainTimeout=250ms,config.shutdownGrace=2m",
            deployment,
            pod("/terminationGracePeriodSeconds"),
            json!(1 + 120 + 5),
        ),
        ("podDisruptionBudget.enabled=true", "PodDisruptionBudget", "/spec/minAvailable".into(), json!(1)),
        (
            "podDisruptionBudget.enabled=true,podDisruptionBudget.minAvailable=null,podDisruptionBudget.maxUnavailable=1",
            "PodDisruptionBudget",
            "/spec/maxUnavailable".into(),
            json!(1),
        ),
        ("networkPolicy.enabled=true", "NetworkPolicy", "/spec/ingress/0/ports/0/port".into(), json!("metrics")),
        (
            r#"networkPolicy:={"enabled":true,"ingressFrom":[{"podSelector":{}}]}"#,
            "NetworkPolicy",
            "/spec/ingress/0/from/0/podSelector".into(),
            json!({}),
        ),
        ("autoscaling.enabled=true", deployment, "/spec/replicas".into(), Value::Null),
        (
            "autoscaling.enabled=true,autoscaling.minReplicas=2",
            "HorizontalPodAutoscaler",
            "/spec/minReplicas".into(),
            json!(2),
        ),
        (
            "autoscaling.enabled=true,autoscaling.maxReplicas=9",
            "HorizontalPodAutoscaler",
            "/spec/maxReplicas".into(),
            json!(9),
        ),
        (
            "autoscaling.enabled=true,autoscaling.targetCPUUtilizationPercentage=7",
            "HorizontalPodAutoscaler",
            "/spec/metrics/0/resource/target/averageUtilization".into(),
            json!(7),
        ),
        (r#"extraEnv:=[{"name":"A","value":"b"}]"#, deployment, container("/env/52/name"), json!("A")),
        (
            r#"extraEnvFrom:=[{"secretRef":{"name":"s"}}]"#,
            deployment,
            container("/envFrom/0/secretRef/name"),
            json!("s"),
        ),
        (
            r#"extraVolumes:=[{"name":"v","emptyDir":{}}]"#,
            deployment,
            pod("/volumes/1"),
            json!({"name": "v", "emptyDir": {}}),
        ),
        (
            r#"extraVolumeMounts:=[{"name":"v","mountPath":"/v"}]"#,
            deployment,
            container("/volumeMounts/1/mountPath"),
            json!("/v"),
        ),
    ]
}

/// The keys of a value that have no keys below them, by their path.
fn leaves(path: &str, value: &Value, found: &mut BTreeSet<String>) {
    match value.as_object().filter(|object| !object.is_empty()) {
        Some(object) => {
            for (key, value) in object {
                leaves(&format!("{path}{}{key}", if path.is_empty() { "" } else { "." }), value, found);
            }
        }
        None => {
            found.insert(path.to_owned());
        }
    }
}

/// Each key outside `config` changed, and what it changes in the manifests, which are valid.
#[test]
fn every_other_key_has_its_effect() {
    let mut left = BTreeSet::new();
    let text =
        std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/retry-endpoint/values.yaml"));
    leaves("", &serde_saphyr::from_str(&text.expect("values")).expect("YAML"), &mut left);
    left.retain(|key| !key.starts_with("config."));
    let cases: Vec<Vec<String>> = rows().iter().map(|(set, ..)| vec![(*set).to_owned()]).collect();
    let all = template_each(&cases);
    let mut wrong = Vec::new();
    for ((set, kind, pointer, value), manifests) in rows().into_iter().zip(&all) {
        let found = manifests.at(kind, &pointer);
        if found != value {
            wrong.push(format!("{set}: {kind}{pointer} is {found}, not {value}"));
        }
        for one in set.split(":=").next().expect("a key").split(',') {
            let key = one.split('=').next().expect("a key");
            left.retain(|leaf| leaf != key && !(set.contains(":=") && leaf.starts_with(&format!("{key}."))));
        }
    }
    // The scrape's port is the service's; in the field's chart nothing reads this key either.
    left.remove("metrics.port");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(left.is_empty(), "no case changes {left:?}");
    validate(&all);
}

/// What cannot work is refused before it is installed.
#[test]
fn what_cannot_work_is_refused() {
    for (set, says) in [
        ("config.listenPort=0", "/config/listenPort"),
        ("config.mcScope=galaxy", "/config/mcScope"),
        ("config.cacheMemry=1g", "cacheMemry"),
        ("config.cacheMemory=much", "/config/cacheMemory"),
        ("networking.mode=bridge", "/networking/mode"),
        ("xdp.on=true", "/xdp"),
        ("terminationGracePeriodSeconds=-1", "/terminationGracePeriodSeconds"),
        ("securityContext.allowPrivilegeEscalation=false", "leave it out, or set xdp.enabled to false"),
        ("config.cacheMemory=1g", "resources.limits.memory 512Mi is less than the 1322Mi that the cache takes"),
    ] {
        let refusal = template(Some(FIELDS), &[&INSTANCE[..], &[set]].concat()).expect_err(set);
        assert!(refusal.contains(says), "{set}: {refusal}");
    }
}

/// Each setting that the field's chart does not have is a key of `config`, by its variable in camel case.
#[test]
fn every_setting_of_ours_is_a_key() {
    let schema: Value = serde_json::from_str(include_str!("../../../deploy/helm/retry-endpoint/values.schema.json"))
        .expect("the schema is JSON");
    let keys = schema["properties"]["config"]["properties"].as_object().expect("settings");
    let camel_case = |variable: &str| {
        let mut words = variable.split('_').map(str::to_lowercase);
        let first = words.next().unwrap_or_default();
        words.fold(first, |name, word| name + &word[..1].to_uppercase() + &word[1..])
    };
    let fields = super::values::all();
    // The volume has it, and the bootstrap's three are keys of an object.
    let elsewhere = ["BPFFS"];
    let ours = retry_userspace::parts::settings::all().map(|flag| flag.env);
    let ours: Vec<&str> =
        ours.filter(|name| !fields.iter().any(|one| one == name) && !elsewhere.contains(name)).collect();
    let missing: Vec<_> = ours.iter().map(|name| camel_case(name)).filter(|key| !keys.contains_key(key)).collect();
    assert!(missing.is_empty(), "values.schema.json lacks these keys of config: {missing:?}");
    // Numbers and sizes where the schema asks for them; the others are texts that the daemon judges.
    let value = |name: &str| if name.starts_with("CACHE_MEMORY") { "64m" } else { "2048" };
    let set: Vec<String> = ours.iter().map(|name| format!("config.{}={}", camel_case(name), value(name))).collect();
    let environment = field_with(&set.iter().map(String::as_str).collect::<Vec<_>>()).environment();
    for name in ours {
        assert!(environment.contains(&(name.to_owned(), value(name).to_owned())), "{name}: {environment:?}");
    }
}

/// Memory, for caches of several sizes: what the daemon takes by its own account, and no more than a tenth and 80 MiB beyond.
#[test]
fn the_memory_limit_follows_from_the_cache() {
    for (short, long, entries) in
        [("16m", "16m", 1024_usize), ("256m", "64m", 65_536), ("1g", "0.5g", 65_536), ("8g", "256m", 1 << 20)]
    {
        let bytes = |size: &str| {
            let (number, factor) = size
                .strip_suffix('g')
                .map_or_else(|| (size.trim_end_matches('m'), 1 << 20), |number| (number, 1 << 30));
            number.parse::<f64>().map(|number| number * f64::from(factor)).expect("a number")
        };
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sizes from above")]
        let sizes = retry_userspace::parts::framelog::Sizes::new(bytes(short) as u64, bytes(long) as u64);
        let log = (sizes.ring_len() + sizes.index_len() + sizes.hold_down_len()) >> 20;
        let set = [
            format!("config.cacheMemory={short}"),
            format!("config.cacheMemoryLong={long}"),
            format!("config.limitTableEntries={entries}"),
        ];
        let manifests = template(None, &set.each_ref().map(String::as_str)).expect("it renders");
        let limit =
            manifests.container()["resources"]["limits"]["memory"].as_str().map(str::to_owned).expect("a limit");
        let limit: usize = limit.trim_end_matches("Mi").parse().expect("MiB");
        let tables = (40 * entries).div_ceil(65_536);
        assert_eq!(limit, log + tables + 64, "{short} {long} {entries}");
    }
}

/// The directory of a node on its BPF file system, as the kubelet makes it, where the container has it, and then the user and
/// the capabilities of the container, like those that the image's file capabilities give.
const CONTAINER_START: &str = r#"
mount --bind "$1" "$2"
caps=$3 user=$4
shift 4
exec setpriv --reuid "$user" --regid "$user" --clear-groups --bounding-set "-all,$caps" --inh-caps "-all,$caps" \
    --ambient-caps "$caps" "$@"
"#;

/// The daemon of the rendered deployment: as its user, with its capabilities and no others, after its init container. It has
/// native XDP, its probes are answered, and SIGTERM ends it in the time that the pod gives it.
#[test]
fn the_rendered_pod_starts_with_native_xdp() {
    if !is_root("the_rendered_pod_starts_with_native_xdp") {
        return;
    }
    let manifests = field_with(&["config.drainTimeout=1s"]);
    let (ns, container) = (pod().expect("a namespace"), manifests.container());
    ns.run(&["ethtool", "-K", "peer0", "gro", "on"]).expect("an offload");
    let directory = Pins::new("chart");
    std::fs::create_dir(directory.name()).expect("a directory of the BPF file system");
    // The init container's command, where the node has what it names.
    let mounted = manifests.at("Deployment", &format!("{POD}/volumes/0/hostPath/path"));
    assert_eq!(mounted, "/sys/fs/bpf/retry-endpoint");
    let path = container["volumeMounts"][0]["mountPath"].as_str().expect("a path");
    let command = manifests.at("Deployment", &format!("{POD}/initContainers/0/command"));
    let words: Vec<&str> = command.as_array().expect("words").iter().filter_map(Value::as_str).collect();
    let words: Vec<&str> = words.into_iter().map(|word| if word == path { directory.name() } else { word }).collect();
    host_command(&words).expect("the init container's command");

    let user = manifests.at("Deployment", &format!("{POD}/securityContext/runAsUser")).to_string();
    let added = container["securityContext"]["capabilities"]["add"].as_array().expect("capabilities").clone();
    let capabilities: Vec<String> =
        added.iter().filter_map(Value::as_str).map(|name| format!("+{}", name.to_lowercase())).collect();
    assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], Value::Null, "file capabilities count");
    let mut command = Command::new("unshare");
    command.args(["-m", "sh", "-ec", CONTAINER_START, "sh", directory.name(), path, &capabilities.join(","), &user]);
    command.arg(binary()).env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.envs(manifests.environment()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    let mut child = ns.spawn(command).expect("a process");
    let port = container["ports"].as_array().and_then(|ports| ports.iter().find(|port| port["name"] == "metrics"));
    let address = format!("[::1]:{}", port.expect("a port")["containerPort"]).parse().expect("an address");
    let probe = |kind: &str| {
        let path = container[kind]["httpGet"]["path"].as_str().expect("a path");
        http::get(&ns, address, path).ok()
    };
    let mut said = None;
    eventually("it is ready, with native XDP", || {
        assert!(child.try_wait().expect("a child").is_none(), "it has ended: {said:?}");
        said = probe("readinessProbe");
        matches!(&said, Some((200, body)) if body.contains(r#""mode":"native""#))
    });
    assert_eq!(probe("livenessProbe").map(|(status, _)| status), Some(200));
    assert!(Path::new(directory.name()).read_dir().expect("a directory").next().is_some(), "its pins are on the node");
    let grace = manifests.at("Deployment", &format!("{POD}/terminationGracePeriodSeconds")).as_u64().expect("seconds");
    assert_eq!(grace, 1 + 30 + 5);
    assert!(child.end(Duration::from_secs(grace)).expect("an end").success());
}
