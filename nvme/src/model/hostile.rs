//! A controller that lies, from bytes: for fuzzing and property tests.
//!
//! Whatever it says, the driver does not panic, lets the device reach no memory that is not its
//! own, and gives every request back within a bounded time.

use super::{Fault, Model, ModelNamespace, ModelOptions, Scope};
use crate::controller::{Controller, ControllerOptions};
use crate::dma::Vectored;
use crate::queue::{Completion, Operation, QueuePair, Refused, Request};
use crate::spec::completion::Status;
use crate::transport::Transport;
use cleave_runtime::time::{Clock, Moment};
use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// How far time goes in a step.
const STEP: u64 = 200_000;
/// Within this everything is over, however the controller lies: resets included.
const PATIENCE: u64 = 120_000_000_000;
const TIMEOUT: Duration = Duration::from_millis(40);
const REQUESTS: u64 = 12;

#[derive(Default)]
struct StepClock(Cell<u64>);

impl Clock for StepClock {
    fn now(&self) -> Moment {
        Moment(self.0.get())
    }

    fn unix_seconds(&self) -> u64 {
        0
    }
}

/// Reads an input; zero beyond its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn take<const N: usize>(&mut self) -> [u8; N] {
        let (now, rest) = self.0.split_at(N.min(self.0.len()));
        self.0 = rest;
        let mut bytes = [0; N];
        bytes[..now.len()].copy_from_slice(now);
        bytes
    }
}

/// One fault from 20 bytes of input: its kind, when, and what.
fn fault(input: &mut Input<'_>) -> Fault {
    let [kind, place, opcode, after] = input.take();
    let bytes: [u8; 16] = input.take();
    let scope = Scope {
        admin: place & 3 == 3,
        opcode,
        after: u32::from(after % 8),
        count: u32::from(place),
    };
    match kind % 10 {
        0 => Fault::Completions(vec![bytes]),
        1 => {
            // Spared ones first.
            let mut masks = vec![[0; 16]; usize::from(after % 16)];
            masks.push(bytes);
            Fault::Completions(masks)
        }
        2 => Fault::Fail(scope, Status(u16::from_le_bytes([bytes[0], bytes[1]]) & 0x7fff)),
        3 => Fault::Hang(scope),
        4 => Fault::HangForGood(scope),
        5 | 6 => {
            let at = usize::from(u16::from_le_bytes([opcode, after])) % (4096 - 16);
            Fault::Identify { what: place % 7, at, bytes: bytes.to_vec() }
        }
        7 => [Fault::Vanish, Fault::Fatal][usize::from(place % 2)].clone(),
        8 => [Fault::NeverReady, Fault::NeverDisabled][usize::from(place % 2)].clone(),
        _ => Fault::Twice,
    }
}

/// Brings up a controller that misbehaves as the input says, before and after it is up, and works
/// with it.
///
/// # Panics
/// When the driver does what it must not.
pub fn misbehave(data: &[u8]) {
    let mut input = Input(data);
    let [before, after, shape] = input.take();
    let model = Model::new(ModelOptions {
        namespaces: vec![
            ModelNamespace { blocks: 64, ..ModelNamespace::default() },
            ModelNamespace {
                blocks: 64,
                block_shift: 9,
                protection: shape & 3,
                ..Default::default()
            },
        ],
        transfer_max_shift: shape >> 2 & 3,
        queue_entries: 2 + u16::from(shape >> 4),
        sgl: shape & 1 != 0,
        // Long against the steps, so that resets find commands under way.
        latency: (Duration::ZERO, Duration::from_millis(4)),
        seed: u64::from(shape),
        ..ModelOptions::default()
    });
    // Most controllers come up, so that there is something to break.
    let early = if before % 4 == 0 { before >> 2 & 3 } else { 0 };
    (0..early).for_each(|_| model.inject(fault(&mut input)));
    let clock = Rc::new(StepClock::default());
    let options = ControllerOptions {
        io_timeout: TIMEOUT,
        admin_timeout: TIMEOUT,
        ..ControllerOptions::default()
    };
    let transport = Arc::clone(&model) as Arc<dyn Transport>;
    let controller = Controller::new(transport, Rc::clone(&clock) as Rc<dyn Clock>, options);
    let step = || {
        clock.0.set(clock.0.get() + STEP);
        assert!(clock.0.get() < PATIENCE, "the driver waits for ever");
        model.step(clock.now());
        controller.turn();
    };
    if controller.run(controller.start(), step).is_ok() {
        work(&model, &controller, &clock, &mut input, after % 8, step);
    }
    drop(controller);
    assert_eq!(model.stray_accesses(), 0, "the device was led to memory that is not its own");
}

fn work(
    model: &Model,
    controller: &Controller,
    clock: &StepClock,
    input: &mut Input<'_>,
    faults: u8,
    step: impl Fn(),
) {
    let mut creation = pin!(controller.create_pair(4));
    // Given up with the controller.
    let created = controller.run(
        poll_fn(|context| match creation.as_mut().poll(context) {
            Poll::Ready(created) => Poll::Ready(created.ok()),
            Poll::Pending if controller.is_gone() => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }),
        &step,
    );
    let Some(rings) = created else { return };
    let mut pair = QueuePair::new(rings, REQUESTS as u32);
    (0..faults).for_each(|_| model.inject(fault(input)));
    let (mut wanted, mut done) = (0, Vec::<Completion<_>>::new());
    let mut count = 0;
    for namespace in controller.namespaces() {
        for token in 0..REQUESTS / 2 {
            let (first, blocks) = (token, 4);
            let operation = match token % 4 {
                0 => Operation::Write { first, blocks, durable: false },
                1 => Operation::Read { first, blocks },
                2 => Operation::Deallocate { first, blocks },
                _ => Operation::Flush,
            };
            let length = blocks as usize * namespace.block_bytes() as usize;
            let Ok(memory) = model.memory().allocate(length) else { return };
            let memory = Vectored::parts(vec![(memory, length as u32)]);
            wanted += 1;
            match pair.submit(clock.now(), Request { token, namespace, operation, memory }) {
                Ok(()) => {}
                Err(Refused::Failed(completion)) => done.push(completion),
                Err(Refused::Full(_)) => wanted -= 1,
            }
        }
    }
    loop {
        count += done.len();
        // Their memory is freed: the device must be done with it.
        done.clear();
        if count >= wanted {
            break;
        }
        pair.poll(clock.now(), &mut done);
        step();
    }
    assert_eq!((count, pair.in_flight()), (wanted, 0), "each request comes back once");
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_honest_controller_works() {
        misbehave(&[]);
        misbehave(&[0, 0, 0xff]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(400))]

        #[test]
        fn lies_end_in_errors(
            head: [u8; 3],
            faults in proptest::collection::vec(
                (0u8..10, any::<u8>(), 0u8..14, 0u8..40, any::<[u8; 16]>(), any::<u16>()),
                0..14,
            ),
        ) {
            let mut data = head.to_vec();
            for (kind, place, opcode, after, mut bytes, keep) in faults {
                // Few bits flipped lead further than many.
                for (index, byte) in bytes.iter_mut().enumerate() {
                    if keep >> index & 1 == 0 {
                        *byte = 0;
                    }
                }
                data.extend([kind, place, opcode, after]);
                data.extend(bytes);
            }
            misbehave(&data);
        }
    }
}
