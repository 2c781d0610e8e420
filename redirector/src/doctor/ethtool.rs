//! The old commands of ethtool: every driver knows them, and they need neither a package nor /sys, which shows the
//! interfaces of the namespace that mounted it.

use std::io;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;

const SIOCETHTOOL: libc::c_ulong = 0x8946;
const GET_DRIVER: u32 = 0x03;
const GET_CHANNELS: u32 = 0x3c;

/// What is set to 0 or 1.
#[derive(Clone, Copy)]
pub(super) enum Switch {
    RxChecksum = 0x14,
    TxChecksum = 0x16,
    Gro = 0x2b,
}

/// What is a bit of one word.
#[derive(Clone, Copy)]
pub(super) enum Flag {
    RxVlan = 1 << 8,
    Lro = 1 << 15,
}

const GET_FLAGS: u32 = 0x25;

/// An interface, by its name.
pub(super) struct Ethtool {
    socket: UdpSocket,
    name: [libc::c_char; libc::IFNAMSIZ],
}

impl Ethtool {
    pub(super) fn open(name: &str) -> io::Result<Self> {
        let mut chars = [0; libc::IFNAMSIZ];
        if name.len() >= chars.len() {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for (to, from) in chars.iter_mut().zip(name.bytes()) {
            *to = from as libc::c_char;
        }
        Ok(Self { socket: UdpSocket::bind("0.0.0.0:0")?, name: chars })
    }

    pub(super) fn switch(&self, switch: Switch) -> Option<bool> {
        self.value(switch as u32).map(|value| value != 0)
    }

    pub(super) fn flag(&self, flag: Flag) -> Option<bool> {
        self.value(GET_FLAGS).map(|flags| flags & flag as u32 != 0)
    }

    pub(super) fn driver(&self) -> Option<String> {
        // struct ethtool_drvinfo: the command, then the driver's name in 32 bytes, then more.
        let mut info = [0u32; 49];
        info[0] = GET_DRIVER;
        self.call(&mut info).ok()?;
        let name: Vec<u8> =
            info[1..9].iter().flat_map(|word| word.to_ne_bytes()).take_while(|&byte| byte != 0).collect();
        String::from_utf8(name).ok().filter(|name| !name.is_empty())
    }

    /// Receive queues in use.
    pub(super) fn queues(&self) -> Option<u32> {
        // struct ethtool_channels: the command, most of rx, tx, other, combined, then how many of each there are.
        let mut channels = [0u32; 9];
        channels[0] = GET_CHANNELS;
        self.call(&mut channels).ok()?;
        Some(channels[5] + channels[8])
    }

    fn value(&self, command: u32) -> Option<u32> {
        let mut words = [command, 0];
        self.call(&mut words).ok()?;
        Some(words[1])
    }

    /// Carries out the command in the first word; the kernel writes no more than the command's structure.
    fn call<const WORDS: usize>(&self, words: &mut [u32; WORDS]) -> io::Result<()> {
        // SAFETY: all bytes zero is a valid `ifreq`.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        request.ifr_name = self.name;
        request.ifr_ifru.ifru_data = words.as_mut_ptr().cast();
        // SAFETY: the request and the words outlive the call, and the callers give room for what their commands write.
        match unsafe { libc::ioctl(self.socket.as_raw_fd(), SIOCETHTOOL, &raw mut request) } {
            0.. => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    }
}
