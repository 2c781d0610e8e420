//! Runs a test executable on Debian's 6.1 kernel, the oldest that is promised, under qemu.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};
use std::{env, thread};

use anyhow::{Context as _, Result, bail, ensure};

use crate::step;

/// A kernel image to use instead of Debian's package.
const KERNEL_ENV: &str = "REDIRECTOR_KERNEL";

/// Software emulation takes seconds to boot and up to a minute to verify; this is for a machine that is busy.
const LIMIT: Duration = Duration::from_secs(300);

/// What init says when the test has passed.
const PASSED: &str = "the test ended with status 0";

const INIT: &str = r#"#!/bin/busybox sh
export PATH=/bin
busybox mount -t proc proc /proc
busybox mount -t sysfs sysfs /sys
busybox mount -t bpf bpf /sys/fs/bpf
busybox mount -t tmpfs tmpfs /tmp
echo "Linux $(busybox uname -r)"
/bin/test --test-threads=1 --nocapture
echo "the test ended with status $?"
busybox poweroff -f
"#;

/// Boots the kernel with the executable as all that it runs, and passes on what it prints.
pub fn check(executable: &Path) -> Result<()> {
    ensure!(env::consts::ARCH == "x86_64", "the kernel check is for x86_64");
    let directory = step::target().join("kernel");
    fs::create_dir_all(&directory).with_context(|| format!("create {}", directory.display()))?;
    let kernel = match env::var_os(KERNEL_ENV) {
        Some(image) => image.into(),
        None => debian_kernel(&directory)?,
    };
    let initramfs = initramfs(&directory, executable)?;
    let mut qemu = Command::new("qemu-system-x86_64")
        .args(["-machine", "accel=tcg", "-cpu", "max", "-smp", "1", "-m", "1G", "-no-reboot", "-nodefaults"])
        .args(["-display", "none", "-serial", "stdio", "-append", "console=ttyS0 quiet panic=-1"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initramfs)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("run qemu-system-x86_64")?;
    let passed = watch(&mut qemu);
    // It may have ended by itself already.
    let _ = qemu.kill();
    qemu.wait().context("wait for qemu")?;
    ensure!(passed?, "the test failed on that kernel");
    Ok(())
}

/// Copies the machine's console to ours until it halts; true if the test passed.
fn watch(qemu: &mut Child) -> Result<bool> {
    let console = qemu.stdout.take().context("qemu has a console")?;
    let (sender, lines): (_, Receiver<String>) = channel();
    // A read has no time limit; waiting on a channel has. The thread ends when the console is closed.
    thread::spawn(move || {
        let lines = BufReader::new(console).split(b'\n').map_while(|line| line.ok());
        for line in lines {
            if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                break;
            }
        }
    });
    let deadline = Instant::now() + LIMIT;
    let mut passed = false;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => {
                println!("  | {line}");
                passed |= line == PASSED;
            }
            Err(RecvTimeoutError::Disconnected) => return Ok(passed),
            Err(RecvTimeoutError::Timeout) => bail!("the machine did not halt within {} s", LIMIT.as_secs()),
        }
    }
}

/// Debian's package, unpacked but not installed.
fn debian_kernel(directory: &Path) -> Result<PathBuf> {
    let pattern = r"^linux-image-6\.1\.0-[0-9]+-cloud-amd64$";
    let found = step::read(Command::new("apt-cache").args(["search", "--names-only", pattern]))?;
    let revision = |package: &str| package.split('-').nth(3).and_then(|number| number.parse::<u32>().ok());
    let packages = found.lines().filter_map(|line| line.split(' ').next());
    let package = packages.max_by_key(|package| revision(package)).with_context(|| {
        format!("no package of Debian's Linux 6.1 is known here; say {KERNEL_ENV}=IMAGE to use a kernel of yours")
    })?;
    let tree = directory.join(package);
    if let Some(image) = image_in(&tree) {
        return Ok(image);
    }
    println!("  fetching {package} (27 MB)");
    step::run(
        Command::new("apt-get")
            .args(["-qq", "-o", "APT::Sandbox::User=root", "download", package])
            .current_dir(directory),
    )?;
    let archive = entries(directory)
        .into_iter()
        .find(|path| path.extension() == Some(OsStr::new("deb")) && name_of(path).starts_with(package))
        .with_context(|| format!("apt-get left no {package} in {}", directory.display()))?;
    step::run(Command::new("dpkg-deb").arg("-x").args([&archive, &tree]))?;
    fs::remove_file(&archive).with_context(|| format!("remove {}", archive.display()))?;
    image_in(&tree).with_context(|| format!("{package} holds no kernel"))
}

fn image_in(tree: &Path) -> Option<PathBuf> {
    entries(&tree.join("boot")).into_iter().find(|path| name_of(path).starts_with("vmlinuz-"))
}

/// Packs busybox, the executable, and the libraries that it is linked to.
fn initramfs(directory: &Path, executable: &Path) -> Result<PathBuf> {
    let root = directory.join("root");
    if root.exists() {
        fs::remove_dir_all(&root).with_context(|| format!("remove {}", root.display()))?;
    }
    for folder in ["bin", "dev", "proc", "sys", "tmp"] {
        fs::create_dir_all(root.join(folder)).with_context(|| format!("create {folder} in {}", root.display()))?;
    }
    let busybox = which("busybox")?;
    step::run(Command::new("strip").arg("-o").arg(root.join("bin/test")).arg(executable))?;
    copy(&busybox, &root.join("bin/busybox"))?;
    for library in libraries(&busybox)?.into_iter().chain(libraries(executable)?) {
        copy(&library, &root.join(library.strip_prefix("/").unwrap_or(&library)))?;
    }
    let init = root.join("init");
    fs::write(&init, INIT).with_context(|| format!("write {}", init.display()))?;
    fs::set_permissions(&init, Permissions::from_mode(0o755)).with_context(|| format!("chmod {}", init.display()))?;

    let archive = directory.join("initramfs");
    let file = File::create(&archive).with_context(|| format!("create {}", archive.display()))?;
    let names = step::read(Command::new("find").arg(".").current_dir(&root))?;
    let mut cpio = Command::new("cpio")
        .args(["--quiet", "-o", "-H", "newc"])
        .current_dir(&root)
        .stdin(Stdio::piped())
        .stdout(file)
        .spawn()
        .context("run cpio")?;
    let mut input = cpio.stdin.take().context("cpio has an input")?;
    input.write_all(names.as_bytes()).context("tell cpio the names")?;
    drop(input);
    ensure!(cpio.wait().context("wait for cpio")?.success(), "cpio failed");
    Ok(archive)
}

/// The shared libraries of an executable, the loader included; none if it is linked statically.
fn libraries(executable: &Path) -> Result<BTreeSet<PathBuf>> {
    let output = Command::new("ldd").arg(executable).output().context("run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let words = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(words.map(PathBuf::from).collect())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        fs::create_dir_all(parent).with_context(|| format!("create {}", parent.display()))?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn which(program: &str) -> Result<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut places = env::split_paths(&path).map(|directory| directory.join(program));
    places.find(|place| place.is_file()).with_context(|| format!("there is no {program} on PATH"))
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    fs::read_dir(directory).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

fn name_of(path: &Path) -> &str {
    path.file_name().and_then(OsStr::to_str).unwrap_or_default()
}
