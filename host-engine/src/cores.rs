//! The engine's cores: started, ended and balanced while guests go on.
//!
//! ```text
//! more: start the new ones ── share flash anew ── move shares of vdisks there
//! fewer: move the shares away ── share flash anew ── end those that are left over
//! ```
//! Core numbers are never used twice by an engine (C29: they name the nonces' keys, C1: and the log's host cores). A
//! core's *place* among the cores says which zones of flash it has, where it listens, and on which processor it runs;
//! it is the same as long as the core runs. A vdisk's share moves as it is opened after a restart (C8), but the device
//! stays connected: `vdisk.rs`.
//!
//! A crash leaves nothing of this: a successor starts as many cores as are configured.

use crate::balance::{Balancer, CoreSample, Move, spread};
use crate::core::{CoreHandle, CoreSettings, start};
use crate::cpu::{CpuPolicy, processor};
use crate::engine::Engine;
use crate::error::HostEngineError;
use crate::flash;
use crate::messages::{Answer, CoreLoad, Order};
use crate::past::Past;
use cleave_format::ids::{ClusterId, HostId, VdiskId};
use cleave_host_core::{CoreShare, DestageConfig, HostCoreConfig};
use cleave_process::machine::{allowed_processors, are_few, processors, spin};
use cleave_runtime::executor::{Doorbell, Priority};
use cleave_runtime::links::PeerAddress;
use cleave_runtime::sync::Signal;
use cleave_runtime_real::identity::Identity;
use cleave_runtime_real::quic::QuicConfig;
use cleave_runtime_real::reactor::ReactorConfig;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// The part of the memory budget that the fingerprint index gets: of 1 GiB enough to recognise the newest 4 GiB.
const DEDUPE_SHARE: u64 = 16;
/// Bytes and number of the buffers that a core registers for its flash: guests' reads, parts, writes.
const FLASH_BUFFERS: [(usize, u16); 3] = [(16 << 10, 64), (128 << 10, 24), (512 << 10, 4)];
/// Between two looks at what cores did.
const SAMPLE: Duration = Duration::from_secs(1);
/// Before a vdisk that could not leave its core is asked again.
const AGAIN: Duration = Duration::from_secs(1);
/// How long moves are waited for.
const MOVE_MAX: Duration = Duration::from_secs(30);

/// What every core is started with.
pub struct Template {
    /// The cluster.
    pub cluster: ClusterId,
    /// The engine's certificate.
    pub identity: Identity,
    /// Wakes the control thread.
    pub doorbell: Arc<dyn Doorbell>,
}

/// What the control thread knows of all cores together.
#[derive(Default)]
pub struct Cores {
    /// What the operator decided last.
    pub policy: Cell<CpuPolicy>,
    /// The number of cores is not what it should be, and is being changed.
    pub changing: Cell<bool>,
    /// Notified when the policy, a vdisk's core, or what is known of a vdisk changes.
    pub changed: Signal,
    /// Cores that are about to end.
    pub leaving: RefCell<Vec<Rc<CoreHandle>>>,
    /// What cores did that have ended.
    pub past: RefCell<Past>,
    /// Vdisks that moved to another core.
    pub moves: Cell<u64>,
    template: RefCell<Option<Template>>,
    next_number: Cell<u16>,
}

/// Starts the first cores.
pub fn begin(engine: &Rc<Engine>, template: Template) -> Result<(), HostEngineError> {
    let policy = CpuPolicy::of(&engine.config);
    engine.cpu.policy.set(policy);
    engine.cpu.template.replace(Some(template));
    let count = policy.wanted(processors());
    for place in 0..count {
        add(engine, place, count)?;
    }
    let task = Rc::clone(engine);
    engine.executor.spawn(Priority::Foreground, follow_policy(task));
    let task = Rc::clone(engine);
    engine.executor.spawn(Priority::Foreground, balance(task));
    Ok(())
}

/// The operator decided something else. It is brought about in time.
pub fn decide(engine: &Engine, policy: CpuPolicy) {
    engine.cpu.policy.set(policy);
    let count = engine.cores.borrow().len();
    engine.cpu.changing.set(usize::from(policy.wanted(processors())) != count);
    engine.cpu.changed.notify();
}

/// What a core has of the engine's.
fn share(engine: &Engine, cores: u16) -> CoreShare {
    let config = &engine.config;
    let write_buffer = config.write_buffer.min(config.quota) / u64::from(cores);
    let memory = config.memory_budget / u64::from(cores);
    CoreShare { cores, write_buffer, memory, map: config.map_budget() / u64::from(cores) }
}

/// Starts one more core, one of so many.
fn add(engine: &Engine, place: u16, cores: u16) -> Result<(), HostEngineError> {
    let number = engine.cpu.next_number.get();
    let next = number.checked_add(1).ok_or(HostEngineError::CoreNumbers)?;
    let template = engine.cpu.template.borrow();
    let template = template.as_ref().expect("the first cores came with it");
    let settings = settings(engine, template, number, place, cores);
    let core = start(settings, Arc::clone(&template.doorbell))?;
    engine.cpu.next_number.set(next);
    engine.cores.borrow_mut().push(Rc::new(core));
    Ok(())
}

fn settings(
    engine: &Engine,
    template: &Template,
    number: u16,
    place: u16,
    cores: u16,
) -> CoreSettings {
    let config = &engine.config;
    let controllers = config.datanodes[0].controllers.iter().map(|controller| PeerAddress {
        name: controller.name.clone(),
        address: controller.address.to_string(),
    });
    let mut listen = config.listen;
    // Each core has links of its own; without a wish the system chooses.
    let port = if listen.port() == 0 { 0 } else { listen.port().saturating_add(place) };
    listen.set_port(port);
    let CoreShare { cores, write_buffer, memory, map } = share(engine, cores);
    let processors = processors();
    CoreSettings {
        core: HostCoreConfig {
            cluster: template.cluster,
            host: HostId(config.id),
            incarnation: engine.incarnation.get(),
            core: number,
            cores,
            controllers: controllers.collect(),
            write_buffer,
            memory,
            dedupe: memory / DEDUPE_SHARE,
            map,
            destage: DestageConfig::default(),
        },
        place,
        links: QuicConfig { mtu: config.mtu, ..QuicConfig::new(listen, template.identity.clone()) },
        reactor: ReactorConfig {
            spin: spin(processors, usize::from(cores)),
            drive_buffers: FLASH_BUFFERS.to_vec(),
            ..ReactorConfig::default()
        },
        processor: processor(usize::from(place), &allowed_processors(), are_few(processors)),
    }
}

/// Has as many cores run as the policy says, for as long as the engine runs.
async fn follow_policy(engine: Rc<Engine>) {
    loop {
        let cpu = &engine.cpu;
        let wanted = || {
            let (wanted, count) =
                (cpu.policy.get().wanted(processors()), engine.cores.borrow().len());
            (usize::from(wanted) != count).then_some(wanted)
        };
        let wanted = cpu.changed.until(wanted).await;
        cpu.changing.set(true);
        let before = engine.cores.borrow().len();
        match usize::from(wanted) > before {
            true => grow(&engine, wanted).await,
            false => shrink(&engine, wanted).await,
        }
        let cores = engine.cores.borrow().len();
        tracing::info!(
            before,
            cores,
            insane = cpu.policy.get().insane,
            "the number of cores changed"
        );
        if cores == before {
            // A core could not be started; the operator may decide again.
            let count = u16::try_from(cores).unwrap_or(u16::MAX);
            cpu.policy.set(CpuPolicy { cores: count, ..cpu.policy.get() });
        }
        cpu.changing.set(false);
        cpu.changed.notify();
    }
}

async fn grow(engine: &Rc<Engine>, wanted: u16) {
    // No device of flash comes or goes meanwhile.
    let alone = engine.flash.gate.alone().await;
    let before = engine.cores.borrow().clone();
    for place in before.len() as u16..wanted {
        if let Err(error) = add(engine, place, wanted) {
            tracing::error!("no more cores: {error}");
            break;
        }
    }
    tell_shares(engine).await;
    flash::share_anew(engine, &before).await;
    drop(alone);
    let moves = spread(&by_core(engine));
    apply(engine, &moves);
    until_moved(engine, &moves).await;
}

async fn shrink(engine: &Rc<Engine>, wanted: u16) {
    let leaving = engine.cores.borrow_mut().split_off(usize::from(wanted));
    engine.cpu.leaving.replace(leaving.clone());
    while !move_away(engine, &leaving) {
        // A vdisk that could not go is asked again.
        let gone = || (!is_used(engine, &leaving)).then_some(());
        engine.executor.timeout(AGAIN, engine.cpu.changed.until(gone)).await;
    }
    tell_shares(engine).await;
    let alone = engine.flash.gate.alone().await;
    let having: Vec<_> = engine.cores.borrow().iter().chain(&leaving).cloned().collect();
    flash::share_anew(engine, &having).await;
    drop(alone);
    for core in leaving {
        if let Some(Answer::View(view)) = core.ask(Order::Look).wait().await {
            engine.cpu.past.borrow_mut().add(&view);
        }
        core.ask(Order::End { with_engine: false }).wait().await;
        core.join();
        engine.cpu.leaving.borrow_mut().retain(|other| other.core != core.core);
    }
}

/// Has every share leave these cores; true when none is there any more.
fn move_away(engine: &Engine, leaving: &[Rc<CoreHandle>]) -> bool {
    for vdisk in engine.vdisks.borrow().values() {
        for share in &vdisk.shares {
            let there = leaving.iter().any(|core| core.core == share.core().core);
            if there && share.target.borrow().is_none() {
                let mut target = engine.least_loaded(1);
                vdisk.move_share(share, target.remove(0));
            }
        }
    }
    !is_used(engine, leaving)
}

fn is_used(engine: &Engine, cores: &[Rc<CoreHandle>]) -> bool {
    let vdisks = engine.vdisks.borrow();
    let there = |number| cores.iter().any(|core| core.core == number);
    vdisks.values().flat_map(|vdisk| &vdisk.shares).any(|share| there(share.core().core))
}

fn is_leaving(engine: &Engine, share: VdiskId) -> bool {
    let found = engine.share(share);
    found.is_some_and(|(vdisk, share)| vdisk.shares[share].target.borrow().is_some())
}

/// Waits until these moves are over, one way or the other; those of vdisks that wait for something else are not waited for.
async fn until_moved(engine: &Engine, moves: &[Move]) {
    let over = || (!moves.iter().any(|found| is_leaving(engine, found.share))).then_some(());
    engine.executor.timeout(MOVE_MAX, engine.cpu.changed.until(over)).await;
}

/// Tells every core what it has of the engine's by their number, and how long it may spin.
async fn tell_shares(engine: &Engine) {
    let cores = engine.cores.borrow().clone();
    let count = cores.len() as u16;
    let (share, spin) = (share(engine, count), spin(processors(), usize::from(count)));
    for core in cores {
        core.ask(Order::Share { share, spin }).wait().await;
    }
}

fn by_core(engine: &Engine) -> Vec<(u16, Vec<VdiskId>)> {
    let vdisks = engine.vdisks.borrow();
    let of = |number: u16| {
        let shares = vdisks.values().flat_map(|vdisk| &vdisk.shares);
        shares.filter(|share| share.core().core == number).map(|share| share.identity).collect()
    };
    engine.cores.borrow().iter().map(|core| (core.core, of(core.core))).collect()
}

/// Has shares move.
fn apply(engine: &Engine, moves: &[Move]) {
    for Move { share, to } in moves {
        let cores = engine.cores.borrow();
        let target = cores.iter().find(|core| core.core == *to).cloned();
        if let (Some(target), Some((vdisk, share))) = (target, engine.share(*share)) {
            vdisk.move_share(&vdisk.shares[share], target);
        }
    }
}

/// Moves shares off cores that have too much to do, for as long as the engine runs.
async fn balance(engine: Rc<Engine>) {
    let mut balancer = Balancer::default();
    let mut before: Vec<CoreLoad> = Vec::new();
    loop {
        // A single core is not looked at, and may sleep.
        let several =
            || (engine.cores.borrow().len() > 1 && !engine.cpu.changing.get()).then_some(());
        engine.cpu.changed.until(several).await;
        engine.executor.sleep(SAMPLE).await;
        let loads = look(&engine).await;
        let samples: Vec<CoreSample> = loads.iter().map(|load| sample(load, &before)).collect();
        before = loads;
        if let Some(found) = balancer.sample(&samples)
            && !engine.cpu.changing.get()
        {
            tracing::info!(share = %found.share, to = found.to, "moves, because its core has too much to do");
            apply(&engine, &[found]);
            until_moved(&engine, &[found]).await;
            // What was done meanwhile is no measure.
            before.clear();
        }
    }
}

/// What each core has done so far.
pub async fn look(engine: &Engine) -> Vec<CoreLoad> {
    let cores = engine.cores.borrow().clone();
    let asked: Vec<_> = cores.iter().map(|core| core.ask(Order::Load)).collect();
    let mut loads = Vec::with_capacity(asked.len());
    for (core, answer) in cores.iter().zip(asked) {
        if let Some(Answer::Load(load)) = answer.wait().await {
            core.note_load(&load);
            loads.push(*load);
        }
    }
    loads
}

fn sample(now: &CoreLoad, before: &[CoreLoad]) -> CoreSample {
    let Some(then) = before.iter().find(|then| then.core == now.core) else {
        return CoreSample { core: now.core, ..CoreSample::default() };
    };
    let passed = now.at.since(then.at).as_micros().max(1);
    let busy = now.busy.saturating_sub(then.busy).as_micros();
    let shares = now.shares.iter().map(|(share, cost)| {
        let known = then.shares.iter().find(|(other, _)| other == share);
        (*share, cost.saturating_sub(known.map_or(*cost, |(_, cost)| *cost)))
    });
    let busy_permille = u64::try_from(busy * 1000 / passed).unwrap_or(u64::MAX).min(1000);
    CoreSample { core: now.core, busy_permille, shares: shares.collect() }
}
