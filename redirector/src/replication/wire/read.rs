//! Batches and answers, read. Everything is checked before anything of it counts.

use redirector_ebpf::packet::{Address, Tuple};

use super::{
    ANSWER, Answer, BATCH, BATCH_BYTES_MAX, Batch, CHECKSUM, COMPLETE, FlowCopy, FlowKey, Header, IDLE_MAX,
    NAME_BYTES_MAX, ORIGIN, Refused, STATE, V6, VERSION, Verdict,
};

impl Batch {
    /// Reads a batch of this cluster, all of it or nothing.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read(bytes: &[u8], cluster: u32) -> Result<Self, Refused> {
        let mut reader = opened(bytes, BATCH)?;
        let flags = reader.byte("header")?;
        if flags & !COMPLETE != 0 {
            return Err(Refused::Absurd("flags"));
        }
        let sender = reader.byte("header").and_then(node)?;
        match u32::from_be_bytes(reader.take("header")?) {
            own if own == cluster => {}
            other => return Err(Refused::Cluster(other)),
        }
        let (incarnation, sequence) = (reader.word()?, reader.word()?);
        let (receiver, as_of) = (reader.word()?, reader.word()?);
        let (services, backends, flows) = (reader.count()?, reader.count()?, reader.count()?);
        if reader.count()? != 0 {
            return Err(Refused::Absurd("header"));
        }
        let services = (0..services).map(|_| reader.name()).collect::<Result<Vec<_>, _>>()?;
        let backends = (0..backends).map(|_| reader.name()).collect::<Result<Vec<_>, _>>()?;
        let flows =
            (0..flows).map(|_| reader.flow(sender, services.len(), backends.len())).collect::<Result<Vec<_>, _>>()?;
        if !reader.0.is_empty() {
            return Err(Refused::Absurd("length"));
        }
        let header =
            Header { cluster, sender, incarnation, sequence, receiver, complete: flags & COMPLETE != 0, as_of };
        Ok(Self { header, services, backends, flows })
    }
}

impl Answer {
    /// Reads an answer of this cluster.
    ///
    /// # Errors
    /// [`Refused`].
    pub fn read(bytes: &[u8], cluster: u32) -> Result<Self, Refused> {
        let mut reader = opened(bytes, ANSWER)?;
        let verdict = match reader.byte("header")? {
            1 => Verdict::Taken,
            2 => Verdict::Damaged,
            3 => Verdict::Stale,
            4 => Verdict::Refused,
            _ => return Err(Refused::Absurd("verdict")),
        };
        let node = reader.byte("header").and_then(node)?;
        match u32::from_be_bytes(reader.take("header")?) {
            own if own == cluster => {}
            other => return Err(Refused::Cluster(other)),
        }
        let (incarnation, sequence) = (reader.word()?, reader.word()?);
        let missed = (0..reader.count()?).map(|_| reader.count()).collect::<Result<Vec<_>, _>>()?;
        if reader.0.is_empty() {
            Ok(Self { verdict, node, cluster, incarnation, sequence, missed })
        } else {
            Err(Refused::Absurd("length"))
        }
    }
}

/// What stands before the checksum, if that fits and kind and version are known.
fn opened(bytes: &[u8], kind: u8) -> Result<Reader<'_>, Refused> {
    if bytes.len() > BATCH_BYTES_MAX {
        return Err(Refused::Absurd("length"));
    }
    let (content, checksum) = bytes.split_last_chunk::<CHECKSUM>().ok_or(Refused::Damaged)?;
    if crc32c::crc32c(content) != u32::from_be_bytes(*checksum) {
        return Err(Refused::Damaged);
    }
    let mut reader = Reader(content);
    if reader.byte("kind")? != kind {
        return Err(Refused::Absurd("kind"));
    }
    match reader.byte("version")? {
        VERSION => Ok(reader),
        other => Err(Refused::Version(other)),
    }
}

/// Bytes that are read from the front.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], Refused> {
        let (first, rest) = self.0.split_first_chunk::<N>().ok_or(Refused::Absurd(what))?;
        self.0 = rest;
        Ok(*first)
    }

    fn byte(&mut self, what: &'static str) -> Result<u8, Refused> {
        Ok(self.take::<1>(what)?[0])
    }

    fn count(&mut self) -> Result<u16, Refused> {
        Ok(u16::from_be_bytes(self.take("header")?))
    }

    fn word(&mut self) -> Result<u64, Refused> {
        Ok(u64::from_be_bytes(self.take("header")?))
    }

    /// A number in seven-bit groups, in its shortest form.
    fn number(&mut self, what: &'static str) -> Result<u32, Refused> {
        let mut value = 0u64;
        for shift in (0..35).step_by(7) {
            let byte = self.byte(what)?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                let shortest = byte != 0 || shift == 0;
                return u32::try_from(value).ok().filter(|_| shortest).ok_or(Refused::Absurd(what));
            }
        }
        Err(Refused::Absurd(what))
    }

    fn name(&mut self) -> Result<String, Refused> {
        const NAME: Refused = Refused::Absurd("name");
        let length = usize::from(self.byte("name")?);
        if length == 0 || length > NAME_BYTES_MAX || length > self.0.len() {
            return Err(NAME);
        }
        let (name, rest) = self.0.split_at(length);
        self.0 = rest;
        let name = std::str::from_utf8(name).map_err(|_| NAME)?;
        if name.bytes().any(|byte| byte == 0) { Err(NAME) } else { Ok(name.to_owned()) }
    }

    fn address(&mut self, v6: bool) -> Result<Address, Refused> {
        let mut address = Address::default();
        for word in address.words.iter_mut().take(if v6 { 4 } else { 1 }) {
            *word = u32::from_ne_bytes(self.take("address")?);
        }
        Ok(address)
    }

    fn flow(&mut self, sender: u8, services: usize, backends: usize) -> Result<FlowCopy, Refused> {
        let head = self.byte("flow")?;
        if head & !(STATE | V6 | ORIGIN) != 0 {
            return Err(Refused::Absurd("flow's first byte"));
        }
        let v6 = head & V6 != 0;
        let protocol = self.byte("protocol")?;
        let state = super::state(head & STATE, protocol).ok_or(Refused::Absurd("state"))?;
        let (src, dst) = (self.address(v6)?, self.address(v6)?);
        let (sport, dport) = (u16::from_ne_bytes(self.take("port")?), u16::from_ne_bytes(self.take("port")?));
        let service = self.number("service").and_then(|place| below(place, services, "service"))?;
        let backend = self.number("backend").and_then(|place| below(place, backends, "backend"))?;
        let idle = self.number("idle time").and_then(|idle| below(idle, IDLE_MAX as usize + 1, "idle time"))?;
        let (age, version) = (self.number("age")?, self.number("slot version")?);
        let origin = match head & ORIGIN {
            0 => sender,
            _ => self.byte("origin").and_then(node)?,
        };
        let key = FlowKey::new(&Tuple { src, dst, sport, dport, protocol }, v6);
        Ok(FlowCopy { key, state, service, backend, idle, age, version, origin })
    }
}

fn below(value: u32, limit: usize, what: &'static str) -> Result<u16, Refused> {
    if (value as usize) < limit { Ok(value as u16) } else { Err(Refused::Absurd(what)) }
}

fn node(id: u8) -> Result<u8, Refused> {
    if (1..=254).contains(&id) { Ok(id) } else { Err(Refused::Absurd("node id")) }
}
