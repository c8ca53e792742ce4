//! Finds the kernel object that the daemon embeds: `RETRY_EBPF_OBJECT`, else where `cargo xtask build-ebpf` puts it.
//! Without one an empty file is embedded, and the daemon says so when asked for XDP.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=RETRY_EBPF_OBJECT");
    let manifest = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object =
        env::var_os("RETRY_EBPF_OBJECT").map_or_else(|| manifest.join("../target/bpf/retry-ebpf.o"), PathBuf::from);
    println!("cargo::rerun-if-changed={}", object.display());
    let embedded = Path::new(&env::var_os("OUT_DIR").unwrap_or_default()).join("retry-ebpf.o");
    if object.exists() {
        fs::copy(&object, &embedded)?;
    } else {
        fs::write(&embedded, [])?;
    }
    println!("cargo::rustc-env=RETRY_EBPF_EMBED={}", embedded.display());
    Ok(())
}
