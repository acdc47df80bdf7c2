//! The supervisor's loop: children, signals, requests, readiness, and the order of a stop.
//!
//! ```text
//! starting ──ready──▶ serving ──signal or request──▶ stopping the hosts' engines ──▶ stopping controllers ──▶ stopping etcd ──▶ end
//!     └── a child ends, or 30 s pass ────────────────────────▲
//! ```
//! Hosts' engines go first, so that controllers hold all that they had acknowledged; then both
//! controllers at once, which write the log to their vaults; etcd last, if it is the store. It is started again
//! whenever it ends before. A child that does not end in time is
//! killed, and the stop is reported as failed. While serving, the end of a child ends nothing else; it is
//! started again when that was asked for, by option or by request.
//!
//! An upgrade starts the successor beside the engine that runs; when it stands by, the engine is told to end, and
//! the successor takes its place in that moment (C25: the kernel lock decides, not this loop). Until the successor
//! is proven, its end brings the earlier program back.

use crate::dev::child::{self, Running, failed};
use crate::dev::cluster::{Cluster, program, program_of};
use crate::dev::engines;
use crate::dev::etcd::{self, ETCD};
use crate::dev::overview::Overview;
use crate::dev::requests::Requests;
use crate::dev::settings::CONTROLLERS;
use crate::error::{Error, Result, system};
use cleave_control::server::ControlServer;
use cleave_runtime::crash_points::{Point, reached};
use rustix::process::Signal;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

/// The power supply warns: as an order to stop (not among the library's names, which are those of POSIX).
const SIGPWR: i32 = Signal::POWER.as_raw();
/// Everything must be served within this.
const READY: Duration = Duration::from_secs(30);
const READY_LOOK: Duration = Duration::from_millis(50);
/// How long engines may take to stop: a vault can be large.
const STOP: Duration = Duration::from_secs(120);
/// A child that ends again soon is started again later and later.
const PAUSE_MIN: Duration = Duration::from_millis(100);
const PAUSE_MAX: Duration = Duration::from_secs(5);
/// A child that ran this long is healthy.
const HEALTHY: Duration = Duration::from_secs(30);

/// What the loop reacts to.
pub enum Event {
    /// A signal asks for the end.
    Signal,
    /// A request asks for the end.
    Stop,
    /// A child ended.
    Ended {
        /// Which.
        name: &'static str,
        /// Its process.
        pid: u32,
        /// How.
        status: ExitStatus,
    },
    /// Every vdisk is served.
    Ready,
    /// A child is to be started, or ended and started.
    Restart {
        /// Which.
        name: &'static str,
        /// Is told when it has been started.
        answer: Sender<Result<()>>,
    },
    /// A child is to be replaced by another program.
    Upgrade {
        /// Which.
        name: &'static str,
        /// What it is to run.
        program: PathBuf,
        /// Is told when it runs in the child's place.
        answer: Sender<Result<Promotion>>,
    },
    /// A successor waits for its predecessor to end.
    StandingBy {
        /// Which.
        name: &'static str,
        /// Its process.
        pid: u32,
    },
    /// A successor serves everything that its predecessor did.
    Proven {
        /// Which.
        name: &'static str,
        /// Its process.
        pid: u32,
    },
}

/// A successor in its predecessor's place.
#[derive(Clone, Copy, Debug)]
pub struct Promotion {
    /// Its process.
    pub pid: u32,
    /// When the predecessor was told to end, or ended by itself.
    pub since: Instant,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Starting,
    Serving,
    StoppingHost,
    StoppingControllers,
    StoppingStore,
}

#[derive(Default)]
struct Slot {
    running: Option<Running>,
    /// When it is to be started again.
    due: Option<Instant>,
    pause: Duration,
    /// Who asked for a restart.
    asked: Vec<Sender<Result<()>>>,
    /// What it runs, when that is not the program beside this one.
    program: Option<PathBuf>,
    successor: Option<Successor>,
    /// The process of a successor that is not proven yet, and what its predecessor ran.
    trial: Option<(u32, Option<PathBuf>)>,
}

/// A child that waits for its predecessor to end.
struct Successor {
    running: Running,
    program: PathBuf,
    answer: Sender<Result<Promotion>>,
    /// When the predecessor was told.
    told: Option<Instant>,
}

struct Supervisor {
    overview: Arc<Overview>,
    events: Sender<Event>,
    slots: BTreeMap<&'static str, Slot>,
    restart: bool,
    phase: Phase,
    /// When the phase has lasted too long.
    deadline: Option<Instant>,
    result: Result<()>,
}

/// Runs the cluster until it is told to stop.
pub fn supervise(mut cluster: Cluster, restart: bool, engines: bool) -> Result<()> {
    for name in cluster.settings.engines() {
        program(program_of(name))?;
    }
    for found in cluster.namespace().list()? {
        // Nobody serves anything yet, so a deletion that was interrupted can end.
        if found.record.state == cleave_control::records::VdiskState::Deleting {
            cluster.namespace().finish_delete(&found)?;
        }
    }
    reached(Point::DevStore);
    engines::configure(&mut cluster, !engines)?;
    reached(Point::DevConfigured);
    let etcd = cluster.etcd.take();
    let (events, inbox) = channel();
    watch_signals(events.clone())?;
    let overview = Arc::new(Overview::new(cluster, !engines));
    let requests = Requests::new(Arc::clone(&overview), events.clone());
    let socket = overview.cluster.directory.control_socket();
    let control = ControlServer::start(&socket, move |request| requests.answer(request))?;
    let mut supervisor = Supervisor {
        overview: Arc::clone(&overview),
        events: events.clone(),
        slots: overview.child_names().into_iter().map(|name| (name, Slot::default())).collect(),
        restart,
        phase: Phase::Starting,
        // Who starts engines by hand takes their time.
        deadline: engines.then(|| Instant::now() + READY),
        result: Ok(()),
    };
    let over = Arc::new(AtomicBool::new(false));
    let looking = watch_readiness(Arc::clone(&overview), events, Arc::clone(&over))?;
    if let Some((running, process)) = etcd {
        supervisor.adopt(ETCD, running, process)?;
    }
    if engines {
        supervisor.start_all();
    }
    supervisor.run(&inbox);
    reached(Point::DevStopped);
    // Requests that wait for the loop get an error now; the server waits for them.
    drop(inbox);
    drop(control);
    over.store(true, Ordering::Relaxed);
    looking.join().expect("looking at engines does not panic");
    let failure = supervisor.result.as_ref().err().map(ToString::to_string);
    overview.events.close(failure);
    supervisor.result
}

fn watch_signals(events: Sender<Event>) -> Result<()> {
    let mut signals =
        Signals::new([SIGINT, SIGTERM, SIGHUP, SIGPWR]).map_err(system("watch for signals"))?;
    let watching = move || {
        for _ in signals.forever() {
            if events.send(Event::Signal).is_err() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("signals".to_owned());
    thread.spawn(watching).map_err(system("start a thread"))?;
    Ok(())
}

fn watch_readiness(
    overview: Arc<Overview>,
    events: Sender<Event>,
    over: Arc<AtomicBool>,
) -> Result<std::thread::JoinHandle<()>> {
    let looking = move || {
        while !over.load(Ordering::Relaxed) {
            if overview.missing().is_ok_and(|missing| missing.is_empty()) {
                // The loop may have ended.
                let _ = events.send(Event::Ready);
                return;
            }
            std::thread::sleep(READY_LOOK);
        }
    };
    let thread = std::thread::Builder::new().name("readiness".to_owned());
    thread.spawn(looking).map_err(system("start a thread"))
}

impl Supervisor {
    fn start_all(&mut self) {
        // Controllers first: the host engine has nothing to do without them.
        for name in CONTROLLERS.iter().chain(self.hosts()).copied() {
            if let Err(error) = self.start(name) {
                self.fail(error);
                return;
            }
        }
    }

    fn run(&mut self, inbox: &Receiver<Event>) {
        while !self.is_over() {
            let due = self.slots.values().filter_map(|slot| slot.due);
            let next = due.chain(self.deadline).min();
            let event = match next {
                None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
                Some(next) => inbox.recv_timeout(next.saturating_duration_since(Instant::now())),
            };
            match event {
                Ok(event) => self.handle(event),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => unreachable!("the loop holds a sender"),
            }
            self.advance();
        }
    }

    fn is_over(&self) -> bool {
        self.phase == Phase::StoppingStore && self.slots.values().all(|slot| slot.running.is_none())
    }

    fn hosts(&self) -> &'static [&'static str] {
        self.overview.cluster.settings.host_names()
    }

    fn all_down(&self, names: &[&str]) -> bool {
        names.iter().all(|name| self.slots[name].running.is_none())
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Signal | Event::Stop => match self.phase {
                Phase::Starting | Phase::Serving => self.stop(),
                // Asked again: whoever asks is in a hurry, but a vault is worth waiting for.
                Phase::StoppingHost | Phase::StoppingControllers | Phase::StoppingStore => {
                    eprintln!("cleave: stopping; engines have up to {} s", STOP.as_secs());
                }
            },
            Event::Ready if self.phase == Phase::Starting => {
                self.phase = Phase::Serving;
                self.deadline = None;
                reached(Point::DevReady);
                let mut out = std::io::stdout().lock();
                // Nobody may be listening.
                let _ = writeln!(out, "ready").and_then(|()| out.flush());
            }
            Event::Ready => {}
            Event::Ended { name, pid, status } => self.ended(name, pid, status),
            Event::Restart { name, answer } => self.restart(name, answer),
            Event::Upgrade { name, program, answer } => self.upgrade(name, program, answer),
            Event::StandingBy { name, pid } => self.standing_by(name, pid),
            Event::Proven { name, pid } => {
                let trial = &mut self.slot(name).trial;
                if trial.as_ref().is_some_and(|(on_trial, _)| *on_trial == pid) {
                    *trial = None;
                }
            }
        }
    }

    fn start(&mut self, name: &'static str) -> Result<()> {
        let Cluster { directory, settings, .. } = &self.overview.cluster;
        if name == ETCD {
            let (running, process) = etcd::restart(directory, settings)?;
            return self.adopt(name, running, process);
        }
        let path = match &self.slots[name].program {
            Some(path) => path.clone(),
            None => program(program_of(name))?,
        };
        let command = child::engine(directory, name, &path);
        let (running, process) = child::start(directory, name, command, false)?;
        reached(Point::DevEngineStarted);
        self.adopt(name, running, process)
    }

    /// A child that runs is this loop's from now on.
    fn adopt(&mut self, name: &'static str, running: Running, process: Child) -> Result<()> {
        let view = (running.pid, running.since);
        self.slot(name).running = Some(running);
        self.overview.change(name, |child| {
            child.running = Some(view);
            child.stopping = false;
        });
        self.wait(name, view.0, process)
    }

    fn wait(&self, name: &'static str, pid: u32, process: Child) -> Result<()> {
        let events = self.events.clone();
        child::wait(name, process, move |status| {
            // The loop may have ended.
            let _ = events.send(Event::Ended { name, pid, status });
        })
    }

    fn ended(&mut self, name: &'static str, pid: u32, status: ExitStatus) {
        let successor = &mut self.slot(name).successor;
        if let Some(early) = successor.take_if(|successor| successor.running.pid == pid) {
            let obituary = early.running.obituary(status);
            let what = format!("goes on, because {}: it {obituary}", early.program.display());
            // Whoever asked may be gone.
            let _ = early.answer.send(Err(failed(name, what)));
            return;
        }
        let running = self.slot(name).running.take().expect("a child that ended was running");
        let obituary = running.obituary(status);
        self.overview.change(name, |child| {
            child.running = None;
            child.obituary = Some(obituary.clone());
        });
        if let Some(successor) = self.slot(name).successor.take() {
            self.promote(name, successor);
            return;
        }
        let trial = self.slot(name).trial.take_if(|(on_trial, _)| *on_trial == pid);
        if let Some((_, before)) = trial
            && self.phase == Phase::Serving
        {
            self.overview.events.ended(name, &obituary);
            eprintln!("cleave: {name} (process {pid}) {obituary}; the program before it goes on");
            let slot = self.slot(name);
            slot.program = before;
            slot.due = Some(Instant::now());
            return;
        }
        match self.phase {
            Phase::Starting => self.fail(failed(name, obituary)),
            // Engines that stop still have words for the store.
            Phase::StoppingHost | Phase::StoppingControllers if name == ETCD => {
                self.slot(name).due = Some(Instant::now() + PAUSE_MIN);
            }
            // It ends itself by the signal, once it has closed what it keeps.
            Phase::StoppingStore if status.signal() == Some(Signal::TERM.as_raw()) => {}
            Phase::Serving => {
                let asked = !self.slots[name].asked.is_empty();
                if !asked {
                    self.overview.events.ended(name, &obituary);
                    eprintln!("cleave: {name} (process {}) {obituary}", running.pid);
                }
                let healthy = running.since.elapsed() >= HEALTHY;
                let restart = self.restart || name == ETCD;
                let slot = self.slot(name);
                if asked {
                    slot.due = Some(Instant::now());
                } else if restart {
                    slot.pause = if healthy {
                        PAUSE_MIN
                    } else {
                        (slot.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX)
                    };
                    slot.due = Some(Instant::now() + slot.pause);
                }
            }
            Phase::StoppingHost | Phase::StoppingControllers | Phase::StoppingStore => {
                if !status.success() && self.result.is_ok() {
                    self.result = Err(failed(name, obituary));
                }
            }
        }
    }

    fn restart(&mut self, name: &'static str, answer: Sender<Result<()>>) {
        if self.phase != Phase::Serving {
            // Whoever asked may be gone.
            let _ = answer.send(Err(failed("the cluster", "is starting or stopping; try again")));
            return;
        }
        if self.overview.engines_elsewhere && name != ETCD {
            let what = "was not started by this supervisor (--no-engines)";
            let _ = answer.send(Err(failed(name, what)));
            return;
        }
        let slot = self.slot(name);
        if slot.successor.is_some() {
            let _ = answer.send(Err(failed(name, "is being upgraded; try again")));
            return;
        }
        slot.asked.push(answer);
        let Some(running) = &slot.running else {
            slot.due = Some(Instant::now());
            return;
        };
        if let Err(error) = running.signal(Signal::TERM) {
            eprintln!("cleave: {error}");
        }
        self.overview.change(name, |child| child.stopping = true);
    }

    fn upgrade(&mut self, name: &'static str, program: PathBuf, answer: Sender<Result<Promotion>>) {
        let slot = &self.slots[name];
        let refused = match self.phase {
            Phase::Serving if self.overview.engines_elsewhere => {
                Some("was not started by this supervisor (--no-engines)")
            }
            Phase::Serving if slot.running.is_none() => Some("does not run; restart it"),
            Phase::Serving if slot.successor.is_some() || !slot.asked.is_empty() => {
                Some("is being upgraded or restarted; try again")
            }
            Phase::Serving => None,
            _ => Some("is starting or stopping; try again"),
        };
        let started = match refused {
            Some(reason) => Err(failed(name, reason)),
            None => self.start_successor(name, &program),
        };
        match started {
            Ok(running) => {
                let successor = Successor { running, program, answer, told: None };
                self.slot(name).successor = Some(successor);
            }
            // Whoever asked may be gone.
            Err(error) => drop(answer.send(Err(error))),
        }
    }

    fn start_successor(&self, name: &'static str, program: &Path) -> Result<Running> {
        let directory = &self.overview.cluster.directory;
        let command = child::engine(directory, name, program);
        let (running, mut process) = child::start(directory, name, command, true)?;
        let (pid, events) = (running.pid, self.events.clone());
        let output = process.stdout.take().expect("a successor's output is a pipe");
        self.wait(name, pid, process)?;
        child::listen(name, output, move || {
            // The loop may have ended.
            let _ = events.send(Event::StandingBy { name, pid });
        })?;
        Ok(running)
    }

    /// The predecessor may end now.
    fn standing_by(&mut self, name: &'static str, pid: u32) {
        let Slot { running, successor, .. } = self.slot(name);
        let (Some(running), Some(successor)) = (running, successor) else { return };
        if successor.running.pid != pid {
            return;
        }
        successor.told = Some(Instant::now());
        if let Err(error) = running.signal(Signal::TERM) {
            eprintln!("cleave: {error}");
        }
        self.overview.change(name, |child| child.stopping = true);
    }

    /// The predecessor has ended, so the successor has the lock, or is about to.
    fn promote(&mut self, name: &'static str, successor: Successor) {
        let Successor { running, program, answer, told } = successor;
        let view = (running.pid, running.since);
        let slot = self.slot(name);
        let before = slot.program.replace(program);
        slot.trial = Some((running.pid, before));
        slot.running = Some(running);
        self.overview.change(name, |child| {
            child.running = Some(view);
            child.stopping = false;
            child.restarts += 1;
        });
        let since = told.unwrap_or_else(Instant::now);
        // Whoever asked may be gone.
        let _ = answer.send(Ok(Promotion { pid: view.0, since }));
        if self.phase != Phase::Serving {
            self.end(&[name]);
        }
    }

    /// Does what time or earlier events have made due.
    fn advance(&mut self) {
        let now = Instant::now();
        for name in self.overview.child_names() {
            if self.slots[name].due.is_none_or(|due| due > now) {
                continue;
            }
            let slot = self.slot(name);
            slot.due = None;
            let asked = std::mem::take(&mut slot.asked);
            let started = self.start(name);
            if let Err(error) = &started {
                eprintln!("cleave: {error}");
            } else {
                self.overview.change(name, |child| child.restarts += 1);
            }
            for answer in asked {
                let outcome = match &started {
                    Ok(()) => Ok(()),
                    Err(error) => Err(failed(name, format!("did not start: {error}"))),
                };
                // Whoever asked may be gone.
                let _ = answer.send(outcome);
            }
        }
        if self.phase == Phase::StoppingHost && self.all_down(self.hosts()) {
            self.phase = Phase::StoppingControllers;
            reached(Point::DevHostStopped);
            self.deadline = Some(now + STOP);
            self.end(&CONTROLLERS);
        }
        if self.phase == Phase::StoppingControllers
            && self.all_down(self.hosts())
            && self.all_down(&CONTROLLERS)
        {
            self.phase = Phase::StoppingStore;
            self.deadline = Some(now + STOP);
            if let Some(etcd) = self.slots.get_mut(ETCD) {
                etcd.due = None;
                self.end(&[ETCD]);
            }
        }
        if self.deadline.is_some_and(|deadline| deadline <= now) {
            self.too_late();
        }
    }

    fn too_late(&mut self) {
        match self.phase {
            Phase::Serving => {}
            Phase::Starting => {
                let missing = match self.overview.missing() {
                    Ok(missing) => missing.join(", "),
                    Err(error) => error.to_string(),
                };
                let engines = self.overview.cluster.settings.engines();
                let words = engines.into_iter().filter_map(|name| {
                    let words = self.slots[name].running.as_ref()?.last_words()?;
                    Some(format!("{name} says: {words}"))
                });
                let missing = std::iter::once(missing).chain(words).collect::<Vec<_>>().join("; ");
                self.fail(Error::NotReady { seconds: READY.as_secs(), missing });
            }
            Phase::StoppingHost | Phase::StoppingControllers | Phase::StoppingStore => {
                self.deadline = None;
                let names: &[&str] = match self.phase {
                    Phase::StoppingHost => self.hosts(),
                    Phase::StoppingStore => &[ETCD],
                    _ => &CONTROLLERS,
                };
                for name in names {
                    if let Some(running) = &self.slots[name].running {
                        let what =
                            format!("did not stop within {} s and was killed", STOP.as_secs());
                        let killed = running.signal(Signal::KILL);
                        self.result = Err(killed.err().unwrap_or_else(|| failed(name, what)));
                    }
                }
            }
        }
    }

    fn fail(&mut self, error: Error) {
        if self.result.is_ok() {
            self.result = Err(error);
        }
        self.stop();
    }

    fn stop(&mut self) {
        self.phase = Phase::StoppingHost;
        self.deadline = Some(Instant::now() + STOP);
        for (name, slot) in &mut self.slots {
            // Engines that stop still have words for the store.
            if *name != ETCD {
                slot.due = None;
            }
            // Those who asked for a restart learn that there is none.
            slot.asked.clear();
            // One that stands by holds nothing; should it have the lock by now, this is a crash like any other.
            if let Some(successor) = &slot.successor
                && let Err(error) = successor.running.signal(Signal::KILL)
            {
                eprintln!("cleave: {error}");
            }
        }
        self.end(self.hosts());
        self.advance();
    }

    fn end(&mut self, names: &[&'static str]) {
        for name in names {
            let Some(running) = &self.slots[name].running else { continue };
            if let Err(error) = running.signal(Signal::TERM) {
                eprintln!("cleave: {error}");
            }
            self.overview.change(name, |child| child.stopping = true);
        }
    }

    fn slot(&mut self, name: &str) -> &mut Slot {
        self.slots.get_mut(name).expect("every child has a slot")
    }
}
