//! Faults as values, and a plan by which the world draws them at random.
//!
//! A plan injects only what the world can do alone and undo by itself. Crashes, power losses and
//! lost drives are left to the simulator, which must restart or replace what it took away; it draws
//! its times from [`World::random`] and strikes from [`World::call_later`].
//! Damage to stored data stays on the drives that the plan names, so that a simulator can keep within what
//! the code under test promises to survive.

use crate::settings::Span;
use crate::trace::EventKind;
use crate::world::{World, nanos};
use cleave_runtime::random::Random;
use std::time::Duration;

/// One fault; unknown names are ignored, as processes and drives come and go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// Break all connections between two processes.
    Break {
        /// One side.
        a: String,
        /// The other.
        b: String,
    },
    /// Cut one direction, and heal the pair after `span`.
    Cut {
        /// Sender.
        from: String,
        /// Receiver.
        to: String,
        /// How long.
        span: Duration,
    },
    /// Pause a process for `span`.
    Pause {
        /// Which.
        process: String,
        /// How long.
        span: Duration,
    },
    /// Slow a drive down for `span`.
    Slow {
        /// Which.
        drive: String,
        /// By how much.
        factor: u32,
        /// How long.
        span: Duration,
    },
    /// Fail the next requests of a drive.
    Fail {
        /// Which.
        drive: String,
        /// How many.
        count: u64,
    },
    /// Make a page unreadable.
    Spoil {
        /// Which drive.
        drive: String,
        /// First byte of the page.
        offset: u64,
    },
    /// Flip a bit.
    Flip {
        /// Which drive.
        drive: String,
        /// The byte.
        offset: u64,
        /// The bit, 0 to 7.
        bit: u8,
    },
    /// Misdirect the next write of a drive.
    Misdirect {
        /// Which.
        drive: String,
    },
}

/// Which faults come how often: each kind by its weight, one fault per drawn interval.
#[derive(Clone, Debug)]
pub struct FaultPlan {
    /// Time from one fault to the next.
    pub interval: Span,
    /// How long cuts, pauses and slow drives last.
    pub lasting: Span,
    /// Weight of broken connections.
    pub breaks: u32,
    /// Weight of one-way cuts.
    pub cuts: u32,
    /// Weight of two-way cuts.
    pub partitions: u32,
    /// Weight of pauses.
    pub pauses: u32,
    /// Weight of slow drives.
    pub slow: u32,
    /// Weight of failed requests, spoiled pages, flipped bits and misdirected writes together.
    pub damage: u32,
    /// Names of the drives that damage may hit.
    pub damaged_drives: Vec<String>,
}

impl Default for FaultPlan {
    /// Everything that needs no redundancy to be survived; no damage.
    fn default() -> FaultPlan {
        FaultPlan {
            interval: Span::micros(1_000, 2_000_000),
            lasting: Span::micros(1_000, 5_000_000),
            breaks: 4,
            cuts: 2,
            partitions: 2,
            pauses: 2,
            slow: 2,
            damage: 0,
            damaged_drives: Vec::new(),
        }
    }
}

impl FaultPlan {
    /// Draws one round of faults for the world as it is; empty when what was drawn has no target.
    pub fn draw(&self, world: &World) -> Vec<Fault> {
        let random = &world.0.random;
        let weights =
            [self.breaks, self.cuts, self.partitions, self.pauses, self.slow, self.damage];
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let mut place = random.below(total.max(1));
        let kind = weights.iter().position(|weight| {
            let hit = place < u64::from(*weight);
            place = place.saturating_sub(u64::from(*weight));
            hit
        });
        let span = world.draw(self.lasting);
        let pair = || pick(world, &world.connected_names());
        let cut = |from, to| Fault::Cut { from, to, span };
        let drawn = match kind {
            Some(0) => pair().map(|(a, b)| vec![Fault::Break { a, b }]),
            Some(1) => pair().map(|(a, b)| {
                let (from, to) = if world.0.one_in(2) { (a, b) } else { (b, a) };
                vec![cut(from, to)]
            }),
            Some(2) => pair().map(|(a, b)| vec![cut(a.clone(), b.clone()), cut(b, a)]),
            Some(3) => pick(world, &world.processes()).map(|process| {
                let process = process.name().to_owned();
                vec![Fault::Pause { process, span }]
            }),
            Some(4) => pick(world, &world.drives()).map(|drive| {
                let factor = 2 + random.below(200) as u32;
                vec![Fault::Slow { drive: drive.name().to_owned(), factor, span }]
            }),
            Some(5) => self.draw_damage(world).map(|fault| vec![fault]),
            _ => None,
        };
        drawn.unwrap_or_default()
    }

    fn draw_damage(&self, world: &World) -> Option<Fault> {
        let random = &world.0.random;
        let drive = pick(world, &self.damaged_drives)?;
        Some(match random.below(4) {
            0 => Fault::Fail { drive, count: 1 + random.below(4) },
            1 => Fault::Spoil { offset: world.drive(&drive)?.any_stored_page()?, drive },
            2 => {
                let page = world.drive(&drive)?.any_stored_page()?;
                let (offset, bit) = (page + random.below(4096), random.below(8) as u8);
                Fault::Flip { drive, offset, bit }
            }
            _ => Fault::Misdirect { drive },
        })
    }
}

fn pick<T: Clone>(world: &World, from: &[T]) -> Option<T> {
    from.get(world.0.random.below(from.len() as u64) as usize).cloned()
}

impl World {
    /// Injects one fault.
    pub fn inject(&self, fault: &Fault) {
        match fault.clone() {
            Fault::Break { a, b } => {
                self.break_connections(&a, &b);
            }
            Fault::Cut { from, to, span } => {
                self.cut(&from, &to);
                self.call_later(span, move |world| world.heal(&from, &to));
            }
            Fault::Pause { process, span } => {
                if let Some(process) = self.process(&process) {
                    process.pause();
                    self.call_later(span, move |_| process.resume());
                }
            }
            Fault::Slow { drive, factor, span } => {
                if let Some(drive) = self.drive(&drive) {
                    drive.slow(factor);
                    self.call_later(span, move |_| drive.slow(1));
                }
            }
            Fault::Fail { drive, count } => self.on_drive(&drive, |drive| drive.fail_next(count)),
            Fault::Spoil { drive, offset } => self.on_drive(&drive, |drive| drive.spoil(offset, 1)),
            Fault::Flip { drive, offset, bit } => {
                self.on_drive(&drive, |drive| drive.flip_bit(offset, bit));
            }
            Fault::Misdirect { drive } => self.on_drive(&drive, |drive| drive.misdirect_next(1)),
        }
    }

    fn on_drive(&self, name: &str, act: impl FnOnce(&crate::SimDrive)) {
        if let Some(drive) = self.drive(name) {
            act(&drive);
        }
    }

    /// Draws and injects faults by `plan` from now on, in place of an earlier plan.
    pub fn run_faults(&self, plan: FaultPlan) {
        let number = self.0.next_number();
        let interval = plan.interval;
        *self.0.plan.borrow_mut() = Some((number, plan));
        self.next_fault(number, interval);
    }

    /// Ends the plan, heals all cuts, resumes all processes and ends what drives have ahead of
    /// them: the calm in which everything must recover. Damage that was done stays.
    pub fn calm(&self) {
        *self.0.plan.borrow_mut() = None;
        self.heal_all();
        self.processes().iter().for_each(crate::Process::resume);
        for drive in self.drives() {
            drive.slow(1);
            drive.slow_reads(1);
            drive.hang(false);
            drive.fail_next(0);
            drive.misdirect_next(0);
            drive.set_full(false);
        }
    }

    fn next_fault(&self, number: u64, interval: Span) {
        let time = self.0.after(nanos(self.draw(interval)).max(1));
        self.0.schedule(time, EventKind::Fault, 0, move |world| {
            let plan = world.0.plan.borrow().clone().filter(|(present, _)| *present == number);
            let Some((_, plan)) = plan else { return 0 };
            let faults = plan.draw(world);
            faults.iter().for_each(|fault| world.inject(fault));
            world.next_fault(number, plan.interval);
            faults.len() as u64
        });
    }
}
