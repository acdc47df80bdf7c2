//! A started controller, and requests that are waited for.

use cleave_nvme::controller::{Controller, ControllerOptions};
use cleave_nvme::dma::{DmaBuffer, DmaMemory};
use cleave_nvme::error::IoError;
use cleave_nvme::namespace::Namespace;
use cleave_nvme::queue::{Completion, Operation, QueuePair, Refused, Request};
use cleave_nvme::transport::{OpenOptions, PciAddress, open};
use cleave_runtime::time::{Clock, Moment};
use std::rc::Rc;
use std::time::{Duration, Instant};

/// The system's monotonic clock.
pub struct SystemClock(Instant);

impl SystemClock {
    pub fn new() -> SystemClock {
        SystemClock(Instant::now())
    }
}

impl Clock for SystemClock {
    fn now(&self) -> Moment {
        Moment(self.0.elapsed().as_nanos() as u64)
    }

    fn unix_seconds(&self) -> u64 {
        0
    }
}

pub struct Rig {
    pub controller: Rc<Controller>,
    pub clock: Rc<SystemClock>,
}

pub type Pair = QueuePair<DmaBuffer>;

impl Rig {
    pub fn start(
        address: PciAddress,
        options: &OpenOptions,
        timeout: Duration,
    ) -> Result<Rig, String> {
        let said = |error: cleave_nvme::error::Error| error.to_string();
        let transport = open(address, options).map_err(said)?;
        let clock = Rc::new(SystemClock::new());
        let options = ControllerOptions { io_timeout: timeout, ..ControllerOptions::default() };
        let controller = Controller::new(transport, Rc::clone(&clock) as Rc<dyn Clock>, options);
        controller.run(controller.start(), std::thread::yield_now).map_err(said)?;
        Ok(Rig { controller: Rc::new(controller), clock })
    }

    pub fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.controller.run(future, std::thread::yield_now)
    }

    pub fn pair(&self, depth: u16) -> Result<Pair, String> {
        let rings = self.run(self.controller.create_pair(depth));
        let rings = rings.map_err(|error| format!("a pair of depth {depth}: {error}"))?;
        Ok(QueuePair::new(rings, u32::from(depth)))
    }

    pub fn memory(&self, length: usize) -> Result<DmaBuffer, String> {
        let memory = self.controller.transport().memory().allocate(length);
        memory.map_err(|error| format!("{length} bytes of memory: {error}"))
    }

    /// Submits one request and waits for it.
    pub fn one<M: DmaMemory>(
        &self,
        pair: &mut QueuePair<M>,
        namespace: Namespace,
        operation: Operation,
        memory: M,
    ) -> (Result<(), IoError>, M) {
        let request = Request { token: 0, namespace, operation, memory };
        match pair.submit(self.clock.now(), request) {
            Ok(()) => {}
            Err(Refused::Failed(done)) => return (done.result, done.memory),
            Err(Refused::Full(request)) => return (Err(IoError::Memory), request.memory),
        }
        let mut completions: Vec<Completion<M>> = Vec::new();
        while completions.is_empty() {
            pair.poll(self.clock.now(), &mut completions);
            self.controller.turn();
        }
        let done = completions.remove(0);
        (done.result, done.memory)
    }
}

/// Fills memory with what only this place and round have.
pub fn fill(memory: &DmaBuffer, first: u64, round: u64) {
    for at in (0..memory.len()).step_by(8) {
        memory.write_u64(at, pattern(first, round, at));
    }
}

fn pattern(first: u64, round: u64, at: usize) -> u64 {
    (first << 40 ^ round << 20 ^ at as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Compares the first `length` bytes with what [`fill`] wrote.
pub fn check(memory: &DmaBuffer, length: usize, first: u64, round: u64) -> Result<(), String> {
    for at in (0..length).step_by(8) {
        let (found, want) = (memory.read_u64(at), pattern(first, round, at));
        if found != want {
            return Err(format!("byte {at} of block {first}: {found:#x} instead of {want:#x}"));
        }
    }
    Ok(())
}

/// `result` or what was attempted.
pub fn must(result: Result<(), IoError>, what: impl FnOnce() -> String) -> Result<(), String> {
    result.map_err(|error| format!("{}: {error}", what()))
}
