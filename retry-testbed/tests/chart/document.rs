//! docs/kubernetes.md: its commands run as they stand there, and its values render valid manifests.

use std::{
    path::Path,
    process::{Command, Stdio},
};

use retry_testbed::scene::{Pins, is_root};

use super::helm::{template, tools, validate};

const DOCUMENT: &str = include_str!("../../../docs/kubernetes.md");
const REPOSITORY: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The blocks of a language, in their order.
fn blocks(language: &str) -> Vec<&'static str> {
    let fence = format!("```{language}\n");
    DOCUMENT.split(&fence).skip(1).filter_map(|rest| rest.split_once("```")).map(|(block, _)| block).collect()
}

/// Each block of values stands alone: it renders, and the manifests are valid.
#[test]
fn every_block_of_values_renders() {
    let directory = tempfile::tempdir().expect("a directory");
    let file = directory.path().join("values.yaml");
    let render = |values: &str| {
        std::fs::write(&file, values).expect("written");
        template(file.to_str(), &[]).map_err(|error| format!("{values}: {error}")).expect("it renders")
    };
    let all: Vec<_> = blocks("yaml").into_iter().map(render).collect();
    assert!(all.len() > 4, "{}", all.len());
    validate(&all);
}

/// With the first block as values.yaml. No cluster is here: `helm install` only shows what it would send.
#[test]
fn every_command_runs() {
    if !is_root("every_command_runs") {
        return;
    }
    let (directory, node) = (tempfile::tempdir().expect("a directory"), Pins::new("chart-node"));
    std::fs::write(directory.path().join("values.yaml"), blocks("yaml")[0]).expect("written");
    let mut count = 0;
    for line in blocks("sh").into_iter().flat_map(str::lines) {
        count += 1;
        let command = line
            .replace(" deploy/", &format!(" {REPOSITORY}/deploy/"))
            .replace("/sys/fs/bpf/retry-endpoint", node.name())
            .replace("helm install", "helm install --dry-run=client");
        let path = format!("{}:{}", tools().join("bin").display(), std::env::var("PATH").unwrap_or_default());
        let mut shell = Command::new("sh");
        shell.args(["-ec", &command]).current_dir(directory.path()).env("PATH", path).env("HOME", directory.path());
        let output = shell.stdin(Stdio::null()).output().expect("sh starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{line}: {said}");
        if line.contains(" template ") || line.contains(" install ") && line.starts_with("helm") {
            assert!(said.contains("kind: Deployment") && said.contains("fd10::20/64"), "{line}: {said}");
        }
    }
    assert!(count > 3, "{count} commands");
    assert!(Path::new(node.name()).is_dir(), "the node is prepared");
}
