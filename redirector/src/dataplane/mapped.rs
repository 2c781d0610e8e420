//! Array maps in this process's memory, and memory of the same form that is no map.

use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path as FilePath;
use std::ptr::NonNull;

use aya::maps::MapData;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::leg::{LegHeard, LegSent};
use redirector_ebpf::tables::liveness::{Condition, Heard, Latch, Pulse, Sent, Watched};

use super::maps::MapsError;

/// An array map's values in this process's memory.
pub(super) struct Mapped<V> {
    values: NonNull<V>,
    pub(super) count: usize,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel anyway; all access is by whole words or copies that are checked.
unsafe impl<V> Send for Mapped<V> {}
// SAFETY: as above.
unsafe impl<V> Sync for Mapped<V> {}

impl<V> Mapped<V> {
    pub(super) fn open(directory: &FilePath, name: &'static str) -> Result<Self, MapsError> {
        let open = |source| MapsError::Open { directory: directory.to_owned(), name, source };
        let map = MapData::from_pin(directory.join(name)).map_err(open)?;
        let count = map.info().map_err(open)?.max_entries() as usize;
        // The kernel rounds values up to eight bytes; all of ours are multiples of it.
        const { assert!(size_of::<V>().is_multiple_of(8)) };
        let bytes = (count * size_of::<V>()).next_multiple_of(4096);
        // SAFETY: a shared mapping of a map that was made to be mapped; it is unmapped when this value goes.
        let address = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), bytes, protection, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd(), 0)
        };
        match NonNull::new(address) {
            Some(values) if address != libc::MAP_FAILED => Ok(Self { values: values.cast(), count, bytes }),
            _ => Err(MapsError::System { name, doing: "mapped", source: std::io::Error::last_os_error() }),
        }
    }

    /// As many zeros that nobody else sees.
    pub(super) fn in_memory(count: usize) -> Self {
        let bytes = (count * size_of::<V>()).next_multiple_of(4096).max(4096);
        // SAFETY: a private mapping of its own; it is unmapped when this value goes.
        let address = unsafe {
            let (protection, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
            libc::mmap(std::ptr::null_mut(), bytes, protection, flags, -1, 0)
        };
        assert!(address != libc::MAP_FAILED, "no memory is left: {}", std::io::Error::last_os_error());
        Self { values: NonNull::new(address).expect("mapped, so not at zero").cast(), count, bytes }
    }

    /// The values of a map that must have so many.
    pub(super) fn of_size(directory: &FilePath, name: &'static str, count: usize) -> Result<Self, MapsError> {
        let mapped = Self::open(directory, name)?;
        if mapped.count < count {
            return Err(MapsError::Full { what: name, needed: count, size: mapped.count });
        }
        Ok(mapped)
    }

    pub(super) fn at(&self, index: usize) -> Option<*mut V> {
        // SAFETY: below the count, so within the mapping.
        (index < self.count).then(|| unsafe { self.values.as_ptr().add(index) })
    }
}

/// Values that are made of [`Word`]s alone, so that whoever has them mapped may read and write them.
///
/// # Safety
/// No field is anything else.
pub(super) unsafe trait Shared {}

// SAFETY: words.
unsafe impl Shared for Condition {}
// SAFETY: words.
unsafe impl Shared for Sent {}
// SAFETY: words.
unsafe impl Shared for Heard {}
// SAFETY: words.
unsafe impl Shared for Watched {}
// SAFETY: words.
unsafe impl Shared for Latch {}
// SAFETY: words.
unsafe impl Shared for Pulse {}
// SAFETY: words.
unsafe impl Shared for [Word; 4] {}
// SAFETY: a word.
unsafe impl Shared for Word {}
// SAFETY: words.
unsafe impl Shared for LegSent {}
// SAFETY: words.
unsafe impl Shared for LegHeard {}

impl<V: Shared> Mapped<V> {
    /// A value, by an index within the size that was asked for; a greater one gives the last.
    pub(super) fn shared(&self, index: usize) -> &V {
        // SAFETY: within the mapping, which lives as long as `self`; made of words that are shared.
        unsafe { &*self.values.as_ptr().add(index.min(self.count - 1)) }
    }
}

impl<V> Drop for Mapped<V> {
    fn drop(&mut self) {
        // SAFETY: the mapping that `open` made.
        unsafe { libc::munmap(self.values.as_ptr().cast(), self.bytes) };
    }
}
