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
use cleave_host_core::front::{Place, ShareEnd};
use cleave_host_core::shares::Shares;
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
    /// Open a share of a vdisk, and serve it, or, the first one, the vdisk: [`Answer::Opened`].
    Open(Box<OpenOrder>),
    /// Take requests for a share from here on, and from nowhere else: [`Answer::Carried`].
    Carry {
        /// Which; it is open here.
        share: VdiskId,
        /// From the core that has the vdisk's device.
        end: ShareEnd,
    },
    /// Write a share's map, so that closing it soon takes little: [`Answer::Prepared`].
    Prepare {
        /// Which; it is open here.
        share: VdiskId,
    },
    /// Have requests for a share wait, and say when none is in flight: [`Answer::Paused`].
    Pause {
        /// The vdisk, whose device is here.
        vdisk: VdiskId,
        /// Number of the share.
        share: u16,
    },
    /// Let requests for a share go on where it is now: [`Answer::Resumed`].
    Resume {
        /// The vdisk, whose device is here.
        vdisk: VdiskId,
        /// Number of the share.
        share: u16,
        /// Where it is.
        place: Place,
    },
    /// Take no more of a vdisk's requests, and say when those taken are done, or will not be soon: [`Answer::Quiet`].
    Quiet {
        /// The vdisk, whose device is here.
        vdisk: VdiskId,
    },
    /// Let a share, with its device if that is here, grow: [`Answer::Resized`].
    Resize {
        /// Which share.
        vdisk: VdiskId,
        /// Bytes.
        size: u64,
    },
    /// Take no more of a share's requests, finish what was taken, let it go, with its device if that is here:
    /// [`Answer::Closed`].
    Close {
        /// Which share.
        vdisk: VdiskId,
    },
    /// Take no more of a vdisk's requests, finish what was taken, let its first share go, and give its device away, to
    /// which the front end stays connected: [`Answer::Handed`].
    Hand {
        /// Which.
        vdisk: VdiskId,
    },
    /// End a share for ever (C28): [`Answer::Deleted`].
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

/// A share to be served, by whoever took its epoch in the store.
#[derive(Debug)]
pub struct OpenOrder {
    /// Which share.
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
    /// It is opened only to be ended, or is not the first share: without a device.
    pub without_device: bool,
    /// All shares of the vdisk.
    pub shares: Shares,
    /// With the device: where each share is.
    pub places: Vec<Place>,
    /// When the device is on another core: what comes from there.
    pub carry: Option<ShareEnd>,
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
    /// A newer owner took the share, or it was deleted: it is not served here any more (C8).
    Fenced {
        /// Which share.
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
    /// Requests come from there.
    Carried,
    /// Its map is written, as far as that is worth it.
    Prepared,
    /// Nothing is in flight; or its requests go on as before, and why.
    Paused(Result<(), String>),
    /// Requests go on.
    Resumed,
    /// What can be done of what was taken is.
    Quiet,
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
    /// What the requests of its shares cost, as [`cost`](crate::measure::cost) guesses it.
    pub shares: Vec<(VdiskId, u64)>,
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
    /// The shares that are open on it, in order of their numbers.
    pub vdisks: Vec<VdiskView>,
}

/// How a share is.
#[derive(Clone, Debug)]
pub struct VdiskView {
    /// Which.
    pub vdisk: VdiskId,
    /// The core's figures.
    pub stats: VdiskStats,
    /// The vdisk's device, if it is here.
    pub device: Option<DeviceView>,
}

/// How a vdisk's device is.
#[derive(Clone, Debug)]
pub struct DeviceView {
    /// Its connection.
    pub state: DiskState,
    /// Queues that the front end has set up.
    pub queues: u32,
    /// Requests taken and not completed.
    pub in_flight: u64,
    /// What its guest did.
    pub guest: Measures,
}
