//! Packet sockets that only send, and the thread's schedule.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

/// A socket that sends whole frames over one interface.
#[derive(Debug)]
pub(super) struct PacketSocket {
    fd: OwnedFd,
    interface: i32,
}

impl PacketSocket {
    /// Opens a socket in the network namespace of this thread.
    pub(super) fn open(interface: u32) -> io::Result<Self> {
        // SAFETY: integers in, the descriptor is checked and owned. Protocol 0: nothing is received.
        let fd = unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK, 0);
            if fd < 0 {
                return Err(io::Error::last_os_error());
            }
            OwnedFd::from_raw_fd(fd)
        };
        let on: libc::c_int = 1;
        // SAFETY: an integer that outlives the call. Without the option frames wait in the queue, which is slower only.
        unsafe {
            let size = size_of::<libc::c_int>() as u32;
            libc::setsockopt(fd.as_raw_fd(), libc::SOL_PACKET, libc::PACKET_QDISC_BYPASS, (&raw const on).cast(), size);
        }
        Ok(Self { fd, interface: interface as i32 })
    }

    /// Sends frames; says how many were taken.
    pub(super) fn send(&self, frames: &mut [Vec<u8>]) -> usize {
        // SAFETY: all zero is a valid address.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = libc::AF_PACKET as u16;
        address.sll_ifindex = self.interface;
        address.sll_halen = 6;
        let mut parts: Vec<libc::iovec> = frames
            .iter_mut()
            .map(|frame| libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() })
            .collect();
        let mut messages: Vec<libc::mmsghdr> = parts
            .iter_mut()
            .map(|part| {
                // SAFETY: all zero is a valid header.
                let mut message: libc::mmsghdr = unsafe { std::mem::zeroed() };
                message.msg_hdr.msg_name = (&raw mut address).cast();
                message.msg_hdr.msg_namelen = size_of::<libc::sockaddr_ll>() as u32;
                message.msg_hdr.msg_iov = part;
                message.msg_hdr.msg_iovlen = 1;
                message
            })
            .collect();
        // SAFETY: headers, parts, frames and address outlive the call.
        let sent = unsafe { libc::sendmmsg(self.fd.as_raw_fd(), messages.as_mut_ptr(), messages.len() as u32, 0) };
        sent.max(0) as usize
    }
}

/// Gives this thread real-time priority and keeps the process's memory from being paged out; says whether both were done.
pub(crate) fn be_real_time() -> io::Result<()> {
    const PRIORITY: libc::c_int = 50;
    let parameters = libc::sched_param { sched_priority: PRIORITY };
    // SAFETY: this thread (0), and a value that outlives the call.
    if unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const parameters) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: flags alone.
    if unsafe { libc::mlockall(libc::MCL_CURRENT | libc::MCL_FUTURE | libc::MCL_ONFAULT) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Sleeps until a time of the monotonic clock, in nanoseconds.
pub(super) fn sleep_until(time: u64) {
    let time = Duration::from_nanos(time);
    let until = libc::timespec { tv_sec: time.as_secs() as i64, tv_nsec: i64::from(time.subsec_nanos()) };
    // SAFETY: a value that outlives the call. A signal ends the sleep early, which the caller notices.
    unsafe {
        libc::clock_nanosleep(libc::CLOCK_MONOTONIC, libc::TIMER_ABSTIME, &raw const until, std::ptr::null_mut());
    }
}
