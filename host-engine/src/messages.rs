//! What the control thread and the cores tell each other, over rings.
//!
//! Every order has a number, which its answer repeats; reports come by themselves.

use crate::core::{NvmeParts, OpenFailure};
use crate::measure::Measures;
use cleave_codec::Keys;
use cleave_control::flash::FlashPlace;
use cleave_control::histogram::Histogram;
use cleave_flash::FlashStats;
use cleave_format::flash::{FlashId, FlashSuperblock};
use cleave_format::ids::ClusterId;
use cleave_format::ids::{Epoch, VdiskId};
use cleave_host_core::{CoreStats, HostError, VdiskStats};
use cleave_vhost_user::{DiskConfig, DiskState};

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
    },
    /// Say how things are: [`Answer::View`].
    Look,
    /// Close everything and end the core: [`Answer::Ended`], the last one.
    End,
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
    /// The previous owner's process is known dead by its kernel lock (C25).
    pub predecessor_dead: bool,
    /// Its device; the capacity is the vdisk's size.
    pub device: DiskConfig,
    /// It is opened only to be ended: without a device.
    pub without_device: bool,
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
    /// It is no more, or not.
    Deleted(Result<(), HostError>),
    /// What the device is, or why it is not used.
    FlashPrepared(Result<Box<FlashSuperblock>, OpenFailure>),
    /// The share is being scanned, or why it is not used.
    FlashAdded(Result<(), String>),
    /// Nothing of the device is in use.
    FlashRetired,
    /// How things are.
    View(Box<CoreView>),
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

/// How a core is.
#[derive(Debug)]
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
#[derive(Debug)]
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
