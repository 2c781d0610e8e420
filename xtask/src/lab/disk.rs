//! Disks of nodes' own, which can stop answering or be full: small file systems in the place of their data directories.
//!
//! A program goes on with the files that it has open, so a node must have its disk before its agent starts.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail, ensure};

use super::{Lab, Role};

const BYTES: u64 = 32 << 20;
const FILLER: &str = "filler";

impl Lab {
    /// Gives a node a disk of its own, for the agent that is started next.
    pub fn give_disk(&self, node: &str) -> Result<()> {
        let at = self.data(node)?;
        ensure!(!is_mounted(&at)?, "{node} has a disk of its own already");
        fs::create_dir_all(&at).with_context(|| format!("cannot make {}", at.display()))?;
        let image = at.with_extension("image");
        let made = File::create(&image).and_then(|file| file.set_len(BYTES));
        made.with_context(|| format!("cannot make {}", image.display()))?;
        tool("mkfs.ext4", "e2fsprogs", &["-q", "-F"], &[&image])?;
        tool("mount", "mount", &["-o", "loop"], &[&image, &at])
    }

    /// Has a node's disk take no writes and answer none, until [`Lab::thaw`] or [`Lab::heal`].
    pub fn freeze(&self, node: &str) -> Result<()> {
        freeze(&self.disk(node)?)
    }

    /// Has a disk that was frozen answer.
    pub fn thaw(&self, node: &str) -> Result<()> {
        thaw(&self.disk(node)?)
    }

    /// Leaves no byte free on a node's disk, also of what has become free since, until [`Lab::empty`] or [`Lab::heal`].
    pub fn fill(&self, node: &str) -> Result<()> {
        let filler = self.disk(node)?.join(FILLER);
        let file = File::options().create(true).append(true).open(&filler);
        // Where there is no room for the file itself, nothing is free.
        let Ok(mut file) = file else { return Ok(()) };
        for size in [1 << 20, 1 << 12, 1] {
            while file.write_all(&vec![0; size]).is_ok() {}
        }
        Ok(())
    }

    /// Gives a full disk its room back.
    pub fn empty(&self, node: &str) -> Result<()> {
        let filler = self.disk(node)?.join(FILLER);
        fs::remove_file(&filler).with_context(|| format!("cannot remove {}", filler.display()))
    }

    /// Where a node keeps what must outlive its agent.
    fn data(&self, node: &str) -> Result<PathBuf> {
        match self.topology.find(node) {
            Some(Role::Node(_)) => Ok(self.config_file(node).with_file_name("data")),
            _ => {
                let nodes = self.nodes().join(", ");
                bail!("`{node}` is not a node of the lab `{}`; it has {nodes}", self.topology.name)
            }
        }
    }

    /// The same, which must be a disk of its own.
    fn disk(&self, node: &str) -> Result<PathBuf> {
        let data = self.data(node)?;
        if is_mounted(&data)? {
            return Ok(data);
        }
        bail!("{node} has no disk of its own that could fail: bring the lab up with --disks")
    }
}

/// Ends what was done to the disks below a lab's directory: they answer, and have room.
pub(super) fn restore(directory: &Path) -> Result<()> {
    for disk in mounted_below(directory)? {
        // One that is not frozen is as it should be.
        let _ = thaw(&disk);
        let filler = disk.join(FILLER);
        if filler.exists() {
            fs::remove_file(&filler).with_context(|| format!("cannot remove {}", filler.display()))?;
        }
    }
    Ok(())
}

/// Has all disks below a lab's directory answer: whoever waits for one cannot end.
pub(super) fn thaw_all(directory: &Path) -> Result<()> {
    // One that is not frozen is as it should be.
    mounted_below(directory)?.iter().for_each(|disk| drop(thaw(disk)));
    Ok(())
}

/// Takes all disks away that are below a lab's directory, once nobody uses them any more.
pub(super) fn unmount_all(directory: &Path) -> Result<()> {
    mounted_below(directory)?.iter().try_for_each(|disk| tool("umount", "mount", &["-l"], &[disk]))
}

fn freeze(disk: &Path) -> Result<()> {
    tool("fsfreeze", "util-linux", &["-f"], &[disk])
}

fn thaw(disk: &Path) -> Result<()> {
    tool("fsfreeze", "util-linux", &["-u"], &[disk])
}

fn tool(program: &str, package: &str, options: &[&str], paths: &[&Path]) -> Result<()> {
    let output = Command::new(program).args(options).args(paths).output();
    let output = output.with_context(|| format!("cannot run `{program}`: install the package {package}"))?;
    let says = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{program}` of {}: {}", paths[0].display(), says.trim());
    Ok(())
}

fn is_mounted(at: &Path) -> Result<bool> {
    Ok(mounted_below(at)?.iter().any(|mounted| mounted == at))
}

/// File systems at a directory or below it.
fn mounted_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").context("cannot read /proc/self/mountinfo")?;
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(directory)).collect())
}
