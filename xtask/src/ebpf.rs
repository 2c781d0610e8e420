//! How the BPF object is built: which compiler, which linker, and the build itself.
//!
//! `redirector/build.rs` includes this file too, so it uses nothing but the standard library and `anyhow`.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, iter};

use anyhow::{Context as _, Result, anyhow, bail, ensure};

/// What cures every error that has its cause in a missing tool.
pub const MEND: &str = "run `cargo xtask setup`: it installs what is missing, or says what to type";

/// Directory of the toolchain to use, or a rustup name of one; overrides the search.
pub const TOOLCHAIN_ENV: &str = "REDIRECTOR_EBPF_TOOLCHAIN";

/// Where Debian's `rustc-web` and `rust-web-src` put their files.
pub const SYSTEM: &str = "/usr";

/// A compiler that can build `core` for BPF, and a linker that reads what it emits.
#[derive(Debug)]
pub struct Toolchain {
    /// The compiler.
    pub compiler: Compiler,
    /// The `bpf-linker`.
    pub linker: PathBuf,
}

/// A Rust installation that has the source of `core`.
#[derive(Debug)]
pub struct Compiler {
    /// The directory with `bin/rustc` and `bin/cargo`.
    pub root: PathBuf,
    /// The LLVM release that its bitcode is of.
    pub llvm: u32,
}

impl Toolchain {
    /// The first compiler that has a linker that fits.
    pub fn find() -> Result<Self> {
        let mut why = anyhow!("no Rust toolchain here is new enough and has the source of `core`");
        for compiler in compilers()? {
            match linker_for(compiler.llvm) {
                Ok(linker) => return Ok(Self { compiler, linker }),
                Err(error) => why = error,
            }
        }
        Err(anyhow!("the eBPF programs cannot be built: {why:#}\n{MEND}"))
    }
}

/// The compilers that would do, best first: the one asked for, else rustup's (nightly before others), the system's.
pub fn compilers() -> Result<Vec<Compiler>> {
    let rustup = rustup_home().join("toolchains");
    if let Some(asked) = env::var_os(TOOLCHAIN_ENV) {
        let full_name = format!("{}-{}-unknown-linux-gnu", asked.display(), env::consts::ARCH);
        let places = [PathBuf::from(&asked), rustup.join(&asked), rustup.join(full_name)];
        let root = places.into_iter().find(|root| root.is_absolute() && root.is_dir());
        let compiler = root.context("no such toolchain").and_then(Compiler::at);
        return Ok(vec![compiler.with_context(|| format!("{TOOLCHAIN_ENV}={}", asked.display()))?]);
    }
    let mut roots: Vec<PathBuf> =
        fs::read_dir(rustup).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    roots.sort_by_key(|root| (!names_nightly(root), root.clone()));
    roots.push(SYSTEM.into());
    Ok(roots.into_iter().filter_map(|root| Compiler::at(root).ok()).collect())
}

impl Compiler {
    fn at(root: PathBuf) -> Result<Self> {
        let core = root.join("lib/rustlib/src/rust/library/core/src/lib.rs");
        ensure!(core.is_file(), "no source of `core` in {}", root.display());
        let cargo = root.join("bin/cargo");
        ensure!(cargo.is_file(), "no {}", cargo.display());
        let rustc = root.join("bin/rustc");
        let output = Command::new(&rustc).arg("-vV").output().with_context(|| format!("run {}", rustc.display()))?;
        let text = String::from_utf8_lossy(&output.stdout);
        let field = |name| text.lines().find_map(|line| line.strip_prefix(name));
        let release = field("release: ").and_then(minor).with_context(|| format!("{} is odd", rustc.display()))?;
        let oldest = env!("CARGO_PKG_RUST_VERSION");
        ensure!(Some(release) >= minor(oldest), "{} is older than {oldest}", rustc.display());
        let llvm = field("LLVM version: ").and_then(|version| version.split('.').next()?.parse().ok());
        let llvm = llvm.with_context(|| format!("{} -vV names no LLVM version", rustc.display()))?;
        Ok(Self { root, llvm })
    }
}

/// The 95 of "1.95.0".
fn minor(version: &str) -> Option<u32> {
    version.split('.').nth(1)?.parse().ok()
}

/// A `bpf-linker` that runs and reads bitcode of this LLVM release: one of an older LLVM says "Invalid record".
pub fn linker_for(llvm: u32) -> Result<PathBuf> {
    let mut why = anyhow!("there is no bpf-linker");
    for linker in search_path().map(|directory| directory.join("bpf-linker")).filter(|path| path.is_file()) {
        match check_linker(&linker, llvm) {
            Ok(()) => return Ok(linker),
            Err(error) => why = error,
        }
    }
    Err(why)
}

/// The object with the data plane, and the one with the benchmark's programs.
pub const OBJECT: &str = "redirector-ebpf";
/// See [`OBJECT`].
pub const BENCH_OBJECT: &str = "redirector-bench";

/// Builds an object and returns its path. The build has a target directory of its own below `target`, since the
/// cargo that runs the build script holds a lock on its own; all profiles share it.
pub fn build(toolchain: &Toolchain, object: &str, workspace: &Path, target: &Path) -> Result<PathBuf> {
    let target = target.join("ebpf");
    fs::create_dir_all(&target).with_context(|| format!("create {}", target.display()))?;
    let triple = if cfg!(target_endian = "big") { "bpfeb-unknown-none" } else { "bpfel-unknown-none" };
    let arch = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    let Toolchain { compiler, linker } = toolchain;
    let path = env::join_paths(linker.parent().map(PathBuf::from).into_iter().chain(search_path()))?;
    let mut cargo = Command::new(compiler.root.join("bin/cargo"));
    cargo
        .args(["build", "--quiet", "--release", "-Zbuild-std=core"])
        .args(["--package", "redirector-ebpf", "--bin", object, "--target", triple, "--target-dir"])
        .arg(&target)
        .current_dir(workspace)
        .env("PATH", path)
        .env("RUSTC", compiler.root.join("bin/rustc"))
        // A stable compiler builds `core` and accepts the BPF assembly feature only so.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", [&arch, "-Cdebuginfo=2", "-Clink-arg=--btf"].join("\x1f"));
    // What an outer cargo, clippy or rustup sets for its own compiler would lead this one astray; built by increments, programs
    // have twice as many instructions to verify.
    for variable in
        ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "RUSTDOC", "RUSTFLAGS", "RUSTUP_TOOLCHAIN", "CARGO_INCREMENTAL"]
    {
        cargo.env_remove(variable);
    }
    let output = cargo.output().with_context(|| format!("run {cargo:?}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "building the eBPF programs with {} failed\n{said}", compiler.root.display());
    eprint!("{said}");
    Ok(target.join(triple).join("release").join(object))
}

/// Holds off other builds of the object, so that nobody copies one that is half written.
pub fn lock(target: &Path) -> Result<File> {
    let path = target.join("ebpf.lock");
    let file = File::create(&path).with_context(|| format!("create {}", path.display()))?;
    file.lock().with_context(|| format!("lock {}", path.display()))?;
    Ok(file)
}

fn names_nightly(root: &Path) -> bool {
    root.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"nightly"))
}

fn check_linker(linker: &Path, llvm: u32) -> Result<()> {
    let output = Command::new(linker).arg("--version").output();
    let runs = output.is_ok_and(|output| output.status.success());
    ensure!(runs, "{} does not run", linker.display());
    let image = fs::read(linker).with_context(|| format!("read {}", linker.display()))?;
    match linked_llvm(&image) {
        Some(own) if own < llvm => bail!("{} is of LLVM {own}, the compiler of {llvm}", linker.display()),
        _ => Ok(()),
    }
}

/// The release in the name of the LLVM library that an executable asks for; none if it is linked statically.
fn linked_llvm(image: &[u8]) -> Option<u32> {
    [&b"libLLVM.so."[..], b"libLLVM-"].into_iter().find_map(|name| {
        let start = image.windows(name.len()).position(|window| window == name)? + name.len();
        let digits = image[start..].iter().take_while(|byte| byte.is_ascii_digit()).take(4);
        digits.map(|&digit| char::from(digit)).collect::<String>().parse().ok()
    })
}

fn search_path() -> impl Iterator<Item = PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = env::split_paths(&path).collect();
    iter::once(cargo_home().join("bin")).chain(path)
}

/// Where `cargo install` puts things.
pub fn cargo_home() -> PathBuf {
    home("CARGO_HOME", ".cargo")
}

fn rustup_home() -> PathBuf {
    home("RUSTUP_HOME", ".rustup")
}

fn home(variable: &str, folder: &str) -> PathBuf {
    let default = || PathBuf::from(env::var_os("HOME").unwrap_or_default()).join(folder);
    env::var_os(variable).map_or_else(default, PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_llvm_of_a_linker_is_in_its_library_names() {
        assert_eq!(linked_llvm(b"libc.so.6\0libLLVM.so.22.1\0"), Some(22));
        assert_eq!(linked_llvm(b"\0libLLVM-14.so.1\0"), Some(14));
        assert_eq!(linked_llvm(b"linked statically"), None);
        assert_eq!(linked_llvm(b"cut off: libLLVM.so."), None);
    }

    #[test]
    fn releases_compare_as_numbers() {
        assert!(minor("1.100.0-nightly") > minor("1.95"));
        assert_eq!(minor("odd"), None);
    }
}
