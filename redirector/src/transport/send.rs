//! The way out: a bounded queue and a stream for what each channel tells, and a stream for each request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

use quinn::{Connection, ConnectionError, SendStream, WriteError};
use tokio::sync::{Semaphore, mpsc, watch};

use super::counters::Tally;
use super::frame::{self, HEADER, Kind};
use super::peer::Peer;
use super::receive::{self, Refused};
use super::{Channel, RequestError, code};

/// Frames that may wait for a peer on a channel.
pub(super) const FRAMES_MAX: usize = 1024;

/// Bytes that may wait for a peer on a channel: two frames of the greatest length.
const BYTES_MAX: usize = 2 * (HEADER + frame::PAYLOAD_MAX);

/// Requests that may be under way to a peer on a channel.
pub(super) const REQUESTS_MAX: usize = 32;

/// How long a message that is being written may still take when there is a newer connection: the older may be well, and
/// then what was written before it is still under way there; or dead.
const SUCCESSION: Duration = Duration::from_secs(1);

/// What waits for one peer on one channel.
#[derive(Debug)]
pub(super) struct Lane {
    queue: mpsc::Sender<Message>,
    bytes: AtomicUsize,
    requests: Semaphore,
}

/// A frame on its way.
#[derive(Debug)]
pub(super) struct Message {
    header: [u8; HEADER],
    payload: Vec<u8>,
}

impl Message {
    fn size(&self) -> usize {
        HEADER + self.payload.len()
    }
}

impl Lane {
    pub(super) fn new() -> (Self, mpsc::Receiver<Message>) {
        let (queue, waiting) = mpsc::channel(FRAMES_MAX);
        (Self { queue, bytes: AtomicUsize::new(0), requests: Semaphore::new(REQUESTS_MAX) }, waiting)
    }

    /// Whether there was room.
    fn put(&self, message: Message) -> bool {
        let size = message.size();
        let room = |bytes: usize| bytes.checked_add(size).filter(|&bytes| bytes <= BYTES_MAX);
        if self.bytes.fetch_update(Relaxed, Relaxed, room).is_err() {
            return false;
        }
        let put = self.queue.try_send(message).is_ok();
        if !put {
            self.bytes.fetch_sub(size, Relaxed);
        }
        put
    }
}

/// Puts a message into the queue, or drops and counts it.
pub(super) fn tell(peer: &Peer, channel: Channel, payload: Vec<u8>) {
    let put = match frame::header(channel, Kind::Tell, &payload) {
        Ok(header) => peer.connection().is_some() && peer.lane(channel).put(Message { header, payload }),
        Err(error) => {
            tracing::error!(peer = peer.id, ?channel, %error, "a message cannot be sent");
            false
        }
    };
    if !put {
        Tally::one(&peer.tally.dropped);
    }
}

/// Sends what waits on a channel, as long as there is the peer.
pub(super) async fn drain(peer: Arc<Peer>, channel: Channel, mut waiting: mpsc::Receiver<Message>) {
    let mut outlet = Outlet { current: peer.watch(), stream: None };
    while let Some(message) = waiting.recv().await {
        let sent = outlet.send(&message).await;
        peer.lane(channel).bytes.fetch_sub(message.size(), Relaxed);
        match sent {
            true => peer.tally.went(message.size()),
            false => Tally::one(&peer.tally.dropped),
        }
    }
}

/// The stream of a channel, moved to the current connection when that changes.
struct Outlet {
    current: watch::Receiver<Option<Connection>>,
    stream: Option<(usize, Whole)>,
}

impl Outlet {
    /// Sends a message, or tells that it could not be sent.
    async fn send(&mut self, message: &Message) -> bool {
        loop {
            let Some(connection) = self.current.borrow_and_update().clone() else {
                self.stream = None;
                return false;
            };
            let attempt = write(&mut self.stream, &connection, message);
            let other = |current: &Option<Connection>| {
                current.as_ref().is_some_and(|current| current.stable_id() != connection.stable_id())
            };
            let succeeded = async {
                drop(self.current.wait_for(other).await);
                tokio::time::sleep(SUCCESSION).await;
            };
            let sent = tokio::select! {
                sent = attempt => sent,
                () = succeeded => Err(WriteError::ClosedStream),
            };
            if sent.is_ok() {
                return true;
            }
            // Cut off in the middle, the message is sent over the next connection from its beginning.
            self.stream = None;
            if !other(&self.current.borrow()) {
                return false;
            }
        }
    }
}

/// Writes to the stream, which is opened first if it is another connection's.
async fn write(
    stream: &mut Option<(usize, Whole)>,
    connection: &Connection,
    message: &Message,
) -> Result<(), WriteError> {
    let id = connection.stable_id();
    if stream.as_ref().is_none_or(|(of, _)| *of != id) {
        *stream = Some((id, Whole::new(connection.open_uni().await?)));
    }
    match stream {
        Some((_, stream)) => stream.write(&message.header, &message.payload).await,
        None => Ok(()),
    }
}

/// A stream that is reset, not finished, if it is dropped within a frame: so its reader knows that nothing is damaged.
pub(super) struct Whole(SendStream, bool);

impl Whole {
    pub(super) fn new(stream: SendStream) -> Self {
        Self(stream, false)
    }

    /// Writes a frame.
    pub(super) async fn write(&mut self, header: &[u8; HEADER], payload: &[u8]) -> Result<(), WriteError> {
        self.1 = true;
        self.0.write_all(header).await?;
        self.0.write_all(payload).await?;
        self.1 = false;
        Ok(())
    }
}

impl Drop for Whole {
    fn drop(&mut self) {
        if self.1 {
            // It may have ended already, with its connection.
            let _ = self.0.reset(code::ABANDONED);
        }
    }
}

/// Asks a peer.
pub(super) async fn request(
    peer: &Peer,
    channel: Channel,
    payload: Vec<u8>,
    timeout: Duration,
) -> Result<Vec<u8>, RequestError> {
    let header = frame::header(channel, Kind::Request, &payload).map_err(RequestError::Oversized)?;
    let connection = peer.connection().ok_or(RequestError::Away(peer.id))?;
    let _under_way = peer.lane(channel).requests.try_acquire().map_err(|_| RequestError::Busy(peer.id))?;
    let message = Message { header, payload };
    let answer = exchange(peer, &connection, channel, &message);
    tokio::time::timeout(timeout, answer).await.unwrap_or(Err(RequestError::Late(peer.id)))
}

async fn exchange(
    peer: &Peer,
    connection: &Connection,
    channel: Channel,
    message: &Message,
) -> Result<Vec<u8>, RequestError> {
    let lost = |_: ConnectionError| RequestError::Lost(peer.id);
    let (stream, mut answer) = connection.open_bi().await.map_err(lost)?;
    let mut stream = Whole::new(stream);
    stream.write(&message.header, &message.payload).await.map_err(|error| match error {
        WriteError::Stopped(_) => RequestError::Declined(peer.id),
        _ => RequestError::Lost(peer.id),
    })?;
    // Dropped after a whole frame, the stream is finished.
    drop(stream);
    peer.tally.went(message.size());
    let payload = receive::only(&mut answer, Kind::Answer, Some(channel)).await.map_err(|refused| match refused {
        Refused::Frame(error) => {
            Tally::one(&peer.tally.damaged_frames);
            RequestError::Damaged { peer: peer.id, error }
        }
        Refused::Reset(code::DECLINED) => RequestError::Declined(peer.id),
        Refused::Reset(_) | Refused::Lost => RequestError::Lost(peer.id),
    })?;
    peer.tally.came(HEADER + payload.1.len());
    Ok(payload.1)
}
