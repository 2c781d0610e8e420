//! Array maps in this process's memory, and memory of the same form that is no map.

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path as FilePath;
use std::ptr::NonNull;

use aya::maps::MapData;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::Signals;
use redirector_ebpf::tables::leg::{LegHeard, LegSent};
use redirector_ebpf::tables::liveness::{Condition, Heard, Latch, Pulse, Sent, Watched};

use super::maps::MapsError;

/// Memory that is mapped, until this is dropped.
pub(super) struct Mapping {
    address: NonNull<u8>,
    bytes: usize,
}

// SAFETY: the memory is shared with the kernel anyway, and whoever reaches into it says how that is safe.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// The first bytes of an array map that was made to be mapped.
    pub(super) fn of(map: &MapData, bytes: usize) -> io::Result<Self> {
        Self::new(bytes, libc::MAP_SHARED, map.fd().as_fd().as_raw_fd())
    }

    fn new(bytes: usize, flags: i32, file: i32) -> io::Result<Self> {
        let bytes = bytes.next_multiple_of(4096).max(4096);
        // SAFETY: a new mapping, at an address that the kernel chooses; it is unmapped when this value goes.
        let address =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, libc::PROT_READ | libc::PROT_WRITE, flags, file, 0) };
        match NonNull::new(address.cast()) {
            Some(place) if address != libc::MAP_FAILED => Ok(Self { address: place, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where it begins.
    pub(super) fn start(&self) -> *mut u8 {
        self.address.as_ptr()
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping that `new` made.
        unsafe { libc::munmap(self.address.as_ptr().cast(), self.bytes) };
    }
}

/// An array map's values in this process's memory.
pub(super) struct Mapped<V> {
    mapping: Mapping,
    pub(super) count: usize,
    values: PhantomData<V>,
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
        let mapping = Mapping::of(&map, count * size_of::<V>());
        let mapping = mapping.map_err(|source| MapsError::System { name, doing: "mapped", source })?;
        Ok(Self { mapping, count, values: PhantomData })
    }

    /// As many zeros that nobody else sees.
    pub(super) fn in_memory(count: usize) -> Self {
        let mapping = Mapping::new(count * size_of::<V>(), libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1);
        let mapping = mapping.unwrap_or_else(|error| panic!("no memory is left: {error}"));
        Self { mapping, count, values: PhantomData }
    }

    /// The values of a map that must have so many.
    pub(super) fn of_size(directory: &FilePath, name: &'static str, count: usize) -> Result<Self, MapsError> {
        let mapped = Self::open(directory, name)?;
        if mapped.count < count {
            return Err(MapsError::Full { what: name, needed: count, size: mapped.count });
        }
        Ok(mapped)
    }

    fn first(&self) -> *mut V {
        self.mapping.start().cast()
    }

    pub(super) fn at(&self, index: usize) -> Option<*mut V> {
        // SAFETY: below the count, so within the mapping.
        (index < self.count).then(|| unsafe { self.first().add(index) })
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
// SAFETY: words.
unsafe impl Shared for [Signals; 4] {}

impl<V: Shared> Mapped<V> {
    /// A value, by an index within the size that was asked for; a greater one gives the last.
    pub(super) fn shared(&self, index: usize) -> &V {
        // SAFETY: within the mapping, which lives as long as `self`; made of words that are shared.
        unsafe { &*self.first().add(index.min(self.count - 1)) }
    }
}
