//! How a pool is: its stripes, its drives, how far rebuild and scrub are.

use super::{ClusterStatistics, ClusterStatus, Fill, Role};
use serde::{Deserialize, Serialize};

/// A data node's stripes.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct StripeStatus {
    /// Data shards of a new stripe; 0 when drives are too few to write.
    pub data_shards: u32,
    /// Parity shards of a stripe.
    pub parity_shards: u32,
    /// Committed stripes.
    pub committed: u64,
    /// Committed stripes that miss a shard.
    pub degraded: u64,
    /// Committed stripes that miss more shards than parity can solve.
    pub lost: u64,
    /// Bytes of slots that are granted to hosts, for stripes that are not committed yet: each core keeps one for a map
    /// run that frees space in a full pool.
    #[serde(default)]
    pub reserved: u64,
    /// Bytes of slots that are free for nobody until the other controller, whose role this one took over, is heard of.
    #[serde(default)]
    pub held: u64,
    /// How far it is with writing shards anew that are lost.
    #[serde(default)]
    pub rebuild: RebuildStatus,
    /// How far it is with looking at all of them for damage.
    #[serde(default)]
    pub scrub: ScrubStatus,
}

/// A pass over the stripes that lack shards, or the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RebuildStatus {
    /// Whether one is under way.
    pub running: bool,
    /// Stripes that are still to be rebuilt.
    pub waiting: u64,
    /// Stripes that it rebuilt.
    pub done: u64,
    /// Those that lack shards for which no other drive has a free slot; tried again now and then.
    pub without_room: u64,
    /// Those of which fewer shards could be read than it takes; tried again now and then.
    pub unreadable: u64,
    /// Seconds that the rest will take, by how long it took until now; `null` when that is not known.
    pub left: Option<u64>,
}

/// A pass over all stripes, each of which is read whole: what is damaged is written anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubStatus {
    /// Whether the controller goes on with it: not before it has read from the coordinator store how far it was.
    pub running: bool,
    /// Whether it is to be over soon, as an operator said.
    pub hurried: bool,
    /// Passes that are over.
    pub passes: u64,
    /// What the present one came upon until now.
    pub found: ScrubFigures,
    /// What the last one that is over came upon.
    pub before: ScrubFigures,
    /// Stripes that wait to be looked at before the others, as somebody met damage in them.
    pub suspects: u64,
    /// Seconds until the present one is to be over; `null` when it is hurried, or not running.
    pub left: Option<u64>,
}

/// What a pass of the scrub comes upon.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
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

/// What `cleave pool status` shows: the drives and stripes of all data nodes, and what hosts did to them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct PoolStatus {
    /// Slots in use and all slots of the drives in use, in bytes, parity included.
    pub space: Fill,
    /// What of the slots in use no stripe has yet: see [`StripeStatus::reserved`].
    pub reserved: u64,
    /// Its stripes; `null` while no controller is active.
    pub stripes: Option<StripeStatus>,
    /// Stripes that were freed since the active controller started.
    pub stripes_freed: u64,
    /// Stripes that nothing of a vdisk names any more: the vdisk leaves them with its next map run, and those that no
    /// other vdisk names are free then. A stripe counts once for each such vdisk.
    pub stripes_dead: u64,
    /// Why destage waits, when it does: writes stall once the log is full; else `null`.
    pub shortage: Option<String>,
    /// The drives, in order of ids.
    pub drives: Vec<DriveStatus>,
}

impl PoolStatus {
    /// From what the engines say.
    pub fn of(status: &ClusterStatus, statistics: &ClusterStatistics) -> PoolStatus {
        let active = status.controllers.iter().find(|one| one.role == Role::Active);
        let drives = active.map(|one| one.drives.clone()).unwrap_or_default();
        let online = drives.iter().filter(|drive| drive.state == DriveState::Online);
        let space = online.fold(Fill::default(), |all, drive| Fill {
            used: all.used + drive.space.used,
            capacity: all.capacity + drive.space.capacity,
        });
        let name = active.map(|one| &one.process.name);
        let freed = statistics.controllers.iter().find(|one| Some(&one.name) == name);
        PoolStatus {
            space,
            reserved: active.and_then(|one| one.stripes.as_ref()).map_or(0, |all| all.reserved),
            stripes: active.and_then(|one| one.stripes.clone()),
            stripes_freed: freed.map_or(0, |one| one.stripes_freed),
            stripes_dead: statistics.hosts.iter().map(|host| host.destage.stripes_dead).sum(),
            shortage: status.hosts.iter().find_map(|host| host.shortage.clone()),
            drives,
        }
    }
}

/// Whether a drive is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum DriveState {
    /// In use.
    Online,
    /// Gone, or not to be trusted: retired.
    #[default]
    Lost,
}

/// A drive.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct DriveStatus {
    /// Its number in the pool.
    pub drive: u16,
    /// Its identity, 32 hexadecimal digits.
    pub uuid: String,
    /// Where it is.
    pub path: String,
    /// Whether it is used.
    pub state: DriveState,
    /// Why it is lost; empty when it is not.
    pub reason: String,
    /// Slots in use and all slots, in bytes.
    pub space: Fill,
    /// Requests that failed.
    pub errors: u64,
    /// Shards whose check failed.
    pub check_failures: u64,
    /// Shards that were found damaged when their stripes were looked at whole.
    #[serde(default)]
    pub damaged: u64,
    /// Of these, those that were written anew elsewhere.
    #[serde(default)]
    pub repaired: u64,
}
