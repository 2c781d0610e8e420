//! Attaching a program natively, to see whether that works.
//!
//! The program is two instructions that need no map, so it is loaded without the BPF object of the data plane.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// The head of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what follows as zero.
#[repr(C)]
struct ProgLoad {
    kind: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log: [u32; 4],
    kernel_version: u32,
    flags: u32,
}

/// The same for BPF_LINK_CREATE.
#[repr(C)]
struct LinkCreate {
    program: u32,
    interface: u32,
    kind: u32,
    flags: u32,
}

/// Attaches a program that passes everything to the interface's driver, and takes it off again.
pub(super) fn attach(index: u32) -> io::Result<()> {
    // r0 = XDP_PASS; exit
    let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
    let program = bpf(
        BPF_PROG_LOAD,
        &ProgLoad {
            kind: BPF_PROG_TYPE_XDP,
            instruction_count: instructions.len() as u32,
            instructions: instructions.as_ptr() as u64,
            license: c"GPL".as_ptr() as u64,
            log: [0; 4],
            kernel_version: 0,
            // As the data plane's programs: some drivers refuse others where the MTU is large.
            flags: BPF_F_XDP_HAS_FRAGS,
        },
    )?;
    let link =
        LinkCreate { program: program.as_raw_fd() as u32, interface: index, kind: BPF_XDP, flags: XDP_FLAGS_DRV_MODE };
    // Closing the link, which nothing pins, takes the program off.
    bpf(BPF_LINK_CREATE, &link).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    // SAFETY: the attributes and what they point to outlive the call, and their size is given.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}
