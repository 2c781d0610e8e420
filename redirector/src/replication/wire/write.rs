//! Batches and answers, written.

use std::collections::HashMap;

use super::{
    ANSWER, Answer, BATCH, BATCH_BYTES_MAX, CHECKSUM, COMPLETE, FlowCopy, HEADER, Header, NAME_BYTES_MAX, ORIGIN, V6,
    VERSION,
};

/// A batch that is being written.
pub struct BatchWriter {
    header: Header,
    limit: usize,
    services: Names,
    backends: Names,
    flows: Vec<u8>,
    count: u16,
}

/// Names that a batch gives places to.
#[derive(Default)]
struct Names {
    places: HashMap<u16, u16>,
    bytes: Vec<u8>,
}

impl Names {
    /// The place of a number, if it has one.
    fn place(&self, id: u16) -> Option<u16> {
        self.places.get(&id).copied()
    }

    fn add(&mut self, id: u16, name: &str) -> u16 {
        let place = self.places.len() as u16;
        self.places.insert(id, place);
        self.bytes.push(name.len() as u8);
        self.bytes.extend_from_slice(name.as_bytes());
        place
    }
}

/// A flow did not go into a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotWritten {
    /// The batch is full.
    Full,
    /// One of its names is empty or longer than any that the maps hold.
    Name,
    /// Its state is none of its protocol's: the receiver would refuse the whole batch.
    State,
}

impl BatchWriter {
    /// An empty batch that grows to `limit` bytes at most.
    pub fn new(header: Header, limit: usize) -> Self {
        let limit = limit.min(BATCH_BYTES_MAX);
        Self { header, limit, services: Names::default(), backends: Names::default(), flows: Vec::new(), count: 0 }
    }

    /// Says whether the receiver has been given everything.
    pub fn complete(&mut self, complete: bool) {
        self.header.complete = complete;
    }

    /// How many flows it holds.
    pub fn count(&self) -> u16 {
        self.count
    }

    /// Adds a flow whose `service` and `backend` are numbers of this node, called like this.
    ///
    /// # Errors
    /// [`NotWritten`]; the batch stays as it was.
    pub fn push(&mut self, flow: &FlowCopy, service: &str, backend: &str) -> Result<(), NotWritten> {
        if [service, backend].iter().any(|name| name.is_empty() || name.len() > NAME_BYTES_MAX) {
            return Err(NotWritten::Name);
        }
        if super::state(flow.state as u8, flow.key.tuple().protocol).is_none() {
            return Err(NotWritten::State);
        }
        let names = self.services.bytes.len() + self.backends.bytes.len() + service.len() + backend.len() + 2;
        // A flow takes 36 bytes of addresses and ports, 3 single ones and 19 of numbers at most.
        let most = HEADER + names + self.flows.len() + 58 + CHECKSUM;
        if most > self.limit || self.count == u16::MAX {
            return Err(NotWritten::Full);
        }
        let service = self.services.place(flow.service).unwrap_or_else(|| self.services.add(flow.service, service));
        let backend = self.backends.place(flow.backend).unwrap_or_else(|| self.backends.add(flow.backend, backend));
        let (tuple, v6) = (flow.key.tuple(), flow.key.v6());
        let foreign = flow.origin != self.header.sender;
        let out = &mut self.flows;
        out.push(flow.state as u8 | if v6 { V6 } else { 0 } | if foreign { ORIGIN } else { 0 });
        out.push(tuple.protocol);
        for address in [&tuple.src, &tuple.dst] {
            address.words.iter().take(if v6 { 4 } else { 1 }).for_each(|word| out.extend(word.to_ne_bytes()));
        }
        out.extend(tuple.sport.to_ne_bytes());
        out.extend(tuple.dport.to_ne_bytes());
        for value in [u32::from(service), u32::from(backend), u32::from(flow.idle), flow.age, flow.version] {
            number(out, value);
        }
        if foreign {
            out.push(flow.origin);
        }
        self.count += 1;
        Ok(())
    }

    /// The batch's bytes.
    pub fn finish(self) -> Vec<u8> {
        let Header { cluster, sender, incarnation, sequence, receiver, complete, as_of } = self.header;
        let mut out = vec![BATCH, VERSION, if complete { COMPLETE } else { 0 }, sender];
        out.extend(cluster.to_be_bytes());
        [incarnation, sequence, receiver, as_of].iter().for_each(|word| out.extend(word.to_be_bytes()));
        let counts = [self.services.places.len() as u16, self.backends.places.len() as u16, self.count, 0];
        counts.iter().for_each(|count| out.extend(count.to_be_bytes()));
        [&self.services.bytes, &self.backends.bytes, &self.flows].into_iter().for_each(|part| out.extend(part));
        sealed(out)
    }
}

/// Appends a number in seven-bit groups.
fn number(out: &mut Vec<u8>, mut value: u32) {
    while value > 0x7f {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

impl Answer {
    /// The answer's bytes.
    pub fn write(&self) -> Vec<u8> {
        let mut out = vec![ANSWER, VERSION, self.verdict as u8, self.node];
        out.extend(self.cluster.to_be_bytes());
        [self.incarnation, self.sequence].iter().for_each(|word| out.extend(word.to_be_bytes()));
        out.extend((self.missed.len() as u16).to_be_bytes());
        self.missed.iter().for_each(|place| out.extend(place.to_be_bytes()));
        sealed(out)
    }
}

fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    let checksum = crc32c::crc32c(&bytes);
    bytes.extend(checksum.to_be_bytes());
    bytes
}
