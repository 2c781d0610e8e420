//! The flow tables, mapped into memory: listed, counted, swept and filled without a call per flow.

mod copy;

use std::net::{IpAddr, SocketAddr};
use std::ops::Range;
use std::path::Path as FilePath;

use redirector_ebpf::hash::{FlowHash, HashKey};
use redirector_ebpf::packet::Tuple;
use redirector_ebpf::sync::Word;
use redirector_ebpf::tables::event::{EVENT_VERSION, FlowEvent};
use redirector_ebpf::tables::flow::{Bucket, Entry, Record, Record4, Record6, State, WAYS};

use super::address::ip;
use super::mapped::Mapped;
use super::maps::MapsError;

pub use copy::{Copied, Put};

/// A flow as it is listed.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    /// Whether it is IPv6.
    pub v6: bool,
    /// Its place: bucket and way.
    pub place: (u32, usize),
    /// Its entry.
    pub entry: Entry,
    /// Its record.
    pub record: Record,
}

impl Flow {
    /// The client's address and port.
    pub fn source(&self) -> SocketAddr {
        SocketAddr::new(ip(&self.record.tuple.src, self.v6), u16::from_be(self.record.tuple.sport))
    }

    /// The VIP's address and port.
    pub fn destination(&self) -> SocketAddr {
        SocketAddr::new(ip(&self.record.tuple.dst, self.v6), u16::from_be(self.record.tuple.dport))
    }

    /// The client's address.
    pub fn client(&self) -> IpAddr {
        ip(&self.record.tuple.src, self.v6)
    }

    /// Its state.
    pub fn state(&self) -> State {
        self.entry.state()
    }
}

/// One family's flow table.
struct Table<R> {
    v6: bool,
    buckets: Mapped<Bucket>,
    records: Mapped<R>,
}

/// A record as a family keeps it.
trait Keeps: Copy {
    fn of(record: &Record) -> Self;
    fn record(&self) -> Record;
}

impl Keeps for Record4 {
    fn of(record: &Record) -> Self {
        Self::of(record)
    }

    fn record(&self) -> Record {
        Self::record(self)
    }
}

impl Keeps for Record6 {
    fn of(record: &Record) -> Self {
        Self::of(record)
    }

    fn record(&self) -> Record {
        Self::record(self)
    }
}

impl<R: Keeps> Table<R> {
    fn word(&self, bucket: usize, way: usize) -> Option<&Word> {
        // SAFETY: a bucket within the mapping, which lives as long as `self`; it is made of shared words.
        self.buckets.at(bucket).map(|bucket| unsafe { (*bucket).word(way) })
    }

    fn flow(&self, key: &HashKey, bucket: usize, way: usize) -> Option<Flow> {
        let entry = Entry(self.word(bucket, way)?.load());
        if entry.is_empty() {
            return None;
        }
        // SAFETY: a record within the mapping. It may change meanwhile: then its hash does not fit the entry.
        let record = unsafe { self.records.at(bucket * WAYS + way)?.read_volatile() }.record();
        let hash = FlowHash::of(key, &record.tuple, self.v6);
        let fits = hash.entry(self.buckets.count as u32 - 1) == (bucket as u32, entry.tag());
        fits.then_some(Flow { v6: self.v6, place: (bucket as u32, way), entry, record })
    }

    /// The entries in some buckets, and their places. Most buckets are empty most of the time, so each is looked at as one.
    fn entries(&self, buckets: Range<usize>) -> impl Iterator<Item = (usize, usize, Entry)> + '_ {
        let taken = |bucket: usize| {
            let words = self.words(bucket)?;
            words.iter().any(|word| *word != 0).then_some((bucket, words))
        };
        let entries = |(bucket, words): (usize, [u64; WAYS])| {
            words.into_iter().enumerate().map(move |(way, word)| (bucket, way, Entry(word)))
        };
        buckets.filter_map(taken).flat_map(entries).filter(|(.., entry)| !entry.is_empty())
    }

    fn words(&self, bucket: usize) -> Option<[u64; WAYS]> {
        // SAFETY: a bucket within the mapping, which lives as long as `self`; it is made of shared words.
        let bucket = unsafe { &*self.buckets.at(bucket)? };
        Some(std::array::from_fn(|way| bucket.word(way).load()))
    }

    /// The buckets of a part, one of `parts`.
    fn part(&self, part: usize, parts: usize) -> Range<usize> {
        let size = self.buckets.count.div_ceil(parts);
        (part * size).min(self.buckets.count)..((part + 1) * size).min(self.buckets.count)
    }

    /// [`FlowTables::sweep`].
    fn sweep(
        &self,
        buckets: Range<usize>,
        key: &HashKey,
        is_over: &impl Fn(Entry, Option<&Record>) -> bool,
        stays: &mut impl FnMut(Entry),
    ) -> usize {
        let mut swept = 0;
        for (bucket, way, entry) in self.entries(buckets) {
            let (entry, record) = match entry.proven() {
                true => (entry, None),
                false => match self.flow(key, bucket, way) {
                    Some(flow) => (flow.entry, Some(flow.record)),
                    None => continue,
                },
            };
            let clear = || self.word(bucket, way).is_some_and(|word| word.replace(entry.0, 0));
            match is_over(entry, record.as_ref()) && clear() {
                true => swept += 1,
                false => stays(entry),
            }
        }
        swept
    }

    fn flows<'a>(&'a self, key: &'a HashKey) -> impl Iterator<Item = Flow> + 'a {
        self.entries(0..self.buckets.count).filter_map(|(bucket, way, _)| self.flow(key, bucket, way))
    }
}

/// Both flow tables.
pub struct FlowTables {
    v4: Table<Record4>,
    v6: Table<Record6>,
}

impl FlowTables {
    /// Maps the tables that are pinned in `directory`.
    ///
    /// # Errors
    /// [`MapsError`].
    pub fn open(directory: &FilePath) -> Result<Self, MapsError> {
        let v4 = Table {
            v6: false,
            buckets: Mapped::open(directory, "FLOWS4")?,
            records: Mapped::open(directory, "TUPLES4")?,
        };
        let v6 = Table {
            v6: true,
            buckets: Mapped::open(directory, "FLOWS6")?,
            records: Mapped::open(directory, "TUPLES6")?,
        };
        Ok(Self { v4, v6 })
    }

    /// Empty tables in this process's memory alone, of so many buckets for each family; a power of two.
    pub fn in_memory(buckets: usize) -> Self {
        fn table<R>(v6: bool, buckets: usize) -> Table<R> {
            Table { v6, buckets: Mapped::in_memory(buckets), records: Mapped::in_memory(buckets * WAYS) }
        }
        Self { v4: table(false, buckets), v6: table(true, buckets) }
    }

    /// A bucket as packets see it.
    pub(super) fn shared_bucket(&self, v6: bool, index: u32) -> Option<&Bucket> {
        let bucket = if v6 { self.v6.buckets.at(index as usize) } else { self.v4.buckets.at(index as usize) }?;
        // SAFETY: a bucket within the mapping, which lives as long as `self`; it is made of shared words.
        Some(unsafe { &*bucket })
    }

    /// The record beside an entry, whether it belongs to it or not.
    pub(super) fn record(&self, v6: bool, index: u32) -> Option<Record> {
        let index = index as usize;
        // SAFETY: records within the mapping; whoever reads them checks them against the entry.
        unsafe {
            match v6 {
                true => self.v6.records.at(index).map(|place| place.read_volatile().record()),
                false => self.v4.records.at(index).map(|place| place.read_volatile().record()),
            }
        }
    }

    /// Puts a record beside an entry.
    pub(super) fn set_record(&self, v6: bool, index: u32, record: &Record) {
        let index = index as usize;
        // SAFETY: as above.
        unsafe {
            match v6 {
                true => self.v6.records.at(index).into_iter().for_each(|place| place.write_volatile(Keeps::of(record))),
                false => {
                    self.v4.records.at(index).into_iter().for_each(|place| place.write_volatile(Keeps::of(record)))
                }
            }
        }
    }

    /// All flows, IPv4 first, in the order of their places. One that changes while it is read may be left out.
    pub fn iter<'a>(&'a self, key: &'a HashKey) -> impl Iterator<Item = Flow> + 'a {
        self.v4.flows(key).chain(self.v6.flows(key))
    }

    /// The flows of some backends. Of other entries only the word is read.
    pub fn on<'a>(
        &'a self,
        key: &'a HashKey,
        is_meant: impl Fn(u16) -> bool + Copy + 'a,
    ) -> impl Iterator<Item = Flow> + 'a {
        fn of<'a, R: Keeps>(
            table: &'a Table<R>,
            key: &'a HashKey,
            is_meant: impl Fn(u16) -> bool + 'a,
        ) -> impl Iterator<Item = Flow> + 'a {
            let meant = table.entries(0..table.buckets.count).filter(move |(.., entry)| is_meant(entry.backend()));
            meant.filter_map(|(bucket, way, _)| table.flow(key, bucket, way))
        }
        of(&self.v4, key, is_meant).chain(of(&self.v6, key, is_meant))
    }

    /// The words of the bucket that a flow of this tuple belongs to, its number, and the records beside them.
    pub fn bucket(&self, key: &HashKey, tuple: &Tuple, v6: bool) -> (u32, [u64; WAYS], Vec<(u32, Record)>) {
        fn gather<R: Keeps>(table: &Table<R>, key: &HashKey, tuple: &Tuple) -> (u32, [u64; WAYS], Vec<(u32, Record)>) {
            let (bucket, _) = FlowHash::of(key, tuple, table.v6).entry(table.buckets.count as u32 - 1);
            let words = table.words(bucket as usize).unwrap_or_default();
            let flows = (0..WAYS).filter_map(|way| table.flow(key, bucket as usize, way));
            let records = flows.map(|flow| (flow.place.0 * WAYS as u32 + flow.place.1 as u32, flow.record)).collect();
            (bucket, words, records)
        }
        if v6 { gather(&self.v6, key, tuple) } else { gather(&self.v4, key, tuple) }
    }

    /// Places for flows: IPv4 and IPv6.
    pub fn capacity(&self) -> (usize, usize) {
        (self.v4.buckets.count * WAYS, self.v6.buckets.count * WAYS)
    }

    /// Of a part of both tables, one of `parts`: proven flows that have not expired, and places.
    pub fn proven(&self, part: usize, parts: usize, idle: &[u16; 8], now: u64) -> (u64, u64) {
        fn count<R: Keeps>(table: &Table<R>, part: usize, parts: usize, idle: &[u16; 8], now: u64) -> (u64, u64) {
            let buckets = table.part(part, parts);
            let places = (buckets.len() * WAYS) as u64;
            let counts = |(.., entry): &(usize, usize, Entry)| entry.proven() && !entry.expired(idle, now);
            (table.entries(buckets).filter(counts).count() as u64, places)
        }
        // Each family's table may be full while the other is empty.
        let (v4, v6) = (count(&self.v4, part, parts, idle, now), count(&self.v6, part, parts, idle, now));
        if v4.0 * v6.1 >= v6.0 * v4.1 { v4 } else { v6 }
    }

    /// Takes flows out for which `is_over` holds, and shows the entries of those that stay, in a part of both tables, one of
    /// `parts`; says how many went. A flow that a packet touches meanwhile stays. Of proven ones nothing but the entry is
    /// read: there may be millions, each of whose records is a wait for memory.
    pub fn sweep(
        &self,
        (part, parts): (usize, usize),
        key: &HashKey,
        is_over: impl Fn(Entry, Option<&Record>) -> bool,
        mut stays: impl FnMut(Entry),
    ) -> usize {
        let (v4, v6) = (self.v4.part(part, parts), self.v6.part(part, parts));
        self.v4.sweep(v4, key, &is_over, &mut stays) + self.v6.sweep(v6, key, &is_over, &mut stays)
    }
}

/// Whether nothing was seen of a flow for longer than its state allows. An unproven entry's stamp wraps after eight
/// seconds, so its record's age decides.
pub fn is_over(entry: Entry, record: Option<&Record>, idle: &[u16; 8], now: u64) -> bool {
    if entry.proven() {
        return entry.expired(idle, now);
    }
    let limit = u64::from(idle[usize::from(entry.state_bits() & 7)]);
    record.is_some_and(|record| now.saturating_sub(record.since) / 1_000_000_000 > limit)
}

/// An event as it came out of the ring; none if it is shorter, or of another version of the program.
pub fn read_event(bytes: &[u8]) -> Option<FlowEvent> {
    if bytes.len() < size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: as long as an event, as was checked, and any bytes are one.
    let event = unsafe { bytes.as_ptr().cast::<FlowEvent>().read_unaligned() };
    (event.version == EVENT_VERSION).then_some(event)
}

/// Monotonic time in nanoseconds, of the clock that XDP stamps with.
pub fn now() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: a valid place for the answer; the clock exists on every Linux.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}
