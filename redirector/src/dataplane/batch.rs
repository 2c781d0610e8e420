//! Reading and writing arrays many entries a call, which the BPF library does not offer: a table of 16,384 slots is a
//! handful of calls in place of as many as it has slots.

use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::Pod;
use aya::maps::MapData;

use super::maps::MapsError;

const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

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

/// The first `count` values of an array.
///
/// # Errors
/// [`MapsError::System`].
pub fn read_array<V: Pod>(map: &MapData, count: u32, name: &'static str) -> Result<Vec<V>, MapsError> {
    let error = |source| MapsError::System { name, doing: "read", source };
    // Zeros are a `V`: whatever the kernel does not fill is one too.
    let mut values: Vec<V> = std::iter::repeat_with(zeroed).take(count as usize).collect();
    let mut keys = vec![0u32; count as usize];
    let mut position = 0u32;
    let mut done = 0u32;
    while done < count {
        let mut attr = Attr {
            in_batch: if done == 0 { 0 } else { &raw const position as u64 },
            out_batch: &raw mut position as u64,
            keys: keys[done as usize..].as_mut_ptr() as u64,
            values: values[done as usize..].as_mut_ptr() as u64,
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
            Err(e) => return Err(error(e)),
        }
        if attr.count == 0 {
            break;
        }
        done += attr.count;
    }
    values.truncate(done as usize);
    Ok(values)
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
    make(values, name, BPF_F_INNER_MAP)
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
/// [`MapsError::System`].
pub fn write_array<V: Pod>(map: &MapData, values: &[V], name: &'static str) -> Result<(), MapsError> {
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
