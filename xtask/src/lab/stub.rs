//! A native XDP program that passes everything.
//!
//! A veth takes frames that the other end redirects or sends back only while it runs NAPI itself, for which a native
//! program is the dependable way. The program is attached over netlink, so that it stays for as long as the interface.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use anyhow::{Context, Result};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_F_XDP_HAS_FRAGS: u32 = 1 << 5;
const IFLA_XDP: u16 = 43;
const IFLA_XDP_FD: u16 = 1;
const IFLA_XDP_FLAGS: u16 = 3;
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
const NLA_F_NESTED: u16 = 1 << 15;
const NLMSG_HEADER: usize = 16;

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
}

/// The loaded program.
pub(super) struct Stub(OwnedFd);

impl Stub {
    pub(super) fn load() -> Result<Self> {
        // r0 = XDP_PASS; exit
        let instructions: [u64; 2] = [0x0000_0002_0000_00b7, 0x95];
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
        };
        // SAFETY: the attributes and what they point to outlive the call, and their size is given.
        let fd = unsafe { libc::syscall(libc::SYS_bpf, BPF_PROG_LOAD, &raw const attributes, size_of::<ProgLoad>()) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("cannot load the lab's XDP stub (bpf(BPF_PROG_LOAD))");
        }
        // SAFETY: the kernel has just given us this descriptor.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Attaches to an interface of the network namespace that this thread is in.
    pub(super) fn attach(&self, interface: &str) -> Result<()> {
        self.set_link(interface).with_context(|| format!("cannot attach the lab's XDP stub to {interface}"))
    }

    fn set_link(&self, interface: &str) -> Result<()> {
        let name = CString::new(interface)?;
        // SAFETY: a string that ends with NUL.
        let index = unsafe { libc::if_nametoindex(name.as_ptr()) };
        if index == 0 {
            return Err(io::Error::last_os_error().into());
        }
        // SAFETY: integers in; the descriptor is checked and owned.
        let socket = unsafe {
            let fd = libc::socket(libc::AF_NETLINK, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::NETLINK_ROUTE);
            if fd < 0 {
                return Err(io::Error::last_os_error().into());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let request = set_xdp(index, self.0.as_raw_fd());
        // SAFETY: pointer and length are of one vector.
        if unsafe { libc::send(socket.as_raw_fd(), request.as_ptr().cast(), request.len(), 0) } < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let mut answer = [0u8; 4096];
        // SAFETY: as above; the kernel answers a request that asks for it at once, so this cannot wait for long.
        let length = unsafe { libc::recv(socket.as_raw_fd(), answer.as_mut_ptr().cast(), answer.len(), 0) };
        if length < 0 {
            return Err(io::Error::last_os_error().into());
        }
        let verdict = answer[..length as usize].get(NLMSG_HEADER..NLMSG_HEADER + 4).context("short netlink answer")?;
        match i32::from_ne_bytes(verdict.try_into()?) {
            0 => Ok(()),
            errno => Err(io::Error::from_raw_os_error(-errno).into()),
        }
    }
}

/// RTM_SETLINK with the program's descriptor, acknowledged.
fn set_xdp(index: u32, program: i32) -> Vec<u8> {
    let mut nested = attribute(IFLA_XDP_FD, &program.to_ne_bytes());
    nested.extend(attribute(IFLA_XDP_FLAGS, &XDP_FLAGS_DRV_MODE.to_ne_bytes()));
    // struct ifinfomsg: family and padding, type, index, flags, change
    let mut body = [[0; 4], index.to_ne_bytes(), [0; 4], [0; 4]].concat();
    body.extend(attribute(IFLA_XDP | NLA_F_NESTED, &nested));

    let length = (NLMSG_HEADER + body.len()) as u32;
    let flags = (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
    let mut message = Vec::with_capacity(length as usize);
    message.extend(length.to_ne_bytes());
    message.extend(libc::RTM_SETLINK.to_ne_bytes());
    message.extend(flags.to_ne_bytes());
    message.extend([0; 8]); // sequence number and port: one request, one answer
    message.extend(body);
    message
}

/// A netlink attribute; every payload here is a multiple of four bytes, so none needs padding.
fn attribute(kind: u16, payload: &[u8]) -> Vec<u8> {
    let length = (4 + payload.len()) as u16;
    [&length.to_ne_bytes(), &kind.to_ne_bytes(), payload].concat()
}
