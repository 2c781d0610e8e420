//! The small written forms inside values: addresses, durations, ports, keys, names.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use serde::Serializer;

use super::{Key, PortRange, Prefix, prefix::PrefixError};

/// Why a value cannot be accepted, and what to write instead.
#[derive(Debug)]
pub(super) struct Wrong {
    pub(super) message: String,
    pub(super) mend: String,
}

impl Wrong {
    pub(super) fn new(message: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { message: message.into(), mend: mend.into() }
    }
}

/// Names are part of paths such as `pool/backend` on the command line, so they hold no slash and no space.
pub(super) fn name(text: &str) -> Result<String, Wrong> {
    let fits = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if (1..=63).contains(&text.len()) && text.chars().all(fits) {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(format!("{text:?} is not a name"), "use 1 to 63 of the characters A-Z a-z 0-9 - _ ."))
}

/// A file's path.
pub(super) fn file(text: &str) -> Result<PathBuf, Wrong> {
    match text.is_empty() || text.contains('\0') {
        false => Ok(text.into()),
        true => Err(Wrong::new(format!("{text:?} is not a file's path"), "write the path of a file")),
    }
}

/// The kernel's rule for interface names.
pub(super) fn interface(text: &str) -> Result<String, Wrong> {
    let fits = |c: char| c.is_ascii_graphic() && c != '/' && c != ':';
    if (1..=15).contains(&text.len()) && text.chars().all(fits) && text != "." && text != ".." {
        return Ok(text.to_owned());
    }
    Err(Wrong::new(
        format!("{text:?} cannot be an interface's name"),
        "take a name of 1 to 15 characters from `ip link`",
    ))
}

/// The address of a host that packets can be sent to.
pub(super) fn address(text: &str) -> Result<IpAddr, Wrong> {
    let address: IpAddr = text.parse().map_err(|_| {
        Wrong::new(format!("{text:?} is not an IP address"), "write an address such as \"10.0.0.1\" or \"2001:db8::1\"")
    })?;
    usable(address)?;
    Ok(address)
}

/// A prefix, or an address as a prefix of full length.
pub(super) fn prefix(text: &str) -> Result<Prefix, Wrong> {
    let prefix: Prefix = text.parse().map_err(|error| {
        let mend = match error {
            PrefixError::HostBits(meant) => {
                let single = text.split('/').next().unwrap_or(text);
                format!("write \"{meant}\" for the whole prefix, or \"{single}\" for the one address")
            }
            _ => "write an address such as \"10.0.0.1\" or a prefix such as \"10.0.0.0/28\"".to_owned(),
        };
        Wrong::new(format!("{text:?} {error}"), mend)
    })?;
    Ok(prefix)
}

/// A VIP: a prefix of which every address is one that a host can have.
pub(super) fn vip(text: &str) -> Result<Prefix, Wrong> {
    let prefix = prefix(text)?;
    if prefix.length() == 0 {
        return Err(Wrong::new("this takes every address there is", "write the prefix that clients send to"));
    }
    usable(prefix.address())?;
    Ok(prefix)
}

fn usable(address: IpAddr) -> Result<(), Wrong> {
    let refuse = |what: &str| Err(Wrong::new(format!("{address} is {what}"), "write the address of a host"));
    match address {
        a if a.is_unspecified() => refuse("the unspecified address"),
        a if a.is_multicast() => refuse("a multicast address"),
        a if a.is_loopback() => refuse("a loopback address"),
        IpAddr::V4(v4) if v4.is_broadcast() => refuse("the broadcast address"),
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => {
                Err(Wrong::new(format!("{address} is an IPv4 address in IPv6's form"), format!("write \"{v4}\"")))
            }
            None => Ok(()),
        },
        IpAddr::V4(_) => Ok(()),
    }
}

/// A duration with its unit, such as `30s` or `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, Wrong> {
    humantime::parse_duration(text)
        .map_err(|error| Wrong::new(format!("{text:?} is not a duration: {error}"), "write \"30s\", \"5m\" or \"2h\""))
}

pub(super) fn serialize_duration<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&humantime::format_duration(*value))
}

/// `80`, `5060-5080` or `any`.
pub(super) fn ports(text: &str) -> Result<PortRange, Wrong> {
    let mend = "write 80, \"5060-5080\" or \"any\"; ports are 1 to 65535";
    if text == "any" {
        return Ok(PortRange::ANY);
    }
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    match (first.trim().parse::<u16>(), last.trim().parse::<u16>()) {
        (Ok(first), Ok(last)) if first > last => {
            Err(Wrong::new(format!("{text:?} runs backwards"), format!("write \"{last}-{first}\"")))
        }
        (Ok(first), Ok(last)) if first > 0 => Ok(PortRange { first, last }),
        _ => Err(Wrong::new(format!("{text:?} is no port and no range of ports"), mend)),
    }
}

/// Sixteen bytes in hexadecimal.
pub(super) fn key(text: &str) -> Result<Key, Wrong> {
    let mend = "write 32 hexadecimal digits, made by `openssl rand -hex 16`";
    let text = text.trim();
    if !text.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(Wrong::new("the key has characters that are not hexadecimal", mend));
    }
    let mut bytes = [0; 16];
    if text.len() != 32 {
        return Err(Wrong::new(format!("the key has {} hexadecimal digits instead of 32", text.len()), mend));
    }
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * index..2 * index + 2], 16)
            .map_err(|error| Wrong::new(format!("the key is not hexadecimal: {error}"), mend))?;
    }
    Ok(Key(bytes))
}
