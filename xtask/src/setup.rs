//! Installs what this machine lacks, saying what and why. With nothing to do it says so and is quick.

use std::env;
use std::fmt::Display;
use std::path::Path;
use std::process::Command;
use std::sync::Once;

use anyhow::{Context as _, Result, anyhow, bail, ensure};
use clap::ValueEnum;

use crate::ebpf::{self, Compiler, Toolchain};
use crate::step;

const BPF_LINKER: &str = "bpf-linker@0.13.0";

/// What the machine shall be able to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Purpose {
    /// Build everything.
    Build,
    /// Build, and run the lab and the demo.
    Demo,
    /// All that `cargo xtask test` needs.
    Test,
    /// All that `cargo xtask bench` needs beside what the demo does.
    Bench,
}

impl Purpose {
    /// Whether a machine that is fit for this one must be fit for the other too.
    fn includes(self, other: Self) -> bool {
        match self {
            Self::Bench => other != Self::Test,
            _ => other <= self,
        }
    }
}

/// A program that is needed at run time.
struct Program {
    name: &'static str,
    package: &'static str,
    purpose: Purpose,
    why: &'static str,
}

const fn program(name: &'static str, package: &'static str, purpose: Purpose, why: &'static str) -> Program {
    Program { name, package, purpose, why }
}

const PROGRAMS: [Program; 8] = [
    program("ip", "iproute2", Purpose::Demo, "makes the lab's network namespaces"),
    program("ethtool", "ethtool", Purpose::Demo, "switches off offloads that XDP cannot see through"),
    program("nft", "nftables", Purpose::Demo, "cuts the lab's hosts off from each other"),
    program("keepalived", "keepalived", Purpose::Bench, "is what failover is measured beside"),
    program("qemu-system-x86_64", "qemu-system-x86", Purpose::Test, "boots the oldest kernel that is promised"),
    program("busybox", "busybox-static", Purpose::Test, "is the userspace on that kernel"),
    program("bird", "bird2", Purpose::Test, "announces the routes to VIPs by BGP"),
    program("cpio", "cpio", Purpose::Test, "packs that userspace"),
];

/// Makes the machine fit for `purpose`.
pub fn command(purpose: Purpose) -> Result<()> {
    let mut idle = true;
    let missing: Vec<_> =
        PROGRAMS.iter().filter(|program| purpose.includes(program.purpose) && !is_installed(program.name)).collect();
    if !missing.is_empty() {
        idle = false;
        for program in &missing {
            println!("setup: {} is missing: it {}", program.name, program.why);
        }
        apt_install(missing.iter().map(|program| program.package))?;
    }
    if let Err(why) = Toolchain::find() {
        idle = false;
        println!("setup: {}", why.to_string().lines().next().unwrap_or_default());
        install_toolchain().map_err(|why| anyhow!("{why:#}\n{}", by_hand()))?;
    }
    let Toolchain { compiler, linker } = Toolchain::find()?;
    if idle {
        let root = compiler.root.display();
        println!("setup: nothing to do (eBPF with the compiler in {root} and {})", linker.display());
    }
    Ok(())
}

fn install_toolchain() -> Result<()> {
    let compilers = ebpf::compilers()?;
    for Compiler { llvm, .. } in &compilers {
        match install_linker(*llvm) {
            Ok(()) => return Ok(()),
            Err(why) => println!("setup: that failed: {why:#}"),
        }
    }
    ensure!(compilers.iter().all(|compiler| compiler.root != Path::new(ebpf::SYSTEM)), "no bpf-linker was installed");
    println!("setup: installing Debian's Rust for browsers: it is recent and has the source of `core`");
    apt_install(["rustc-web", "cargo-web", "rust-web-src"])?;
    let compilers = ebpf::compilers()?;
    let packaged = compilers.iter().find(|compiler| compiler.root == Path::new(ebpf::SYSTEM));
    let Compiler { llvm, .. } = packaged.context("the packaged Rust is too old")?;
    ebpf::linker_for(*llvm).map(drop).or_else(|_| install_linker(*llvm))
}

fn install_linker(llvm: u32) -> Result<()> {
    println!("setup: installing {BPF_LINKER} for the compiler's LLVM {llvm}; about a minute");
    let prefix = format!("/usr/lib/llvm-{llvm}");
    if !Path::new(&prefix).join("bin/llvm-config").exists() || !is_installed("c++") {
        apt_install([&*format!("llvm-{llvm}-dev"), "g++"])?;
    }
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut install = Command::new(cargo);
    // --force: one that is there is of another LLVM.
    install.args(["install", "--locked", "--force", BPF_LINKER, "--no-default-features", "--features"]);
    install.arg(format!("llvm-{llvm}"));
    // Without the second it may take the headers of whichever llvm-config comes first on PATH.
    install.env(format!("LLVM_SYS_{llvm}1_PREFIX"), &prefix).env("LLVM_PREFIX", &prefix);
    step::run(install.env_remove("CARGO_TARGET_DIR"))
}

fn apt_install<'a>(packages: impl IntoIterator<Item = &'a str>) -> Result<()> {
    let packages: Vec<&str> = packages.into_iter().collect();
    let line = format!("apt-get install -y --no-install-recommends {}", packages.join(" "));
    if !is_installed("apt-get") {
        bail!("there is no apt-get here; install what these Debian packages hold: {}", packages.join(" "));
    }
    if !step::is_root() {
        bail!("only root can install packages; as root, type:\n  apt-get update && {line}");
    }
    println!("setup: {line}");
    let apt = || {
        let mut apt = Command::new("apt-get");
        apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-qq");
        apt
    };
    // A fresh machine has no lists, an old one stale ones. One broken source among several does no harm by itself.
    static UPDATE: Once = Once::new();
    UPDATE.call_once(|| {
        if let Err(error) = step::run(apt().arg("update")) {
            println!("setup: going on with the package lists that are there: {error:#}");
        }
    });
    step::run(apt().args(["-o", "Dpkg::Use-Pty=0", "install", "-y", "--no-install-recommends"]).args(&packages))
}

fn is_installed(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(Into::into);
    env::split_paths(&path).chain(system).any(|directory| directory.join(program).is_file())
}

/// What to type where nothing can be installed from here.
fn by_hand() -> String {
    if let Some(Compiler { root, llvm }) = ebpf::compilers().unwrap_or_default().first() {
        let root = root.display();
        return format!("A bpf-linker of LLVM {llvm} is missing for the compiler in {root}. {}", linker_by_hand(llvm));
    }
    format!(
        "Missing is a Rust toolchain with the source of `core`, and a bpf-linker of its LLVM. For the toolchain, type\n  \
         rustup toolchain install nightly --component rust-src\nor, on Debian, as root,\n  \
         apt-get update && apt-get install rustc-web cargo-web rust-web-src\n\
         Then do this with the LLVM that `rustc +nightly -vV` or `/usr/bin/rustc -vV` names as N. {}",
        linker_by_hand(&"N")
    )
}

fn linker_by_hand(llvm: &dyn Display) -> String {
    format!(
        "With LLVM {llvm} and its headers in /usr/lib/llvm-{llvm} (on Debian: apt-get install llvm-{llvm}-dev g++), type\n  \
         LLVM_PREFIX=/usr/lib/llvm-{llvm} LLVM_SYS_{llvm}1_PREFIX=/usr/lib/llvm-{llvm} cargo install --locked --force \
         {BPF_LINKER} --no-default-features --features llvm-{llvm}"
    )
}
