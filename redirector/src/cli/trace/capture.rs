//! Packets for a file that other tools read.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use pcap_file::pcap::{PcapHeader, PcapPacket, PcapWriter};
use pcap_file::{DataLink, TsResolution};
use redirector_ebpf::tables::trace::{CAPTURE_BYTES, Captured};

use crate::dataplane::flows::now;

/// Packets on their way from the data plane into a file.
pub(super) struct Capture {
    ring: RingBuf<MapData>,
    file: PcapWriter<BufWriter<File>>,
    /// Wall-clock time at which the monotonic clock started.
    boot: Duration,
}

impl Capture {
    /// Makes the file; what an earlier trace left in the ring is dropped.
    pub(super) fn open(directory: &Path, file: &Path) -> Result<Self> {
        let pin = directory.join("CAPTURED");
        let map = MapData::from_pin(&pin).with_context(|| format!("cannot open {}", pin.display()))?;
        let mut ring = RingBuf::try_from(Map::RingBuf(map))?;
        while ring.next().is_some() {}
        let writer = File::create(file).with_context(|| format!("cannot make {}", file.display()))?;
        let header = PcapHeader {
            datalink: DataLink::ETHERNET,
            ts_resolution: TsResolution::NanoSecond,
            snaplen: CAPTURE_BYTES as u32,
            ..PcapHeader::default()
        };
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let boot = wall.saturating_sub(Duration::from_nanos(now()));
        Ok(Self { ring, file: PcapWriter::with_header(BufWriter::new(writer), header)?, boot })
    }

    /// Writes what has come since.
    pub(super) fn drain(&mut self) -> Result<()> {
        while let Some(record) = self.ring.next() {
            let Some(captured) = read(&record) else { continue };
            let kept = captured.kept.min(CAPTURE_BYTES as u32) as usize;
            let time = self.boot + Duration::from_nanos(captured.time);
            let packet = PcapPacket::new(time, captured.length, &captured.bytes[..kept]);
            self.file.write_packet(&packet).context("cannot write the packets")?;
        }
        Ok(())
    }
}

fn read(record: &[u8]) -> Option<Captured> {
    if record.len() < size_of::<Captured>() {
        return None;
    }
    // SAFETY: as long as the record, as was checked, and any bytes are one.
    Some(unsafe { record.as_ptr().cast::<Captured>().read_unaligned() })
}
