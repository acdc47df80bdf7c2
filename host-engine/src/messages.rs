//! What the control thread and the cores tell each other, over rings.
//!
//! Every order has a number, which its answer repeats; reports come by themselves.

use crate::core::{NvmeParts, OpenFailure};
use crate::measure::Measures;
use cleave_codec::Keys;
use cleave_control::events::{Kind, News};
use cleave_control::flash::FlashPlace;
use cleave_control::histogram::Histogram;
use cleave_flash::FlashStats;
use cleave_format::flash::{FlashId, FlashSuperblock};
use cleave_format::ids::ClusterId;
use cleave_format::ids::{Epoch, VdiskId};
use cleave_host_core::{CoreShare, CoreStats, HostError, VdiskStats};
use cleave_runtime::time::Moment;
use cleave_vhost_user::{DetachedDisk, DiskConfig, DiskState};
use std::time::Duration;

/// From the control thread to a core.
#[derive(Debug)]
pub struct Command {
    /// Repeated in the answer.
    pub number: u64,
    /// What to do.
    pub order: Order,
}

/// What a core is to do.
#[derive(Debug)]
pub enum Order {
    /// Open a vdisk and serve it: [`Answer::Opened`].
    Open(Box<OpenOrder>),
    /// Let a vdisk grow: [`Answer::Resized`].
    Resize {
        /// Which.
        vdisk: VdiskId,
        /// Bytes.
        size: u64,
    },
    /// Take no more of a vdisk's requests, finish what was taken, let it go: [`Answer::Closed`].
    Close {
        /// Which.
        vdisk: VdiskId,
    },
    /// Take no more of a vdisk's requests, finish what was taken, let it go, and give its device away, to which the front
    /// end stays connected: [`Answer::Handed`].
    Hand {
        /// Which.
        vdisk: VdiskId,
    },
    /// End a vdisk for ever (C28): [`Answer::Deleted`].
    Delete {
        /// Which; it is open here.
        vdisk: VdiskId,
    },
    /// Find out what a device of flash is: [`Answer::FlashPrepared`].
    PrepareFlash(Box<FlashOrder>),
    /// Add this core's share of a device: [`Answer::FlashAdded`].
    AddFlash(Box<FlashOrder>),
    /// Use a device no more: [`Answer::FlashRetired`].
    RetireFlash {
        /// Its name.
        name: String,
        /// What it holds is to be found again when it is added again.
        tidily: bool,
    },
    /// The number of cores has changed: [`Answer::Shared`].
    Share {
        /// What the core has of the engine's.
        share: CoreShare,
        /// How long it may spin.
        spin: Duration,
    },
    /// Say how things are: [`Answer::View`].
    Look,
    /// Say what was done: [`Answer::Load`].
    Load,
    /// Close everything and end the core: [`Answer::Ended`], the last one.
    End {
        /// The engine ends, too: nothing needs to be given back.
        with_engine: bool,
    },
}

/// A device of flash.
#[derive(Clone, Debug)]
pub struct FlashOrder {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub place: FlashPlace,
    /// Whose it is to be.
    pub cluster: ClusterId,
    /// Its identity, if it must be formatted.
    pub device: FlashId,
    /// What it is; `None`: each core has a device of its own under this name.
    pub superblock: Option<Box<FlashSuperblock>>,
    /// Cores that share it.
    pub cores: u32,
    /// From the first core to the others, when it is an NVMe namespace.
    pub parts: NvmeParts,
}

/// A vdisk to be served, by whoever took its epoch in the store.
#[derive(Debug)]
pub struct OpenOrder {
    /// Which.
    pub vdisk: VdiskId,
    /// Its ownership epoch.
    pub epoch: Epoch,
    /// Its keys, when it is encrypted.
    pub keys: Option<Keys>,
    /// Epochs whose owners served it, and are gone (C9, C25).
    pub gone: Vec<Epoch>,
    /// Its device; the capacity is the vdisk's size.
    pub device: DiskConfig,
    /// The device itself, when it comes from another core.
    pub handed: Option<Box<Handed>>,
    /// It is opened only to be ended: without a device.
    pub without_device: bool,
}

/// A vdisk's device on its way from core to core.
#[derive(Debug)]
pub struct Handed {
    /// The device.
    pub disk: DetachedDisk,
    /// What its guest did.
    pub measures: Measures,
}

/// From a core to the control thread.
#[derive(Debug)]
pub enum Report {
    /// To a command.
    Answer {
        /// The command's.
        number: u64,
        /// What came of it.
        answer: Answer,
    },
    /// A newer owner took the vdisk, or it was deleted: it is not served here any more (C8).
    Fenced {
        /// Which.
        vdisk: VdiskId,
    },
    /// A device of flash is in use.
    FlashReady {
        /// Its name.
        name: String,
    },
    /// Something happened to a device of flash.
    FlashEvent {
        /// Its name.
        name: String,
        /// First byte of the place, where it is one.
        offset: Option<u64>,
        /// What.
        kind: Kind,
        /// What happened.
        event: String,
    },
    /// Something else that an operator should know.
    Happened {
        /// What.
        news: Box<News>,
    },
    /// A device of flash is not used any more.
    FlashRetired {
        /// Its name.
        name: String,
        /// Why.
        reason: String,
    },
    /// The controllers will never talk to this process.
    Rejected {
        /// Why.
        reason: String,
    },
}

/// What came of an order.
#[derive(Debug)]
pub enum Answer {
    /// It is served, or not.
    Opened(Result<(), OpenError>),
    /// It has the new size, or not.
    Resized(Result<(), String>),
    /// It is let go.
    Closed,
    /// It is let go, with its device if it has one; or it is served as before, and why.
    Handed(Result<Option<Box<Handed>>, String>),
    /// It is no more, or not.
    Deleted(Result<(), HostError>),
    /// What the device is, or why it is not used.
    FlashPrepared(Result<Box<FlashSuperblock>, OpenFailure>),
    /// The share is being scanned, or why it is not used.
    FlashAdded(Result<(), String>),
    /// Nothing of the device is in use.
    FlashRetired,
    /// The core goes by its new share.
    Shared,
    /// How things are.
    View(Box<CoreView>),
    /// What was done.
    Load(Box<CoreLoad>),
    /// The core serves nothing any more.
    Ended,
}

/// Why a vdisk is not served.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The core could not open it.
    #[error("{0}")]
    Vdisk(#[from] HostError),
    /// Its socket could not be served.
    #[error("{0}")]
    Device(#[from] cleave_vhost_user::Error),
    /// The core is ending.
    #[error("the engine is stopping")]
    Stopping,
}

/// What a core did since it was started.
#[derive(Clone, Debug)]
pub struct CoreLoad {
    /// The core's number.
    pub core: u16,
    /// When this was so.
    pub at: Moment,
    /// Time in which it worked.
    pub busy: Duration,
    /// What its vdisks' requests cost, as [`Measures::cost`](crate::measure::Measures::cost) guesses it.
    pub vdisks: Vec<(VdiskId, u64)>,
}

/// How a core is.
#[derive(Clone, Debug, Default)]
pub struct CoreView {
    /// Its figures.
    pub core: CoreStats,
    /// Its flash.
    pub flash: FlashStats,
    /// From taking records to both controllers' holding them, in nanoseconds.
    pub mirrored: Histogram,
    /// Bytes of guests' writes that are not yet in the write buffer.
    pub taken_bytes: u64,
    /// Requests that had to wait for room in the write buffer.
    pub stalls: u64,
    /// What all its guests did, those of vdisks that are closed by now too.
    pub guests: Measures,
    /// What was encoded for vdisks that are closed by now.
    pub closed: VdiskStats,
    /// Its vdisks, in order of their numbers.
    pub vdisks: Vec<VdiskView>,
}

/// How a vdisk is.
#[derive(Clone, Debug)]
pub struct VdiskView {
    /// Which.
    pub vdisk: VdiskId,
    /// Its device.
    pub state: DiskState,
    /// Queues that the front end has set up.
    pub queues: u32,
    /// Requests taken and not completed.
    pub in_flight: u64,
    /// The core's figures.
    pub stats: VdiskStats,
    /// What its guest did.
    pub guest: Measures,
}
