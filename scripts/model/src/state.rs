//! What the model's world consists of: two controllers, their vaults, the connection between them,
//! the coordinator store, two hosts; and the ghosts, which only the judges see.

use cleave_coordinator::{LogRole, Member, Solo};
use cleave_datanode_core::mirror::Standing;
use cleave_datanode_core::resident::Resident;
use cleave_format::control::Control;
use cleave_format::ids::{Epoch, HostId, Incarnation, Position, VdiskId};
use cleave_wire::{HeldLog, Served};

/// The one vdisk.
pub const VDISK: VdiskId = VdiskId(1);
/// Both controllers.
pub const BOTH: [usize; 2] = [0, 1];

/// An entry of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Entry {
    /// A host took the vdisk in an epoch.
    Seal {
        /// The new epoch.
        epoch: u8,
        /// The host, 0 or 1.
        host: u8,
    },
    /// A host's record.
    Record {
        /// Its number in the model.
        record: u8,
        /// The epoch under which it was appended.
        epoch: u8,
    },
    /// A commit that was not struck: it releases a record.
    Commit {
        /// The record.
        record: u8,
        /// The epoch under which it was asked for.
        epoch: u8,
    },
}

/// A log with the claim that it is complete: in memory, or as the vault's image.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Held {
    /// The log's identity.
    pub log: u8,
    /// The incarnation as which it was held.
    pub member: u8,
    /// All entries; the model trims nothing.
    pub entries: Vec<Entry>,
}

impl Held {
    /// Whether the claim holds by a record.
    pub fn is_valid(&self, role: Option<&Role>) -> bool {
        role.is_some_and(|role| role.log == self.log && role.in_sync.contains(&self.member))
    }
}

/// The record in the store; its epoch is also its revision.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Role {
    /// Grows by one a change.
    pub epoch: u8,
    /// The log's identity; 0: there never was one.
    pub log: u8,
    /// The active controller's incarnation.
    pub active: u8,
    /// The epoch at which it became active.
    pub since: u8,
    /// How many entries have their positions from those that were active before it.
    pub origin: u8,
    /// The members' incarnations, by controller; 0: it is none.
    pub in_sync: [u8; 2],
    /// The session that the only member's log is in; 0: there is none.
    pub session: u8,
}

impl Role {
    /// As production has it.
    pub fn record(&self) -> LogRole {
        if self.log == 0 {
            return LogRole::without_log(u64::from(self.epoch));
        }
        let member = |controller: usize| Member {
            controller: controller as u8,
            incarnation: u64::from(self.in_sync[controller]),
        };
        LogRole {
            epoch: u64::from(self.epoch),
            active: Some(u64::from(self.active)),
            log: u64::from(self.log),
            since: u64::from(self.since),
            origin: u64::from(self.origin) + 1,
            in_sync: BOTH.into_iter().filter(|at| self.in_sync[*at] != 0).map(member).collect(),
            solo: (self.session != 0).then(|| Solo {
                session: u64::from(self.session),
                part: 0,
                drives: Vec::new(),
            }),
        }
    }
}

/// What a request to the store is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Purpose {
    /// It makes both members.
    Join,
    /// The same, with an empty log, as the operator said.
    JoinEmpty,
    /// It makes another member active.
    TakeOver,
    /// It makes the active controller the only member, by a session of its log.
    Alone,
}

/// A request to the store: this record in place of the one of the epoch before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Swap {
    /// What it writes.
    pub role: Role,
    /// Why.
    pub purpose: Purpose,
    /// The incarnation that asked.
    pub by: u8,
}

/// A controller's process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Process {
    /// Its incarnation.
    pub incarnation: u8,
    /// Its log.
    pub held: Option<Held>,
    /// It once knew itself to be a member.
    pub confirmed: bool,
    /// The record by which it is active, as it knows it; `None`: it is not.
    pub serves: Option<Role>,
    /// Active: entries that the other one holds too.
    pub mirrored: u8,
    /// The swap whose outcome it waits for, and the store's reply on its way. Meanwhile it does nothing else, but for what
    /// concerns sessions.
    pub waits: Option<(Swap, Option<bool>)>,
    /// What it does alone.
    pub alone: Alone,
}

/// What an active controller keeps that is, or may be, alone. One flow beside that of meetings.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Alone {
    /// The part with the session by which it acknowledges.
    pub part: Option<usize>,
    /// The recording of a session whose outcome it waits for.
    pub recording: Option<Recording>,
    /// The peer has a copy, and is about to become a member.
    pub frozen: bool,
    /// That came to nothing, or its outcome was not heard.
    pub doubtful: bool,
    /// The store may carry a recording out of which nothing was heard.
    pub uncertain: bool,
}

/// A session is being recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Recording {
    /// The request, and the store's reply on its way.
    pub swap: Swap,
    /// See above.
    pub reply: Option<bool>,
    /// Where the session is.
    pub part: usize,
    /// No doubt came up since it was asked for.
    pub settles: bool,
}

/// A log on drives.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Session {
    /// Its identity.
    pub id: u8,
    /// The log, and the incarnation as which it was written.
    pub held: Held,
}

/// A controller: its process while it runs, and its vault.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Controller {
    /// `None`: it is down.
    pub process: Option<Process>,
    /// The vault's image, of whatever age: the model never marks one as consumed.
    pub image: Option<Held>,
    /// Its parts of the drives.
    pub sessions: [Option<Session>; 2],
    /// Ghost: acknowledged records may rely on this controller: it was made a member (or acknowledging
    /// began with it), and neither crashed since then nor lost its image.
    pub keeper: bool,
}

/// What a controller says of itself in its hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Said {
    /// Its incarnation.
    pub incarnation: u8,
    /// Its log: identity, the incarnation as which it is held, entries.
    pub log: Option<(u8, u8, u8)>,
    /// The role in which it serves: since when, and from which entry on.
    pub serves: Option<(u8, u8)>,
}

impl Said {
    /// What a process, or one that would start now, says.
    pub fn of(incarnation: u8, held: Option<&Held>, serves: Option<Role>) -> Said {
        let log = held.map(|held| (held.log, held.member, held.entries.len() as u8));
        Said { incarnation, log, serves: serves.map(|role| (role.since, role.origin)) }
    }

    /// As production has it.
    pub fn standing(&self) -> Standing {
        Standing {
            incarnation: Incarnation(u64::from(self.incarnation)),
            log: self.log.map(|(log, member, entries)| HeldLog {
                log: u64::from(log),
                member: Incarnation(u64::from(member)),
                next: Position(u64::from(entries) + 1),
            }),
            catalog: Position(0),
            serves: self.serves.map(|(since, origin)| Served {
                since: Epoch(u64::from(since)),
                origin: Position(u64::from(origin) + 1),
            }),
            able: true,
        }
    }
}

/// How far the controllers' meeting is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Stage {
    /// Both said hello, and heard nothing yet.
    Hello,
    /// The leader read this record, and whether the operator's word holds.
    Read {
        /// See above.
        role: Option<Role>,
        /// See above.
        told: bool,
    },
    /// The leader decided that this controller copies.
    Decided {
        /// Who copies.
        copier: usize,
        /// The log begins empty.
        empty: bool,
    },
    /// The copier has no log of its own any more.
    Copying {
        /// Who copies.
        copier: usize,
        /// The log begins empty.
        empty: bool,
    },
    /// The swap is on its way.
    Swapping,
    /// The leader runs; the follower may not have heard of it.
    Running {
        /// It has.
        joined: bool,
    },
}

/// The connection between the controllers. Each end of it goes by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Connection {
    /// Which of the controllers still have it.
    pub open: [bool; 2],
    /// What they said at its begin.
    pub said: [Said; 2],
    /// Who decides and is active afterwards.
    pub leader: usize,
    /// How far the meeting is.
    pub stage: Stage,
    /// The record's epoch when the leader decided.
    pub before: u8,
    /// Entries that both had when the leader ran.
    pub next: u8,
    /// Entries that the follower said it holds.
    pub answered: u8,
}

/// A host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Host {
    /// The epoch in which it took the vdisk; 0: never.
    pub epoch: u8,
    /// Its seal was acknowledged. It never learns that it lost the vdisk: it is paused.
    pub sealed: bool,
}

/// Everything.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct World {
    /// The controllers.
    pub controllers: [Controller; 2],
    /// Between them.
    pub connection: Option<Connection>,
    /// The record in the store.
    pub role: Option<Role>,
    /// The operator's word: the epoch for which the log may begin empty.
    pub word: Option<u8>,
    /// Requests that the store may still execute.
    pub swaps: Vec<Swap>,
    /// The vdisk's owner epoch in the store.
    pub owner: u8,
    /// The hosts.
    pub hosts: [Host; 2],
    /// Incarnations drawn.
    pub incarnations: u8,
    /// Faults so far: crashes and stops, broken connections, lost replies, words.
    pub spent: Spent,
    /// Records so far.
    pub records: u8,
    /// Commits so far.
    pub commits: u8,
    /// Times that a controller asked for the role so far.
    pub moves: u8,
    /// Sessions so far.
    pub sessions: u8,
    /// Times that one was recorded once more.
    pub confirms: u8,
    /// What only the judges see.
    pub ghosts: Ghosts,
}

/// What the bounds count.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Spent {
    /// Processes that crashed or stopped.
    pub ends: u8,
    /// Connections that broke while both processes lived.
    pub breaks: u8,
    /// Replies of the store that were lost.
    pub lost: u8,
    /// The operator's words.
    pub words: u8,
}

/// What happened, for the judges.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Ghosts {
    /// Records acknowledged and not released, one bit each.
    pub acknowledged: u8,
    /// Records that were ever acknowledged.
    pub ever: u8,
    /// The newest epoch whose seal was acknowledged.
    pub sealed: u8,
    /// A log was copied that lacked something acknowledged.
    pub bad_source: bool,
    /// Something of an older epoch was acknowledged after the seal of a newer one.
    pub old_accepted: bool,
    /// Who stepped down took back what the other one holds too.
    pub undone: bool,
    /// Who stepped down took something back.
    pub took_back: bool,
    /// Something was acknowledged alone.
    pub alone: bool,
}

impl World {
    /// Nobody runs; the store is empty.
    pub fn new() -> World {
        let controller =
            Controller { process: None, image: None, sessions: [None, None], keeper: false };
        World {
            controllers: [controller.clone(), controller],
            connection: None,
            role: None,
            word: None,
            swaps: Vec::new(),
            owner: 0,
            hosts: [Host::default(); 2],
            incarnations: 0,
            spent: Spent::default(),
            records: 0,
            commits: 0,
            moves: 0,
            sessions: 0,
            confirms: 0,
            ghosts: Ghosts::default(),
        }
    }

    /// A controller's process.
    pub fn process(&self, controller: usize) -> Option<&Process> {
        self.controllers[controller].process.as_ref()
    }

    /// Whether a controller's image would be loaded now.
    pub fn has_valid_image(&self, controller: usize) -> bool {
        let image = self.controllers[controller].image.as_ref();
        image.is_some_and(|image| image.is_valid(self.role.as_ref()))
            || self.recorded_session(controller).is_some()
    }

    /// Whether the record says that a controller's log is on drives; they are not lost in the model.
    pub fn is_recorded_alone(&self, controller: usize) -> bool {
        self.role.is_some_and(|role| role.session != 0 && role.in_sync[controller] != 0)
    }

    /// The session of a controller that the record names. Nobody else may load it: it may be alive, and acknowledge.
    pub fn recorded_session(&self, controller: usize) -> Option<&Session> {
        let role = self.role.filter(|_| self.is_recorded_alone(controller))?;
        let sessions = self.controllers[controller].sessions.iter().flatten();
        sessions
            .into_iter()
            .find(|session| session.id == role.session && session.held.is_valid(Some(&role)))
    }

    /// Whether a log has all that was acknowledged.
    pub fn is_complete(&self, entries: &[Entry]) -> bool {
        let mut records = 0;
        let mut sealed = 0;
        for entry in entries {
            match *entry {
                Entry::Record { record, .. } => records |= 1 << record,
                Entry::Seal { epoch, .. } => sealed = sealed.max(epoch),
                Entry::Commit { .. } => {}
            }
        }
        self.ghosts.acknowledged & !records == 0 && sealed >= self.ghosts.sealed
    }

    /// An entry is acknowledged to whoever asked for it.
    pub fn acknowledge(&mut self, entry: Entry) {
        match entry {
            Entry::Record { record, epoch } => {
                // C8, as the hosts see it.
                let again = self.ghosts.ever & 1 << record != 0;
                self.ghosts.old_accepted |= !again && epoch < self.ghosts.sealed;
                self.ghosts.acknowledged |= 1 << record;
                self.ghosts.ever |= 1 << record;
            }
            Entry::Commit { record, .. } => self.ghosts.acknowledged &= !(1 << record),
            Entry::Seal { epoch, host } => {
                self.ghosts.sealed = self.ghosts.sealed.max(epoch);
                let host = &mut self.hosts[usize::from(host)];
                host.sealed |= host.epoch == epoch;
            }
        }
    }

    /// What was acknowledged is lost, and may be: every keeper is gone, or the operator said so.
    pub fn excuse(&mut self) {
        self.ghosts.acknowledged = 0;
        self.ghosts.sealed = 0;
    }
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

/// What an active keeps resident of a log: production's own seals and checks.
pub fn resident(entries: &[Entry]) -> Resident {
    let mut resident = Resident::default();
    for (index, entry) in entries.iter().enumerate() {
        if let Entry::Seal { epoch, host } = *entry {
            let seal = Control::Seal {
                vdisk: VDISK,
                epoch: Epoch(u64::from(epoch)),
                host: HostId(u32::from(host)),
                incarnation: host_incarnation(host),
            };
            resident.apply(Position(index as u64 + 1), &seal);
        }
    }
    resident
}

/// The incarnation of a host's only engine.
pub fn host_incarnation(host: u8) -> Incarnation {
    Incarnation(100 + u64::from(host))
}
