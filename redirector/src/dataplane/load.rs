//! Loading and pinning: from the embedded object to a data plane that outlives its loader.
//!
//! Below the configured directory there is one for the ABI version, and in it a pin for each map and each interface's
//! link. Who finds pins adopts them: the program is replaced on its link at once, the maps stay.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapError, MapInfo, ProgramArray};
use aya::programs::links::{FdLink, LinkError, PinnedLink};
use aya::programs::{ProgramError, TestRun as _, TestRunOptions, Xdp, XdpMode as Mode};
use aya::{Ebpf, EbpfError, EbpfLoader};
use redirector_ebpf::abi::ABI_VERSION;
use redirector_ebpf::tables::flow::WAYS;

use super::image::paths_size;
use crate::config::{Config, XdpMode};

/// Maps that are pinned: all that must outlive the program that uses them.
pub const PINNED: &[&str] = &[
    "NODE",
    "PROGRAMS",
    "PORTS",
    "DEVICES",
    "PORT_NUMBERS",
    "VIPS4",
    "VIPS6",
    "PREFIXES4",
    "PREFIXES6",
    "CELLS",
    "LISTED",
    "SERVICES",
    "RANGES",
    "POOLS",
    "POOL_TABLES",
    "SLOTS",
    "ALIVE",
    "WATCH",
    "CONDITION",
    "SENT",
    "HEARD",
    "WATCHED",
    "LATCHES",
    "PULSE",
    "CLOCK",
    "PEERS",
    "WAYS",
    "PEER_MACS",
    "BACKENDS",
    "PATHS",
    "PATH_ALIVE",
    "LEG_RULES",
    "LEG_SENT",
    "LEG_HEARD",
    "WATCHED_PATHS",
    "PATH_LATCHES",
    "SIGNALS",
    "SIGHTINGS",
    "NEIGHBOURS",
    "NEIGHBOUR_IDS",
    "HELD4",
    "HELD6",
    "FLOWS4",
    "FLOWS6",
    "TUPLES4",
    "TUPLES6",
    "FLOW_EVENTS",
    "FRAGMENTS",
    "BUDGETS",
    "SOURCES",
    "REASONS",
    "REFUSED",
    "SERVICE_TRAFFIC",
    "BACKEND_TRAFFIC",
    "NAMES",
    "TRACE",
    "CAPTURED",
];

/// Maps of the decap program that are pinned.
const PINNED_DECAP: &[&str] = &["DECAP", "DECAP_SOURCES", "DECAP_VIPS", "REASONS"];

/// Loading, attaching or adopting failed.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// Pins of another version.
    #[error(
        "{path} holds a data plane of another version of redirector ({found}, this one is v{ABI_VERSION}): go on with that \
         version, or end its forwarding with `redirector unload --pins {parent}` and start again"
    )]
    OtherVersion {
        /// The pins.
        path: PathBuf,
        /// The directory above them.
        parent: String,
        /// Their version.
        found: String,
    },
    /// A directory could not be made, read or removed.
    #[error("{doing} {path} failed{}", hint(source))]
    Directory {
        /// What was tried.
        doing: &'static str,
        /// Where.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The object could not be loaded.
    #[error("loading the BPF object failed")]
    Object(#[from] EbpfError),
    /// A map that was pinned cannot be used.
    #[error("the pinned map {path} cannot be used; `redirector unload` removes all pins")]
    Pinned {
        /// The pin.
        path: PathBuf,
        /// Why not.
        #[source]
        source: MapError,
    },
    /// The kernel refused a program.
    #[error("the kernel refused the program `{program}`")]
    Program {
        /// Its name.
        program: &'static str,
        /// Why.
        #[source]
        source: ProgramError,
    },
    /// The timer does not run.
    #[error("the timer of the alive bits could not be started: {reason}")]
    Timer {
        /// Why not.
        reason: String,
    },
    /// The program could not be attached.
    #[error("attaching to {interface} in {mode} mode failed: {reason}; {mend}")]
    Attach {
        /// The interface.
        interface: String,
        /// `native` or `generic`.
        mode: &'static str,
        /// Why not.
        reason: String,
        /// What may help.
        mend: &'static str,
    },
    /// The program is attached, but not by a link that can be pinned.
    #[error(
        "the kernel gave no BPF link for {interface}; redirector needs Linux 5.9 or newer (6.1 is the oldest tested)"
    )]
    NoLink {
        /// The interface.
        interface: String,
    },
    /// A link could not be pinned or opened.
    #[error("the pinned link {path} cannot be used: {reason}")]
    Link {
        /// The pin.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
}

fn hint(source: &io::Error) -> &'static str {
    match source.kind() {
        io::ErrorKind::PermissionDenied => ": run as root",
        io::ErrorKind::NotFound => ": is bpffs mounted? `mount -t bpf bpf /sys/fs/bpf`",
        _ => "",
    }
}

/// The directory of this version's pins.
pub fn directory(pins: &Path) -> PathBuf {
    pins.join(format!("v{ABI_VERSION}"))
}

/// Makes the directory of pins, and makes sure that no other version's are there.
///
/// # Errors
/// [`LoadError::OtherVersion`], [`LoadError::Directory`].
pub fn prepare(pins: &Path) -> Result<PathBuf, LoadError> {
    let own = directory(pins);
    if pins.exists() {
        let error = |source| LoadError::Directory { doing: "reading", path: pins.to_owned(), source };
        for entry in fs::read_dir(pins).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path != own && path.is_dir() {
                let found = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
                return Err(LoadError::OtherVersion { path, parent: pins.display().to_string(), found });
            }
        }
    }
    fs::create_dir_all(&own).map_err(|source| LoadError::Directory { doing: "making", path: own.clone(), source })?;
    Ok(own)
}

/// Entries of each map whose size is configured.
fn sizes(config: &Config) -> Vec<(&'static str, u32)> {
    let tables = &config.tables;
    let flows = |entries: u32| entries.max(WAYS as u32).next_power_of_two();
    let (flows4, flows6) = (flows(tables.flows4), flows(tables.flows6));
    vec![
        ("VIPS4", tables.vips),
        ("VIPS6", tables.vips),
        ("HELD4", tables.vips),
        ("HELD6", tables.vips),
        ("SERVICES", tables.services),
        ("POOLS", tables.pools),
        ("POOL_TABLES", tables.pools * 2),
        ("BACKENDS", tables.backends),
        ("PATHS", paths_size(config)),
        ("PATH_ALIVE", paths_size(config)),
        ("WATCHED_PATHS", paths_size(config)),
        ("PATH_LATCHES", paths_size(config)),
        ("FLOWS4", flows4 / WAYS as u32),
        ("FLOWS6", flows6 / WAYS as u32),
        ("TUPLES4", flows4),
        ("TUPLES6", flows6),
        ("FRAGMENTS", tables.fragments),
        ("SERVICE_TRAFFIC", tables.services),
        ("BACKEND_TRAFFIC", tables.backends),
        ("SIGNALS", tables.backends),
    ]
}

/// Loads the object for one port, with the maps that are pinned in `directory` and the others made and pinned there.
///
/// # Errors
/// [`LoadError`].
pub fn open(directory: &Path, config: &Config, port: u32) -> Result<Ebpf, LoadError> {
    open_object(crate::OBJECT, directory, config, port)
}

/// Likewise another build of the object.
///
/// # Errors
/// [`LoadError`].
pub fn open_object(object: &[u8], directory: &Path, config: &Config, port: u32) -> Result<Ebpf, LoadError> {
    let mut sizes = sizes(config);
    for (name, size) in &mut sizes {
        let path = directory.join(*name);
        if path.exists() {
            let info = MapInfo::from_pin(&path);
            let pinned = info.map_err(|source| LoadError::Pinned { path: path.clone(), source })?.max_entries();
            if pinned != *size {
                tracing::warn!(map = *name, pinned, configured = *size, "a size is fixed when its map is made; kept");
                *size = pinned;
            }
        }
    }
    let mask = |name: &str| sizes.iter().find(|(map, _)| *map == name).map_or(0, |(_, size)| size - 1);
    let (mask4, mask6) = (mask("FLOWS4"), mask("FLOWS6"));
    let mut loader = EbpfLoader::new();
    loader.override_global("PORT", &port, true);
    loader.override_global("BUCKET_MASK4", &mask4, true);
    loader.override_global("BUCKET_MASK6", &mask6, true);
    shrink_decap(&mut loader);
    for (name, size) in &sizes {
        loader.map_max_entries(name, *size);
    }
    for name in PINNED {
        loader.map_pin_path(name, directory.join(name));
    }
    Ok(loader.load(object)?)
}

/// The decap program's maps are made with the object, whoever loads it; here they hold nothing.
fn shrink_decap(loader: &mut EbpfLoader<'_>) {
    loader.map_max_entries("DECAP_SOURCES", 1).map_max_entries("DECAP_VIPS", 1);
}

/// Loads the object for the decap program, whose maps are pinned in `directory`. The node's maps are made as small as
/// they can be and go with the loader.
///
/// # Errors
/// [`LoadError`].
pub fn open_decap(directory: &Path) -> Result<Ebpf, LoadError> {
    let mut loader = EbpfLoader::new();
    let of_a_node =
        ["FLOWS4", "FLOWS6", "TUPLES4", "TUPLES6", "SERVICE_TRAFFIC", "BACKEND_TRAFFIC", "SOURCES", "PATHS"];
    let of_paths = ["PATH_ALIVE", "LEG_SENT", "LEG_HEARD", "WATCHED_PATHS", "PATH_LATCHES", "SIGNALS", "SIGHTINGS"];
    for name in of_a_node.into_iter().chain(of_paths) {
        loader.map_max_entries(name, 1);
    }
    // A ring is a page at least.
    loader.map_max_entries("FLOW_EVENTS", 4096);
    for name in PINNED_DECAP {
        loader.map_pin_path(name, directory.join(name));
    }
    Ok(loader.load(crate::OBJECT)?)
}

/// A program of the object, loaded into the kernel.
///
/// # Errors
/// [`LoadError::Program`].
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut Xdp, LoadError> {
    let error = |source| LoadError::Program { program: name, source };
    let program = ebpf.program_mut(name).ok_or_else(|| error(ProgramError::NotLoaded))?;
    let xdp: &mut Xdp = program.try_into().map_err(error)?;
    xdp.load().map_err(error)?;
    Ok(xdp)
}

/// The program of a port, loaded into the kernel with the one that takes over from it.
///
/// # Errors
/// [`LoadError::Program`].
pub fn data_plane(ebpf: &mut Ebpf, port: u32) -> Result<&mut Xdp, LoadError> {
    let error = |program| move |source| LoadError::Program { program, source };
    let whole = program(ebpf, WHOLE)?.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(error(WHOLE))?;
    let programs = ebpf.map_mut("PROGRAMS").ok_or_else(|| error(WHOLE)(ProgramError::NotLoaded))?;
    let mut programs = ProgramArray::try_from(programs).map_err(|e| error(WHOLE)(e.into()))?;
    // A program of this version that is attached now goes on with this one; they take over from each other.
    programs.set(port, &whole, 0).map_err(|e| error(WHOLE)(e.into()))?;
    program(ebpf, "redirector")
}

const WHOLE: &str = "redirector_whole";

/// Starts the kernel's timer that writes the alive bits, or has one that runs already go on by this object's program.
///
/// # Errors
/// [`LoadError::Program`], [`LoadError::Timer`].
pub fn start_timer(ebpf: &mut Ebpf) -> Result<(), LoadError> {
    let program = program(ebpf, "redirector_timer")?;
    let frame = [0; 64];
    let options = TestRunOptions { data_in: Some(&frame), repeat: 1, ..TestRunOptions::default() };
    let ran = program.test_run(options).map_err(|e| LoadError::Timer { reason: e.to_string() })?;
    match ran.return_value {
        XDP_PASS => Ok(()),
        _ => Err(LoadError::Timer { reason: "the kernel gave no timer".to_owned() }),
    }
}

/// The verdict that leaves a packet to the kernel's stack.
const XDP_PASS: u32 = 2;

/// How a program came to be attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attached {
    /// Anew, by the driver.
    Native,
    /// Anew, by the stack.
    Generic,
    /// In place of the one that its pinned link had.
    Replaced,
}

impl std::fmt::Display for Attached {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Replaced => "replaced",
        })
    }
}

/// The pin of an interface's link.
fn link_pin(directory: &Path, interface: &str) -> PathBuf {
    directory.join(format!("link-{interface}"))
}

/// Attaches a loaded program to an interface by a pinned link: in place of the one that is there, else anew.
///
/// # Errors
/// [`LoadError`].
pub fn attach(program: &mut Xdp, directory: &Path, interface: &str, mode: XdpMode) -> Result<Attached, LoadError> {
    let pin = link_pin(directory, interface);
    if pin.exists() && replace(program, &pin)? {
        return Ok(Attached::Replaced);
    }
    let error = |mode: &'static str, source: ProgramError| LoadError::Attach {
        interface: interface.to_owned(),
        mode,
        reason: reason(&source),
        mend: mend(mode, &source),
    };
    let (id, attached) = match mode {
        XdpMode::Generic => (program.attach(interface, Mode::Skb).map_err(|e| error("generic", e))?, Attached::Generic),
        XdpMode::Native => (program.attach(interface, Mode::Driver).map_err(|e| error("native", e))?, Attached::Native),
        XdpMode::Auto => match program.attach(interface, Mode::Driver) {
            Ok(id) => (id, Attached::Native),
            Err(native) => {
                tracing::warn!(interface, reason = reason(&native), "no native XDP; trying generic, which is slower");
                (program.attach(interface, Mode::Skb).map_err(|e| error("generic", e))?, Attached::Generic)
            }
        },
    };
    let unpinnable = || LoadError::NoLink { interface: interface.to_owned() };
    let link = program.take_link(id).map_err(|_| unpinnable())?;
    let link = FdLink::try_from(link).map_err(|_| unpinnable())?;
    link.pin(&pin).map_err(|e| LoadError::Link { path: pin.clone(), reason: e.to_string() })?;
    Ok(attached)
}

/// Replaces the program of a pinned link. `false`: the link's interface is gone, and so is now its pin.
fn replace(program: &mut Xdp, pin: &Path) -> Result<bool, LoadError> {
    let error = |reason: String| LoadError::Link { path: pin.to_owned(), reason };
    let link = PinnedLink::from_pin(pin).map_err(|e: LinkError| error(e.to_string()))?;
    match program.attach_to_link(FdLink::from(link).try_into().map_err(|e: LinkError| error(e.to_string()))?) {
        Ok(_) => Ok(true),
        Err(ProgramError::SyscallError(e)) if e.io_error.raw_os_error() == Some(libc::ENOLINK) => {
            fs::remove_file(pin).map_err(|e| error(e.to_string()))?;
            Ok(false)
        }
        Err(e) => Err(error(reason(&e))),
    }
}

/// The system's words behind a program's error.
fn reason(error: &ProgramError) -> String {
    match error {
        ProgramError::SyscallError(e) => e.io_error.to_string(),
        other => other.to_string(),
    }
}

fn mend(mode: &str, error: &ProgramError) -> &'static str {
    let code = match error {
        ProgramError::SyscallError(e) => e.io_error.raw_os_error(),
        ProgramError::UnknownInterface { .. } => return "`ip link` lists the interfaces",
        _ => None,
    };
    match (code, mode) {
        (Some(libc::EBUSY), _) => {
            "another XDP program is attached; `ip link set dev IFACE xdp off` or `bpftool net` helps"
        }
        (Some(libc::EPERM), _) => "run as root",
        (_, "native") => {
            "if the driver has no native XDP, use mode = \"generic\"; `redirector doctor IFACE` tells more"
        }
        _ => "`redirector doctor IFACE` tells more",
    }
}

/// Detaches the program from interfaces that are no longer configured.
///
/// # Errors
/// [`LoadError::Directory`].
pub fn detach_others(directory: &Path, config: &Config) -> Result<(), LoadError> {
    let keep: HashSet<PathBuf> = config.interfaces.iter().map(|i| link_pin(directory, &i.name)).collect();
    let error = |path: &Path, source| LoadError::Directory { doing: "removing", path: path.to_owned(), source };
    for entry in fs::read_dir(directory).map_err(|e| error(directory, e))? {
        let path = entry.map_err(|e| error(directory, e))?.path();
        let is_link = path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link-"));
        if is_link && !keep.contains(&path) {
            fs::remove_file(&path).map_err(|e| error(&path, e))?;
        }
    }
    Ok(())
}

/// Detaches everything and removes all pins, of whatever version. Links go first, so that no program meets half its maps.
///
/// # Errors
/// [`LoadError::Directory`].
pub fn unload(pins: &Path) -> Result<bool, LoadError> {
    if !pins.exists() {
        return Ok(false);
    }
    let error = |path: &Path, source| LoadError::Directory { doing: "removing", path: path.to_owned(), source };
    for version in fs::read_dir(pins).map_err(|e| error(pins, e))? {
        let version = version.map_err(|e| error(pins, e))?.path();
        let mut entries = Vec::new();
        for entry in fs::read_dir(&version).map_err(|e| error(&version, e))? {
            entries.push(entry.map_err(|e| error(&version, e))?.path());
        }
        entries.sort_by_key(|path| !path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("link-")));
        for path in entries {
            fs::remove_file(&path).map_err(|e| error(&path, e))?;
        }
        fs::remove_dir(&version).map_err(|e| error(&version, e))?;
    }
    fs::remove_dir(pins).map_err(|e| error(pins, e))?;
    Ok(true)
}
