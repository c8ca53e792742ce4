//! A Debian kernel, unpacked under `target/kernels/`: its image and its modules.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, Result, ensure};

use crate::{
    context::{Context, shown, step},
    install,
};

/// A series of kernels of which the newest is tested.
#[derive(Debug)]
pub(crate) struct Series {
    /// As results name it.
    pub(crate) name: &'static str,
    prefix: &'static str,
    suffix: &'static str,
}

/// Debian 12's kernel, and that of Debian 13 and 12's backports.
pub(crate) const SERIES: [Series; 2] = [
    Series { name: "6.1", prefix: "linux-image-6.1.0-", suffix: "-cloud-amd64" },
    Series { name: "6.12", prefix: "linux-image-6.12.", suffix: "-cloud-amd64" },
];

/// An unpacked package.
#[derive(Debug)]
pub(crate) struct Image {
    directory: PathBuf,
}

impl Series {
    /// The newest package that the lists know, else one that was unpacked before; `None` when there is neither.
    ///
    /// # Errors
    /// The archive cannot be reached, or the disk is full.
    pub(crate) fn fetch(&self, context: &Context) -> Result<Option<Image>> {
        let kernels = context.target.join("kernels");
        let mut package = install::newest_package(self.prefix, self.suffix)?;
        if package.is_none() && !context.no_install && install::refresh(context).is_ok() {
            package = install::newest_package(self.prefix, self.suffix)?;
        }
        let Some(package) = package else { return Ok(self.unpacked(&kernels)) };
        let directory = kernels.join(&package);
        if !directory.is_dir() {
            ensure!(
                !context.no_install,
                "{package} is not unpacked, and --no-install was given: apt-get download {package}"
            );
            step(format_args!("fetch {package}"));
            fs::create_dir_all(&kernels)?;
            if let Err(error) = install::unpack(&package, &directory) {
                // Lists may be older than the archive: it has a newer build under another name by now.
                return self.unpacked(&kernels).map(Some).ok_or(error);
            }
        }
        Ok(Some(Image { directory }))
    }

    fn unpacked(&self, kernels: &Path) -> Option<Image> {
        let fits = |path: &PathBuf| {
            path.file_name().is_some_and(|name| {
                let name = name.to_string_lossy();
                name.starts_with(self.prefix) && name.ends_with(self.suffix)
            })
        };
        let found = fs::read_dir(kernels).ok()?.filter_map(|entry| Some(entry.ok()?.path()));
        found.filter(fits).max().map(|directory| Image { directory })
    }
}

impl Image {
    /// The file that boots.
    ///
    /// # Errors
    /// The package has none.
    pub(crate) fn vmlinuz(&self) -> Result<PathBuf> {
        let boot = self.directory.join("boot");
        let entries = fs::read_dir(&boot).with_context(|| format!("cannot read {}", boot.display()))?;
        entries
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz-")))
            .with_context(|| format!("no vmlinuz in {}", boot.display()))
    }

    /// A module's bytes and those of the modules that it depends on, in the order in which they are loaded.
    ///
    /// Those of `maybe` are built into some kernels, whose packages have no module of that name.
    ///
    /// # Errors
    /// The package has no such module, or it cannot be unpacked.
    pub(crate) fn modules(&self, maybe: &[&str], names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut files = Vec::new();
        for top in ["lib/modules", "usr/lib/modules"] {
            collect(&self.directory.join(top), &mut files);
        }
        let mut loaded = Vec::new();
        let has = |name: &str| files.iter().any(|file| module_name(file).as_deref() == Some(name));
        for name in maybe.iter().filter(|name| has(name)).chain(names) {
            load(name, &files, &mut loaded)?;
        }
        Ok(loaded)
    }
}

/// Every module's file below a directory.
fn collect(directory: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        match entry.file_type() {
            Ok(kind) if kind.is_dir() => collect(&path, files),
            _ if module_name(&path).is_some() => files.push(path),
            _ => {}
        }
    }
}

/// `veth` for `…/veth.ko` and `…/veth.ko.xz`, dashes as underscores: the kernel takes them for the same.
fn module_name(path: &Path) -> Option<String> {
    let name = path.file_name()?.to_str()?;
    let (stem, rest) = name.split_once(".ko")?;
    matches!(rest, "" | ".xz").then(|| stem.replace('-', "_"))
}

fn load(name: &str, files: &[PathBuf], loaded: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
    if loaded.iter().any(|(done, _)| done == name) {
        return Ok(());
    }
    let file = files.iter().find(|file| module_name(file).as_deref() == Some(name));
    let bytes = read(file.with_context(|| format!("the kernel's package has no module {name}"))?)?;
    for needed in dependencies(&bytes) {
        load(&needed, files, loaded)?;
    }
    loaded.push((name.to_owned(), bytes));
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let mut command = Command::new("xz");
    let output = command.args(["--decompress", "--stdout"]).arg(file).output().context("cannot start xz")?;
    ensure!(output.status.success(), "{}: {}", output.status, shown(&command));
    Ok(output.stdout)
}

/// What `depends=` in a module's information section names. The package comes without the list that depmod makes.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(start) = module.windows(KEY.len()).position(|window| window == KEY) else { return Vec::new() };
    let value: Vec<u8> = module.iter().skip(start + KEY.len()).copied().take_while(|byte| *byte != 0).collect();
    let names = String::from_utf8_lossy(&value);
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_named_with_and_without_compression() {
        assert_eq!(module_name(Path::new("/m/net/veth.ko.xz")).as_deref(), Some("veth"));
        assert_eq!(module_name(Path::new("net-failover.ko")).as_deref(), Some("net_failover"));
        assert_eq!(module_name(Path::new("modules.order")), None);
        assert_eq!(module_name(Path::new("veth.ko.sig")), None);
    }

    #[test]
    fn dependencies_are_read_from_the_module() {
        assert_eq!(
            dependencies(b"\x7fELF..\0license=GPL\0depends=failover,net-failover\0x=y\0"),
            ["failover", "net_failover"]
        );
        assert!(dependencies(b"\0depends=\0").is_empty());
        assert!(dependencies(b"").is_empty());
    }

    #[test]
    fn what_a_module_needs_is_loaded_first_and_once() {
        let directory = std::env::temp_dir().join(format!("xtask-modules-{}", std::process::id()));
        let modules = directory.join("lib/modules/6/kernel");
        fs::create_dir_all(&modules).expect("a directory");
        for (name, needs) in [("top", "middle,base"), ("middle", "base"), ("base", "")] {
            fs::write(modules.join(format!("{name}.ko")), format!("\0depends={needs}\0")).expect("written");
        }
        let image = Image { directory: directory.clone() };
        let loaded = image.modules(&["none", "base"], &["top"]).expect("all are there");
        assert_eq!(loaded.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>(), ["base", "middle", "top"]);
        assert!(image.modules(&[], &["none"]).is_err());
        assert!(image.vmlinuz().is_err());
        fs::remove_dir_all(directory).expect("cleaned");
    }
}
