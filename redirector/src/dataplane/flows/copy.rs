//! Flows of other nodes, put into the table beside this node's own, and single flows looked up.

use redirector_ebpf::hash::{FlowHash, HashKey};
use redirector_ebpf::packet::Tuple;
use redirector_ebpf::stations::flow::preferred;
use redirector_ebpf::tables::flow::{Entry, Record, WAYS};

use super::{Flow, FlowTables, Keeps, Table};

/// How often a flow is tried whose words packets change meanwhile.
const TRIES: usize = 8;

/// What became of a flow that was to be put into the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Put {
    /// It is there, where it was not before.
    Inserted,
    /// It was there and is changed.
    Updated,
    /// It was there and stays as it was.
    Kept,
    /// Its bucket holds other proven flows only.
    Full,
}

impl<R: Keeps> Table<R> {
    fn places(&self) -> u64 {
        (self.buckets.count * WAYS) as u64
    }

    fn find(&self, key: &HashKey, tuple: &Tuple) -> Option<Flow> {
        let (bucket, tag) = FlowHash::of(key, tuple, self.v6).entry(self.buckets.count as u32 - 1);
        let fits = |way: &usize| {
            let entry = self.word(bucket as usize, *way).map_or(Entry(0), |word| Entry(word.load()));
            !entry.is_empty() && entry.tag() == tag
        };
        let flows = (0..WAYS).filter(fits).filter_map(|way| self.flow(key, bucket as usize, way));
        flows.into_iter().find(|flow| flow.record.tuple == *tuple)
    }

    /// The way to put a new entry in, as the flow station chooses it, and whether its tag stands in the bucket already.
    fn room(&self, bucket: usize, tag: u32, idle: &[u16; 8], now: u64) -> Option<(usize, Entry, bool)> {
        let (mut best, mut ambiguous) = (None, false);
        for way in 0..WAYS {
            let word = self.word(bucket, way)?;
            let entry = Entry(word.load());
            let fit = match entry {
                entry if entry.is_empty() => 3 + u64::from(way == preferred(tag)),
                entry if entry.expired(idle, now) => 2,
                entry => u64::from(!entry.proven()),
            };
            let candidate = (fit, entry.idle(now));
            if fit > 0 && best.is_none_or(|(other, _, _)| candidate > other) {
                best = Some((candidate, way, entry));
            }
            if !entry.is_empty() && entry.tag() == tag {
                ambiguous = true;
                word.replace(entry.0, entry.marked_ambiguous().0);
            }
        }
        best.map(|(_, way, entry)| (way, entry, ambiguous))
    }

    fn put(
        &self,
        key: &HashKey,
        copy: &Copied<'_>,
        entry: impl Fn(u32) -> Entry,
        takes: impl Fn(&Flow) -> bool,
    ) -> Put {
        let (bucket, tag) = FlowHash::of(key, &copy.record.tuple, self.v6).entry(self.buckets.count as u32 - 1);
        let bucket = bucket as usize;
        for _ in 0..TRIES {
            let (way, old, ambiguous, put) = match self.find(key, &copy.record.tuple) {
                Some(flow) if !takes(&flow) => return Put::Kept,
                Some(flow) => (flow.place.1, flow.entry, flow.entry.ambiguous(), Put::Updated),
                None => match self.room(bucket, tag, copy.idle, copy.now) {
                    // The choice may have been marked as sharing its tag.
                    Some((way, _, ambiguous)) => {
                        let Some(word) = self.word(bucket, way) else { return Put::Full };
                        (way, Entry(word.load()), ambiguous, Put::Inserted)
                    }
                    None => return Put::Full,
                },
            };
            if put == Put::Inserted && old.proven() && !old.expired(copy.idle, copy.now) {
                continue;
            }
            let new = entry(tag);
            let new = if ambiguous { new.marked_ambiguous() } else { new };
            let (Some(word), Some(place)) = (self.word(bucket, way), self.records.at(bucket * WAYS + way)) else {
                return Put::Full;
            };
            // The word first, as XDP does it: whoever put it there owns the record beside it.
            if word.replace(old.0, new.0) {
                // SAFETY: a record within the mapping; readers check it against its entry's tag.
                unsafe { place.write_volatile(R::of(copy.record)) }
                return put;
            }
        }
        Put::Full
    }
}

/// A flow as it was recorded elsewhere, and by what the entries in its way are judged.
pub struct Copied<'a> {
    /// Its record.
    pub record: &'a Record,
    /// Whether it is IPv6.
    pub v6: bool,
    /// [`redirector_ebpf::tables::Node::idle`].
    pub idle: &'a [u16; 8],
    /// Monotonic time in nanoseconds.
    pub now: u64,
}

impl FlowTables {
    /// How many places there are for flows of both families.
    pub fn places(&self) -> u64 {
        self.v4.places() + self.v6.places()
    }

    /// The flow at a place: those of IPv4 come first.
    pub fn at(&self, key: &HashKey, place: u64) -> Option<Flow> {
        let ways = WAYS as u64;
        match place.checked_sub(self.v4.places()) {
            None => self.v4.flow(key, (place / ways) as usize, (place % ways) as usize),
            Some(place) => self.v6.flow(key, (place / ways) as usize, (place % ways) as usize),
        }
    }

    /// The flow of this tuple.
    pub fn find(&self, key: &HashKey, tuple: &Tuple, v6: bool) -> Option<Flow> {
        if v6 { self.v6.find(key, tuple) } else { self.v4.find(key, tuple) }
    }

    /// Puts a flow into the table with the entry that `entry` makes of its tag: in place of the flow's own if `takes` says
    /// so, else into an empty way, an expired one's or an unproven one's. Proven flows of others are never touched.
    pub fn put(
        &self,
        key: &HashKey,
        copy: &Copied<'_>,
        entry: impl Fn(u32) -> Entry,
        takes: impl Fn(&Flow) -> bool,
    ) -> Put {
        if copy.v6 { self.v6.put(key, copy, entry, takes) } else { self.v4.put(key, copy, entry, takes) }
    }
}
