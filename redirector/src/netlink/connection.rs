//! A netlink socket, and one question at a time over it.

use std::io;

use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::Error;
use super::wire::{self, Message, Request};

/// A dump during which the table changed is taken again, so often.
const DUMPS_MAX: usize = 8;

pub(super) struct Connection {
    socket: AsyncFd<Socket>,
    sequence: u32,
}

impl Connection {
    /// Opens a socket in the network namespace of this thread.
    pub(super) fn open(protocol: isize, groups: &[u32]) -> Result<Self, Error> {
        let open = || {
            let mut socket = Socket::new(protocol)?;
            socket.bind_auto()?;
            socket.set_non_blocking(true)?;
            // Words for why something is refused, without the refused request. Both are as old as Linux 4.12.
            socket.set_ext_ack(true)?;
            socket.set_cap_ack(true)?;
            for &group in groups {
                socket.add_membership(group)?;
            }
            // SAFETY: the socket owns its descriptor, and is only ever lent out by reference.
            unsafe { AsyncFd::register(socket) }.map_err(io::Error::from)
        };
        let socket = open().map_err(|source| Error::Socket { doing: "open a socket", source })?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks, and collects what `take` makes of each message of the answer.
    pub(super) async fn ask<T>(
        &mut self,
        mut request: Request,
        take: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Vec<T>, Error> {
        for _ in 0..DUMPS_MAX {
            if let Some(answer) = self.ask_once(&mut request, &take).await? {
                return Ok(answer);
            }
        }
        Err(Error::Restless(request.what))
    }

    /// None is an answer that was not consistent.
    async fn ask_once<T>(
        &mut self,
        request: &mut Request,
        take: impl Fn(Message<'_>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, Error> {
        self.sequence += 1;
        let bytes = request.finish(self.sequence);
        self.socket
            .async_io(Interest::WRITABLE, |socket| socket.send_to(bytes, &SocketAddr::new(0, 0), 0))
            .await
            .map_err(|source| Error::Socket { doing: "send a request", source })?;
        let (mut answer, mut consistent) = (Vec::new(), true);
        loop {
            let datagram =
                self.receive().await.map_err(|source| Error::Socket { doing: "receive an answer", source })?;
            for message in wire::messages(&datagram).filter(|message| message.sequence == self.sequence) {
                consistent &= message.flags & wire::NLM_F_DUMP_INTR == 0;
                match message.kind {
                    wire::NLMSG_ERROR | wire::NLMSG_DONE => {
                        refusal(request.what, message)?;
                        return Ok(consistent.then_some(answer));
                    }
                    _ => answer.extend(take(message)),
                }
            }
        }
    }

    /// Throws away what is waiting to be received. Once a datagram did not fit, the kernel drops all further ones,
    /// and says so no second time, until the socket is empty.
    pub(super) fn drain(&self) {
        let full = |error: &io::Error| error.raw_os_error() == Some(libc::ENOBUFS);
        while self.socket.get_ref().recv_from_full().map_or_else(|error| full(&error), |_| true) {}
    }

    /// The next datagram.
    pub(super) async fn receive(&self) -> io::Result<Vec<u8>> {
        let (datagram, _) = self.socket.async_io(Interest::READABLE, Socket::recv_from_full).await?;
        Ok(datagram)
    }
}

/// The error in the last message of an answer; the number 0 is none.
fn refusal(request: &'static str, message: Message<'_>) -> Result<(), Error> {
    const NLMSGERR_ATTR_MSG: u16 = 1;
    const REQUEST_HEADER: usize = 16;
    let number = wire::u32_at(message.body, 0).unwrap_or(0) as i32;
    if number == 0 {
        return Ok(());
    }
    let capped = message.kind == wire::NLMSG_ERROR && message.flags & wire::NLM_F_CAPPED != 0;
    let words = message.body.get(if capped { 4 + REQUEST_HEADER } else { 4 }..).unwrap_or_default();
    let says = (message.flags & wire::NLM_F_ACK_TLVS != 0)
        .then(|| wire::attributes(words).find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG))
        .flatten()
        .map(|(_, value)| wire::text(value));
    Err(Error::Refused { request, says, source: io::Error::from_raw_os_error(-number) })
}
