//! Where the nodes' probes find out whether a backend's application is well: a door that is open as long as it is, and shut
//! while it is not. `tcp` probes find it open, `http` ones are told 200.

use std::future::pending;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Visitors at a time; more are turned away, which probes that are set up with sense never notice.
const VISITORS: usize = 64;

/// How long a visitor may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// As much is read of a question.
const QUESTION: usize = 1024;

/// The door.
#[derive(Debug)]
pub struct Door {
    at: SocketAddr,
    open: Option<TcpListener>,
    visitors: Arc<Semaphore>,
}

impl Door {
    /// One that is shut. That it can be opened is tried, so that a wrong address is told at once.
    ///
    /// # Errors
    /// Where the address is not this host's, or is taken.
    pub async fn shut_at(at: SocketAddr) -> io::Result<Self> {
        drop(TcpListener::bind(at).await?);
        Ok(Self { at, open: None, visitors: Arc::new(Semaphore::new(VISITORS)) })
    }

    /// Opens it.
    ///
    /// # Errors
    /// Where the address is taken: then it is as good as shut, and may be opened later.
    pub async fn open(&mut self) -> io::Result<()> {
        if self.open.is_none() {
            self.open = Some(TcpListener::bind(self.at).await?);
        }
        Ok(())
    }

    /// Shuts it. Who waits before it is turned away.
    pub fn shut(&mut self) {
        self.open = None;
    }

    /// Whether it is open.
    pub fn is_open(&self) -> bool {
        self.open.is_some()
    }

    /// Answers whoever comes next; never returns while it is shut. May be dropped and called again.
    ///
    /// # Errors
    /// Where a visitor could not be let in: the next one may be.
    pub async fn answer(&self) -> io::Result<()> {
        let Some(listener) = &self.open else { return pending().await };
        let (visitor, _) = listener.accept().await?;
        if let Ok(permit) = self.visitors.clone().try_acquire_owned() {
            tokio::spawn(async move {
                // Whoever asks nothing, asks for ever or has gone learnt what there was to learn by getting in.
                let _ = timeout(PATIENCE, tell(visitor)).await;
                drop(permit);
            });
        }
        Ok(())
    }
}

async fn tell(mut visitor: TcpStream) -> io::Result<()> {
    let (mut question, mut read) = ([0; QUESTION], 0);
    while read < QUESTION && !question[..read].windows(4).any(|end| end == b"\r\n\r\n") {
        match visitor.read(&mut question[read..]).await? {
            0 => break,
            more => read += more,
        }
    }
    if read > 0 {
        let answer =
            "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 5\r\nConnection: close\r\n\r\nwell\n";
        visitor.write_all(answer.as_bytes()).await?;
    }
    visitor.shutdown().await
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    /// Asks, and says what was answered; none where the door is shut.
    async fn ask(at: SocketAddr, question: &[u8]) -> Option<String> {
        let mut visitor = TcpStream::connect(at).await.ok()?;
        visitor.write_all(question).await.ok()?;
        let mut answer = String::new();
        visitor.read_to_string(&mut answer).await.ok()?;
        Some(answer)
    }

    /// Runs a test beside a door that answers until the test is done.
    async fn beside<T>(door: &Door, test: impl Future<Output = T>) -> T {
        tokio::pin!(test);
        loop {
            tokio::select! {
                done = &mut test => return done,
                answered = door.answer() => answered.unwrap(),
            }
        }
    }

    #[tokio::test]
    async fn who_asks_is_answered_while_it_is_open_alone() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut door = Door::shut_at(free).await.unwrap();
        assert_eq!(beside(&door, ask(free, b"GET / HTTP/1.1\r\n\r\n")).await, None);
        for _ in 0..2 {
            door.open().await.unwrap();
            assert!(door.is_open());
            let answer = beside(&door, ask(free, b"GET /health HTTP/1.1\r\nHost: b\r\n\r\n")).await.unwrap();
            assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\r\n\r\nwell\n"), "{answer}");
            door.shut();
            assert_eq!(beside(&door, ask(free, b"GET / HTTP/1.1\r\n\r\n")).await, None);
        }
        let taken = TcpListener::bind(free).await.unwrap();
        assert!(door.open().await.is_err() && !door.is_open());
        assert!(Door::shut_at(free).await.is_err(), "that it is taken is told at once");
        drop(taken);
        door.open().await.unwrap();
    }

    #[tokio::test]
    async fn visitors_that_ask_too_much_or_never_finish_keep_nobody_out_for_long() {
        let free = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        let mut door = Door::shut_at(free).await.unwrap();
        door.open().await.unwrap();
        let answer = beside(&door, ask(free, &[b'x'; QUESTION])).await;
        assert!(answer.is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "a question without an end");
        beside(&door, async {
            let mut idle = Vec::new();
            for _ in 0..VISITORS {
                idle.push(TcpStream::connect(free).await.unwrap());
            }
            let until = Instant::now() + 30 * PATIENCE;
            while ask(free, b"GET / HTTP/1.1\r\n\r\n").await.is_none_or(|answer| answer.is_empty()) {
                assert!(Instant::now() < until, "those who never ask keep all others out");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
    }
}
