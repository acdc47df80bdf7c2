//! The host's flash devices, as the control thread knows them: added and retired while guests go on.
//!
//! ```text
//! adding ── first core prepares ── every core adds its share ── every core has scanned it ──▶ in use
//!    └────────────── refused ──────────▶ retired ◀── a core gives it up, or an operator ─────────┘
//! ```
//! A device that cannot be used is shown with the reason, and nothing else: the engine serves without it.
//! What one core gives up is retired on all. When the number of cores changes, each device is let go by all cores,
//! tidily, and added again: its zones are other cores' then, and what they hold is found by their headers.

use crate::core::{CoreHandle, NvmeParts, OpenFailure};
use crate::engine::Engine;
use crate::messages::{Answer, CoreView, FlashOrder, Order};
use cleave_control::events::{Kind, News, Subject};
use cleave_control::flash::FlashPlace;
use cleave_control::status::{Fill, FlashEventStatus, FlashState, FlashStatus};
use cleave_flash::DeviceStats;
use cleave_format::flash::FlashId;
use cleave_runtime::executor::Priority;
use cleave_runtime::sync::Signal;
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io::Read;
use std::rc::Rc;
use std::time::Duration;

/// How long another process may hold a device: a predecessor that ends.
const HELD_MAX: Duration = Duration::from_secs(60);
/// Events that are shown.
const EVENTS_MAX: usize = 32;
const TRY_AGAIN: Duration = Duration::from_millis(100);
/// How long a core may take to describe what a device holds that is to be shared anew.
const DESCRIBE_MAX: Duration = Duration::from_secs(10);
/// How long a device may take to be let go when it is retired.
const LET_GO: Duration = Duration::from_secs(10);

/// A device.
struct Device {
    name: String,
    place: FlashPlace,
    state: Cell<FlashState>,
    reason: RefCell<String>,
    /// Cores that have their share in use.
    ready: Cell<usize>,
    /// It is being shared anew: that cores let it go is as it should be.
    aside: Cell<bool>,
    /// What it counted before it was shared as it is at present.
    before: Cell<Counts>,
}

/// Counters of a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Counts {
    errors: u64,
    bytes_written: u64,
}

/// All of them; see the module's page.
#[derive(Default)]
pub struct HostFlash {
    devices: RefCell<Vec<Rc<Device>>>,
    changed: Signal,
    /// The newest last.
    events: RefCell<VecDeque<FlashEventStatus>>,
    /// Devices come and go together, but not while they are shared anew.
    pub gate: Gate,
}

/// Lets in several, or one who is alone.
#[derive(Default)]
pub struct Gate {
    inside: Cell<usize>,
    alone: Cell<bool>,
    changed: Signal,
}

/// Inside of a gate, until it is dropped.
pub struct Inside<'g> {
    gate: &'g Gate,
    alone: bool,
}

impl Gate {
    /// Waits until nobody is alone inside.
    pub async fn together(&self) -> Inside<'_> {
        self.changed.until(|| (!self.alone.get()).then_some(())).await;
        self.inside.set(self.inside.get() + 1);
        Inside { gate: self, alone: false }
    }

    /// Waits until nobody is inside. Who comes later waits.
    pub async fn alone(&self) -> Inside<'_> {
        self.changed.until(|| (!self.alone.get()).then_some(())).await;
        self.alone.set(true);
        let inside = Inside { gate: self, alone: true };
        self.changed.until(|| (self.inside.get() == 0).then_some(())).await;
        inside
    }
}

impl Drop for Inside<'_> {
    fn drop(&mut self) {
        match self.alone {
            true => self.gate.alone.set(false),
            false => self.gate.inside.set(self.gate.inside.get() - 1),
        }
        self.gate.changed.notify();
    }
}

impl HostFlash {
    fn find(&self, name: &str) -> Option<Rc<Device>> {
        let devices = self.devices.borrow();
        devices.iter().rev().find(|device| device.name == name).cloned()
    }

    /// A core has scanned its share.
    pub fn ready(&self, name: &str, cores: usize) {
        let Some(device) = self.find(name) else { return };
        device.ready.set(device.ready.get() + 1);
        if device.state.get() == FlashState::Adding && device.ready.get() == cores {
            device.state.set(FlashState::InUse);
            self.changed.notify();
        }
    }

    /// Keeps what happened to a device.
    pub fn note(&self, at: u64, device: &str, offset: Option<u64>, event: String) {
        let mut events = self.events.borrow_mut();
        if events.len() == EVENTS_MAX {
            events.pop_front();
        }
        events.push_back(FlashEventStatus { at, device: device.to_owned(), offset, event });
    }

    /// What happened, the newest last.
    pub fn events(&self) -> Vec<FlashEventStatus> {
        self.events.borrow().iter().cloned().collect()
    }

    /// Bytes that devices were given before they were shared as they are at present.
    pub fn written_before(&self) -> u64 {
        self.devices.borrow().iter().map(|device| device.before.get().bytes_written).sum()
    }

    /// What is known of each device.
    pub fn shown(&self, views: &[CoreView]) -> Vec<FlashStatus> {
        let devices = self.devices.borrow();
        devices.iter().map(|device| device.shown(views)).collect()
    }
}

impl Device {
    fn shown(&self, views: &[CoreView]) -> FlashStatus {
        let shares = views.iter().flat_map(|view| &view.flash.devices);
        let own: Vec<&DeviceStats> = shares.filter(|share| *share.name == *self.name).collect();
        let sum = |what: fn(&DeviceStats) -> u64| own.iter().map(|share| what(share)).sum();
        let in_use = self.state.get() == FlashState::InUse;
        let before = self.before.get();
        FlashStatus {
            device: self.name.clone(),
            state: self.state.get(),
            reason: self.reason.borrow().clone(),
            space: match in_use {
                true => {
                    Fill { used: sum(|share| share.used), capacity: sum(|share| share.capacity) }
                }
                false => Fill::default(),
            },
            errors: before.errors + sum(|share| share.errors + share.retired_places),
            retired_places: sum(|share| share.retired_places),
            bytes_written: before.bytes_written + sum(|share| share.bytes_written),
        }
    }

    /// Keeps what it has counted so far.
    async fn remember(&self, cores: &[Rc<CoreHandle>]) {
        let mut counts = self.before.get();
        for core in cores {
            let Some(Answer::View(view)) = core.ask(Order::Look).wait().await else { continue };
            for share in view.flash.devices.iter().filter(|share| *share.name == *self.name) {
                // Retired places are found again.
                counts.errors += share.errors;
                counts.bytes_written += share.bytes_written;
            }
        }
        self.before.set(counts);
    }

    fn retired(&self, reason: &str) {
        if self.state.replace(FlashState::Retired) != FlashState::Retired {
            reason.clone_into(&mut self.reason.borrow_mut());
        }
    }
}

/// Adds a device; returns when it is in use, or why it is not.
pub async fn add(engine: Rc<Engine>, text: String) -> Result<(), String> {
    let place: FlashPlace = text.parse()?;
    let name = place.to_string();
    let flash = &engine.flash;
    let _inside = flash.gate.together().await;
    if flash.find(&name).is_some_and(|device| device.state.get() != FlashState::Retired) {
        return Err(format!("{name} is in use already"));
    }
    let device = Rc::new(Device {
        name: name.clone(),
        place,
        state: Cell::default(),
        reason: RefCell::default(),
        ready: Cell::new(0),
        aside: Cell::new(false),
        before: Cell::default(),
    });
    {
        let mut devices = flash.devices.borrow_mut();
        devices.retain(|device| device.name != name);
        devices.push(Rc::clone(&device));
    }
    let outcome = match begin(&engine, &device).await {
        Ok(()) => settled(flash, &device).await,
        Err(reason) => give_up(&engine, &device, reason).await,
    };
    match &outcome {
        Ok(()) => {
            tracing::info!(device = name, "flash is in use");
            engine.tell(News::new(Kind::FlashInUse, Subject::Flash(name)));
        }
        Err(reason) => {
            tracing::warn!(device = name, reason, "flash cannot be used");
            engine.tell(News::new(Kind::FlashRefused, Subject::Flash(name)).because(reason));
        }
    }
    outcome
}

/// Waits until all cores have their shares in use, or the device is retired.
async fn settled(flash: &HostFlash, device: &Device) -> Result<(), String> {
    let settled = || match device.state.get() {
        FlashState::Adding => None,
        FlashState::InUse => Some(Ok(())),
        FlashState::Retired => Some(Err(device.reason.borrow().clone())),
    };
    flash.changed.until(settled).await
}

/// Retires a device that not all cores could add.
async fn give_up(engine: &Engine, device: &Device, reason: String) -> Result<(), String> {
    device.retired(&reason);
    let cores = engine.cores.borrow().clone();
    tell(&cores, || retiring(&device.name)).await;
    Err(reason)
}

fn retiring(name: &str) -> Order {
    Order::RetireFlash { name: name.to_owned(), tidily: false }
}

/// Shares all devices among the present cores. `having`: the cores that have shares so far. Nothing comes or goes
/// meanwhile: the caller is alone inside of the [`gate`](HostFlash::gate).
pub async fn share_anew(engine: &Rc<Engine>, having: &[Rc<CoreHandle>]) {
    let devices = engine.flash.devices.borrow().clone();
    for device in devices.iter().filter(|device| device.state.get() == FlashState::InUse) {
        device.remember(having).await;
        device.aside.set(true);
        let tidily = || Order::RetireFlash { name: device.name.clone(), tidily: true };
        let let_go = tell(having, tidily);
        let in_time = engine.executor.timeout(LET_GO + DESCRIBE_MAX, let_go).await;
        device.aside.set(false);
        device.ready.set(0);
        device.state.set(FlashState::Adding);
        let added = match in_time {
            Some(()) => begin(engine, device).await,
            None => Err("it did not answer when the number of cores changed".to_owned()),
        };
        let outcome = match added {
            Ok(()) => settled(&engine.flash, device).await,
            Err(reason) => give_up(engine, device, reason).await,
        };
        if let Err(reason) = outcome {
            tracing::warn!(device = device.name, reason, "flash cannot be shared anew");
        }
    }
}

/// Adds a device for somebody who waits: one that cannot be used is not shown further.
pub async fn add_online(engine: Rc<Engine>, text: String) -> Result<(), String> {
    let outcome = add(Rc::clone(&engine), text.clone()).await;
    if outcome.is_err()
        && let Ok(place) = text.parse::<FlashPlace>()
    {
        let refused = |device: &Rc<Device>| {
            device.place == place && device.state.get() == FlashState::Retired
        };
        engine.flash.devices.borrow_mut().retain(|device| !refused(device));
    }
    outcome
}

/// Has every core add its share.
async fn begin(engine: &Engine, device: &Device) -> Result<(), String> {
    let cores = engine.cores.borrow().clone();
    let mut order = FlashOrder {
        name: device.name.clone(),
        place: device.place.clone(),
        cluster: engine.config.cluster.parse().expect("the configuration was checked"),
        device: FlashId::default(),
        superblock: None,
        cores: cores.len() as u32,
        parts: NvmeParts::default(),
    };
    if !matches!(device.place, FlashPlace::Memory(_)) {
        order.device = random_id()?;
        let mut waited = Duration::ZERO;
        order.superblock = loop {
            let asked = cores[0].ask(Order::PrepareFlash(Box::new(order.clone())));
            match asked.wait().await {
                Some(Answer::FlashPrepared(Ok(superblock))) => break Some(superblock),
                Some(Answer::FlashPrepared(Err(OpenFailure::Held(_)))) if waited < HELD_MAX => {
                    engine.executor.sleep(TRY_AGAIN).await;
                    waited += TRY_AGAIN;
                }
                Some(Answer::FlashPrepared(Err(
                    OpenFailure::Held(reason) | OpenFailure::Refused(reason),
                ))) => return Err(reason),
                _ => return Err("the engine is stopping".to_owned()),
            }
        };
    }
    for core in &cores {
        if matches!(device.place, FlashPlace::Memory(_)) {
            // Each core's part is a device of its own.
            order.device = random_id()?;
        }
        match core.ask(Order::AddFlash(Box::new(order.clone()))).wait().await {
            Some(Answer::FlashAdded(Ok(()))) => {}
            Some(Answer::FlashAdded(Err(reason))) => return Err(reason),
            _ => return Err("the engine is stopping".to_owned()),
        }
    }
    Ok(())
}

/// Retires a device; returns when it is not in use any more.
pub async fn retire(engine: Rc<Engine>, text: String) -> Result<(), String> {
    let place: FlashPlace = text.parse()?;
    let name = place.to_string();
    let _inside = engine.flash.gate.together().await;
    let found = engine.flash.find(&name);
    let device = found.ok_or_else(|| format!("{name} is not flash of this host"))?;
    device.retired("it was taken out");
    engine.flash.changed.notify();
    let cores = engine.cores.borrow().clone();
    let in_time = engine.executor.timeout(LET_GO, tell(&cores, || retiring(&name))).await;
    // An operator who took it out needs not be told that it is out.
    engine.flash.devices.borrow_mut().retain(|other| !Rc::ptr_eq(other, &device));
    tracing::info!(device = name, "flash was taken out");
    let news = News::new(Kind::FlashTaken, Subject::Flash(name.clone()));
    engine.tell(news.because("an operator asked for it"));
    in_time
        .ok_or_else(|| format!("{name} is not used any more, but has not answered everything yet"))
}

/// A core gave a device up: the others do, too.
pub fn given_up(engine: &Rc<Engine>, name: &str, reason: &str) {
    let Some(device) = engine.flash.find(name) else { return };
    if device.state.get() == FlashState::Retired || device.aside.get() {
        return;
    }
    device.retired(reason);
    engine.tell(News::new(Kind::FlashRetired, Subject::Flash(name.to_owned())).because(reason));
    let at = engine.executor.clock().unix_seconds();
    engine.flash.note(at, name, None, format!("it is retired: {reason}"));
    engine.flash.changed.notify();
    let (engine, name) = (Rc::clone(engine), name.to_owned());
    engine.clone().executor.spawn(Priority::Foreground, async move {
        let cores = engine.cores.borrow().clone();
        tell(&cores, || retiring(&name)).await;
    });
}

/// Gives cores an order, and waits for their answers.
async fn tell(cores: &[Rc<CoreHandle>], order: impl Fn() -> Order) {
    let asked: Vec<_> = cores.iter().map(|core| core.ask(order())).collect();
    for answer in asked {
        answer.wait().await;
    }
}

/// A name that no device ever had.
fn random_id() -> Result<FlashId, String> {
    let mut bytes = [0; 16];
    let source = std::fs::File::open("/dev/urandom");
    let read = source.and_then(|mut source| source.read_exact(&mut bytes));
    read.map(|()| FlashId(bytes)).map_err(|error| format!("no random bytes: {error}"))
}
