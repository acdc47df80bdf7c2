//! What a controller answers on its control socket.

use crate::drives::ConfiguredDrive;
use crate::measure::Measures;
use cleave_control::config::DatanodeConfig;
use cleave_control::events::Events;
use cleave_control::protocol::{Reply, Request, Response};
use cleave_control::status::{
    ControllerStatistics, ControllerStatus, DriveState, DriveStatistics, DriveStatus, Fill,
    LogStatus, OperationStatistics, ProcessState, ProcessStatus, RebuildStatus, Role, ScrubFigures,
    ScrubStatus, StripeStatus,
};
use cleave_coordinator::StoreClient;
use cleave_datanode_core::drives::DriveReport;
use cleave_datanode_core::status::Status;
use cleave_datanode_core::{DataNode, Phase, roles};
use cleave_erasure::geometry::data_shards_now;
use cleave_format::control::DriveState as PoolState;
use cleave_format::ids::DatanodeId;
use cleave_format::layout::{PARITY_SHARDS, SLOT};
use cleave_process::stop::Stop;
use std::rc::Rc;
use std::time::Instant;

/// A question of a control connection.
pub type Question = Request;

/// What never changes about this process.
#[derive(Clone, Debug)]
pub struct Process {
    name: String,
    since: Instant,
}

impl Process {
    /// It starts now.
    pub fn new(config: &DatanodeConfig) -> Process {
        Process { name: config.name.clone(), since: Instant::now() }
    }

    fn status(&self, status: &Status) -> ProcessStatus {
        let state = match status.phase {
            Phase::Starting | Phase::Meeting | Phase::Copying if status.log.is_none() => {
                ProcessState::Starting
            }
            Phase::Stopping | Phase::Stopped => ProcessState::Stopping,
            _ => ProcessState::Running,
        };
        ProcessStatus {
            name: self.name.clone(),
            pid: Some(std::process::id()),
            state,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            incarnation: status.incarnation.0,
            uptime_seconds: self.since.elapsed().as_secs(),
            restarts: 0,
        }
    }
}

/// What answers are made of.
pub struct Control {
    /// The core.
    pub node: Rc<DataNode>,
    /// The store.
    pub store: StoreClient,
    /// Latencies.
    pub measures: Rc<Measures>,
    /// The drives as they were opened.
    pub drives: Vec<ConfiguredDrive>,
    /// The configuration.
    pub config: DatanodeConfig,
    /// This process.
    pub process: Process,
    /// What happened.
    pub events: Rc<Events>,
}

impl Control {
    /// Answers one question.
    pub async fn answer(&self, request: Request, stop: &Stop) -> Response {
        match request {
            Request::Status {} => Response::Ok(Reply::Controller(self.status())),
            Request::Stats {} => Response::Ok(Reply::ControllerStatistics(self.statistics())),
            Request::Events { since } => Response::Ok(Reply::Events {
                engines: vec![self.events.since(since)],
                unreachable: Vec::new(),
            }),
            Request::Stop {} => {
                stop.ask();
                Response::Ok(Reply::Done {})
            }
            Request::SwitchOver { datanode } => self.switch_over(datanode).await,
            Request::Scrub { datanode } => self.order(datanode, DataNode::scrub),
            Request::Rebuild { datanode } => self.order(datanode, DataNode::rebuild),
            Request::StartEmptyLog { datanode, accept_data_loss } => {
                self.start_empty(datanode, accept_data_loss).await
            }
            _ => Response::error("a controller does not do this; ask the cluster's supervisor"),
        }
    }

    async fn switch_over(&self, datanode: u16) -> Response {
        if datanode != self.config.datanode {
            return Response::error(format!("this is data node {}", self.config.datanode));
        }
        match self.node.switch_over().await {
            Ok(took) => Response::Ok(Reply::SwitchedOver {
                active: self.config.peer.name.clone(),
                stall_milliseconds: took.as_millis() as u64,
            }),
            Err(reason) => Response::error(reason),
        }
    }

    /// Something that the active one goes on with by itself.
    fn order(&self, datanode: u16, begin: impl Fn(&DataNode) -> bool) -> Response {
        if datanode != self.config.datanode {
            return Response::error(format!("this is data node {}", self.config.datanode));
        }
        match begin(&self.node) {
            true => Response::Ok(Reply::Done {}),
            false => Response::error("this controller is not active; ask the other one"),
        }
    }

    /// C7: only the operator's word starts an empty log in the place of a lost one.
    async fn start_empty(&self, datanode: u16, accept_data_loss: bool) -> Response {
        if datanode != self.config.datanode {
            return Response::error(format!("this is data node {}", self.config.datanode));
        }
        if !accept_data_loss {
            return Response::error(
                "acknowledged writes that were not destaged would be lost; say that this is accepted",
            );
        }
        if !self.store.is_connected() {
            return Response::error("the coordinator store is away; try again");
        }
        match roles::order_start_empty(&self.store, DatanodeId(datanode)).await {
            Ok(Some(_)) => Response::Ok(Reply::Done {}),
            Ok(None) => {
                Response::error("the data node never had a log; it starts with an empty one")
            }
            Err(error) => Response::error(error),
        }
    }

    fn status(&self) -> ControllerStatus {
        let status = self.node.status();
        let (used, capacity) = status.memory;
        // Only who serves knows what became of them.
        let shown = self.drives.iter().filter(|_| status.serving);
        let drives: Vec<DriveStatus> = shown.map(|it| drive(it, &status)).collect();
        let online = drives.iter().filter(|drive| drive.state == DriveState::Online).count();
        ControllerStatus {
            datanode: self.config.datanode,
            controller: self.config.controller,
            process: self.process.status(&status),
            role: role(&status),
            epoch: status.epoch.0,
            in_sync: status.log.is_some() && status.epoch.0 > 0,
            peer_connected: status.peer_connected,
            store_connected: self.store.is_connected(),
            log: LogStatus {
                memory: Fill { used, capacity },
                records: status.entries,
                hosts: status.hosts.len() as u32,
                alone_on: status.alone_on.iter().map(|drive| drive.0).collect(),
                hindrance: status.hindrance.clone(),
            },
            stripes: status.serving.then(|| StripeStatus {
                data_shards: data_shards(drives.len(), online),
                parity_shards: PARITY_SHARDS as u32,
                committed: status.stripes,
                degraded: status.damage.degraded,
                lost: status.damage.lost,
                reserved: status.granted_slots * SLOT as u64,
                held: status.slots_held * SLOT as u64,
                rebuild: rebuild(&status),
                scrub: scrub(&status),
            }),
            drives,
        }
    }

    fn statistics(&self) -> ControllerStatistics {
        let status = self.node.status();
        let counters = &status.counters;
        ControllerStatistics {
            datanode: self.config.datanode,
            controller: self.config.controller,
            name: self.config.name.clone(),
            pid: std::process::id(),
            appends: OperationStatistics {
                operations: counters.records,
                bytes: counters.record_bytes,
                latency_us: self.measures.appends.borrow().latency(),
                ..OperationStatistics::default()
            },
            refused: counters.refused,
            released: counters.released,
            commits: counters.commits,
            stripes_freed: counters.freed,
            records_rotted: counters.rotted,
            records_mended: counters.mended,
            records_given_up: counters.given_up,
            struck: counters.struck,
            mirror_latency_us: self.measures.mirror.borrow().latency(),
            shard_reads: self.measures.shard_reads.borrow().shown(),
            shard_writes: self.measures.shard_writes.borrow().shown(),
            drives: status.drives.iter().map(|(report, _)| drive_statistics(report)).collect(),
        }
    }
}

fn rebuild(status: &Status) -> RebuildStatus {
    let report = status.rebuild;
    RebuildStatus {
        running: report.running,
        waiting: report.waiting,
        done: report.done,
        without_room: report.without_room,
        unreadable: report.unreadable,
        left: report.left.map(|left| left.as_secs()),
    }
}

fn scrub(status: &Status) -> ScrubStatus {
    let report = status.scrub;
    let shown = |figures: cleave_coordinator::records::ScrubFigures| ScrubFigures {
        looked: figures.looked,
        damaged: figures.damaged,
        repaired: figures.repaired,
        unrepairable: figures.unrepairable,
    };
    ScrubStatus {
        running: report.running,
        hurried: report.hurried,
        passes: report.passes,
        found: shown(report.found),
        before: shown(report.before),
        suspects: report.suspects,
        left: report.left.map(|left| left.as_secs()),
    }
}

fn role(status: &Status) -> Role {
    match &status.phase {
        Phase::Stopping | Phase::Stopped | Phase::NoLog(_) => Role::None,
        _ if status.serving => Role::Active,
        _ if status.mirrored => Role::Standby,
        Phase::Meeting | Phase::Copying => Role::Joining,
        Phase::PeerAway => Role::Standby,
        _ => Role::None,
    }
}

/// Data shards of a new stripe; 0 when there are too few drives.
fn data_shards(configured: usize, online: usize) -> u32 {
    data_shards_now(configured, online).unwrap_or(0) as u32
}

fn drive(configured: &ConfiguredDrive, status: &Status) -> DriveStatus {
    let ConfiguredDrive { drive, uuid, path, open } = configured;
    let found = status.drives.iter().find(|(report, _)| report.drive == *drive);
    let in_use = match (open, found) {
        (Err(_), _) => false,
        (Ok(_), Some((report, _))) => report.state == PoolState::Active,
        // Nobody has told yet what became of it.
        (Ok(_), None) => true,
    };
    let reason = match (open, in_use) {
        (_, true) => String::new(),
        (Err(reason), false) => reason.clone(),
        (Ok(_), false) => match found {
            Some((report, _)) if !report.reason.is_empty() => report.reason.clone(),
            _ => "it was lost before this controller started; an earlier log says why".to_owned(),
        },
    };
    let shown = DriveStatus {
        drive: drive.0,
        uuid: uuid.to_lowercase(),
        path: path.display().to_string(),
        state: if in_use { DriveState::Online } else { DriveState::Lost },
        reason,
        ..DriveStatus::default()
    };
    let Some((report, free)) = found else { return shown };
    let bytes = |slots: u32| u64::from(slots) * SLOT as u64;
    DriveStatus {
        space: Fill {
            used: bytes(report.slots.saturating_sub(*free)),
            capacity: bytes(report.slots),
        },
        errors: report.counters.errors,
        check_failures: report.counters.identity_faults,
        damaged: report.counters.damaged,
        repaired: report.counters.repaired,
        ..shown
    }
}

fn drive_statistics(report: &DriveReport) -> DriveStatistics {
    let counters = &report.counters;
    let count = |operations, bytes| OperationStatistics {
        operations,
        bytes,
        ..OperationStatistics::default()
    };
    DriveStatistics {
        drive: report.drive.0,
        read: count(counters.reads, counters.read_bytes),
        write: count(counters.writes, counters.write_bytes),
        flush: count(counters.flushes, 0),
        scrubbed_bytes: counters.verified_bytes,
    }
}
