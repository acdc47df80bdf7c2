//! Admin commands: sent, awaited, timed; asynchronous events.
//!
//! Invariant: memory that a command names is held with it until the command is completed or the
//! controller is stopped, also when nobody waits for it any more.

use super::{ControllerEvent, Inner};
use crate::dma::DmaBuffer;
use crate::error::Error;
use crate::queue::PairState;
use crate::spec::command::Command;
use crate::spec::completion::Status;
use crate::spec::event::{AsynchronousEvent, EventKind};
use crate::spec::identify::IDENTIFY_BYTES;
use crate::spec::log;
use cleave_runtime::sync::{Promise, promise};

/// What belongs to an outstanding admin command.
pub(super) enum Pending {
    /// Somebody waits.
    Command { promise: Promise<Answer>, memory: Option<DmaBuffer> },
    /// An event request.
    Event,
}

pub(super) struct Answer {
    status: Status,
    result: u32,
    memory: Option<DmaBuffer>,
}

/// Event requests that are kept outstanding at most.
const EVENT_REQUESTS_MAX: u16 = 4;

impl Inner {
    /// Takes admin completions and watches their time. True when there were any.
    pub(super) fn poll_admin(&self) -> bool {
        let mut admin = self.admin.borrow_mut();
        let Some(channel) = admin.as_mut() else { return false };
        let mut events = 0;
        let drained = channel.drain(|finished| match finished.value {
            Pending::Command { promise, memory } => {
                let (status, result) = (finished.status, finished.result);
                promise.fulfil(Answer { status, result, memory });
            }
            Pending::Event if finished.status.is_success() => {
                events += 1;
                self.reported.borrow_mut().push_back(AsynchronousEvent(finished.result));
            }
            // Refused or aborted: not asked again before the next reset.
            Pending::Event => {}
        });
        self.requests_missing.set(self.requests_missing.get() + events);
        match drained {
            Ok(count) => {
                let patience = self.options.admin_timeout;
                if channel.overdue(self.clock.now(), patience).is_some() {
                    self.fail("an admin command was not done in time".to_owned());
                }
                count > 0
            }
            Err(violation) => {
                self.fail(violation.to_string());
                true
            }
        }
    }

    fn is_stopped(&self) -> bool {
        self.admin.borrow().is_none()
    }

    /// Sends a command and waits for its answer: dword 0 and the memory. The data, if any, is in one
    /// page.
    pub(super) async fn execute(
        &self,
        what: &'static str,
        mut command: Command,
        memory: Option<DmaBuffer>,
    ) -> Result<(u32, Option<DmaBuffer>), Error> {
        if let Some(memory) = &memory {
            command.data[0] = memory.address().into();
        }
        let ready = || {
            let room = self.admin.borrow().as_ref().is_none_or(|channel| channel.has_room());
            room.then_some(())
        };
        self.ticks.until(ready).await;
        let (promise, outcome) = promise();
        {
            let mut admin = self.admin.borrow_mut();
            let channel = admin.as_mut().ok_or(Error::Aborted)?;
            let deadline = self.clock.now() + self.options.admin_timeout;
            channel.push(command, Pending::Command { promise, memory }, Some(deadline));
            channel.ring();
        }
        let answer = outcome.wait().await.ok_or(Error::Aborted)?;
        if !answer.status.is_success() {
            return Err(Error::Command { what, status: answer.status });
        }
        Ok((answer.result, answer.memory))
    }

    /// Sends a command that gives `bytes` bytes of data, at most a page.
    pub(super) async fn fetch(
        &self,
        what: &'static str,
        command: Command,
        bytes: usize,
    ) -> Result<Vec<u8>, Error> {
        let memory = self.allocate(bytes)?;
        let (_, memory) = self.execute(what, command, Some(memory)).await?;
        let mut data = vec![0; bytes];
        memory.expect("the memory comes back").read(0, &mut data);
        Ok(data)
    }

    /// Sends an Identify command.
    pub(super) async fn identify(
        &self,
        what: &'static str,
        command: Command,
    ) -> Result<Box<[u8; IDENTIFY_BYTES]>, Error> {
        let data = self.fetch(what, command, IDENTIFY_BYTES).await?;
        Ok(data.try_into().expect("as many bytes as were asked for"))
    }

    /// Makes as many event requests outstanding as are useful and allowed.
    pub(super) fn request_events(&self, allowed: u16) {
        self.requests_missing.set(allowed.min(EVENT_REQUESTS_MAX));
        self.send_event_requests();
    }

    fn send_event_requests(&self) {
        let mut admin = self.admin.borrow_mut();
        let Some(channel) = admin.as_mut() else { return };
        while self.requests_missing.get() > 0 && channel.has_room() {
            self.requests_missing.set(self.requests_missing.get() - 1);
            channel.push(Command::asynchronous_event_request(), Pending::Event, None);
        }
        channel.ring();
    }

    /// Looks into an event, which allows the next of its kind, and tells of it.
    pub(super) async fn look_into(&self, event: AsynchronousEvent) {
        // The log's content is read again by whoever wants it; here its reading is what counts.
        let bytes = match event.log() {
            log::ERROR_INFORMATION => log::ERROR_ENTRY_BYTES,
            log::CHANGED_NAMESPACES => IDENTIFY_BYTES as u32,
            _ => log::PAGE_BYTES,
        };
        let command = Command::get_log_page(event.log(), u32::MAX, bytes, false);
        let read = self.fetch("read the log of an event", command, bytes as usize).await;
        if event.kind() == EventKind::NamespacesChanged
            && read.is_ok()
            && let Err(error) = self.find_namespaces().await
        {
            self.fail(format!("its namespaces changed, and cannot be read: {error}"));
        }
        self.tell(ControllerEvent::Reported(event));
        if !self.is_stopped() && self.shared.phase().state == PairState::Live {
            self.send_event_requests();
        }
    }
}
