//! The container image: an OCI image layout (opencontainers/image-spec 1.1) with one layer, from scratch.

use std::{
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::{Release, deb::HOMEPAGE};
use crate::context::{Context, output, run as run_command, step};

/// User and group of the process: those of the field's chart.
const USER: u64 = 65_532;
/// Numbers of the capabilities (linux/capability.h) that the program may use: NET_ADMIN, NET_RAW, PERFMON, BPF.
const CAPABILITIES: [u32; 4] = [12, 13, 38, 39];
/// `VFS_CAP_REVISION_2`, without `VFS_CAP_FLAGS_EFFECTIVE`: where a capability is not granted, a kernel would refuse to start a
/// program that has it as an effective one. The daemon puts in force what it got.
const REVISION: u32 = 0x0200_0000;
const PROGRAM: &str = "usr/bin/retry-endpoint";

/// Builds `target/dist/retry-endpoint_VERSION_oci.tar`.
///
/// # Errors
/// The disk is full, or a tool fails.
pub(super) fn build(context: &Context, daemon: &Path, release: &Release) -> Result<()> {
    step("build the image");
    let layout = Layout { root: context.dist().join("image") };
    fs::create_dir_all(layout.root.join("blobs/sha256")).context("make the layout")?;
    let layer = layout.root.join("layer.tar");
    fs::write(&layer, self::layer(daemon, release)?).context("write the layer")?;
    let diff = sum(&layer)?;
    // Without name and date in it.
    run_command(Command::new("gzip").args(["-9", "-n"]).arg(&layer))?;
    let layer = layout.add(&layout.root.join("layer.tar.gz"), "application/vnd.oci.image.layer.v1.tar+gzip")?;
    let created = output(Command::new("date").args(["--utc", "--date", &format!("@{}", release.epoch), "+%FT%TZ"]))?;
    let created = created.trim();
    let Release { version, commit, .. } = release;
    let labels = json!({
        "org.opencontainers.image.title": "retry-endpoint",
        "org.opencontainers.image.version": version,
        "org.opencontainers.image.revision": commit,
        "org.opencontainers.image.source": HOMEPAGE,
        "org.opencontainers.image.licenses": "Apache-2.0 AND GPL-2.0-only",
    });
    let config = layout.add_json(
        &json!({
            "created": created,
            "architecture": "amd64",
            "os": "linux",
            "config": {
                "User": format!("{USER}:{USER}"),
                "Entrypoint": [format!("/{PROGRAM}")],
                "ExposedPorts": { "9001/udp": {}, "9300/udp": {}, "9400/tcp": {} },
                "Labels": labels,
                "StopSignal": "SIGTERM",
                "WorkingDir": "/",
            },
            "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{diff}")] },
            "history": [{ "created": created, "created_by": "cargo xtask dist" }],
        }),
        "application/vnd.oci.image.config.v1+json",
    )?;
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config, "layers": [layer], "annotations": labels,
    });
    let mut manifest = layout.add_json(&manifest, media_type)?;
    manifest["platform"] = json!({ "architecture": "amd64", "os": "linux" });
    manifest["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("retry-endpoint:{version}") });
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [manifest],
    });
    fs::write(layout.root.join("index.json"), index.to_string()).context("write index.json")?;
    fs::write(layout.root.join("oci-layout"), json!({ "imageLayoutVersion": "1.0.0" }).to_string())?;
    let archive = context.dist().join(format!("retry-endpoint_{version}_oci.tar"));
    let mut tar = Command::new("tar");
    tar.args(["--sort=name", "--owner=0", "--group=0", "--numeric-owner", &format!("--mtime=@{}", release.epoch)]);
    run_command(tar.arg("--file").arg(&archive).arg("--create").arg("--directory").arg(&layout.root).arg("."))?;
    fs::remove_dir_all(layout.root).context("clear the layout")
}

/// The one layer: the program with its file capabilities, its licences, and a directory for `-state-dir`.
fn layer(daemon: &Path, release: &Release) -> Result<Vec<u8>> {
    let mut layer = tar::Builder::new(Vec::new());
    let header = |kind: tar::EntryType, mode: u32, owner: u64, size: u64| {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(owner);
        header.set_gid(owner);
        header.set_mtime(release.epoch);
        header.set_size(size);
        header
    };
    for (path, owner, mode) in [
        ("usr/", 0, 0o755),
        ("usr/bin/", 0, 0o755),
        ("var/", 0, 0o755),
        ("var/lib/", 0, 0o755),
        ("var/lib/retry-endpoint/", USER, 0o700),
    ] {
        layer.append_data(&mut header(tar::EntryType::Directory, mode, owner, 0), path, std::io::empty())?;
    }
    let program = fs::read(daemon).with_context(|| format!("read {}", daemon.display()))?;
    let capability = capability();
    layer.append_pax_extensions([("SCHILY.xattr.security.capability", &capability[..])])?;
    let size = u64::try_from(program.len())?;
    layer.append_data(&mut header(tar::EntryType::Regular, 0o755, 0, size), PROGRAM, &program[..])?;
    let mut layer = layer.into_inner()?;
    layer.flush()?;
    Ok(layer)
}

/// `struct vfs_cap_data` of the second revision: permitted capabilities, none inheritable, in two halves.
fn capability() -> Vec<u8> {
    let bits = CAPABILITIES.iter().fold(0_u64, |bits, number| bits | 1 << number);
    let half = |shift: u32| (bits >> shift) & 0xFFFF_FFFF;
    let words = [u64::from(REVISION), half(0), 0, half(32), 0];
    words.iter().flat_map(|word| word.to_le_bytes()[..4].to_vec()).collect()
}

fn sum(file: &Path) -> Result<String> {
    let line = output(Command::new("sha256sum").arg(file))?;
    line.split_whitespace().next().map(str::to_owned).context("sha256sum says nothing")
}

/// The directory that is being filled.
struct Layout {
    root: PathBuf,
}

impl Layout {
    /// Moves a file to its digest's name; its descriptor.
    fn add(&self, file: &Path, media_type: &str) -> Result<Value> {
        let (size, sum) = (fs::metadata(file)?.len(), sum(file)?);
        fs::rename(file, self.root.join("blobs/sha256").join(&sum))?;
        Ok(json!({ "mediaType": media_type, "digest": format!("sha256:{sum}"), "size": size }))
    }

    fn add_json(&self, value: &Value, media_type: &str) -> Result<Value> {
        let file = self.root.join("new.json");
        fs::write(&file, value.to_string())?;
        self.add(&file, media_type)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_capabilities_are_as_setcap_writes_them() {
        // setcap cap_net_admin,cap_net_raw,cap_perfmon,cap_bpf=p; getfattr -e hex -n security.capability
        assert_eq!(capability(), [0, 0, 0, 2, 0, 0x30, 0, 0, 0, 0, 0, 0, 0xC0, 0, 0, 0, 0, 0, 0, 0]);
    }
}
