//! What a seed stands for: the cluster's shape and limits, the guests, the faults, the number of episodes.

use crate::nvme::NvmePlan;
use crate::rewritten;
use cleave_codec::{KEY_LENGTH, Keys};
use cleave_datanode_core::log::LogSettings;
use cleave_format::ids::{ClusterId, DatanodeId, VdiskId};
use cleave_host_core::DestageConfig;
use cleave_runtime::links::PeerAddress;
use cleave_runtime::random::{Random, SplitMix};
use std::num::NonZeroU32;
use std::time::Duration;

/// Names of the controllers' processes.
pub const CONTROLLERS: [&str; 2] = ["datanode-1-a", "datanode-1-b"];

const MIB: u64 = 1 << 20;
/// Between the identities of vdisks that have several shares.
const IDENTITIES_APART: u64 = 1_000;

/// A vdisk of the run.
#[derive(Clone, Debug)]
pub struct VdiskPlan {
    /// Its identity.
    pub vdisk: VdiskId,
    /// Bytes.
    pub size: u64,
    /// Its keys, when it is encrypted.
    pub keys: Option<Keys>,
}

/// How large a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scale {
    /// For tests: a second or two each.
    Small,
    /// As the command runs it.
    Usual,
}

/// A stream of draws of its own for a subject, so that the other draws of a seed stay what they were.
pub fn stream(seed: u64, subject: &str) -> SplitMix {
    let mix = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    SplitMix::new(seed ^ subject.bytes().fold(0xcbf2_9ce4_8422_2325, mix))
}

/// Everything that a seed decides before the run begins.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// The cluster.
    pub cluster: ClusterId,
    /// Its data node.
    pub datanode: DatanodeId,
    /// Drives of the pool.
    pub drives: u16,
    /// Whether they have a port for each controller; else they are in the machine of the first one.
    pub shared_drives: bool,
    /// Bytes of each drive.
    pub drive_size: u64,
    /// The first so many drives may be lost or damaged: never more than redundancy covers.
    pub victims: u16,
    /// The log's capacities.
    pub log: LogSettings,
    /// Bytes of each host's flash, where hosts have any.
    pub flash: Option<u64>,
    /// What is behind NVMe controllers, in seeds that have any.
    pub nvme: Option<NvmePlan>,
    /// The write buffer's bytes.
    pub write_buffer: u64,
    /// Bytes of the map that stay in memory, at least.
    pub map: u64,
    /// When destage writes stripes.
    pub destage: DestageConfig,
    /// How long the catalog takes for a request.
    pub catalog_delay: Duration,
    /// The vdisks; each has one guest.
    pub vdisks: Vec<VdiskPlan>,
    /// Bursts of requests, each with something happening in it.
    pub episodes: u64,
    /// Requests of each guest in an episode, at most.
    pub requests: u64,
    /// Faults of links, processes and drives are drawn in the background.
    pub background_faults: bool,
    /// How far the clocks of processes may be off, in parts per million.
    pub clock_drift_ppm_max: u64,
    /// Both controllers lose the log while the host lives, now and then.
    pub loses_logs: bool,
    /// Bits flip in the memory of one controller's log, now and then.
    pub rots_logs: bool,
    /// Everything loses its power at once, now and then.
    pub loses_everything: bool,
    /// Cores of the host engine.
    pub cores: u16,
    /// Shares of each vdisk.
    pub shares: u16,
    /// Regions are written again and again, with the room that strikes on them need.
    pub rewrites: bool,
    /// Something is lost while the shards of a lost drive are written anew (C16).
    pub rebuilds: bool,
    /// Whether the role is moved by orders.
    pub switches: bool,
    /// One episode in so many meets a strike of the second list too.
    pub second_strike_one_in: u64,
    /// After one episode in so many the cluster idles.
    pub idle_one_in: u64,
    /// For so long at most.
    pub idle_max: Duration,
}

impl Plan {
    /// What this seed stands for.
    pub fn draw(seed: u64, scale: Scale) -> Plan {
        let random = SplitMix::new(seed ^ 0x5eed);
        let pick = |from: &[u64]| from[random.below(from.len() as u64) as usize];
        let drives = pick(&[3, 3, 4, 5, 5, 6, 8]) as u16;
        let victims = (drives - 3).min(pick(&[0, 1, 2, 2]) as u16);
        let of_rebuilds = stream(seed, "rebuilds");
        let rebuilds = of_rebuilds.below(4) == 0;
        // From six drives on there is one more than a stripe needs.
        let (drives, victims) = match rebuilds {
            true => (6 + of_rebuilds.below(3) as u16, 1 + of_rebuilds.below(2) as u16),
            false => (drives, victims),
        };
        let mut cluster = [0; 16];
        cluster[..8].copy_from_slice(&random.next_u64().to_le_bytes());
        cluster[8..].copy_from_slice(&random.next_u64().to_le_bytes());
        let vdisks = (1..=pick(&[1, 1, 2, 3])).map(|number| {
            let encrypted = random.below(3) == 0;
            let id = NonZeroU32::MIN.saturating_add(number as u32);
            let keys = encrypted.then(|| Keys::derive(id, &[number as u8; KEY_LENGTH]));
            let size = 4096 * (64 + random.below(pick(&[200, 1500, 4000, 4000])));
            VdiskPlan { vdisk: VdiskId(number), size, keys }
        });
        let vdisks = vdisks.collect();
        let (episodes, requests) = match scale {
            Scale::Small => (4 + random.below(3), 350),
            Scale::Usual => (8 + random.below(16), 100 + random.below(900)),
        };
        let later = stream(seed, "idling, clocks and second strikes");
        let pick_later = |from: &[u64]| from[later.below(from.len() as u64) as usize];
        let clock_drift_ppm_max = pick_later(&[100, 100, 3_000, 50_000, 100_000]);
        let (idle_one_in, idle_minutes) = match scale {
            Scale::Small => (8, 20),
            Scale::Usual => (4, pick_later(&[10, 30, 60, 180])),
        };
        let nvme_of = |flash: u64| NvmePlan::draw(seed, victims, flash > 0);
        let of_flash = stream(seed, "flash");
        // Half of the seeds have none: there every read meets the pool.
        let flash = [0, 0, 0, 16, 24, 64][of_flash.below(6) as usize] * MIB;
        // A controller that is driven from userspace has one port.
        let shared_drives = stream(seed, "ports").below(2) == 0 && nvme_of(flash).is_none();
        let mut plan = Plan {
            seed,
            cluster: ClusterId(cluster),
            datanode: DatanodeId(1),
            drives,
            shared_drives,
            // Of small drives slots are used again, after deletes and returned grants.
            drive_size: pick(&[600 << 20, 64 << 30]),
            victims,
            log: LogSettings {
                record_bytes_max: pick(&[8, 16, 64]) * MIB,
                control_bytes_max: pick(&[2, 4, 16]) * MIB,
            },
            flash: (flash > 0).then_some(flash),
            nvme: nvme_of(flash),
            write_buffer: pick(&[1, 2, 4, 16]) * MIB,
            // Half of the seeds have room for none of it, or for a few leaves.
            map: [0, 0, 20 << 10, MIB, MIB, MIB][stream(seed, "map").below(6) as usize],
            destage: DestageConfig {
                fill_percent: pick(&[10, 50, 80]),
                full_after: Duration::from_millis(pick(&[1, 50, 1_000])),
                age_after: Duration::from_millis(pick(&[20, 500, 5_000])),
                stripes_max: pick(&[1, 2, 4]) as usize,
                shards_max: pick(&[1, 4, 8]) as usize,
                run_after: pick(&[1, 3, 8, 32]) as usize,
                run_always: pick(&[8, 64, 512]) as usize,
            },
            catalog_delay: Duration::from_micros(pick(&[10, 500, 5_000, 50_000])),
            vdisks,
            episodes,
            requests,
            background_faults: random.below(3) > 0,
            clock_drift_ppm_max,
            loses_logs: stream(seed, "lost logs").below(2) == 0,
            rots_logs: stream(seed, "rot in logs").below(4) == 0,
            loses_everything: stream(seed, "power losses of everything").below(3) == 0,
            second_strike_one_in: pick_later(&[2, 3, 6]),
            idle_one_in,
            idle_max: Duration::from_secs(60 * idle_minutes),
            cores: 1,
            shares: 1,
            rewrites: stream(seed, "rewritten regions").below(4) == 0,
            rebuilds,
            switches: shared_drives && stream(seed, "switch-overs").below(2) == 0,
        };
        if plan.rewrites {
            plan.make_room_for_rewriting();
        } else {
            plan.share_out();
        }
        plan
    }

    /// Several stripes are on their way at once, and their content is in the buffer together.
    fn make_room_for_rewriting(&mut self) {
        self.write_buffer = rewritten::write_buffer(self.drives);
        self.log.record_bytes_max = 64 * MIB;
        let size = &mut self.vdisks[0].size;
        *size = rewritten::size_min(self.drives).max(*size);
        let destage = &mut self.destage;
        destage.stripes_max = destage.stripes_max.max(2);
        destage.run_after = destage.run_after.min(3);
    }

    /// Half of these seeds have vdisks of several shares, on one core or on several.
    fn share_out(&mut self) {
        let random = stream(self.seed, "cores and shares");
        let pick = |from: &[u16]| from[random.below(from.len() as u64) as usize];
        (self.cores, self.shares) = (pick(&[1, 2, 2, 3]), pick(&[1, 1, 1, 2, 3, 4]));
        if self.shares == 1 {
            self.cores = 1;
            return;
        }
        // Each share has an identity (C3); and there are some of each.
        for vdisk in &mut self.vdisks {
            vdisk.vdisk.0 *= IDENTITIES_APART;
            vdisk.size += 8 * MIB;
        }
    }

    /// The controllers as a host sees them.
    pub fn controllers(&self) -> Vec<PeerAddress> {
        CONTROLLERS.iter().map(|name| address(name)).collect()
    }

    /// The other controller, as a controller sees it.
    pub fn peer_of(&self, controller: usize) -> PeerAddress {
        address(CONTROLLERS[1 - controller])
    }
}

fn address(name: &str) -> PeerAddress {
    PeerAddress { name: name.to_owned(), address: String::new() }
}
