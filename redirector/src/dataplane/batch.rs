//! Reading and writing whole arrays, which the BPF library does not offer: one by one, a table of 16,384 slots takes as many
//! calls. Tables that are replaced whole are made to be mapped, and copied; of others many entries go over in a call.

use std::marker::PhantomData;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path as FilePath;

use aya::Pod;
use aya::maps::MapData;
use aya::util::nr_cpus;

use super::mapped::Mapping;
use super::maps::MapsError;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_F_MMAPABLE: u32 = 1 << 10;

/// The kernel's `union bpf_attr` for batches.
#[repr(C)]
#[derive(Default)]
struct Attr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn call(command: libc::c_long, attr: &mut Attr) -> std::io::Result<()> {
    // SAFETY: the attribute is of the size that is told, and the callers' pointers in it outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<Attr>()) };
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

/// The values of an array in this process's memory, where it was made for that.
struct Whole<V> {
    mapping: Mapping,
    count: usize,
    values: PhantomData<V>,
}

impl<V: Pod> Whole<V> {
    /// The kernel begins each value at a multiple of eight bytes.
    const STRIDE: usize = size_of::<V>().next_multiple_of(8);

    /// The first `count` of them; none where the array cannot be mapped.
    fn of(map: &MapData, count: usize, name: &'static str) -> Result<Option<Self>, MapsError> {
        let error = |source| MapsError::System { name, doing: "mapped", source };
        let info = map.info().map_err(|source| MapsError::Use { name, doing: "mapped", source })?;
        if info.map_flags() & BPF_F_MMAPABLE == 0 {
            return Ok(None);
        }
        if info.value_size() as usize != size_of::<V>() || (info.max_entries() as usize) < count {
            return Err(error(std::io::Error::new(std::io::ErrorKind::InvalidData, "it is of another size")));
        }
        let mapping = Mapping::of(map, count * Self::STRIDE).map_err(error)?;
        Ok(Some(Self { mapping, count, values: PhantomData }))
    }

    fn at(&self, index: usize) -> *mut V {
        // SAFETY: below the count, so within the mapping.
        unsafe { self.mapping.start().add(index * Self::STRIDE).cast() }
    }

    fn read(&self) -> Vec<V> {
        // SAFETY: within the mapping, and any bytes are a `Pod`. Nobody writes to a table that is in force.
        (0..self.count).map(|index| unsafe { self.at(index).read_volatile() }).collect()
    }

    fn write(&self, values: &[V]) {
        for (index, value) in values.iter().take(self.count).enumerate() {
            // SAFETY: within the mapping.
            unsafe { self.at(index).write_volatile(*value) };
        }
    }
}

/// The first `count` values of an array.
///
/// # Errors
/// [`MapsError`].
pub fn read_array<V: Pod>(map: &MapData, count: u32, name: &'static str) -> Result<Vec<V>, MapsError> {
    if let Some(whole) = Whole::of(map, count as usize, name)? {
        return Ok(whole.read());
    }
    // Zeros are a `V`: whatever the kernel does not fill is one too.
    let mut values: Vec<V> = std::iter::repeat_with(zeroed).take(count as usize).collect();
    // SAFETY: there are as many values as are told, of the size that the map has.
    let done = unsafe { read(map, count, values.as_mut_ptr().cast(), size_of::<V>()) };
    let error = |source| MapsError::System { name, doing: "read", source };
    values.truncate(done.map_err(error)? as usize);
    Ok(values)
}

/// Reads the first `count` values of an array; says how many there were.
///
/// # Safety
/// `values` has room for so many values of `size` bytes, which is what the kernel writes for each.
unsafe fn read(map: &MapData, count: u32, values: *mut u8, size: usize) -> std::io::Result<u32> {
    let mut keys = vec![0u32; count as usize];
    let mut position = 0u32;
    let mut done = 0u32;
    while done < count {
        let mut attr = Attr {
            in_batch: if done == 0 { 0 } else { &raw const position as u64 },
            out_batch: &raw mut position as u64,
            keys: keys[done as usize..].as_mut_ptr() as u64,
            values: values as u64 + u64::from(done) * size as u64,
            count: count - done,
            map_fd: map.fd().as_fd().as_raw_fd() as u32,
            ..Attr::default()
        };
        match call(BPF_MAP_LOOKUP_BATCH, &mut attr) {
            Ok(()) => {}
            // The end of the map.
            Err(e) if e.raw_os_error() == Some(libc::ENOENT) => {
                done += attr.count;
                break;
            }
            Err(error) => return Err(error),
        }
        if attr.count == 0 {
            break;
        }
        done += attr.count;
    }
    Ok(done)
}

/// Counters of a per-CPU array.
pub struct Counters {
    map: MapData,
    name: &'static str,
    count: u32,
    cpus: usize,
}

impl Counters {
    /// Opens the pinned map of that name.
    ///
    /// # Errors
    /// [`MapsError`].
    pub fn open(directory: &FilePath, name: &'static str) -> Result<Self, MapsError> {
        let error = |source| MapsError::Open { directory: directory.to_owned(), name, source };
        let map = MapData::from_pin(directory.join(name)).map_err(error)?;
        let count = map.info().map_err(error)?.max_entries();
        let cpus = nr_cpus().map_err(|(_, source)| MapsError::System { name, doing: "read", source })?;
        Ok(Self { map, name, count, cpus })
    }

    /// All of them, each over all CPUs, in one call.
    ///
    /// # Errors
    /// [`MapsError::System`].
    pub fn sums(&self) -> Result<Vec<u64>, MapsError> {
        let Self { map, name, count, cpus } = self;
        let mut values = vec![0u64; *count as usize * cpus];
        // SAFETY: for each counter the kernel writes a word for every possible CPU.
        let done = unsafe { read(map, *count, values.as_mut_ptr().cast(), cpus * size_of::<u64>()) };
        let done = done.map_err(|source| MapsError::System { name, doing: "read", source })?;
        Ok(values.chunks(*cpus).take(done as usize).map(|counter| counter.iter().sum()).collect())
    }
}

fn zeroed<V: Pod>() -> V {
    // SAFETY: any bytes are a `Pod`.
    unsafe { std::mem::zeroed() }
}

/// A new array, for a map of maps, with these values.
///
/// # Errors
/// [`MapsError`].
pub fn new_array<V: Pod>(values: &[V], name: &'static str) -> Result<MapData, MapsError> {
    const BPF_F_INNER_MAP: u32 = 1 << 12;
    make(values, name, BPF_F_INNER_MAP | BPF_F_MMAPABLE)
}

/// Likewise for a map of maps that all have as many entries: looking one up takes no call into the kernel then.
///
/// # Errors
/// [`MapsError`].
pub fn new_array_of_size<V: Pod>(values: &[V], name: &'static str) -> Result<MapData, MapsError> {
    make(values, name, 0)
}

fn make<V: Pod>(values: &[V], name: &'static str, flags: u32) -> Result<MapData, MapsError> {
    const BPF_MAP_TYPE_ARRAY: u32 = 2;
    let shape = aya_obj::Map::new_from_params(
        BPF_MAP_TYPE_ARRAY,
        size_of::<u32>() as u32,
        size_of::<V>() as u32,
        values.len() as u32,
        flags,
    );
    let map = MapData::create(shape, name, None).map_err(super::maps::written(name))?;
    write_array(&map, values, name)?;
    Ok(map)
}

/// Writes an array's values from its start on.
///
/// # Errors
/// [`MapsError`].
pub fn write_array<V: Pod>(map: &MapData, values: &[V], name: &'static str) -> Result<(), MapsError> {
    if let Some(whole) = Whole::of(map, values.len(), name)? {
        whole.write(values);
        return Ok(());
    }
    let keys: Vec<u32> = (0..values.len() as u32).collect();
    let mut attr = Attr {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count: keys.len() as u32,
        map_fd: map.fd().as_fd().as_raw_fd() as u32,
        ..Attr::default()
    };
    call(BPF_MAP_UPDATE_BATCH, &mut attr).map_err(|source| MapsError::System { name, doing: "written", source })
}
