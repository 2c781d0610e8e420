//! The way in: frames are read from streams, judged, and put into the inbox of their channel.
//!
//! While an inbox is full its streams are not read from; QUIC then stops their senders, and nobody else.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use quinn::{Connection, ReadError, ReadExactError, RecvStream, SendStream, VarInt};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::counters::Tally;
use super::endpoint::Shared;
use super::frame::{self, FrameError, HEADER, Header, Kind};
use super::peer::{Peer, farewell};
use super::send::Whole;
use super::{Channel, Incoming, code};

/// Streams with a bad frame after which the connection is ended.
pub(super) const STRIKES: u32 = 16;

/// What is set aside for a payload before any of it has come: a length alone costs no memory.
const FIRST_BYTES: usize = 64 << 10;

/// Why there is no frame.
#[derive(Debug)]
pub(super) enum Refused {
    /// It is a bad one.
    Frame(FrameError),
    /// The peer gave the stream up.
    Reset(VarInt),
    /// The connection is gone.
    Lost,
}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        Self::Frame(error)
    }
}

impl From<ReadError> for Refused {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(code) => Self::Reset(code),
            _ => Self::Lost,
        }
    }
}

/// A connection while it is read from.
struct Link {
    shared: Arc<Shared>,
    peer: Arc<Peer>,
    connection: Connection,
    strikes: AtomicU32,
}

/// Takes a connection and reads from it until it ends.
pub(super) async fn attend(shared: Arc<Shared>, peer: Arc<Peer>, connection: Connection) {
    let Some(superseded) = peer.adopt(&connection) else { return };
    superseded.into_iter().for_each(|old| drop(shared.runtime.spawn(farewell(old))));
    tracing::info!(peer = peer.id, address = %connection.remote_address(), "connected");
    let link = Arc::new(Link { shared, peer, connection, strikes: AtomicU32::new(0) });
    let mut streams = JoinSet::new();
    let error = loop {
        tokio::select! {
            stream = link.connection.accept_uni() => match stream {
                Ok(stream) => drop(streams.spawn(tells(link.clone(), stream))),
                Err(error) => break error,
            },
            streams_of_request = link.connection.accept_bi() => match streams_of_request {
                Ok((answer, request)) => drop(streams.spawn(answered(link.clone(), request, answer))),
                Err(error) => break error,
            },
            Some(_) = streams.join_next() => {}
        }
    };
    link.peer.leave(&link.connection);
    if let Some(unsaid) = link.peer.pace.due() {
        tracing::info!(peer = link.peer.id, %error, unsaid, "a connection has ended");
    }
}

impl Link {
    /// Counts a bad frame, and ends the connection where going on is of no use.
    fn refuse(&self, error: &FrameError) {
        Tally::one(&self.peer.tally.damaged_frames);
        if let Some(unsaid) = self.peer.pace.due() {
            tracing::warn!(peer = self.peer.id, %error, unsaid, "a frame is refused");
        }
        let strikes = self.strikes.fetch_add(1, Relaxed) + 1;
        if let FrameError::Version { .. } = error {
            self.connection.close(code::VERSION, error.to_string().as_bytes());
        } else if strikes >= STRIKES {
            self.connection.close(code::DAMAGED, format!("{strikes} bad frames, the last: {error}").as_bytes());
        }
    }

    async fn deliver(&self, channel: Channel, payload: Vec<u8>, reply: Option<oneshot::Sender<Vec<u8>>>) {
        self.peer.tally.came(HEADER + payload.len());
        let incoming = Incoming { from: self.peer.id, payload, reply };
        // An inbox that was dropped wants nothing; the dropped `reply` says so to who asked.
        let _ = self.shared.inbox(channel).send(incoming).await;
    }
}

/// Reads the stream of a channel.
async fn tells(link: Arc<Link>, mut stream: RecvStream) {
    let mut of = None;
    loop {
        match next(&mut stream, &[Kind::Tell, Kind::Farewell], of).await {
            Ok(Some((header, _))) if header.kind == Kind::Farewell => link.peer.avoid(&link.connection),
            Ok(Some((header, payload))) => {
                of = Some(header.channel);
                link.deliver(header.channel, payload, None).await;
            }
            Err(Refused::Frame(error)) => {
                link.refuse(&error);
                // It may have ended by itself.
                let _ = stream.stop(code::DAMAGED);
                return;
            }
            Ok(None) | Err(Refused::Reset(_) | Refused::Lost) => return,
        }
    }
}

/// Reads a request and sends its answer.
async fn answered(link: Arc<Link>, mut request: RecvStream, mut answer: SendStream) {
    let given_up = answer.stopped();
    let (channel, payload) = match only(&mut request, Kind::Request, None).await {
        Ok(asked) => asked,
        Err(refused) => {
            if let Refused::Frame(error) = refused {
                link.refuse(&error);
            }
            // Both may have ended by themselves.
            let _ = (request.stop(code::DAMAGED), answer.reset(code::DAMAGED));
            return;
        }
    };
    let asked = async {
        let (reply, replied) = oneshot::channel();
        link.deliver(channel, payload, Some(reply)).await;
        replied.await.ok()
    };
    let payload = tokio::select! {
        payload = asked => payload,
        _ = given_up => return,
    };
    let framed = payload.map(|payload| (frame::header(channel, Kind::Answer, &payload), payload));
    match framed {
        Some((Ok(header), payload)) => {
            if Whole::new(answer).write(&header, &payload).await.is_ok() {
                link.peer.tally.went(HEADER + payload.len());
            }
        }
        refused => {
            if let Some((Err(error), _)) = refused {
                tracing::error!(peer = link.peer.id, ?channel, %error, "an answer cannot be sent");
            }
            // The asker may be gone already.
            let _ = answer.reset(code::DECLINED);
        }
    }
}

/// Reads a frame of one of these kinds, and of a channel if that is settled; none at the stream's end.
async fn next(
    stream: &mut RecvStream,
    kinds: &[Kind],
    channel: Option<Channel>,
) -> Result<Option<(Header, Vec<u8>)>, Refused> {
    let mut bytes = [0; HEADER];
    match stream.read_exact(&mut bytes).await {
        Ok(()) => {}
        Err(ReadExactError::FinishedEarly(0)) => return Ok(None),
        Err(ReadExactError::FinishedEarly(present)) => {
            return Err(FrameError::Truncated { present, promised: HEADER }.into());
        }
        Err(ReadExactError::ReadError(error)) => return Err(error.into()),
    }
    let header = Header::read(&bytes)?;
    if !kinds.contains(&header.kind) || channel.is_some_and(|channel| channel != header.channel) {
        return Err(FrameError::Misplaced.into());
    }
    let mut payload = Vec::with_capacity(header.length.min(FIRST_BYTES));
    while payload.len() < header.length {
        match stream.read_chunk(header.length - payload.len(), true).await? {
            Some(chunk) => payload.extend_from_slice(&chunk.bytes),
            None => break,
        }
    }
    header.check(&payload)?;
    Ok(Some((header, payload)))
}

/// Reads a frame that its stream ends with.
pub(super) async fn only(
    stream: &mut RecvStream,
    kind: Kind,
    channel: Option<Channel>,
) -> Result<(Channel, Vec<u8>), Refused> {
    let Some((header, payload)) = next(stream, &[kind], channel).await? else {
        return Err(FrameError::Truncated { present: 0, promised: HEADER }.into());
    };
    match stream.read_chunk(usize::MAX, true).await? {
        Some(chunk) => Err(FrameError::Trailing(chunk.bytes.len()).into()),
        None => Ok((header.channel, payload)),
    }
}
