//! What a controller says about itself, for the shell's control socket and for tests.

use crate::drives::DriveReport;
use crate::rebuild::RebuildReport;
use crate::scrub::ScrubReport;
use crate::state::{Counters, Phase, State};
use cleave_format::ids::{DriveId, Epoch, HostId, Incarnation, Position, StripeId};

/// A host as the active controller sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostReport {
    /// Which.
    pub host: HostId,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Its connections.
    pub connections: u32,
    /// Bytes of unreleased records of vdisks that it owns.
    pub log_bytes: u64,
}

/// A controller's status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// What it is doing.
    pub phase: Phase,
    /// Its incarnation.
    pub incarnation: Incarnation,
    /// Role epoch; 0 when it never joined.
    pub epoch: Epoch,
    /// The log's identity, if it holds one.
    pub log: Option<u64>,
    /// Whether its peer is connected.
    pub peer_connected: bool,
    /// Whether both controllers hold the log now.
    pub mirrored: bool,
    /// Drives to which it writes what it acknowledges alone (C12); none while it does not.
    pub alone_on: Vec<DriveId>,
    /// Why it does not go on alone, or not with another session, if that was tried.
    pub hindrance: String,
    /// Slots that are free for nobody until the other controller is heard of (C15).
    pub slots_held: u64,
    /// Whether it is the active, and serves hosts.
    pub serving: bool,
    /// Position of the next entry.
    pub next: Position,
    /// The last entry that both hold; of one that is alone, the last that its drives have.
    pub mirrored_through: Position,
    /// The catalog's position.
    pub catalog: Position,
    /// Entries of the log.
    pub entries: u64,
    /// Bytes of records held.
    pub record_bytes: u64,
    /// Bytes of control records held.
    pub control_bytes: u64,
    /// Memory of the log in use, and the most there may be.
    pub memory: (u64, u64),
    /// Each host's share, in bytes of records.
    pub quota: u64,
    /// Hosts that are connected.
    pub hosts: Vec<HostReport>,
    /// Grants in force.
    pub grants: u64,
    /// Slots that they keep.
    pub granted_slots: u64,
    /// The newest stripe identity.
    pub newest_stripe: StripeId,
    /// Committed stripes.
    pub stripes: u64,
    /// Those that lacked shards when they were last counted, which is a few seconds after a change.
    pub damage: cleave_catalog::Damage,
    /// How far it is with rebuilding them.
    pub rebuild: RebuildReport,
    /// How far it is with looking for damage.
    pub scrub: ScrubReport,
    /// All slots, and those that are free.
    pub slots: (u64, u64),
    /// Drives, with their free slots. The standby has none.
    pub drives: Vec<(DriveReport, u32)>,
    /// Counters.
    pub counters: Counters,
}

impl Status {
    pub(crate) fn of(state: &State) -> Status {
        let log = state.held.as_ref().map(|held| &held.log);
        let active = state.active.as_ref();
        let hosts = state.connected_hosts().into_iter().map(|(host, incarnation, connections)| {
            let log_bytes = log.map_or(0, |log| log.host_bytes(host));
            HostReport { host, incarnation, connections, log_bytes }
        });
        let allocator = active.map(|active| &active.grants.allocator);
        let drives = active.map_or_else(Vec::new, |active| active.drives.report());
        let free = |report: &DriveReport| allocator.map_or(0, |all| all.free_slots(report.drive));
        Status {
            phase: state.phase.clone(),
            incarnation: state.incarnation,
            epoch: state.role.as_ref().map_or(state.epoch, |role| Epoch(role.epoch)),
            log: log.map(|log| log.id()),
            peer_connected: state.peer.is_some(),
            mirrored: state.is_joined(),
            alone_on: state.solo.session.as_ref().map_or_else(Vec::new, |session| {
                session.drives.iter().map(|(drive, _)| *drive).collect()
            }),
            hindrance: state.solo.hindrance.clone(),
            slots_held: active.map_or(0, |active| active.grants.held() as u64),
            serving: active.is_some() && !state.stopping,
            next: log.map_or(Position(0), |log| log.next()),
            mirrored_through: Position(state.mirror.mirrored),
            catalog: Position(state.mirror.catalog),
            entries: log.map_or(0, |log| log.len()),
            record_bytes: log.map_or(0, |log| log.record_bytes()),
            control_bytes: log.map_or(0, |log| log.control_bytes()),
            memory: log.map_or((0, state.settings.log.record_bytes_max), |log| log.memory()),
            quota: active.map_or(0, |active| active.quota),
            hosts: hosts.collect(),
            grants: active.map_or(0, |active| active.grants.len() as u64),
            granted_slots: active.map_or(0, |active| active.grants.slots()),
            newest_stripe: active.map_or(StripeId(0), |active| active.grants.newest()),
            stripes: state.stripes,
            damage: state.damage,
            rebuild: state.rebuild.report(state.executor.now()),
            scrub: state.scrub.report(state.executor.now()),
            slots: allocator.map_or((0, 0), |all| all.totals()),
            drives: drives.into_iter().map(|report| (report.clone(), free(&report))).collect(),
            counters: state.counters,
        }
    }
}
