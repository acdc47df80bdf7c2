//! The typed records that the engines' cores keep in the store, and its counters.
//!
//! | Key | Record | Changed by |
//! | --- | --- | --- |
//! | `datanode/ID` | [`LogRole`] | the data node's controllers (C7) |
//! | `owner/VDISK` | [`VdiskOwner`] | the host engine that opens the vdisk (C8) |
//! | `scrub/ID` | [`ScrubPass`] | the data node's active controller |
//! | `counter/NAME` | [`Counter`] | [`next_number`] |
//!
//! Identifiers here are plain numbers (this crate stands below the formats); in keys they are
//! decimal without leading zeros. Records are encoded by [`encoding`](crate::encoding).

use crate::client::StoreClient;
use crate::contract::{Outcome, StoreError};
use crate::encoding::{Decode, Encode};

/// A controller's process within a data node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Encode, Decode)]
pub struct Member {
    /// Which controller: 0 or 1.
    pub controller: u8,
    /// This start of its process, from [`next_incarnation`].
    pub incarnation: u64,
}

/// Who holds a data node's log (C7). Changed by compare-and-swap only, before the first
/// acknowledgement that relies on the change.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct LogRole {
    /// Raised by every change; fences messages of older roles.
    pub epoch: u64,
    /// Which log: a new number for every log that was started empty. 0: the data node never had one.
    pub log: u64,
    /// Incarnation of the active controller; `None` when the data node has none.
    pub active: Option<u64>,
    /// The epoch at which the active one took the role, or was joined in it.
    pub since: u64,
    /// Position of the first entry that was given its position by that. Below it, what two members hold is the
    /// same; what another member has from there on was given by an earlier active one, and nobody was told of it.
    pub origin: u64,
    /// Those that hold every acknowledged record, in order of controllers. Only one of them may
    /// become active.
    pub in_sync: Vec<Member>,
    /// The only member acknowledges alone, or did: where its log is on drives (C12).
    pub solo: Option<Solo>,
}

/// Where the log of a controller that is alone is on drives.
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Solo {
    /// The session of the only member's incarnation.
    pub session: u64,
    /// In which of the controller's two parts of the drives' reserved areas.
    pub part: u8,
    /// The drives: each of them has all of it.
    pub drives: Vec<u16>,
}

impl LogRole {
    /// What a data node has that never had a log. Recording it takes the key, so that whoever found no record before
    /// makes no other one.
    pub fn without_log(epoch: u64) -> LogRole {
        LogRole {
            epoch,
            log: 0,
            active: None,
            since: 0,
            origin: 0,
            in_sync: Vec::new(),
            solo: None,
        }
    }

    /// Whether the data node ever had a log.
    pub fn has_log(&self) -> bool {
        self.log != 0
    }

    /// Whether this incarnation holds every acknowledged record.
    pub fn is_in_sync(&self, incarnation: u64) -> bool {
        self.in_sync.iter().any(|member| member.incarnation == incarnation)
    }

    /// The in-sync member that is this controller.
    pub fn member(&self, controller: u8) -> Option<Member> {
        self.in_sync.iter().copied().find(|member| member.controller == controller)
    }
}

/// Who owns a vdisk (C8).
#[derive(Clone, Debug, PartialEq, Eq, Encode, Decode)]
pub struct VdiskOwner {
    /// Raised by every taking; the log refuses older ones once it is sealed.
    pub epoch: u64,
    /// Which host took it.
    pub host: u64,
    /// The incarnation of that host's engine; `None` when it released the vdisk.
    pub incarnation: Option<u64>,
}

/// How far a data node's controllers are with looking at all stripes for damage. Whoever is active goes on from here; nothing
/// else depends on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ScrubPass {
    /// Passes that are over.
    pub passes: u64,
    /// The next stripe that is looked at.
    pub from: u64,
    /// How long controllers are at the pass.
    pub spent_seconds: u64,
    /// An operator wants it over soon.
    pub hurried: bool,
    /// What it came upon until now.
    pub found: ScrubFigures,
    /// What the pass before came upon, which is over.
    pub before: ScrubFigures,
}

/// What a pass of the scrub comes upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Encode, Decode)]
pub struct ScrubFigures {
    /// Stripes that it looked at.
    pub looked: u64,
    /// Shards that it found damaged.
    pub damaged: u64,
    /// Of these, those that were written anew.
    pub repaired: u64,
    /// Stripes with damage that could not be mended.
    pub unrepairable: u64,
}

/// The newest number given out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub struct Counter {
    /// 0 when none was.
    pub newest: u64,
}

/// The name of the counter behind [`next_incarnation`].
pub const INCARNATIONS: &str = "incarnation";

/// `datanode/ID`: a [`LogRole`].
pub fn datanode_key(datanode: u64) -> String {
    format!("datanode/{datanode}")
}

/// `scrub/ID`: a [`ScrubPass`].
pub fn scrub_key(datanode: u64) -> String {
    format!("scrub/{datanode}")
}

/// `owner/VDISK`: a [`VdiskOwner`].
pub fn owner_key(vdisk: u64) -> String {
    format!("owner/{vdisk}")
}

/// `counter/NAME`: a [`Counter`].
pub fn counter_key(name: &str) -> String {
    format!("counter/{name}")
}

/// A process start's number: from 1, never given out twice by one store (C7, C29). One that was
/// drawn but lost on the way is skipped.
pub async fn next_incarnation(client: &StoreClient) -> Result<u64, StoreError> {
    next_number(client, INCARNATIONS).await
}

/// The next number of the counter `name`: from 1, never given out twice.
pub async fn next_number(client: &StoreClient, name: &str) -> Result<u64, StoreError> {
    let key = counter_key(name);
    loop {
        let (counter, revision) = match client.get_record::<Counter>(&key).await? {
            Some((counter, revision)) => (counter, revision),
            None => (Counter { newest: 0 }, 0),
        };
        let newest = counter.newest.checked_add(1).expect("fewer than 2^64 numbers are given out");
        match client.put_record(&key, revision, &Counter { newest }).await {
            Ok(Outcome::Committed(_)) => return Ok(newest),
            Ok(Outcome::Conflict) | Err(StoreError::Unknown) => {}
            Err(error) => return Err(error),
        }
    }
}
