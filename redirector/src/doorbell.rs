//! Wakes a thread that waits for what others put into its queues.
//!
//! A receiver of crossbeam's spins and yields for a while before it sleeps, to be fast where much comes. Where little does,
//! and the thread wakes up dozens of times a second anyway, that was half of what an idle agent's threads took.

use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::Instant;

use crossbeam::channel::{Sender, TrySendError};

/// A bell at a thread's door. All clones are of the same door.
#[derive(Clone, Debug, Default)]
pub struct Doorbell(Arc<OnceLock<Thread>>);

impl Doorbell {
    /// Has this thread be the one that is woken, before it looks into its queues for the first time.
    pub fn answer(&self) {
        self.0.get_or_init(thread::current);
    }

    /// Wakes the thread, or spares it its next sleep. To be called once something is in the queue.
    pub fn ring(&self) {
        self.0.get().into_iter().for_each(Thread::unpark);
    }

    /// Sleeps until the bell rings or `until`; or not at all where it has rung since the last sleep. It may also wake for no
    /// reason.
    pub fn wait(&self, until: Instant) {
        thread::park_timeout(until.saturating_duration_since(Instant::now()));
    }
}

/// A bounded queue into a thread, and the bell at its door.
#[derive(Debug)]
pub struct Letterbox<T> {
    queue: Sender<T>,
    bell: Doorbell,
}

impl<T> Letterbox<T> {
    /// Of the queue that the bell's thread looks into.
    pub fn new(queue: Sender<T>, bell: Doorbell) -> Self {
        Self { queue, bell }
    }

    /// Puts something in and rings.
    ///
    /// # Errors
    /// [`TrySendError`], where the queue is full or nobody looks into it any more.
    pub fn try_send(&self, letter: T) -> Result<(), TrySendError<T>> {
        self.queue.try_send(letter)?;
        self.bell.ring();
        Ok(())
    }
}

impl<T> Clone for Letterbox<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), bell: self.bell.clone() }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use crossbeam::channel::bounded;

    use super::*;

    #[test]
    fn nothing_that_is_sent_is_slept_over() {
        const SENT: u32 = 10_000;
        let (bell, (sender, queue)) = (Doorbell::default(), bounded(SENT as usize));
        let (letterbox, answering) = (Letterbox::new(sender, bell.clone()), bell);
        let receiver = thread::spawn(move || {
            answering.answer();
            let far = Instant::now() + Duration::from_secs(600);
            let mut got = 0;
            while got < SENT {
                match queue.try_recv() {
                    Ok(()) => got += 1,
                    Err(_) => answering.wait(far),
                }
            }
        });
        for number in 0..SENT {
            letterbox.try_send(()).expect("there is room for all");
            if number % 100 == 0 {
                thread::yield_now();
            }
        }
        receiver.join().expect("it got all without a sleep until the far end");
    }
}
