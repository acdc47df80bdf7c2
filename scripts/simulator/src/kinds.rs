//! The kinds of faults, by which a run counts what it did, and without one of which a budget is not met.
//!
//! Some are *injected*: somebody decides that they happen now, and they make up the total. The others are
//! what injected faults and the simulated network lead to (a torn write, a message that overtakes another):
//! each must be seen too, but none adds to the total, so that it is not made of trifles.

use cleave_runtime_sim::Counters;

macro_rules! kinds {
    ($($(#[doc = $doc:literal])+ $kind:ident = $name:literal),* $(,)?) => {
        /// A kind of fault.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[doc = $doc])+ $kind,)*
        }

        impl Kind {
            /// All of them.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// What it is called.
            pub fn name(self) -> &'static str {
                match self {
                    $(Kind::$kind => $name,)*
                }
            }
        }
    };
}

kinds! {
    /// The host engine's process dies; its guests live on or die with it.
    HostCrash = "host crashes",
    /// A host is lost for good, flash and all; its vdisks open on another.
    HostLost = "lost hosts",
    /// A host cannot be reached, its guests move, and it comes to later (C8).
    HostMoved = "moves from a host that comes to",
    /// A host comes to after another one has served its vdisks for a while (C9).
    HostOutlived = "hosts that come to after their read lease",
    /// A controller's process dies.
    ControllerCrash = "controller crashes",
    /// The machine of a controller loses its power.
    MachinePower = "power losses of a machine",
    /// Both controllers stop cleanly, and their machines lose their power then.
    CleanPower = "power losses after a clean stop",
    /// Both controllers stop cleanly and start again (C7).
    ControllersStopped = "clean stops of both controllers",
    /// The host engine stops cleanly.
    HostStopped = "clean stops of the host",
    /// Both controllers lose the log, an operator orders an empty one, and the host resends (C7).
    LogLost = "logs lost whole",
    /// The only controller that has the log dies, which has it on drives (C12).
    LastController = "deaths of a controller that was alone",
    /// An operator orders the role to move.
    SwitchOver = "orders to move the role",
    /// Bits flip in the memory of a controller's log.
    LogRot = "rot in a log's memory",
    /// Every machine loses its power at once, and what was not destaged is lost.
    PowerOfAll = "power losses of everything",
    /// The store's process dies, with whatever its disk has not synced, and starts again.
    StoreCrash = "store crashes",
    /// The store is away from one process.
    StoreAway = "cuts from the store",
    /// A process does not run for a while.
    Pause = "pauses",
    /// A host does not run, or is away, until its grants have ended (C15).
    PastGrants = "absences past a grant",
    /// A process starts whose clock is off by more than a part in a thousand.
    SkewedClock = "skewed clocks",
    /// A connection breaks.
    BrokenConnection = "broken connections",
    /// One direction between two processes is cut.
    Cut = "cuts",
    /// Two processes cannot talk, in one direction only.
    OneWayCut = "one-way partitions",
    /// Every message takes many times as long for a while.
    SlowNetwork = "slow networks",
    /// A drive vanishes.
    LostDrive = "lost drives",
    /// Something is lost while the shards of a lost drive are written anew (C16).
    InRebuild = "losses in the middle of a rebuild",
    /// A drive takes many times as long.
    SlowDrive = "slow drives",
    /// A drive answers nothing for a while.
    HungDrive = "hanging drives",
    /// The space behind a drive is used up.
    FullDrive = "full drives",
    /// Requests of a drive fail.
    FailedRequest = "failed requests of drives",
    /// A page becomes unreadable.
    SectorError = "latent sector errors",
    /// A bit flips.
    FlippedBit = "flipped bits",
    /// A write goes to a wrong place.
    MisdirectedWrite = "misdirected writes",
    /// Parts of two shards trade places.
    ExchangedParts = "exchanged parts of shards",
    /// A write to a drive takes longer than what it was written for lives (C15).
    LateWrite = "writes that outlive their purpose",
    /// A vdisk is deleted (C28).
    Delete = "deletes",
    /// A vdisk grows.
    Resize = "resizes",
    /// A share of a vdisk goes to another core while its guest works.
    ShareMoved = "shares moved between cores",

    /// An NVMe controller takes many times as long.
    NvmeSlow = "slow NVMe controllers",
    /// An NVMe controller says of a command that it failed.
    NvmeFailed = "failed NVMe commands",
    /// An NVMe controller never completes a command.
    NvmeHung = "hanging NVMe commands",
    /// An NVMe controller writes a completion entry that cannot be.
    NvmeCorrupt = "corrupt NVMe completions",
    /// A bit of what an NVMe controller reads is flipped on its way into memory.
    NvmeFlipped = "bits flipped on their way from NVMe controllers",
    /// An NVMe controller loses its power under the engine, with what it did not flush, and is there again.
    NvmePower = "power losses of NVMe controllers",
    /// An NVMe controller breaks down, and no reset brings it back.
    NvmeBroken = "broken NVMe controllers",
    /// An NVMe controller is removed: its registers read as all ones.
    NvmeVanished = "removed NVMe controllers",

    /// A write was in flight at a crash, and some of its pages landed.
    TornWrite = "torn writes",
    /// A write was in flight at a crash, and nothing of it landed.
    VanishedWrite = "writes lost in flight",
    /// A page was written, not flushed, and lost with the power (C10).
    UnflushedPage = "lost unflushed pages",
    /// A read met a latent sector error.
    SectorErrorMet = "sector errors met",
    /// A write found no space.
    NoSpaceMet = "writes without space",
    /// A request went to a slow drive.
    SlowRequest = "slow requests",
    /// A request went to a drive that hung.
    HungRequest = "hung requests",
    /// A request was answered by "lost".
    LostRequest = "requests of lost drives",
    /// A message was lost with its connection.
    LostMessage = "lost messages",
    /// A record reached the log twice, because what became of it at first was not known.
    DuplicateRecord = "duplicated records",
    /// A controller took the active role over from one that gave no sign of life (C7).
    TakenOver = "roles taken over",
    /// A controller went on without the other one (C12).
    Alone = "controllers that went on alone",
    /// An active controller found out that it is so no more (C7).
    SteppedDown = "active controllers that stepped down",
    /// A message took several times the usual delay.
    DelayedMessage = "delayed messages",
    /// A message arrived before an older one.
    OvertakingMessage = "reordered messages",
    /// An NVMe command was completed before an older one of its queue.
    NvmeOvertaking = "reordered NVMe commands",
    /// An NVMe command took more than a hundred milliseconds.
    NvmeLate = "late NVMe commands",
    /// The driver reset an NVMe controller, and it came back.
    NvmeReset = "resets of NVMe controllers",
}

impl Kind {
    /// Whether somebody decides that it happens, so that it adds to the total.
    pub fn is_injected(self) -> bool {
        // A one-way partition is counted as the cut that it is.
        self < Kind::TornWrite && self != Kind::OneWayCut
    }

    /// Whether it can strike while requests of guests are in flight: guests stop before their host does.
    pub fn meets_requests(self) -> bool {
        self != Kind::HostStopped
    }

    /// What the world counts of it; `None` for kinds that the run's director counts.
    pub fn counted(self, counters: &Counters) -> Option<u64> {
        Some(match self {
            Kind::Pause => counters.pauses,
            Kind::SkewedClock => counters.clocks_skewed,
            Kind::BrokenConnection => counters.connections_broken,
            Kind::Cut => counters.cuts,
            Kind::LostDrive => counters.drives_lost,
            Kind::SlowDrive => counters.drives_slowed,
            Kind::HungDrive => counters.drives_hung,
            Kind::FullDrive => counters.drives_full,
            Kind::FailedRequest => counters.drive_errors,
            Kind::SectorError => counters.pages_spoiled,
            Kind::FlippedBit => counters.bits_flipped,
            Kind::MisdirectedWrite => counters.writes_misdirected,
            Kind::TornWrite => counters.writes_torn,
            Kind::VanishedWrite => counters.writes_vanished,
            Kind::UnflushedPage => counters.pages_dropped,
            Kind::SectorErrorMet => counters.sector_errors,
            Kind::NoSpaceMet => counters.no_space,
            Kind::SlowRequest => counters.requests_slow,
            Kind::HungRequest => counters.requests_hung,
            Kind::LostRequest => counters.requests_lost,
            Kind::LostMessage => counters.messages_lost,
            Kind::DelayedMessage => counters.messages_delayed,
            Kind::OvertakingMessage => counters.messages_overtaking,
            _ => return None,
        })
    }
}

/// How often a kind struck.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Strikes {
    /// In all.
    pub all: u64,
    /// While requests of guests were in flight.
    pub with_requests: u64,
}

impl Strikes {
    /// Adds others of the same kind.
    pub fn add(&mut self, others: Strikes) {
        self.all += others.all;
        self.with_requests += others.with_requests;
    }
}
