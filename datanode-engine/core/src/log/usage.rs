//! How much of the log each vdisk and each host takes, and how much a host may take (C13).
//!
//! A vdisk's records count for the host that sealed it last, whoever appended them: that host is the one
//! which can destage them. What may be taken beyond the quota that hosts are told lets those go on that
//! are honest and late; it is small enough that all hosts together stay below what the log has.

use cleave_format::ids::{HostId, VdiskId};
use std::collections::BTreeMap;

/// Bytes of records up to which a host's appends are taken: 125 % of its quota. Quotas add up to three
/// quarters of the log, so this adds up to 15/16 of it.
pub fn taken_max(quota: u64) -> u64 {
    quota + quota / 4
}

/// The same for records without data: zeros and discards, which make room (C5, C13). These shares
/// add up to the whole log.
pub fn dataless_max(quota: u64) -> u64 {
    quota + quota / 3
}

#[derive(Default)]
struct Vdisk {
    bytes: u64,
    owner: Option<HostId>,
}

/// Bytes of records, by vdisk and by host.
#[derive(Default)]
pub struct Usage {
    vdisks: BTreeMap<VdiskId, Vdisk>,
    hosts: BTreeMap<HostId, u64>,
}

impl Usage {
    /// A host sealed the vdisk: its records are that host's.
    pub fn assign(&mut self, vdisk: VdiskId, host: HostId) {
        let found = self.vdisks.entry(vdisk).or_default();
        let (bytes, before) = (found.bytes, found.owner.replace(host));
        if let Some(before) = before {
            self.leave(before, bytes);
        }
        *self.hosts.entry(host).or_default() += bytes;
    }

    fn leave(&mut self, host: HostId, bytes: u64) {
        let held = self.hosts.get_mut(&host).expect("an owner is counted");
        *held -= bytes;
    }

    /// A record of the vdisk is held.
    pub fn add(&mut self, vdisk: VdiskId, bytes: u64) {
        let found = self.vdisks.entry(vdisk).or_default();
        found.bytes += bytes;
        if let Some(owner) = found.owner {
            *self.hosts.entry(owner).or_default() += bytes;
        }
    }

    /// A record of the vdisk is held no more.
    pub fn remove(&mut self, vdisk: VdiskId, bytes: u64) {
        let found = self.vdisks.get_mut(&vdisk).expect("a vdisk with a record is counted");
        found.bytes -= bytes;
        let (left, owner) = (found.bytes, found.owner);
        match owner {
            Some(owner) => self.leave(owner, bytes),
            None if left == 0 => drop(self.vdisks.remove(&vdisk)),
            None => {}
        }
    }

    /// Bytes of a vdisk's records.
    pub fn of_vdisk(&self, vdisk: VdiskId) -> u64 {
        self.vdisks.get(&vdisk).map_or(0, |found| found.bytes)
    }

    /// Bytes of the records of all vdisks that a host sealed last.
    pub fn of_host(&self, host: HostId) -> u64 {
        self.hosts.get(&host).copied().unwrap_or(0)
    }

    /// Bytes that count against the quota of the vdisk's owner.
    pub fn of_owner(&self, vdisk: VdiskId) -> u64 {
        let owner = self.vdisks.get(&vdisk).and_then(|found| found.owner);
        owner.map_or(0, |owner| self.of_host(owner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Assign(u64, u32),
        Add(u64, u64),
        Remove(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u64..4, 0u32..3).prop_map(|(vdisk, host)| Step::Assign(vdisk, host)),
            (0u64..4, 1u64..1000).prop_map(|(vdisk, bytes)| Step::Add(vdisk, bytes)),
            (0u64..4).prop_map(Step::Remove),
        ]
    }

    proptest! {
        /// The running sums are what adding up all records gives.
        #[test]
        fn sums_stay_right(steps in proptest::collection::vec(step(), 0..100)) {
            let mut usage = Usage::default();
            let mut records: Vec<(u64, u64)> = Vec::new();
            let mut owners = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Assign(vdisk, host) => {
                        usage.assign(VdiskId(vdisk), HostId(host));
                        owners.insert(vdisk, host);
                    }
                    Step::Add(vdisk, bytes) => {
                        usage.add(VdiskId(vdisk), bytes);
                        records.push((vdisk, bytes));
                    }
                    Step::Remove(vdisk) => {
                        let found = records.iter().position(|record| record.0 == vdisk);
                        if let Some(index) = found {
                            usage.remove(VdiskId(vdisk), records.remove(index).1);
                        }
                    }
                }
                let sum = |ours: &dyn Fn(u64) -> bool| {
                    records.iter().filter(|record| ours(record.0)).map(|record| record.1).sum::<u64>()
                };
                for vdisk in 0..4 {
                    prop_assert_eq!(usage.of_vdisk(VdiskId(vdisk)), sum(&|of| of == vdisk));
                }
                for host in 0..3 {
                    let own = |vdisk| owners.get(&vdisk) == Some(&host);
                    prop_assert_eq!(usage.of_host(HostId(host)), sum(&own));
                }
            }
        }

        /// Whatever the number of hosts, their shares fit (C13).
        #[test]
        fn shares_add_up_to_the_log_at_most(log in 1u64 << 20..1 << 40, hosts in 1u64..1000) {
            let quota = log / 4 * 3 / hosts;
            prop_assert!(taken_max(quota) * hosts <= log / 16 * 15 + log % 16);
            prop_assert!(dataless_max(quota) * hosts <= log);
        }
    }
}
