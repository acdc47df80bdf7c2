//! Questions from any thread to a core, and its answers: how a control socket's threads reach the
//! state that belongs to a core.
//!
//! The asking thread blocks, for a bounded time; the core never does. A question that nobody waits
//! for any more is answered into the void.

use cleave_runtime::executor::Doorbell;
use cleave_runtime::ring::{Consumer, Producer, ring};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Questions that wait for the core at a time.
const WAITING_MAX: usize = 64;

type Asked<Q, A> = (Q, Reply<A>);

/// The asking end.
pub struct Asker<Q: Send, A: Send>(Mutex<Producer<Asked<Q, A>>>);

/// The core's end.
pub struct Questions<Q: Send, A: Send>(Consumer<Asked<Q, A>>);

/// For the answer to one question.
pub struct Reply<A>(SyncSender<A>);

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoAnswer {
    /// The core does not keep up, or is in the middle of something long.
    #[error("the engine is busy; try again")]
    Busy,
    /// The core has ended.
    #[error("the engine is stopping")]
    Stopping,
}

/// Both ends; `doorbell` wakes the core.
pub fn questions<Q: Send, A: Send>(doorbell: Arc<dyn Doorbell>) -> (Asker<Q, A>, Questions<Q, A>) {
    let (producer, consumer) = ring(WAITING_MAX, doorbell);
    (Asker(Mutex::new(producer)), Questions(consumer))
}

impl<Q: Send, A: Send> Asker<Q, A> {
    /// Asks, and waits for at most `wait`.
    pub fn ask(&self, question: Q, wait: Duration) -> Result<A, NoAnswer> {
        let (reply, answer) = sync_channel(1);
        let pushed = {
            let producer = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            producer.push((question, Reply(reply)))
        };
        match pushed {
            Ok(()) => {}
            Err(cleave_runtime::ring::Refused::Full(_)) => return Err(NoAnswer::Busy),
            Err(cleave_runtime::ring::Refused::Closed(_)) => return Err(NoAnswer::Stopping),
        }
        answer.recv_timeout(wait).map_err(|error| match error {
            std::sync::mpsc::RecvTimeoutError::Timeout => NoAnswer::Busy,
            std::sync::mpsc::RecvTimeoutError::Disconnected => NoAnswer::Stopping,
        })
    }
}

impl<Q: Send, A: Send> Questions<Q, A> {
    /// The next question, if there is one.
    pub fn next(&self) -> Option<(Q, Reply<A>)> {
        self.0.pop()
    }
}

impl<A> Reply<A> {
    /// Answers.
    pub fn send(self, answer: A) {
        // It has room for one; an asker that is gone does not need it.
        let _ = self.0.try_send(answer);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_runtime::executor::NoDoorbell;

    #[test]
    fn every_question_has_an_answer_or_a_reason() {
        let (asker, questions) = questions::<u32, u32>(Arc::new(NoDoorbell));
        assert_eq!(asker.ask(1, Duration::ZERO), Err(NoAnswer::Busy));
        let (stale, reply) = questions.next().unwrap();
        reply.send(stale);
        let asker = Arc::new(asker);
        let asking = {
            let asker = Arc::clone(&asker);
            std::thread::spawn(move || asker.ask(20, Duration::from_secs(60)))
        };
        let (question, reply) = loop {
            if let Some(found) = questions.next() {
                break found;
            }
            std::thread::yield_now();
        };
        reply.send(question + 1);
        assert_eq!(asking.join().unwrap(), Ok(21));
        drop(questions);
        assert_eq!(asker.ask(3, Duration::from_secs(60)), Err(NoAnswer::Stopping));
    }

    #[test]
    fn a_full_ring_says_so() {
        let (asker, _questions) = questions::<usize, ()>(Arc::new(NoDoorbell));
        for number in 0..=WAITING_MAX {
            assert_eq!(asker.ask(number, Duration::ZERO), Err(NoAnswer::Busy));
        }
    }
}
