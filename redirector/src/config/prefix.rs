//! Address prefixes.

use std::{fmt, net::IpAddr, str::FromStr};

use serde::{Serialize, Serializer};

/// An address prefix without host bits; a single address is one of full length and is shown without it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    address: IpAddr,
    length: u8,
}

/// Why a text is no prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PrefixError {
    /// Neither an IPv4 nor an IPv6 address.
    #[error("is not an address")]
    Address,
    /// The part behind the slash is no number, or too great for the family.
    #[error("has a prefix length that is not 0 to {0}")]
    Length(u8),
    /// Bits are set behind the prefix length; holds the prefix that was probably meant.
    #[error("has bits set behind its prefix length")]
    HostBits(Prefix),
}

impl Prefix {
    /// The prefix of `length` bits that `address` is in; the length is cut to what the family has.
    pub fn around(address: IpAddr, length: u8) -> Self {
        let length = length.min(bits(address));
        let address = match address {
            IpAddr::V4(v4) => IpAddr::from((v4.to_bits() & mask(32, length) as u32).to_be_bytes()),
            IpAddr::V6(v6) => IpAddr::from((v6.to_bits() & mask(128, length)).to_be_bytes()),
        };
        Self { address, length }
    }

    /// The first address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// How many leading bits are fixed.
    pub fn length(&self) -> u8 {
        self.length
    }

    /// Whether this is a single address.
    pub fn is_single(&self) -> bool {
        self.length == bits(self.address)
    }

    /// Whether an address, of either family, is inside.
    pub fn contains(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.address.is_ipv4() && Self::around(address, self.length) == *self
    }
}

/// The full length of an address.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// A mask with the upper `length` of `width` bits set.
fn mask(width: u8, length: u8) -> u128 {
    let ones = if width == 128 { u128::MAX } else { (1 << width) - 1 };
    ones & ones.checked_shl(u32::from(width - length)).unwrap_or(0)
}

impl From<IpAddr> for Prefix {
    fn from(address: IpAddr) -> Self {
        Self { address, length: bits(address) }
    }
}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Self, PrefixError> {
        let (address, length) = text.split_once('/').map_or((text, None), |(a, l)| (a, Some(l)));
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Address)?;
        let most = bits(address);
        let length = match length {
            None => most,
            Some(digits) => digits.parse().ok().filter(|&l| l <= most).ok_or(PrefixError::Length(most))?,
        };
        let prefix = Self::around(address, length);
        if prefix.address == address { Ok(prefix) } else { Err(PrefixError::HostBits(prefix)) }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.is_single() {
            true => self.address.fmt(f),
            false => write!(f, "{}/{}", self.address, self.length),
        }
    }
}

impl Serialize for Prefix {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}
