//! Sleeping, resets, errors, timeouts, events.

use crate::rig::{Pair, Rig, check, fill, must};
use cleave_nvme::controller::ControllerEvent;
use cleave_nvme::error::IoError;
use cleave_nvme::namespace::Namespace;
use cleave_nvme::queue::{Completion, Operation, Request};
use cleave_nvme::spec::completion::Status;
use cleave_nvme::spec::event::EventKind;
use cleave_nvme::spec::identify::Protection;
use cleave_runtime::time::Clock;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::time::{Duration, Instant};

/// Requests that are waited for asleep, until the interrupt.
pub fn sleep(rig: &Rig) -> Result<String, String> {
    let mut pair = rig.pair(4)?;
    let namespace = rig.controller.namespaces()[0];
    let (mut sleeps, mut completions) = (0, Vec::new());
    for token in 0..100 {
        let operation = Operation::Read { first: token, blocks: 1 };
        let memory = rig.memory(namespace.block_bytes() as usize)?;
        let part = namespace.block_bytes() as usize;
        if memory.len() != part {
            return Err("the first namespace must have blocks of 4 KiB".to_owned());
        }
        let request = Request { token, namespace, operation, memory };
        pair.submit(rig.clock.now(), request).map_err(|_| "there was room")?;
        pair.ring();
        while completions.is_empty() {
            if !pair.arm(true).map_err(|error| format!("arm: {error}"))? {
                return Err("there are no interrupts".to_owned());
            }
            if !pair.is_ready() {
                let event = pair.event().ok_or("there is no event")?;
                let mut ready = [PollFd::new(&event, PollFlags::IN)];
                let patience = Timespec { tv_sec: 30, tv_nsec: 0 };
                let count = poll(&mut ready, Some(&patience)).map_err(|error| error.to_string())?;
                if count == 0 {
                    return Err("no interrupt came in 30 s".to_owned());
                }
                let mut counted = [0; 8];
                rustix::io::read(event, &mut counted).map_err(|error| error.to_string())?;
                sleeps += 1;
            }
            pair.arm(false).map_err(|error| format!("disarm: {error}"))?;
            pair.poll(rig.clock.now(), &mut completions);
        }
        let done: Completion<_> = completions.remove(0);
        must(done.result, || "a read that slept".to_owned())?;
    }
    if sleeps == 0 {
        return Err("it never slept".to_owned());
    }
    Ok(format!("{sleeps} sleeps for 100 requests"))
}

fn start(rig: &Rig, pair: &mut Pair, count: u64, length: usize) -> Result<(), String> {
    let namespace = rig.controller.namespaces()[0];
    let blocks = length as u64 / u64::from(namespace.block_bytes());
    for token in 0..count {
        let memory = rig.memory(length)?;
        fill(&memory, token, 1);
        let operation = Operation::Write { first: token * blocks, blocks, durable: false };
        let request = Request { token, namespace, operation, memory };
        pair.submit(rig.clock.now(), request).map_err(|_| "there was room")?;
    }
    pair.ring();
    Ok(())
}

fn wait(rig: &Rig, pair: &mut Pair, count: usize) -> Vec<Completion<cleave_nvme::dma::DmaBuffer>> {
    let mut completions = Vec::new();
    while completions.len() < count {
        pair.poll(rig.clock.now(), &mut completions);
        rig.controller.turn();
    }
    completions
}

fn until_live(rig: &Rig, pair: &mut Pair) -> Result<(), String> {
    let begin = Instant::now();
    let mut completions = Vec::new();
    while !rig.controller.is_live() {
        pair.poll(rig.clock.now(), &mut completions);
        rig.controller.turn();
        if begin.elapsed() > Duration::from_secs(60) || rig.controller.is_gone() {
            return Err(format!("it did not come back: {:?}", rig.controller.take_events()));
        }
    }
    Ok(())
}

/// Resets with requests outstanding; afterwards everything works again.
pub fn reset(rig: &Rig) -> Result<String, String> {
    let mut pair = rig.pair(64)?;
    let (mut aborted, rounds) = (0, 5);
    for round in 0..rounds {
        start(rig, &mut pair, 64, 64 << 10)?;
        rig.controller.reset("the exercise wants it");
        rig.controller.turn();
        for done in wait(rig, &mut pair, 64) {
            match done.result {
                Ok(()) => {}
                Err(IoError::Aborted) => aborted += 1,
                Err(error) => return Err(format!("round {round}: {error}")),
            }
        }
        until_live(rig, &mut pair)?;
    }
    start(rig, &mut pair, 8, 64 << 10)?;
    for done in wait(rig, &mut pair, 8) {
        must(done.result, || "a write after a reset".to_owned())?;
        let namespace = rig.controller.namespaces()[0];
        let blocks = (64 << 10) / u64::from(namespace.block_bytes());
        let first = done.token * blocks;
        done.memory.zero();
        let read = Operation::Read { first, blocks };
        let (result, memory) = rig.one(&mut pair, namespace, read, done.memory);
        must(result, || "a read after a reset".to_owned())?;
        check(&memory, 64 << 10, done.token, 1)?;
    }
    if aborted == 0 {
        return Err("no request was outstanding at any reset".to_owned());
    }
    Ok(format!("{rounds} resets, {aborted} requests aborted"))
}

/// The test injects: reads of the sector at 1 MiB fail, and flushes.
pub fn errors(rig: &Rig) -> Result<String, String> {
    let mut pair = rig.pair(8)?;
    let namespace = rig.controller.namespaces()[0];
    let blocks = 4096 / u64::from(namespace.block_bytes());
    let first = (1 << 20) / u64::from(namespace.block_bytes());
    let read = |first| Operation::Read { first, blocks };
    let (bad, _) = rig.one(&mut pair, namespace, read(first), rig.memory(4096)?);
    if bad != Err(IoError::Status(Status::UNRECOVERED_READ)) {
        let found = bad.err().map_or("no error".to_owned(), |error| format!("{error:?}"));
        return Err(format!("the injected read error arrived as {found}"));
    }
    let (good, _) = rig.one(&mut pair, namespace, read(0), rig.memory(4096)?);
    must(good, || "a read beside the injected error".to_owned())?;
    // Nothing is flushed where nothing was written.
    let write = Operation::Write { first: 0, blocks, durable: false };
    let (good, _) = rig.one(&mut pair, namespace, write, rig.memory(4096)?);
    must(good, || "a write before the flush".to_owned())?;
    let (bad, _) = rig.one(&mut pair, namespace, Operation::Flush, rig.memory(512)?);
    let Err(IoError::Status(flush)) = bad else {
        return Err(format!("the injected flush error arrived as {bad:?}"));
    };
    let (good, _) = rig.one(&mut pair, namespace, read(0), rig.memory(4096)?);
    must(good, || "a read after the injected errors".to_owned())?;
    let logged = rig.run(rig.controller.errors()).map_err(|error| error.to_string())?;
    Ok(format!("read {}, flush {flush}; {} logged", Status::UNRECOVERED_READ, logged.len()))
}

/// The first namespace is throttled so much that requests are not done in time; the last is not.
pub fn timeout(rig: &Rig) -> Result<String, String> {
    let mut pair = rig.pair(16)?;
    start(rig, &mut pair, 16, 64 << 10)?;
    let mut failed = 0;
    for done in wait(rig, &mut pair, 16) {
        match done.result {
            Ok(()) => {}
            Err(IoError::Aborted | IoError::TimedOut) => failed += 1,
            Err(error) => return Err(format!("a slow request: {error}")),
        }
    }
    until_live(rig, &mut pair)?;
    let events = rig.controller.take_events();
    if failed == 0 {
        return Err("nothing was out of time".to_owned());
    }
    // QEMU 7.2 takes the abort and goes on, so the reset comes after it.
    let (aborts, resets) = (rig.controller.aborts(), rig.controller.resets());
    if aborts == 0 {
        return Err("no abort was sent".to_owned());
    }
    let other = *rig.controller.namespaces().last().ok_or("there is no namespace")?;
    let write = Operation::Write { first: 0, blocks: 8, durable: true };
    let memory = rig.memory(8 * other.block_bytes() as usize)?;
    let (result, _) = rig.one(&mut pair, other, write, memory);
    must(result, || "a write to a quick namespace after the reset".to_owned())?;
    Ok(format!("{failed} of 16 out of time, {aborts} aborts, {resets} resets, {events:?}"))
}

/// The test spoils data under the namespaces that have protection information, after the line: a read
/// must have it checked.
pub fn protection(rig: &Rig) -> Result<String, String> {
    let mut pair = rig.pair(4)?;
    let protected = |namespace: &Namespace| namespace.protection() != Protection::None;
    let namespaces: Vec<Namespace> =
        rig.controller.namespaces().into_iter().filter(protected).collect();
    for namespace in &namespaces {
        let blocks = (64 << 10) / u64::from(namespace.block_bytes());
        let memory = rig.memory(64 << 10)?;
        fill(&memory, 0, 3);
        let write = Operation::Write { first: 0, blocks, durable: false };
        let (result, _) = rig.one(&mut pair, *namespace, write, memory);
        must(result, || "a protected write".to_owned())?;
        let (result, _) = rig.one(&mut pair, *namespace, Operation::Flush, rig.memory(512)?);
        must(result, || "a flush".to_owned())?;
    }
    println!("waiting for spoiled data");
    let mut line = String::new();
    let read = std::io::stdin().read_line(&mut line).map_err(|error| error.to_string())?;
    if read == 0 {
        return Err("nobody says that data was spoiled".to_owned());
    }
    let mut said = "checked";
    for namespace in &namespaces {
        let number = namespace.number();
        let blocks = 4096 / u64::from(namespace.block_bytes());
        let read = |first| Operation::Read { first, blocks };
        let (result, _) = rig.one(&mut pair, *namespace, read(0), rig.memory(4096)?);
        match result {
            Err(IoError::Status(status)) if status.is(Status::GUARD_CHECK) => said = "refused",
            // QEMU 7.2 checks, finds the wrong guard, and forgets to say so; the test looks whether it
            // was asked to check.
            Ok(()) => {}
            other => return Err(format!("namespace {number}: spoiled data gave {other:?}")),
        }
        let (result, memory) = rig.one(&mut pair, *namespace, read(blocks), rig.memory(4096)?);
        must(result, || "a read beside spoiled data".to_owned())?;
        let want = rig.memory(64 << 10)?;
        fill(&want, 0, 3);
        if (0..4096).step_by(8).any(|at| memory.read_u64(at) != want.read_u64(4096 + at)) {
            return Err(format!("namespace {number}: other content beside spoiled data"));
        }
    }
    Ok(format!("{} namespaces, spoiled data {said}", namespaces.len()))
}

/// The test makes the device report its health, after the line.
pub fn event(rig: &Rig) -> Result<String, String> {
    rig.controller.take_events();
    println!("waiting for an event");
    let begin = Instant::now();
    loop {
        rig.controller.turn();
        match rig.controller.take_events().first() {
            None => {}
            Some(ControllerEvent::Reported(event)) if event.kind() == EventKind::Health => {
                let health = rig.run(rig.controller.health());
                let warning = health.map_err(|error| error.to_string())?.critical_warning;
                return Ok(format!("{event:?}, critical warning {warning:#x}"));
            }
            Some(other) => return Err(format!("another event: {other:?}")),
        }
        if begin.elapsed() > Duration::from_secs(60) {
            return Err("no event in 60 s".to_owned());
        }
    }
}
