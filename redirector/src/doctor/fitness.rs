//! What `doctor` measured of this host, kept beside what else a node knows: beats that are faster than `fast` are refused
//! where it was not measured since the host booted, or does not fit.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::Wakeups;
use crate::config::{Beats, Config};

/// A measurement of this host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Measured {
    /// When, by the host's clock.
    at_ms: u64,
    /// In which life of the host.
    boot_id: String,
    wakeups: Wakeups,
}

/// Version of the record's form on disk: it, the CRC-32C of the JSON in hex, and the JSON.
const FORMAT: &str = "1";

/// Why a host is not known to be fit.
#[derive(Debug, thiserror::Error)]
pub enum Unfit {
    /// Nobody has measured it.
    #[error("this host was not measured since it booted")]
    Unmeasured,
    /// Somebody has.
    #[error(
        "threads wake up here by {p99_us} µs too late at p99 and {max_us} µs at most, with {steal_percent:.1} % of the CPU \
         time stolen{without} (measured at {at})"
    )]
    Late {
        /// All but the latest hundredth were no later, microseconds.
        p99_us: u64,
        /// The latest, microseconds.
        max_us: u64,
        /// Share of the CPU time that the hypervisor gave to others.
        steal_percent: f64,
        /// Says so, where there was no real-time priority.
        without: &'static str,
        /// When it was measured.
        at: String,
    },
    /// The record cannot be used.
    #[error("what was measured of this host is damaged: {}", .0.display())]
    Damaged(PathBuf),
    /// The disk fails.
    #[error("what was measured of this host cannot be read")]
    Disk(#[from] io::Error),
}

fn path(data: &Path) -> PathBuf {
    data.join("wakeups")
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

fn seal(measured: &Measured) -> io::Result<String> {
    let json = serde_json::to_string(measured)?;
    Ok(format!("{FORMAT} {:08x} {json}\n", crc32c::crc32c(json.as_bytes())))
}

fn open(text: &str) -> Option<Measured> {
    let (sum, json) = text.strip_suffix('\n')?.strip_prefix(FORMAT)?.strip_prefix(' ')?.split_once(' ')?;
    let is_whole = sum == format!("{:08x}", crc32c::crc32c(json.as_bytes()));
    serde_json::from_str(json).ok().filter(|_| is_whole)
}

/// Keeps what was measured in a data directory: the old record or the new one is there after a crash.
///
/// # Errors
/// Where the disk fails.
pub fn keep(data: &Path, wakeups: Wakeups) -> io::Result<()> {
    let at_ms = UNIX_EPOCH.elapsed().map_or(0, |time| time.as_millis() as u64);
    let measured = Measured { at_ms, boot_id: boot_id(), wakeups };
    fs::create_dir_all(data)?;
    let next = path(data).with_extension("next");
    let mut file = File::create(&next)?;
    file.write_all(seal(&measured)?.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path(data))
}

/// Whether a configuration's beats need a host that was measured.
pub fn is_asked(config: &Config) -> bool {
    config.cluster.beats.interval < Beats::FAST.interval && !config.cluster.beats_anyway
}

/// Whether a host is fit for its configuration's beats.
///
/// # Errors
/// [`Unfit`], with what was measured.
pub fn judge(config: &Config) -> Result<(), Unfit> {
    if !is_asked(config) {
        return Ok(());
    }
    let path = path(&config.node.data);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unfit::Unmeasured),
        Err(error) => return Err(error.into()),
    };
    let Some(measured) = std::str::from_utf8(&bytes).ok().and_then(open) else { return Err(Unfit::Damaged(path)) };
    let Beats { interval, multiplier } = config.cluster.beats;
    match measured.wakeups {
        _ if measured.boot_id != boot_id() => Err(Unfit::Unmeasured),
        wakeups if wakeups.fits(interval, multiplier) => Ok(()),
        Wakeups { p99_us, max_us, steal_percent, realtime, .. } => {
            let at: SystemTime = UNIX_EPOCH + Duration::from_millis(measured.at_ms);
            let at = humantime::format_rfc3339_seconds(at).to_string();
            let without = if realtime { "" } else { ", and without real-time priority" };
            Err(Unfit::Late { p99_us, max_us, steal_percent, without, at })
        }
    }
}

/// What to do about a host that is not known to be fit.
pub fn mend(config: &Config, file: &str) -> String {
    format!(
        "`beats = \"{}\"` is for hosts that are known to be fit: measure this one by `redirector doctor --config {file}`, \
         use `fast`, or write `beats_anyway = true` in [cluster] of a lab",
        config.cluster.beats
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIT: Wakeups = Wakeups { p50_us: 20, p99_us: 90, max_us: 200, realtime: true, steal_percent: 0.0 };

    fn config(data: &Path, beats: Beats) -> Config {
        let text = "[node]\nid = 1\n[[interface]]\nname = \"eth0\"\n";
        let mut config = crate::config::parse("test", text).unwrap();
        config.node.data = data.to_owned();
        config.cluster.beats = beats;
        config
    }

    #[test]
    fn a_host_is_fit_once_it_was_measured_in_this_life_and_fits() {
        let data = std::env::temp_dir().join(format!("redirector-fitness-{}", std::process::id()));
        let config = config(&data, Beats::EXTREME);
        assert!(matches!(judge(&config), Err(Unfit::Unmeasured)));
        keep(&data, Wakeups { max_us: 9_000, ..FIT }).unwrap();
        assert!(matches!(judge(&config), Err(Unfit::Late { max_us: 9_000, .. })));
        keep(&data, FIT).unwrap();
        assert!(judge(&config).is_ok());

        let whole = fs::read(path(&data)).unwrap();
        for at in 0..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 4;
            fs::write(path(&data), &damaged).unwrap();
            assert!(matches!(judge(&config), Err(Unfit::Damaged(_))), "byte {at} was flipped");
        }
        let mut measured = open(std::str::from_utf8(&whole).unwrap()).unwrap();
        measured.boot_id = "another".to_owned();
        fs::write(path(&data), seal(&measured).unwrap()).unwrap();
        assert!(matches!(judge(&config), Err(Unfit::Unmeasured)), "the host has booted since");
        fs::remove_dir_all(&data).unwrap();

        let fast = Config {
            cluster: crate::config::Cluster { beats: Beats::FAST, ..config.cluster.clone() },
            ..config.clone()
        };
        assert!(judge(&fast).is_ok());
        let anyway =
            Config { cluster: crate::config::Cluster { beats_anyway: true, ..config.cluster.clone() }, ..config };
        assert!(judge(&anyway).is_ok());
    }
}
