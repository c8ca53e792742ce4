//! What is inside: every crate of the daemon and of the programs for the kernel, as a CycloneDX list.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Release, TARGET};
use crate::context::{Context, output, step};

/// The packages whose code is in the program: the second one's is embedded as an object.
const ROOTS: [&str; 2] = ["retry-userspace", "retry-ebpf"];

/// Writes `target/dist/retry-endpoint_VERSION.cdx.json`.
///
/// # Errors
/// cargo fails, or the disk is full.
pub(super) fn write(context: &Context, release: &Release) -> Result<()> {
    step("write the list of what is inside");
    let mut command = context.cargo();
    command.args(["metadata", "--locked", "--format-version=1", "--filter-platform", TARGET]);
    let metadata: Value = serde_json::from_str(&output(&mut command)?).context("cargo metadata")?;
    let list = list(&metadata, release)?;
    let path = context.dist().join(format!("retry-endpoint_{}.cdx.json", release.version));
    fs::write(&path, format!("{list:#}\n")).with_context(|| format!("write {}", path.display()))
}

fn list(metadata: &Value, Release { version, .. }: &Release) -> Result<Value> {
    let rows = |value: &'_ Value| value.as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let packages: BTreeMap<String, Value> =
        rows(&metadata["packages"]).into_iter().map(|package| (text(&package["id"]), package)).collect();
    let nodes: BTreeMap<String, BTreeSet<String>> = rows(&metadata["resolve"]["nodes"])
        .iter()
        .map(|node| {
            // Kind null: no dependency of tests, nor of build scripts.
            let is_inside =
                |dependency: &&Value| rows(&dependency["dep_kinds"]).iter().any(|one| one["kind"].is_null());
            let inside = rows(&node["deps"]);
            (text(&node["id"]), inside.iter().filter(is_inside).map(|dependency| text(&dependency["pkg"])).collect())
        })
        .collect();
    let mut waiting: Vec<&str> = packages
        .iter()
        .filter(|(_, package)| ROOTS.iter().any(|root| package["name"] == *root))
        .map(|(id, _)| id.as_str())
        .collect();
    let roots = waiting.clone();
    anyhow::ensure!(roots.len() == ROOTS.len(), "cargo metadata does not have all of {ROOTS:?}");
    let mut inside = BTreeSet::new();
    while let Some(id) = waiting.pop() {
        if inside.insert(id) {
            waiting.extend(nodes.get(id).into_iter().flatten().map(String::as_str));
        }
    }
    let reference = |id: &str| {
        packages.get(id).map(|package| format!("pkg:cargo/{}@{}", text(&package["name"]), text(&package["version"])))
    };
    let mut components: Vec<Value> = Vec::new();
    let mut dependencies: Vec<Value> = Vec::new();
    for id in &inside {
        let (Some(package), Some(purl)) = (packages.get(*id), reference(id)) else { continue };
        let mut component = json!({
            "type": "library", "bom-ref": purl, "name": package["name"], "version": package["version"], "purl": purl,
        });
        if let Some(licence) = package["license"].as_str() {
            // The older form of an SPDX expression.
            component["licenses"] = json!([{ "expression": licence.replace('/', " OR ") }]);
        }
        components.push(component);
        let needs: Vec<String> = nodes.get(*id).into_iter().flatten().filter_map(|id| reference(id)).collect();
        dependencies.push(json!({ "ref": purl, "dependsOn": needs }));
    }
    let whole = format!("pkg:generic/retry-endpoint@{version}");
    let needs: Vec<String> = roots.iter().filter_map(|id| reference(id)).collect();
    dependencies.push(json!({ "ref": whole, "dependsOn": needs }));
    Ok(json!({
        "bomFormat": "CycloneDX",
        "specVersion": "1.5",
        "version": 1,
        "metadata": {
            "component": {
                "type": "application", "bom-ref": whole, "name": "retry-endpoint", "version": version, "purl": whole,
            },
        },
        "components": components,
        "dependencies": dependencies,
    }))
}
