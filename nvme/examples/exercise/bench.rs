//! Random reads of 4 KiB for two seconds at two depths: requests a second, and what they cost.

use crate::rig::{Rig, must};
use cleave_nvme::dma::DmaBuffer;
use cleave_nvme::queue::{Completion, Operation, QueuePair, Request};
use cleave_runtime::time::Clock;
use std::time::{Duration, Instant};

const SPAN: Duration = Duration::from_secs(2);

pub fn bench(rig: &Rig) -> Result<String, String> {
    let mut said = Vec::new();
    for depth in [1u16, 32] {
        let mut pair = rig.pair(depth)?;
        let memory: Vec<_> = (0..depth).map(|_| rig.memory(4096)).collect::<Result<_, _>>()?;
        let before = processor_time();
        let (count, elapsed) = run(rig, &mut pair, memory)?;
        let used = processor_time() - before;
        let each = |value: f64| value / count as f64;
        said.push(format!(
            "QD{depth} {:.0} IOPS, {:.2} us of CPU, {:.3} doorbells and 0 system calls a request",
            count as f64 / elapsed.as_secs_f64(),
            each(used.as_secs_f64() * 1e6),
            each(pair.doorbells() as f64),
        ));
    }
    Ok(said.join("; "))
}

/// Processor time of this thread.
fn processor_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn run(
    rig: &Rig,
    pair: &mut QueuePair<DmaBuffer>,
    mut free: Vec<DmaBuffer>,
) -> Result<(u64, Duration), String> {
    let namespace = rig.controller.namespaces()[0];
    let blocks = 4096 / u64::from(namespace.block_bytes());
    let places = namespace.blocks() / blocks;
    let begin = Instant::now();
    let (mut count, mut outstanding) = (0, 0);
    let mut random = 88172645463325252u64;
    let mut completions: Vec<Completion<_>> = Vec::with_capacity(64);
    while begin.elapsed() < SPAN || outstanding > 0 {
        if begin.elapsed() < SPAN {
            while let Some(memory) = free.pop() {
                random ^= random << 13;
                random ^= random >> 7;
                random ^= random << 17;
                let operation = Operation::Read { first: random % places * blocks, blocks };
                let request = Request { token: 0, namespace, operation, memory };
                pair.submit(rig.clock.now(), request).map_err(|_| "there was room")?;
                outstanding += 1;
            }
        }
        pair.poll(rig.clock.now(), &mut completions);
        rig.controller.turn();
        for completion in completions.drain(..) {
            must(completion.result, || "a read".to_owned())?;
            free.push(completion.memory);
            outstanding -= 1;
            count += 1;
        }
    }
    Ok((count, begin.elapsed()))
}
