//! What a controller's keeper does by itself: resets, aborts, events, queues that nobody uses.
//!
//! A reset: tell the pairs to stop; disable the controller, or cut it off from memory when it does
//! not react; tell the pairs that it is stopped, upon which they complete everything as aborted and
//! acknowledge; bring it up; tell the pairs to go on. It is tried three times, then the controller is
//! gone.

use super::{ControllerEvent, Inner};
use crate::error::Error;
use crate::queue::{PairState, Phase};
use crate::spec::command::Command;
use crate::spec::registers::CONFIGURATION;
use std::cell::Cell;
use std::future::poll_fn;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

/// How often a controller is brought up again before it is given up.
const ATTEMPTS: u32 = 3;
/// How long shutdown may take when the controller does not say.
const SHUTDOWN: Duration = Duration::from_secs(10);

/// Runs for as long as the controller is owned.
pub(super) async fn keep(inner: Rc<Inner>, working: Rc<Cell<bool>>) {
    loop {
        poll_fn(|_| if inner.has_work() { Poll::Ready(()) } else { Poll::Pending }).await;
        working.set(true);
        inner.work().await;
        working.set(false);
    }
}

impl Inner {
    /// Whether the keeper has something to do.
    pub(super) fn has_work(&self) -> bool {
        if self.shared.phase().state == PairState::Gone {
            return false;
        }
        for pair in self.pairs.borrow().values() {
            if pair.control.take_fault() {
                let why = match pair.control.violation() {
                    Some(violation) => violation.to_string(),
                    None => "a command was not done in time, and could not be aborted".to_owned(),
                };
                self.fail(why);
            }
        }
        self.fault.borrow().is_some()
            || self.shared.phase().state == PairState::Live
                && (!self.reported.borrow().is_empty() || self.has_pair_work())
    }

    fn has_pair_work(&self) -> bool {
        self.pairs
            .borrow()
            .values()
            .any(|pair| pair.control.asks_abort() || pair.control.has_left())
    }

    /// Does one thing.
    async fn work(&self) {
        let fault = self.fault.borrow_mut().take();
        if let Some(why) = fault {
            return self.recover(why).await;
        }
        let abort = self.pairs.borrow().iter().find_map(|(queue, pair)| {
            pair.control.take_abort().map(|identifier| (*queue, identifier))
        });
        if let Some((queue, identifier)) = abort {
            self.aborts.set(self.aborts.get() + 1);
            // Whether it was aborted shows in the command's own completion, or in its absence.
            let command = Command::abort(queue, identifier);
            let _ = self.execute_unless_faulty("abort a command", command).await;
            return;
        }
        let event = self.reported.borrow_mut().pop_front();
        if let Some(event) = event {
            return self.unless_faulty(self.look_into(event)).await.unwrap_or(());
        }
        let left =
            self.pairs.borrow().iter().find(|(_, pair)| pair.control.has_left()).map(|(q, _)| *q);
        if let Some(queue) = left {
            self.delete_queues(queue).await;
        }
    }

    /// Runs a future to its end, or until the controller must be reset: the reset comes first.
    pub(super) async fn unless_faulty<T>(&self, future: impl Future<Output = T>) -> Option<T> {
        let mut future = std::pin::pin!(future);
        poll_fn(|context| {
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                return Poll::Ready(Some(value));
            }
            self.has_work();
            if self.fault.borrow().is_some() { Poll::Ready(None) } else { Poll::Pending }
        })
        .await
    }

    async fn execute_unless_faulty(&self, what: &'static str, command: Command) -> Option<()> {
        self.unless_faulty(self.execute(what, command, None)).await?.ok().map(|_| ())
    }

    /// Tells the controller to forget the queues of a pair that was dropped, then frees them.
    async fn delete_queues(&self, queue: u16) {
        let commands = [
            ("delete a submission queue", Command::delete_submission_queue(queue)),
            ("delete a completion queue", Command::delete_completion_queue(queue)),
        ];
        for (what, command) in commands {
            // Refused is as good: then there is no such queue.
            let executed = self.unless_faulty(self.execute(what, command, None)).await;
            if !matches!(executed, Some(Ok(_) | Err(Error::Command { .. }))) {
                // It is still known to the controller; a reset makes it forget.
                return;
            }
        }
        self.pairs.borrow_mut().remove(&queue);
    }

    /// Resets the controller, or gives it up.
    async fn recover(&self, why: String) {
        let mut last = why.clone();
        for _ in 0..ATTEMPTS {
            if let Err(error) = self.stop().await {
                last = format!("{why}; {error}");
                if self.shared.phase().state == PairState::Gone {
                    return self.tell(ControllerEvent::Gone(last));
                }
                if self.shared.phase().state == PairState::Stopping {
                    // Not even memory could be taken from it: nothing that it was told of is freed.
                    self.tell(ControllerEvent::Gone(last.clone()));
                    self.shared.give_up();
                    std::future::pending::<()>().await;
                }
                // It may still work on what it was told before: it must not reach memory again.
                self.fault.borrow_mut().take();
                continue;
            }
            // What is wrong from here on is about the new start.
            self.fault.borrow_mut().take();
            match self.unless_faulty(self.bring_up()).await {
                Some(Ok(())) => return self.tell(ControllerEvent::Reset(why)),
                Some(Err(error)) => last = format!("{why}; {error}"),
                None => last = format!("{why}; it failed again while it was brought up"),
            }
        }
        // The last attempt may have left it enabled.
        let _ = self.stop().await;
        if self.shared.phase().state != PairState::Stopping {
            let resets = self.shared.phase().resets + 1;
            self.shared.set_phase(Phase { state: PairState::Gone, resets });
        }
        self.fault.borrow_mut().take();
        self.tell(ControllerEvent::Gone(last));
    }

    /// Stops the controller and waits until all pairs have let go of everything. An error says that
    /// it did not react, and was cut off from memory instead; or, in phase stopping, not even that.
    async fn stop(&self) -> Result<(), Error> {
        let resets = self.shared.phase().resets + 1;
        self.shared.set_phase(Phase { state: PairState::Stopping, resets });
        let disabled = self.disable().await;
        if disabled.is_err() {
            self.transport
                .allow_dma(false)
                .map_err(Error::system("keep the controller from memory"))?;
        }
        // What is not there will not come back as what it was.
        let absent = matches!(disabled, Err(Error::Absent));
        let state = if absent { PairState::Gone } else { PairState::Stopped };
        self.shared.set_phase(Phase { state, resets });
        // Whoever waits for an admin command learns that it was aborted.
        let channel = self.admin.borrow_mut().take();
        if let Some(mut channel) = channel {
            channel.reset(drop);
        }
        self.reported.borrow_mut().clear();
        if absent {
            return disabled;
        }
        let acknowledged = || {
            let mut pairs = self.pairs.borrow_mut();
            pairs.retain(|_, pair| !pair.control.has_left());
            pairs.values().all(|pair| pair.control.acknowledged() == resets).then_some(())
        };
        self.ticks.until(acknowledged).await;
        for pair in self.pairs.borrow().values() {
            pair.control.forget();
        }
        disabled
    }

    /// Announces a shutdown, waits for it, and stops the controller.
    pub(super) async fn shut_down(&self) -> Result<(), Error> {
        let resets = self.shared.phase().resets;
        if self.shared.phase().state == PairState::Gone {
            return Ok(());
        }
        self.shared.set_phase(Phase { state: PairState::Stopping, resets: resets + 1 });
        let said = self.facts.borrow().identity.as_ref().map_or(0, |i| i.shutdown_microseconds);
        let patience = match said {
            0 => SHUTDOWN,
            said => Duration::from_micros(said.into()).max(Duration::from_secs(1)),
        };
        let until = self.clock.now() + patience;
        let announced = self.configuration().shutting_down();
        self.registers().write(CONFIGURATION, announced.0);
        let milliseconds = patience.as_millis() as u64;
        let look = || {
            let status = self.status();
            if status.is_absent() {
                return Some(Err(Error::Absent));
            }
            if status.is_shut_down() {
                return Some(Ok(()));
            }
            let late = self.clock.now() >= until;
            late.then_some(Err(Error::Timeout { what: "shut down", milliseconds }))
        };
        let result = self.ticks.until(look).await;
        let disabled = self.disable().await;
        let cut = self.transport.allow_dma(false);
        if disabled.is_ok() || cut.is_ok() {
            self.shared.set_phase(Phase { state: PairState::Gone, resets: resets + 1 });
            self.admin.borrow_mut().take();
        }
        result
    }
}
