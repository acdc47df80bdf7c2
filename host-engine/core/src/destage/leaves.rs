//! The leaves of the map that a plan changes: in memory before its stripe is packed, until its commit is
//! applied.
//!
//! Content whose part of the map cannot be read is not committed: what it replaces would stay counted, and its
//! versions unknown (C2, C20). It stays in the log, and in no plan for a while; everything else goes on.

use super::{Destage, Plan};
use crate::buffer::NodeName;
use crate::map::{Held, group_of};
use crate::state::State;
use cleave_format::ids::VdiskId;
use cleave_runtime::executor::Priority;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

/// Before content whose part of the map could not be read is planned again.
const PLAN_AGAIN: Duration = Duration::from_secs(10);

/// What a plan changes of the map, in memory.
pub(super) struct Leaves {
    held: Vec<Held>,
    /// What could not be read.
    pub faults: BTreeSet<(VdiskId, u32)>,
}

impl Leaves {
    /// Of a plan that changes nothing.
    pub(super) fn none() -> Leaves {
        Leaves { held: Vec::new(), faults: BTreeSet::new() }
    }

    /// Whether all of them are in memory still: no vdisk of the plan was closed since, nor opened again.
    pub(super) fn are_there(&self, state: &State) -> bool {
        self.faults.is_empty() && self.held.iter().all(|held| state.map.holds(held))
    }
}

impl Destage {
    /// Brings what the plan changes into memory.
    pub(super) async fn hold_leaves(&self, plan: &Plan) -> Leaves {
        let mut wanted: BTreeMap<VdiskId, BTreeSet<u32>> = BTreeMap::new();
        for item in &plan.items {
            wanted.entry(item.vdisk).or_default().insert(group_of(item.slice));
        }
        let mut leaves = Leaves::none();
        for (vdisk, groups) in wanted {
            let (held, faults) = self.shared.page_in(vdisk, groups).await;
            leaves.held.push(held);
            leaves.faults.extend(faults.into_iter().map(|(group, _)| (vdisk, group)));
        }
        leaves
    }

    /// The plan ended. Its content that could not be committed for want of a leaf is planned later.
    pub(super) fn let_leaves_go(&self, state: &mut State, plan: &Plan, leaves: Leaves) {
        leaves.held.into_iter().for_each(|held| state.map.let_go(held));
        let lacking = plan
            .items
            .iter()
            .filter(|item| leaves.faults.contains(&(item.vdisk, group_of(item.slice))));
        let nodes: Vec<NodeName> = lacking.flat_map(|item| item.nodes()).collect();
        if nodes.is_empty() {
            return;
        }
        nodes.iter().for_each(|node| state.buffer.set_planned(node, true));
        let shared = Rc::clone(&self.shared);
        self.shared.executor.spawn(Priority::Background, async move {
            shared.executor.sleep(PLAN_AGAIN).await;
            let mut state = shared.state.borrow_mut();
            nodes.iter().for_each(|node| state.buffer.set_planned(node, false));
            state.progress.notify();
        });
    }
}
