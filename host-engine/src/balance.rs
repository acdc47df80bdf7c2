//! When a share of a vdisk moves to another core because its own has too much to do: a decision a second, from what the
//! cores did meanwhile. It knows no clock and no core.
//!
//! A move costs the guest a pause, and the share's flash is warmed up on the other core. So it must be worth it: a
//! core is overloaded when it was busy for [`HOT_PERMILLE`] through [`HOT_SAMPLES`] samples; a move takes at least
//! [`GAIN_PERMILLE`] off the busier of the two; after it nothing moves for [`REST_SAMPLES`], and the share itself not for
//! [`SHARE_REST_SAMPLES`]. A share that alone keeps a core busy stays: it is served by one core.

use cleave_format::ids::VdiskId;
use std::collections::BTreeMap;

/// So busy a core is overloaded, in thousandths of its time.
const HOT_PERMILLE: u64 = 800;
/// For so many samples in a row.
const HOT_SAMPLES: u32 = 3;
/// What the busier of two cores must have less to do after a move.
const GAIN_PERMILLE: u64 = 150;
/// Samples between two moves.
const REST_SAMPLES: u64 = 10;
/// Samples between two moves of a share.
const SHARE_REST_SAMPLES: u64 = 120;

/// What a core did since the sample before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CoreSample {
    /// The core's number.
    pub core: u16,
    /// Thousandths of the time that it worked.
    pub busy_permille: u64,
    /// What its shares of vdisks cost, in any unit, those that cost nothing too.
    pub shares: Vec<(VdiskId, u64)>,
}

/// A share of a vdisk, and the core that it should move to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Move {
    /// Which share, by its identity.
    pub share: VdiskId,
    /// The number of its next core.
    pub to: u16,
}

/// See the module's page.
#[derive(Debug, Default)]
pub struct Balancer {
    /// Samples so far.
    samples: u64,
    /// Samples in a row in which a core was overloaded.
    hot: BTreeMap<u16, u32>,
    /// Nothing moves before this sample.
    rest_until: u64,
    /// When shares moved last.
    moved: BTreeMap<VdiskId, u64>,
}

impl Balancer {
    /// Takes a sample of every core, and says what should move.
    pub fn sample(&mut self, cores: &[CoreSample]) -> Option<Move> {
        self.samples += 1;
        let samples = self.samples;
        self.moved.retain(|_, at| *at + SHARE_REST_SAMPLES > samples);
        self.hot = cores
            .iter()
            .filter(|core| core.busy_permille >= HOT_PERMILLE)
            .map(|core| (core.core, self.hot.get(&core.core).map_or(1, |hot| hot + 1)))
            .collect();
        if samples < self.rest_until {
            return None;
        }
        let overloaded = cores
            .iter()
            .filter(|core| self.hot.get(&core.core).is_some_and(|hot| *hot >= HOT_SAMPLES));
        let busiest = overloaded.max_by_key(|core| core.busy_permille)?;
        let idlest = cores
            .iter()
            .filter(|core| core.core != busiest.core)
            .min_by_key(|core| core.busy_permille)?;
        let all: u64 = busiest.shares.iter().map(|(_, cost)| cost).sum();
        let candidates = busiest.shares.iter().filter(|(share, _)| !self.moved.contains_key(share));
        let best = candidates
            .map(|(share, cost)| {
                let part = busiest.busy_permille * cost / all.max(1);
                let left = busiest.busy_permille - part;
                (left.max(idlest.busy_permille + part), *share)
            })
            .min()?;
        if best.0 + GAIN_PERMILLE > busiest.busy_permille {
            return None;
        }
        self.rest_until = samples + REST_SAMPLES;
        self.moved.insert(best.1, samples);
        Some(Move { share: best.1, to: idlest.core })
    }
}

/// Moves after which the cores have equally many shares, as far as that goes: for cores that were just started. As few
/// as that takes.
pub fn spread(cores: &[(u16, Vec<VdiskId>)]) -> Vec<Move> {
    let mut left: Vec<(u16, Vec<VdiskId>)> = cores.to_vec();
    let mut moves = Vec::new();
    loop {
        let most = left.iter().enumerate().max_by_key(|(_, (_, vdisks))| vdisks.len());
        let least = left.iter().enumerate().min_by_key(|(_, (_, vdisks))| vdisks.len());
        let (Some((from, (_, many))), Some((to, (core, few)))) = (most, least) else {
            return moves;
        };
        if many.len() <= few.len() + 1 {
            return moves;
        }
        let core = *core;
        let share = left[from].1.pop().expect("it has the most");
        moves.push(Move { share, to: core });
        // It counts there, and does not move on.
        left[to].1.insert(0, share);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn core(core: u16, busy_permille: u64, costs: &[(u64, u64)]) -> CoreSample {
        let shares = costs.iter().map(|(share, cost)| (VdiskId(*share), *cost)).collect();
        CoreSample { core, busy_permille, shares }
    }

    fn after(balancer: &mut Balancer, samples: u64, cores: &[CoreSample]) -> Vec<(u64, Move)> {
        (0..samples).filter_map(|at| balancer.sample(cores).map(|found| (at, found))).collect()
    }

    #[test]
    fn an_overloaded_core_gives_a_share_to_the_idlest() {
        let cores = [
            core(0, 950, &[(1, 500), (2, 450), (3, 0)]),
            core(1, 300, &[(4, 300)]),
            core(2, 100, &[(5, 100)]),
        ];
        let found = after(&mut Balancer::default(), 3, &cores);
        // Share 1 has 500 of 950: 450 stay, 600 are there then; with share 2 it would be 500 and 550.
        assert_eq!(found, [(2, Move { share: VdiskId(2), to: 2 })]);
    }

    #[test]
    fn a_burst_moves_nothing() {
        let (busy, calm) = (core(0, 990, &[(1, 1), (2, 1)]), core(0, 790, &[(1, 1), (2, 1)]));
        let idle = core(1, 0, &[]);
        let mut balancer = Balancer::default();
        for _ in 0..50 {
            for sample in [&busy, &busy, &calm] {
                assert_eq!(balancer.sample(&[sample.clone(), idle.clone()]), None);
            }
        }
    }

    #[test]
    fn what_gains_little_stays() {
        let mut balancer = Balancer::default();
        // One share alone: the other core would be as busy as this one.
        let alone = [core(0, 1000, &[(1, 900), (2, 0)]), core(1, 0, &[])];
        assert_eq!(after(&mut balancer, 100, &alone), []);
        let both = [core(0, 1000, &[(1, 5), (2, 5)]), core(1, 700, &[(3, 1)])];
        assert_eq!(after(&mut balancer, 100, &both), []);
        assert_eq!(after(&mut balancer, 100, &[core(0, 1000, &[(1, 1), (2, 1)])]), []);
        assert_eq!(after(&mut balancer, 100, &[core(0, 1000, &[]), core(1, 0, &[])]), []);
    }

    #[test]
    fn moves_are_rare_and_a_share_does_not_swing() {
        let mut balancer = Balancer::default();
        let cores = [core(0, 900, &[(1, 3), (2, 3), (3, 3)]), core(1, 0, &[])];
        let found = after(&mut balancer, 60, &cores);
        let times: Vec<u64> = found.iter().map(|(at, _)| *at).collect();
        assert!(times.windows(2).all(|pair| pair[1] - pair[0] >= REST_SAMPLES), "{times:?}");
        let mut shares: Vec<u64> = found.iter().map(|(_, found)| found.share.0).collect();
        shares.sort_unstable();
        shares.dedup();
        assert_eq!(shares.len(), found.len(), "each once");
        // The load swings with the share: nothing follows it.
        let swung = [core(0, 0, &[]), core(1, 900, &[(1, 3), (2, 3), (3, 3)])];
        assert_eq!(after(&mut balancer, 50, &swung), []);
        // Much later it may move again.
        assert!(!after(&mut balancer, 2 * SHARE_REST_SAMPLES, &swung).is_empty());
    }

    #[test]
    fn new_cores_get_their_part() {
        let ids =
            |numbers: &[u64]| numbers.iter().map(|number| VdiskId(*number)).collect::<Vec<_>>();
        let moves = spread(&[(0, ids(&[1, 2, 3, 4, 5])), (7, ids(&[])), (9, ids(&[]))]);
        assert_eq!(moves.len(), 3);
        let to = |core| moves.iter().filter(|found| found.to == core).count();
        assert!((to(7), to(9)) == (1, 2) || (to(7), to(9)) == (2, 1), "{moves:?}");
        let mut moved: Vec<u64> = moves.iter().map(|found| found.share.0).collect();
        moved.sort_unstable();
        moved.dedup();
        assert_eq!(moved.len(), 3, "each moves once");
        assert_eq!(spread(&[(0, ids(&[1])), (1, ids(&[]))]), []);
        assert_eq!(spread(&[]), []);
    }
}
