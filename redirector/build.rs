//! Builds the eBPF programs, for the library to embed.

use std::path::{Path, PathBuf};
use std::{env, fs};

use anyhow::{Context as _, Result};

#[path = "../xtask/src/ebpf.rs"]
pub mod ebpf;

/// A ready object, for packagers whose machines lack the BPF toolchain.
const OBJECT_ENV: &str = "REDIRECTOR_EBPF_OBJECT";

fn main() {
    if let Err(error) = run() {
        for line in format!("{error:#}").lines() {
            println!("cargo::error={line}");
        }
    }
}

fn run() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("cargo sets OUT_DIR")?);
    for variable in [OBJECT_ENV, ebpf::TOOLCHAIN_ENV] {
        println!("cargo::rerun-if-env-changed={variable}");
    }
    for path in ["build.rs", "../xtask/src/ebpf.rs", "../redirector-ebpf", "../Cargo.lock"] {
        println!("cargo::rerun-if-changed={path}");
    }
    if let Some(object) = env::var_os(OBJECT_ENV).map(PathBuf::from) {
        println!("cargo::rerun-if-changed={}", object.display());
        return install(&object, &out);
    }
    let toolchain = ebpf::Toolchain::find()?;
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    // OUT_DIR is <target>/<profile>/build/<package>/out.
    let target = out.ancestors().nth(4).context("OUT_DIR lies in the target directory")?;
    let _lock = ebpf::lock(target)?;
    install(&ebpf::build(&toolchain, ebpf::OBJECT, Path::new(".."), target)?, &out)
}

fn install(object: &Path, out: &Path) -> Result<()> {
    fs::copy(object, out.join("redirector-ebpf")).with_context(|| format!("copy {}", object.display()))?;
    Ok(())
}
