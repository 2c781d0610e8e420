//! The frames' form.

use proptest::prelude::*;

use super::super::Channel;
use super::super::frame::{FrameError, HEADER, Header, Kind, PAYLOAD_MAX, VERSION, header};

fn frame(channel: Channel, kind: Kind, payload: &[u8]) -> Vec<u8> {
    [header(channel, kind, payload).unwrap().as_slice(), payload].concat()
}

/// Reads bytes that should be one frame.
fn read(bytes: &[u8]) -> Result<(Channel, Kind, Vec<u8>), FrameError> {
    let Some((first, payload)) = bytes.split_first_chunk::<HEADER>() else {
        return Err(FrameError::Truncated { present: bytes.len(), promised: HEADER });
    };
    let header = Header::read(first)?;
    header.check(payload)?;
    Ok((header.channel, header.kind, payload.to_vec()))
}

fn channel() -> impl Strategy<Value = Channel> {
    proptest::sample::select(Channel::ALL.to_vec())
}

fn kind() -> impl Strategy<Value = Kind> {
    proptest::sample::select(vec![Kind::Tell, Kind::Request, Kind::Answer, Kind::Welcome, Kind::Farewell])
}

fn payload() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..300)
}

#[test]
fn a_frame_is_byte_by_byte_what_the_module_says() {
    let bytes = frame(Channel::Control, Kind::Request, b"abc");
    assert_eq!(bytes[..12], *b"RDTP\x01\x02\x01\x00\x00\x00\x00\x03");
    let covered = [&bytes[..12], b"abc"].concat();
    assert_eq!(bytes[12..16], crc32c::crc32c(&covered).to_be_bytes());
    assert_eq!(&bytes[16..], b"abc");
}

#[test]
fn what_has_no_meaning_is_refused_by_its_name() {
    let changed = |at: usize, to: u8| {
        let mut bytes = frame(Channel::Flows, Kind::Tell, b"payload");
        bytes[at] = to;
        read(&bytes).unwrap_err()
    };
    assert_eq!(changed(0, b'X'), FrameError::Magic(*b"XDTP"));
    assert_eq!(changed(4, VERSION + 1), FrameError::Version { theirs: VERSION + 1 });
    assert_eq!(changed(5, 3), FrameError::Field { field: "channel", value: 3 });
    assert_eq!(changed(6, 5), FrameError::Field { field: "kind", value: 5 });
    assert_eq!(changed(7, 1), FrameError::Field { field: "7", value: 1 });
    assert!(matches!(changed(8, 2), FrameError::Oversized(_)));
    let says = changed(4, 9).to_string();
    assert!(says.contains("version 9") && says.contains(&format!("version {VERSION}")), "{says}");
}

#[test]
fn the_longest_payload_fits_and_one_byte_more_does_not() {
    let mut payload = vec![7; PAYLOAD_MAX];
    let first = header(Channel::Flows, Kind::Tell, &payload).unwrap();
    assert_eq!(Header::read(&first).unwrap().check(&payload), Ok(()));
    payload.push(7);
    assert_eq!(header(Channel::Flows, Kind::Tell, &payload), Err(FrameError::Oversized(PAYLOAD_MAX + 1)));
}

proptest! {
    #[test]
    fn what_is_written_is_read(channel in channel(), kind in kind(), payload in payload()) {
        prop_assert_eq!(read(&frame(channel, kind, &payload)), Ok((channel, kind, payload)));
    }

    #[test]
    fn any_changed_byte_is_found(channel in channel(), kind in kind(), payload in payload(), flip in 1u8..) {
        let good = frame(channel, kind, &payload);
        for at in 0..good.len() {
            let mut bytes = good.clone();
            bytes[at] ^= flip;
            prop_assert!(read(&bytes).is_err(), "byte {} of {}", at, good.len());
        }
    }

    #[test]
    fn any_part_of_a_frame_is_refused(channel in channel(), kind in kind(), payload in payload()) {
        let good = frame(channel, kind, &payload);
        for end in 0..good.len() {
            prop_assert!(matches!(read(&good[..end]), Err(FrameError::Truncated { .. })), "the first {} bytes", end);
        }
        prop_assert_eq!(read(&[good.as_slice(), &[0]].concat()), Err(FrameError::Trailing(1)));
    }

    #[test]
    fn noise_is_refused(bytes in proptest::collection::vec(any::<u8>(), 0..100), real in 0usize..HEADER) {
        prop_assert!(read(&bytes).is_err());
        // Noise that begins as a frame does.
        let good = frame(Channel::Flows, Kind::Tell, b"");
        prop_assert!(read(&[&good[..real], &bytes].concat()).map_or(true, |read| read.2.len() < PAYLOAD_MAX));
    }
}
