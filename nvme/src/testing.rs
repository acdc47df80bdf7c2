//! A driver over the model, under a virtual clock: what the crate's tests share.

use crate::controller::{Controller, ControllerOptions};
use crate::dma::{DmaBuffer, DmaMemory};
use crate::error::IoError;
use crate::model::{Model, ModelOptions};
use crate::namespace::Namespace;
use crate::queue::{Completion, Operation, QueuePair, Refused, Request};
use crate::transport::Transport;
use cleave_runtime::time::{Clock, Moment};
use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

#[derive(Default)]
pub(crate) struct VirtualClock(Cell<u64>);

impl VirtualClock {
    /// Lets a little time pass.
    pub(crate) fn tick(&self) {
        self.0.set(self.0.get() + TICK);
        assert!(self.0.get() < TIME_MAX, "a test takes too long: something hangs");
    }
}

impl Clock for VirtualClock {
    fn now(&self) -> Moment {
        Moment(self.0.get())
    }

    fn unix_seconds(&self) -> u64 {
        0
    }
}

pub(crate) struct Rig {
    pub(crate) model: Arc<Model>,
    pub(crate) controller: Rc<Controller>,
    pub(crate) clock: Rc<VirtualClock>,
}

/// A request's timeout in tests.
pub(crate) const TIMEOUT: Duration = Duration::from_millis(50);
/// How far time goes in a tick.
const TICK: u64 = 20_000;
/// A test that takes longer hangs: a minute.
const TIME_MAX: u64 = 60_000_000_000;

impl Rig {
    /// A controller that was not started.
    pub(crate) fn cold(options: ModelOptions) -> Rig {
        let model = Model::new(options);
        let clock = Rc::new(VirtualClock::default());
        let options = ControllerOptions {
            io_timeout: TIMEOUT,
            admin_timeout: TIMEOUT * 2,
            ..ControllerOptions::default()
        };
        let transport = Arc::clone(&model) as Arc<dyn Transport>;
        let controller =
            Rc::new(Controller::new(transport, Rc::clone(&clock) as Rc<dyn Clock>, options));
        Rig { model, controller, clock }
    }

    pub(crate) fn new(options: ModelOptions) -> Rig {
        let rig = Rig::cold(options);
        rig.run(rig.controller.start()).expect("the model comes up");
        rig
    }

    /// Lets a little time pass.
    pub(crate) fn tick(&self) {
        self.clock.tick();
        self.model.step(self.clock.now());
        self.controller.turn();
    }

    pub(crate) fn run<T>(&self, future: impl Future<Output = T>) -> T {
        self.controller.run(future, || self.tick())
    }

    pub(crate) fn pair<M: DmaMemory>(&self, depth: u16) -> QueuePair<M> {
        let rings = self.run(self.controller.create_pair(depth)).expect("a pair");
        QueuePair::new(rings, u32::from(depth) * 2)
    }

    pub(crate) fn namespace(&self, number: u32) -> Namespace {
        self.controller.namespace(number).expect("the namespace")
    }

    pub(crate) fn memory(&self, length: usize) -> DmaBuffer {
        self.model.memory().allocate(length).expect("memory")
    }

    /// A request's memory must be as long as its range, not as its pages: so it is given in parts.
    pub(crate) fn do_one<M: DmaMemory>(
        &self,
        pair: &mut QueuePair<M>,
        namespace: Namespace,
        operation: Operation,
        memory: M,
    ) -> (Result<(), IoError>, M) {
        let request = Request { token: 1, namespace, operation, memory };
        match pair.submit(self.clock.now(), request) {
            Ok(()) => {}
            Err(Refused::Failed(completion)) => return (completion.result, completion.memory),
            Err(Refused::Full(_)) => panic!("a pair with room"),
        }
        let completion = self.wait(pair, 1).pop().expect("a completion");
        (completion.result, completion.memory)
    }

    /// Waits for so many completions.
    pub(crate) fn wait<M: DmaMemory>(
        &self,
        pair: &mut QueuePair<M>,
        count: usize,
    ) -> Vec<Completion<M>> {
        let mut completions = Vec::new();
        for _ in 0..1_000_000 {
            pair.poll(self.clock.now(), &mut completions);
            if completions.len() >= count {
                return completions;
            }
            self.tick();
        }
        panic!("{} of {count} completions came", completions.len());
    }
}
