//! The project's own chart, rendered by the real helm.

use std::{
    collections::BTreeSet,
    fs,
    panic::resume_unwind,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use serde_json::Value;

/// The chart's directory.
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/retry-endpoint");
/// The values of the field's chart, as an operator has them.
pub(crate) const FIELDS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/chart/field/values.yaml");
/// What one instance of the field sets beside the defaults: the environment in `field/rendered-default.env` comes from it.
pub(crate) const INSTANCE: [&str; 3] =
    ["networking.mode=host", r#"config.nackAddr:="fd10::20""#, r#"config.ssmBootstrap.manifest:=["fd10::11"]"#];
/// Versions of Kubernetes that manifests are valid for: the oldest that the chart's `kubeVersion` allows, and the newest known.
const KUBERNETES: [&str; 2] = ["1.27", "1.37"];

/// Helms at a time.
const AT_ONCE: usize = 4;

/// What `xtask` has installed.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("RETRY_TOOLS").expect("xtask names the tools' directory").into()
}

/// The manifests of one release.
#[derive(Debug)]
pub(crate) struct Rendered(Vec<Value>);

/// Runs helm with these arguments: what it wrote to stdout, or to stderr when it failed.
pub(crate) fn helm(arguments: &[&str]) -> Result<String, String> {
    let mut command = Command::new(tools().join("bin/helm"));
    // Nothing of the user's own helm takes part.
    let home = tempfile::tempdir().expect("a directory");
    command.args(arguments).env_clear().env("HOME", home.path()).stdin(Stdio::null());
    let output = command.output().expect("helm starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    if output.status.success() { Ok(text(output.stdout)) } else { Err(text(output.stderr)) }
}

/// Renders the chart with a file of values and with assignments, as `--set` takes them; `KEY:=JSON` is one of `--set-json`.
pub(crate) fn template(file: Option<&str>, set: &[&str]) -> Result<Rendered, String> {
    let mut arguments = vec!["template", "release", CHART];
    arguments.extend(file.iter().flat_map(|file| ["--values", file]));
    let json: Vec<String> = set.iter().filter(|one| one.contains(":=")).map(|one| one.replacen(":=", "=", 1)).collect();
    let plain = set.iter().filter(|one| !one.contains(":="));
    arguments.extend(plain.flat_map(|one| ["--set", one]));
    arguments.extend(json.iter().flat_map(|one| ["--set-json", one]));
    let text = helm(&arguments)?;
    let documents: Vec<Value> = serde_saphyr::from_multiple(&text).map_err(|error| format!("{error}\n{text}"))?;
    Ok(Rendered(documents.into_iter().filter(|document| !document.is_null()).collect()))
}

impl Rendered {
    /// The document of a kind, if there is one.
    pub(crate) fn find(&self, kind: &str) -> Option<&Value> {
        self.0.iter().find(|document| document["kind"] == kind)
    }

    /// The value at a JSON pointer of the document of a kind; null if there is neither.
    pub(crate) fn at(&self, kind: &str, pointer: &str) -> Value {
        self.find(kind).and_then(|document| document.pointer(pointer)).cloned().unwrap_or_default()
    }

    /// The daemon's container.
    pub(crate) fn container(&self) -> Value {
        self.at("Deployment", "/spec/template/spec/containers/0")
    }

    /// The variables of the daemon's container, in their order.
    pub(crate) fn environment(&self) -> Vec<(String, String)> {
        let container = self.container();
        let rows = container["env"].as_array().expect("an environment");
        let text = |value: &Value| value.as_str().expect("a text").to_owned();
        let names: BTreeSet<String> = rows.iter().map(|row| text(&row["name"])).collect();
        assert_eq!(names.len(), rows.len(), "no variable comes twice: {rows:?}");
        rows.iter().map(|row| (text(&row["name"]), text(&row["value"]))).collect()
    }
}

/// Checks the manifests in a file, one per line, against each version that is named; every schema is read once.
const VALIDATE: &str = "
import functools, json, sys
import kubernetes_validate.utils as kubernetes
kubernetes.schema_contents = functools.cache(kubernetes.schema_contents)
for version in sys.argv[2:]:
    for line in open(sys.argv[1]):
        manifest = json.loads(line)
        try:
            kubernetes.validate(manifest, version, strict=True)
            print('valid')
        except kubernetes.ValidationError as error:
            print(version, kubernetes.kn(manifest), list(error.path), error.message)
        except kubernetes.SchemaNotFoundError as error:
            print(error.message)
";

/// Holds manifests against the API of every version in [`KUBERNETES`], unknown fields included. Kinds of the Prometheus
/// operator are no part of it.
pub(crate) fn validate(all: &[Rendered]) {
    let documents = all.iter().flat_map(|one| &one.0);
    let ours = documents.filter(|document| document["apiVersion"] != "monitoring.coreos.com/v1");
    let lines: BTreeSet<String> = ours.map(ToString::to_string).collect();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("manifests");
    fs::write(&file, lines.iter().map(|line| format!("{line}\n")).collect::<String>()).expect("written");
    let mut command = Command::new("python3");
    command.args(["-c", VALIDATE]).arg(&file).args(KUBERNETES);
    let output =
        command.env("PYTHONPATH", tools().join("python")).stdin(Stdio::null()).output().expect("python3 starts");
    let said = String::from_utf8([output.stdout, output.stderr].concat()).expect("UTF-8");
    let wrong: Vec<&str> = said.lines().filter(|line| *line != "valid").collect();
    assert_eq!(wrong, Vec::<&str>::new());
    assert_eq!(said.lines().count(), lines.len() * KUBERNETES.len());
}

/// As [`template`] for the field's values with these assignments, several at a time; in their order.
pub(crate) fn template_each(cases: &[Vec<String>]) -> Vec<Rendered> {
    let render = |set: &Vec<String>| {
        let all: Vec<&str> = INSTANCE.into_iter().chain(set.iter().map(String::as_str)).collect();
        template(Some(FIELDS), &all).map_err(|error| format!("{set:?}: {error}")).expect("it renders")
    };
    let share = cases.len().div_ceil(AT_ONCE).max(1);
    thread::scope(|scope| {
        let shares = cases.chunks(share).map(|share| scope.spawn(move || share.iter().map(render).collect::<Vec<_>>()));
        let running: Vec<_> = shares.collect();
        running.into_iter().flat_map(|one| one.join().unwrap_or_else(|panic| resume_unwind(panic))).collect()
    })
}
