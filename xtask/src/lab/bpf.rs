//! The few bpf() calls that a lab makes itself, so that `xtask` needs no BPF toolchain.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_OBJ_GET: libc::c_int = 7;
const BPF_LINK_UPDATE: libc::c_int = 29;
const BPF_PROG_TYPE_XDP: u32 = 6;
/// Programs that are to take each other's place on a link must agree on it.
const BPF_XDP: u32 = 37;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const EXIT: u64 = 0x95;

/// The head of `union bpf_attr` for BPF_PROG_LOAD; the kernel takes what follows as zero.
#[repr(C)]
struct ProgLoad {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
}

#[repr(C)]
struct ObjGet {
    pathname: u64,
    bpf_fd: u32,
    file_flags: u32,
}

#[repr(C)]
struct LinkUpdate {
    link_fd: u32,
    new_prog_fd: u32,
    flags: u32,
    old_prog_fd: u32,
}

/// Loads an XDP program that returns the same action for every frame.
pub(super) fn load(action: u8) -> io::Result<OwnedFd> {
    // r0 = ACTION; exit
    program(&[u64::from(action) << 32 | 0xb7, EXIT])
}

/// One instruction: operation, destination and source register, offset of a jump or access, number.
const fn instruction(operation: u8, to: u8, from: u8, offset: i16, number: u32) -> u64 {
    operation as u64 | (to as u64) << 8 | (from as u64) << 12 | (offset as u16 as u64) << 16 | (number as u64) << 32
}

const CALL_RANDOM: u64 = instruction(0x85, 0, 0, 0, 7);
const XDP_DROP: u32 = 1;
const XDP_PASS: u32 = 2;

/// The byte of a frame that is spoilt: behind the headers of any beat or segment, tunnelled or not.
const SPOILT: u32 = 90;

/// Loads an XDP program that drops a frame when a random number of 32 bits is below `below`.
pub(super) fn load_lossy(below: u32) -> io::Result<OwnedFd> {
    program(&[
        CALL_RANDOM,
        instruction(0xa6, 0, 0, 2, below), // if w0 < BELOW goto drop
        instruction(0xb7, 0, 0, 0, XDP_PASS),
        EXIT,
        instruction(0xb7, 0, 0, 0, XDP_DROP),
        EXIT,
    ])
}

/// Loads an XDP program that turns over the bits of one byte of a frame when a random number of 32 bits is below `below`.
pub(super) fn load_corrupting(below: u32) -> io::Result<OwnedFd> {
    program(&[
        instruction(0xbf, 6, 1, 0, 0), // r6 = context
        CALL_RANDOM,
        instruction(0xa6, 0, 0, 1, below),      // if w0 < BELOW goto the next but one
        instruction(0x05, 0, 0, 8, 0),          // goto pass
        instruction(0x61, 2, 6, 0, 0),          // r2 = data
        instruction(0x61, 3, 6, 4, 0),          // r3 = end of data
        instruction(0xbf, 4, 2, 0, 0),          // r4 = r2
        instruction(0x07, 4, 0, 0, SPOILT + 1), // r4 += SPOILT + 1
        instruction(0x2d, 4, 3, 3, 0),          // if r4 > r3 goto pass
        instruction(0x71, 5, 2, SPOILT as i16, 0), // r5 = byte
        instruction(0xa7, 5, 0, 0, 0xff),       // r5 ^= 0xff
        instruction(0x73, 2, 5, SPOILT as i16, 0), // byte = r5
        instruction(0xb7, 0, 0, 0, XDP_PASS),
        EXIT,
    ])
}

fn program(instructions: &[u64]) -> io::Result<OwnedFd> {
    let attributes = ProgLoad {
        prog_type: BPF_PROG_TYPE_XDP,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: BPF_F_XDP_HAS_FRAGS,
        prog_name: *b"lab_stub\0\0\0\0\0\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: BPF_XDP,
    };
    let fd = bpf(BPF_PROG_LOAD, &attributes)?;
    // SAFETY: the kernel has just given us this descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Opens what is pinned at a path.
pub(super) fn pinned(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let fd = bpf(BPF_OBJ_GET, &ObjGet { pathname: path.as_ptr() as u64, bpf_fd: 0, file_flags: 0 })?;
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Puts another program in the place of a link's, at once: every frame meets the one or the other.
pub(super) fn update_link(link: &OwnedFd, program: &OwnedFd) -> io::Result<()> {
    let (link_fd, new_prog_fd) = (link.as_raw_fd() as u32, program.as_raw_fd() as u32);
    bpf(BPF_LINK_UPDATE, &LinkUpdate { link_fd, new_prog_fd, flags: 0, old_prog_fd: 0 }).map(drop)
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<i32> {
    // SAFETY: the attributes and what they point to outlive the call, and their size is given.
    let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if done < 0 { Err(io::Error::last_os_error()) } else { Ok(done as i32) }
}
