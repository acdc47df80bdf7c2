//! What is written is read back, in every way that there is.

use crate::rig::{Pair, Rig, SystemClock, check, fill, must};
use cleave_nvme::drive::{DriveOptions, NvmeDrive};
use cleave_nvme::error::{Error, IoError};
use cleave_nvme::namespace::Namespace;
use cleave_nvme::queue::{Completion, Operation, QueuePair, Request};
use cleave_nvme::spec::completion::Status;
use cleave_nvme::spec::identify::Protection;
use cleave_runtime::drives::{Drive, DriveOperation, DriveRequest};
use cleave_runtime::time::Clock;
use std::rc::Rc;

const MIB: usize = 1 << 20;

pub fn identify(rig: &Rig) -> Result<String, String> {
    let identity = rig.controller.identity().ok_or("no identity")?;
    let admin = |error: Error| error.to_string();
    let health = rig.run(rig.controller.health()).map_err(admin)?;
    let errors = rig.run(rig.controller.errors()).map_err(admin)?;
    let firmware = rig.run(rig.controller.firmware()).map_err(admin)?;
    println!("{} {} {}", identity.model, identity.serial, identity.firmware);
    println!(
        "{} K, {} errors logged, firmware in slot {}",
        health.temperature_kelvins,
        errors.len(),
        firmware.active
    );
    rig.run(rig.controller.set_temperature_threshold(340)).map_err(admin)?;
    let threshold = rig.run(rig.controller.get_feature(4, 0)).map_err(admin)?;
    if threshold & 0xffff != 340 {
        return Err(format!("the temperature threshold is {threshold} after it was set to 340"));
    }
    rig.run(rig.controller.set_write_cache(false)).map_err(admin)?;
    rig.run(rig.controller.set_write_cache(true)).map_err(admin)?;
    match rig.run(rig.controller.set_power_state(0)) {
        // QEMU's controller has one state, and says so.
        Ok(()) => {}
        Err(Error::Command { status, .. }) if status.is(Status::NOT_CHANGEABLE) => {}
        Err(error) => return Err(admin(error)),
    }
    let state = rig.run(rig.controller.get_feature(2, 0)).map_err(admin)?;
    if state & 0x1f != 0 {
        return Err(format!("the power state is {state} after it was set to 0"));
    }
    for (number, why) in rig.controller.refused_namespaces() {
        println!("namespace {number} cannot be used: {why}");
    }
    let describe = |namespace: &Namespace| {
        let protection = namespace.protection();
        let (number, bytes) = (namespace.number(), namespace.block_bytes());
        format!(
            "{number}: {} x {bytes} {protection:?} max {}",
            namespace.blocks(),
            namespace.transfer_max()
        )
    };
    let namespaces: Vec<String> = rig.controller.namespaces().iter().map(describe).collect();
    Ok(format!("{} pairs; {}", rig.controller.pairs_max(), namespaces.join("; ")))
}

/// Every operation at every size in every namespace.
pub fn content(rig: &Rig) -> Result<String, String> {
    let mut pair = rig.pair(32)?;
    let mut count = 0;
    for namespace in rig.controller.namespaces() {
        for (round, length) in [512, 4096, 128 << 10, MIB].into_iter().enumerate() {
            let block = namespace.block_bytes() as usize;
            if length < block {
                continue;
            }
            one_size(rig, &mut pair, namespace, length, round as u64)
                .map_err(|error| format!("namespace {}: {error}", namespace.number()))?;
            count += 1;
        }
        let (result, _) = rig.one(&mut pair, namespace, Operation::Flush, rig.memory(512)?);
        must(result, || "flush".to_owned())?;
    }
    Ok(format!("{count} sizes in {} namespaces", rig.controller.namespaces().len()))
}

fn one_size(
    rig: &Rig,
    pair: &mut Pair,
    namespace: Namespace,
    length: usize,
    round: u64,
) -> Result<(), String> {
    let blocks = length as u64 / u64::from(namespace.block_bytes());
    let first = 5;
    // Shorter than a page: a part of the memory takes part.
    let whole = rig.memory(length)?;
    fill(&whole, first, round);
    let mut small: QueuePair<cleave_nvme::dma::Vectored>;
    let write = Operation::Write { first, blocks, durable: round % 2 == 1 };
    let read = Operation::Read { first, blocks };
    if length < whole.len() {
        small = {
            let rings =
                rig.run(rig.controller.create_pair(4)).map_err(|error| error.to_string())?;
            QueuePair::new(rings, 4)
        };
        let part = cleave_nvme::dma::Vectored::parts(vec![(whole, length as u32)]);
        let (result, part) = rig.one(&mut small, namespace, write, part);
        must(result, || format!("write of {length} bytes"))?;
        part.buffers()[0].zero();
        let (result, part) = rig.one(&mut small, namespace, read, part);
        must(result, || format!("read of {length} bytes"))?;
        return check(&part.buffers()[0], length, first, round);
    }
    let (result, whole) = rig.one(pair, namespace, write, whole);
    must(result, || format!("write of {length} bytes"))?;
    whole.zero();
    let (result, whole) = rig.one(pair, namespace, read, whole);
    must(result, || format!("read of {length} bytes"))?;
    check(&whole, length, first, round)?;
    let compare = Operation::Compare { first, blocks };
    let compares = namespace.protection() == Protection::None;
    let (result, whole) = rig.one(pair, namespace, compare, whole);
    if compares {
        must(result, || format!("compare of {length} bytes"))?;
    } else if result != Err(IoError::Unsupported) {
        return Err(format!("a compare with protection gave {result:?}"));
    }
    let (result, whole) = rig.one(pair, namespace, Operation::Verify { first, blocks }, whole);
    // QEMU 7.2 does not offer it.
    if result != Err(IoError::Unsupported) {
        must(result, || format!("verify of {length} bytes"))?;
    }
    for operation in [
        Operation::WriteZeroes { first, blocks, deallocate: false },
        Operation::Deallocate { first, blocks },
    ] {
        let (result, _) = rig.one(pair, namespace, operation, rig.memory(512)?);
        must(result, || format!("{operation:?}"))?;
        if matches!(operation, Operation::WriteZeroes { .. }) {
            let (result, zeroed) = rig.one(pair, namespace, read, rig.memory(length)?);
            must(result, || format!("read of {length} zeroed bytes"))?;
            if (0..length).step_by(8).any(|at| zeroed.read_u64(at) != 0) {
                return Err("zeroed blocks are not zero".to_owned());
            }
            if compares {
                let (result, _) = rig.one(pair, namespace, compare, rig.memory(length)?);
                must(result, || "compare of zeroed blocks".to_owned())?;
            }
        }
    }
    drop(whole);
    Ok(())
}

/// Random reads and writes of 4 KiB at depths from 1 to 256, each block verified by its last write.
pub fn depths(rig: &Rig) -> Result<String, String> {
    let mut said = Vec::new();
    for depth in [1u16, 2, 8, 32, 128, 256] {
        let mut pair = rig.pair(depth)?;
        let count = 512.max(usize::from(depth) * 4);
        let namespace = rig.controller.namespaces()[0];
        work(rig, &mut pair, namespace, depth, count)?;
        let doorbells = pair.doorbells() as f64 / count as f64;
        said.push(format!("QD{depth} {doorbells:.2} doorbells a request"));
    }
    Ok(said.join(", "))
}

fn work(
    rig: &Rig,
    pair: &mut Pair,
    namespace: Namespace,
    depth: u16,
    count: usize,
) -> Result<(), String> {
    let places = 1024u64;
    let blocks = 4096 / u64::from(namespace.block_bytes());
    // What each place holds, and whether a request is about it.
    let mut rounds = vec![None; places as usize];
    let mut busy = vec![false; places as usize];
    let mut random = 88172645463325252u64 ^ u64::from(depth);
    let mut free: Vec<_> = (0..depth).map(|_| rig.memory(4096)).collect::<Result<_, _>>()?;
    let (mut submitted, mut done) = (0, 0);
    let mut completions: Vec<Completion<_>> = Vec::new();
    while done < count {
        while submitted < count && pair.has_room() {
            let Some(memory) = free.pop() else { break };
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let place = (0..places).map(|step| (random + step) % places);
            let place = place.into_iter().find(|place| !busy[*place as usize]);
            let place = place.ok_or("no place is free")?;
            let first = 64 + place * blocks;
            busy[place as usize] = true;
            let operation = if rounds[place as usize].is_none() || random >> 33 & 1 == 0 {
                rounds[place as usize] = Some(submitted as u64);
                fill(&memory, first, submitted as u64);
                Operation::Write { first, blocks, durable: false }
            } else {
                memory.zero();
                Operation::Read { first, blocks }
            };
            let request = Request { token: place, namespace, operation, memory };
            pair.submit(rig.clock.now(), request).map_err(|_| "there was room")?;
            submitted += 1;
        }
        pair.poll(rig.clock.now(), &mut completions);
        rig.controller.turn();
        for completion in completions.drain(..) {
            must(completion.result, || format!("request {} at depth {depth}", completion.token))?;
            let place = completion.token as usize;
            let round = rounds[place].ok_or("a place that was never written")?;
            check(&completion.memory, 4096, 64 + completion.token * blocks, round)?;
            busy[place] = false;
            free.push(completion.memory);
            done += 1;
        }
    }
    Ok(())
}

/// A pair on another thread, while this one turns the controller.
pub fn threads(rig: &Rig) -> Result<String, String> {
    let rings = rig.run(rig.controller.create_pair(16)).map_err(|error| error.to_string())?;
    let namespace = rig.controller.namespaces()[0];
    let memory = rig.memory(64 << 10)?;
    let worker = std::thread::spawn(move || -> Result<u64, String> {
        let clock = SystemClock::new();
        let mut pair = QueuePair::new(rings, 16);
        let mut memory = Some(memory);
        let blocks = (64 << 10) / u64::from(namespace.block_bytes());
        for round in 0..50 {
            for operation in [
                Operation::Write { first: 0, blocks, durable: false },
                Operation::Read { first: 0, blocks },
            ] {
                let held = memory.take().ok_or("the memory is lost")?;
                match operation {
                    Operation::Read { .. } => held.zero(),
                    _ => fill(&held, 0, round),
                }
                let request = Request { token: 0, namespace, operation, memory: held };
                pair.submit(clock.now(), request).map_err(|_| "there was room")?;
                let mut completions = Vec::new();
                while completions.is_empty() {
                    pair.poll(clock.now(), &mut completions);
                }
                let completion = completions.remove(0);
                must(completion.result, || format!("{operation:?}"))?;
                check(&completion.memory, 64 << 10, 0, round)?;
                memory = Some(completion.memory);
            }
        }
        Ok(pair.doorbells())
    });
    while !worker.is_finished() {
        rig.controller.turn();
        std::thread::yield_now();
    }
    let doorbells = worker.join().map_err(|_| "the thread panicked")??;
    Ok(format!("100 requests of 64 KiB, {doorbells} doorbells"))
}

/// The engines' contract: mapped buffers, and ones from elsewhere.
pub fn drive(rig: &Rig) -> Result<String, String> {
    let mut said = Vec::new();
    for namespace in rig.controller.namespaces() {
        let clock = Rc::clone(&rig.clock) as Rc<dyn Clock>;
        let options = DriveOptions { depth: 64, buffers: vec![(4096, 64), (128 << 10, 8)] };
        let opened = NvmeDrive::open(&rig.controller, clock, namespace.number(), &options);
        let drive = rig.run(opened).map_err(|error| error.to_string())?;
        let mut completions = Vec::new();
        for reads in [false, true] {
            for token in 0..200u64 {
                let length = if token % 10 == 0 { 256 << 10 } else { 4096 };
                let offset = token * (256 << 10) % (8 << 20);
                let mut buffer = drive.buffer(length);
                let operation = if reads {
                    buffer.fill(0);
                    DriveOperation::Read { offset }
                } else {
                    buffer.fill((offset >> 18) as u8 + 1);
                    DriveOperation::Write { offset }
                };
                drive.submit(DriveRequest { token, operation, buffer: Some(buffer) });
            }
            wait(&drive, &mut completions, 200)?;
            for done in completions.drain(..) {
                let offset = done.token * (256 << 10) % (8 << 20);
                let buffer = done.buffer.ok_or("a buffer is lost")?;
                if buffer.iter().any(|byte| *byte != (offset >> 18) as u8 + 1) {
                    return Err(format!("wrong content at {offset}"));
                }
            }
            drive.submit(DriveRequest { token: 1, operation: DriveOperation::Flush, buffer: None });
            wait(&drive, &mut completions, 1)?;
            completions.clear();
        }
        let discard = DriveOperation::Discard { offset: 0, length: 1 << 20 };
        drive.submit(DriveRequest { token: 1, operation: discard, buffer: None });
        wait(&drive, &mut completions, 1)?;
        drive.probe().map_err(|error| error.to_string())?;
        said.push(format!("{} bytes", drive.capacity()));
    }
    Ok(said.join(", "))
}

fn wait(
    drive: &NvmeDrive,
    completions: &mut Vec<cleave_runtime::drives::DriveCompletion>,
    count: usize,
) -> Result<(), String> {
    while completions.len() < count {
        drive.poll(completions);
    }
    match completions.iter().find_map(|done| done.result.as_ref().err()) {
        Some(error) => Err(error.to_string()),
        None => Ok(()),
    }
}
