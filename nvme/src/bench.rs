//! What requests cost: random reads or writes at one depth, polled by the calling thread.
//!
//! Content is overwritten by writes, so those who ask for them must mean it.

use crate::controller::Controller;
use crate::dma::DmaBuffer;
use crate::error::{Error, IoError};
use crate::namespace::Namespace;
use crate::queue::{Completion, Operation, QueuePair, Refused, Request};
use cleave_runtime::random::{Random, SplitMix};
use cleave_runtime::time::Moment;
use std::time::Duration;

/// Polls between two looks at the clock: reading it costs about as much as a poll that finds nothing.
const POLLS: u64 = 16;
/// Polls that find nothing, measured beforehand.
const IDLE_POLLS: u64 = 4096;

/// When it is enough.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Until {
    /// After this time.
    Span(Duration),
    /// After so many requests.
    Requests(u64),
}

/// What is measured.
#[derive(Clone, Copy, Debug)]
pub struct BenchOptions {
    /// Requests outstanding.
    pub depth: u16,
    /// Bytes of each: whole blocks.
    pub bytes: usize,
    /// Writes, in place of reads.
    pub writes: bool,
    /// When it is enough.
    pub until: Until,
}

/// What came of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BenchReport {
    /// Requests that were done.
    pub requests: u64,
    /// In this time.
    pub elapsed: Duration,
    /// Time of the processor, of this thread, that it took.
    pub processor: Duration,
    /// Writes to the controller's registers.
    pub doorbells: u64,
    /// Polls that found nothing, and had nothing to submit: waiting.
    pub empty_polls: u64,
    /// What such a poll takes.
    pub empty_poll: Duration,
}

impl BenchReport {
    /// Requests a second.
    pub fn rate(&self) -> f64 {
        self.requests as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }

    /// `total` divided by the requests.
    pub fn each(&self, total: f64) -> f64 {
        total / self.requests.max(1) as f64
    }
}

/// Why nothing was measured.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// There is no queue pair or memory for it.
    #[error(transparent)]
    Controller(#[from] Error),
    /// The size cannot be.
    #[error("{bytes} bytes are no whole blocks of {block} bytes, or more than the namespace has")]
    Size {
        /// As asked.
        bytes: usize,
        /// Of the namespace.
        block: u32,
    },
    /// A request failed.
    #[error("a request failed: {0}")]
    Request(IoError),
}

/// Measures. `now` reads the clock.
///
/// # Errors
/// What failed; the namespace is as it is then.
pub fn bench(
    controller: &Controller,
    namespace: Namespace,
    options: &BenchOptions,
    mut now: impl FnMut() -> Moment,
) -> Result<BenchReport, BenchError> {
    let block = namespace.block_bytes();
    let blocks = (options.bytes / block as usize) as u64;
    let places = namespace.blocks().checked_div(blocks).unwrap_or(0);
    if places == 0 || !options.bytes.is_multiple_of(block as usize) {
        return Err(BenchError::Size { bytes: options.bytes, block });
    }
    let rings = controller.run(controller.create_pair(options.depth), || {
        now();
    })?;
    let mut run = Run {
        pair: QueuePair::new(rings, u32::from(options.depth)),
        free: Vec::with_capacity(usize::from(options.depth)),
        completions: Vec::with_capacity(usize::from(options.depth)),
        random: SplitMix::new(1),
        namespace,
        writes: options.writes,
        blocks,
        places,
        submitted: 0,
        done: 0,
        empty_polls: 0,
    };
    for _ in 0..options.depth {
        let memory = controller.transport().memory().allocate(options.bytes);
        run.free.push(memory.map_err(Error::system("memory for requests"))?);
    }
    let mut at = now();
    let idle = at;
    for _ in 0..IDLE_POLLS / POLLS {
        (0..POLLS).try_for_each(|_| run.turn(false, at)).map_err(BenchError::Request)?;
        controller.turn();
        at = now();
    }
    let empty_poll = at.since(idle) / IDLE_POLLS as u32;
    run.empty_polls = 0;
    let doorbells = run.pair.doorbells();
    let (begin, used) = (now(), processor_time());
    at = begin;
    loop {
        for _ in 0..POLLS {
            let more = match options.until {
                Until::Span(span) => at.since(begin) < span,
                Until::Requests(count) => run.submitted < count,
            };
            run.turn(more, at).map_err(BenchError::Request)?;
            if !more && run.done == run.submitted {
                return Ok(BenchReport {
                    requests: run.done,
                    elapsed: now().since(begin),
                    processor: processor_time().saturating_sub(used),
                    doorbells: run.pair.doorbells() - doorbells,
                    empty_polls: run.empty_polls,
                    empty_poll,
                });
            }
        }
        controller.turn();
        at = now();
    }
}

struct Run {
    pair: QueuePair<DmaBuffer>,
    free: Vec<DmaBuffer>,
    completions: Vec<Completion<DmaBuffer>>,
    random: SplitMix,
    namespace: Namespace,
    writes: bool,
    blocks: u64,
    places: u64,
    submitted: u64,
    done: u64,
    empty_polls: u64,
}

impl Run {
    fn turn(&mut self, more: bool, now: Moment) -> Result<(), IoError> {
        let before = (self.submitted, self.done);
        while more && let Some(memory) = self.free.pop() {
            let (first, blocks) = (self.random.below(self.places) * self.blocks, self.blocks);
            let operation = match self.writes {
                true => Operation::Write { first, blocks, durable: false },
                false => Operation::Read { first, blocks },
            };
            let request = Request { token: 0, namespace: self.namespace, operation, memory };
            match self.pair.submit(now, request) {
                Ok(()) => self.submitted += 1,
                Err(Refused::Failed(completion)) => completion.result?,
                Err(Refused::Full(_)) => unreachable!("as many requests as buffers"),
            }
        }
        self.pair.poll(now, &mut self.completions);
        for completion in self.completions.drain(..) {
            completion.result?;
            self.done += 1;
            self.free.push(completion.memory);
        }
        self.empty_polls += u64::from(before == (self.submitted, self.done));
        Ok(())
    }
}

/// Time of the processor that this thread has had.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.cast_unsigned(), time.tv_nsec as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::ModelOptions;
    use crate::testing::Rig;
    use cleave_runtime::time::Clock;

    fn measure(options: &BenchOptions) -> Result<BenchReport, BenchError> {
        let rig = Rig::new(ModelOptions::default());
        let now = || {
            rig.tick();
            rig.clock.now()
        };
        bench(&rig.controller, rig.namespace(1), options, now)
    }

    #[test]
    fn it_does_as_many_requests_as_it_is_told() {
        for writes in [false, true] {
            let until = Until::Requests(100);
            let report = measure(&BenchOptions { depth: 4, bytes: 4096, writes, until }).unwrap();
            // Up to the depth more are on their way when it is enough.
            assert!((100..104).contains(&report.requests), "{report:?}");
            assert!(report.doorbells > 0 && report.rate() > 0.0);
            assert!(report.empty_polls > 0 && !report.empty_poll.is_zero());
        }
        let until = Until::Span(Duration::from_millis(5));
        let options = BenchOptions { depth: 2, bytes: 8192, writes: false, until };
        let report = measure(&options).unwrap();
        assert!(report.requests > 0 && report.elapsed >= Duration::from_millis(5));
        let error = measure(&BenchOptions { bytes: 1000, ..options }).unwrap_err();
        assert!(matches!(error, BenchError::Size { .. }));
    }
}
