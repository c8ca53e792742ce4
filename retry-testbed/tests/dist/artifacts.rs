//! The files of `target/dist`.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use crate::document;

/// Where `cargo xtask dist` has put them.
pub(crate) fn directory() -> PathBuf {
    PathBuf::from(std::env::var_os("RETRY_DIST_DIRECTORY").expect("xtask names the directory of artifacts"))
}

/// The one file whose name ends so.
pub(crate) fn file(end: &str) -> PathBuf {
    let entries = fs::read_dir(directory()).expect("readable").map(|entry| entry.expect("an entry").path());
    let found: Vec<PathBuf> = entries.filter(|path| path.to_string_lossy().ends_with(end)).collect();
    let [file] = &found[..] else { panic!("{} files end with {end}: {found:?}", found.len()) };
    file.clone()
}

/// Standard output of a command that succeeds.
#[track_caller]
pub(crate) fn said(program: &str, arguments: &[&str], directory: &Path) -> String {
    let output = Command::new(program).args(arguments).current_dir(directory).output().expect("it starts");
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} {arguments:?}: {}\n{out}{err}", output.status);
    out.into_owned()
}

/// The commit that this tree is at.
fn git(arguments: &[&str]) -> String {
    said("git", arguments, Path::new(env!("CARGO_MANIFEST_DIR"))).trim().to_owned()
}

#[test]
fn the_program_is_static_and_says_what_it_was_built_from() {
    let program = directory().join("retry-endpoint");
    let bytes = fs::read(&program).expect("the program");
    assert!(bytes.len() <= 20 << 20, "{} bytes", bytes.len());
    let interpreter = said("readelf", &["--program-headers", "--wide", &program.display().to_string()], &directory());
    assert!(!interpreter.contains("INTERP"), "{interpreter}");
    let says = said(&program.display().to_string(), &["-version"], &directory());
    let date =
        said("date", &["--utc", "--date", &format!("@{}", git(&["show", "-s", "--format=%ct"])), "+%F"], &directory());
    let (commit, date) = (git(&["rev-parse", "--short=12", "HEAD"]), date.trim());
    assert!(says.contains(&commit) && says.contains(date), "{says} is not of {commit}, {date}");
}

/// What the block of the document says is true of what is there.
#[test]
fn the_sums_are_those_of_the_files() {
    let [check] = &document::blocks("Check what you have")[..] else { panic!("one block") };
    let shown = said("sh", &["-ec", check], &directory());
    let names: Vec<&str> = shown.lines().map(|line| line.strip_suffix(": OK").expect("OK")).collect();
    assert_eq!(names.len(), fs::read_dir(directory()).expect("readable").count() - 1, "all but SHA256SUMS: {shown}");
}

/// Every file of the Debian package stands in the RPM package with the same bytes, mode and kind, and no other does.
#[test]
fn both_packages_hold_the_same_files() {
    let unpacked = tempfile::tempdir().expect("a directory");
    let root = unpacked.path();
    said("dpkg-deb", &["--extract", &file("_amd64.deb").display().to_string(), "."], root);
    let debian = said("sh", &["-ec", "find . -type f -printf '%P\\n' | sort | xargs sha256sum"], root);
    let debian: BTreeSet<String> = debian.lines().map(|line| line.replacen("  ", " /", 1)).collect();
    let rpm = file(".x86_64.rpm").display().to_string();
    let rpms = said("rpm", &["-qp", "--qf", "[%{FILEDIGESTS} %{FILENAMES}\\n]", &rpm], root);
    let rpms: BTreeSet<String> = rpms.lines().map(str::to_owned).collect();
    assert_eq!(rpms, debian);
    assert!(debian.len() > 12, "{debian:?}");
    let settings = said("rpm", &["-qp", "--configfiles", &rpm], root);
    let conffiles = said("dpkg-deb", &["--field", &file("_amd64.deb").display().to_string(), "Package"], root);
    assert_eq!((settings.trim(), conffiles.trim()), ("/etc/default/retry-endpoint", "retry-endpoint"));
}

#[test]
fn the_units_exposure_is_what_the_document_says() {
    let unit = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/package/retry-endpoint.service");
    let shown = said("systemd-analyze", &["security", "--offline=true", "--no-pager", unit], &directory());
    let (_, rest) = shown.split_once("Overall exposure level for retry-endpoint.service: ").expect("a figure");
    let figure = rest.split_whitespace().next().expect("a figure");
    assert!(figure.parse::<f64>().is_ok_and(|exposure| exposure <= 2.0), "{shown}");
    assert!(document::text().contains(&format!("exposure level {figure}")), "the document does not say {figure}");
}

/// Every setting of sysctl.d is one that Linux has.
#[test]
fn the_kernel_knows_the_settings_of_sysctl_d() {
    let text = include_str!("../../../deploy/package/sysctl.conf");
    let keys: Vec<&str> = text.lines().filter_map(|line| line.split_once(" = ")).map(|(key, _)| key).collect();
    assert!(keys.len() >= 4, "{keys:?}");
    for key in keys {
        assert!(Path::new("/proc/sys").join(key.replace('.', "/")).exists(), "{key}");
    }
}

/// What lintian says against the Debian package although it is meant.
const ACCEPTED: &[&str] = &[
    // Both packages run the same scripts, and the package depends on systemd.
    "maintainer-script-calls-systemctl",
    // It has none: the program is static.
    "shared-library-lacks-prerequisites",
];

/// Debian's own check of packages has nothing else to say.
#[test]
fn lintian_accepts_the_debian_package() {
    let package = file("_amd64.deb").display().to_string();
    let arguments = ["--allow-root", "--fail-on", "error,warning", "--suppress-tags", &ACCEPTED.join(","), &package];
    assert_eq!(said("lintian", &arguments, &directory()), "");
}

/// The commands that load the image. They leave nothing on this machine: podman has a store of its own, and a directory stands in for
/// the registry.
#[test]
fn podman_and_skopeo_take_the_image() {
    let [load, copy] = &document::blocks("Containers")[..] else { panic!("two blocks") };
    let store = tempfile::tempdir().expect("a directory");
    let there = store.path().display();
    let podman = format!("podman --root {there}/root --runroot {there}/run --storage-driver vfs");
    let load = load.replace("podman", &podman);
    said("sh", &["-ec", &load], &directory());
    let images =
        said("sh", &["-ec", &format!("{podman} images --format '{{{{.Repository}}}}:{{{{.Tag}}}}'")], &directory());
    assert_eq!(images.trim(), "localhost/retry-endpoint:0.1.0");
    let copy = copy.replace("docker://REGISTRY/retry-endpoint:0.1.0", &format!("dir:{there}/copy"));
    said("sh", &["-ec", &copy], &directory());
    let manifest = fs::read_to_string(store.path().join("copy/manifest.json")).expect("a copy");
    let manifest: Value = serde_json::from_str(&manifest).expect("JSON");
    assert_eq!(manifest["annotations"]["org.opencontainers.image.title"], "retry-endpoint");
}

/// The list has what is in the program, and nothing that only builds or tests it.
#[test]
fn the_list_has_the_crates_of_the_program() {
    let text = fs::read_to_string(file(".cdx.json")).expect("a list");
    let list: Value = serde_json::from_str(&text).expect("JSON");
    assert_eq!((&list["bomFormat"], &list["specVersion"]), (&"CycloneDX".into(), &"1.5".into()));
    let components = list["components"].as_array().expect("components");
    let names: BTreeSet<&str> = components.iter().filter_map(|one| one["name"].as_str()).collect();
    for inside in ["retry-userspace", "retry-ebpf", "retry-common", "aya", "aya-ebpf", "tokio", "ring"] {
        assert!(names.contains(inside), "{inside} is missing");
    }
    for outside in ["retry-testbed", "xtask", "proptest", "clap_mangen", "cc"] {
        assert!(!names.contains(outside), "{outside} is not in the program");
    }
    let lock = include_str!("../../../Cargo.lock");
    for component in components {
        let (name, version) = (&component["name"], &component["version"]);
        assert!(lock.contains(&format!("name = {name}\nversion = {version}\n")), "{component}");
        assert!(component["licenses"][0]["expression"].is_string(), "{component}");
    }
}

/// No section of the document has commands that no test runs.
#[test]
fn every_section_with_commands_has_a_test() {
    let tried = ["Check what you have", "Debian and Ubuntu", "Fedora, RHEL and SUSE", "Containers"];
    assert_eq!(document::sections_with_commands(), tried);
}
