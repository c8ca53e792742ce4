//! The project's own chart, rendered by the real helm.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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

/// What `xtask` has installed.
pub(crate) fn tools() -> PathBuf {
    std::env::var_os("RETRY_TOOLS").expect("xtask names the tools' directory").into()
}

/// What an operator may write after `helm template NAME CHART`, and what it comes to.
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
        rows.iter().map(|row| (text(&row["name"]), text(&row["value"]))).collect()
    }
}

/// Holds manifests against the API of every version in [`KUBERNETES`], unknown fields included. Kinds of the Prometheus
/// operator are no part of it.
pub(crate) fn validate(all: &[Rendered]) {
    let mut documents: Vec<&Value> = all.iter().flat_map(|one| &one.0).collect();
    documents.retain(|document| document["apiVersion"] != "monitoring.coreos.com/v1");
    documents.sort_by_key(|document| document.to_string());
    documents.dedup();
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("manifests.yaml");
    // JSON is YAML.
    let texts: Vec<String> = documents.iter().map(ToString::to_string).collect();
    fs::write(&file, texts.join("\n---\n")).expect("written");
    for version in KUBERNETES {
        let said = validated(&file, version);
        assert_eq!(said.matches("INFO ").count(), documents.len(), "{said}");
    }
}

/// What kubernetes-validate says of the manifests in a file.
fn validated(file: &Path, version: &str) -> String {
    let mut command = Command::new("python3");
    command.args(["-m", "kubernetes_validate", "--strict", "--kubernetes-version", version]).arg(file);
    let output = command.env("PYTHONPATH", tools().join("python")).stdin(Stdio::null()).output().expect("python3");
    let said = [output.stdout, output.stderr].concat();
    String::from_utf8(said).expect("UTF-8")
}
