//! How connections fail: cuts between processes, breaks, and the end of one side.
//!
//! A cut stalls one direction between two named processes until it is healed. Whoever hears nothing
//! for the idle timeout gives its connections up and says nothing, so that the other side has to
//! notice by itself. A break or a crash loses an arbitrary suffix of each lane.

use super::{
    Network, Pair, Phase, arm_end, close_end, close_later, give_up, idle, latency, schedule_answer,
    schedule_attempt,
};
use crate::trace::{Digest, EventKind};
use crate::world::World;
use cleave_runtime::links::ConnectionId;
use cleave_runtime::random::Random;

/// Breaks the connections of a crashed process.
pub(crate) fn process_died(world: &World, process: u64) {
    let network = &mut *world.0.network.borrow_mut();
    let ends: Vec<(u64, usize)> = ends_of(network, |pair, side| pair.ends[side].process == process);
    for (number, side) in ends {
        lose_suffix(world, network, number, &[side]);
        let delay = world.0.draw(world.0.settings.borrow().detection);
        close_later(world, number, 1 - side, delay, "peer died".to_owned());
        close_end(world, network, number, side, "died");
    }
}

/// The peers of a process that has not answered for the idle timeout give its connections up.
pub(crate) fn process_silent(world: &World, process: u64) {
    let network = &mut *world.0.network.borrow_mut();
    let ends: Vec<(u64, usize)> = ends_of(network, |pair, side| pair.ends[side].process == process);
    for (number, side) in ends {
        lose_suffix(world, network, number, &[side]);
        give_up(world, network, number, 1 - side);
    }
}

fn ends_of(network: &Network, wanted: impl Fn(&Pair, usize) -> bool) -> Vec<(u64, usize)> {
    let pairs = network.pairs.iter();
    pairs
        .flat_map(|(number, pair)| [(*number, pair, 0), (*number, pair, 1)])
        .filter(|(_, pair, side)| pair.ends[*side].phase != Phase::Closed && wanted(pair, *side))
        .map(|(number, _, side)| (number, side))
        .collect()
}

/// Loses an arbitrary suffix of each lane of what `sides` sent, and all that is sent from now on.
fn lose_suffix(world: &World, network: &mut Network, number: u64, sides: &[usize]) {
    let Some(pair) = network.pairs.get_mut(&number) else { return };
    pair.broken = true;
    for side in sides {
        let lost = pair.ends[*side].truncate(|count| world.0.random.below(count + 1));
        world.0.count(|c| c.messages_lost += lost);
    }
}

impl World {
    /// Cuts one direction: messages `from` → `to` stall. Connections that hear nothing for the idle
    /// timeout break; a heal before that lets everything through.
    pub fn cut(&self, from: &str, to: &str) {
        let network = &mut *self.0.network.borrow_mut();
        if network.cut(from, to).is_some() {
            return;
        }
        let cut = self.0.next_number();
        let direction = (from.to_owned(), to.to_owned());
        network.cuts.insert(direction.clone(), cut);
        self.0.count(|c| c.cuts += 1);
        self.0.note(
            EventKind::Fault,
            0,
            Digest::new().bytes(from.as_bytes()).bytes(to.as_bytes()).value(),
        );
        let deaf = ends_of(network, |pair, side| {
            pair.names[side] == to
                && pair.names[1 - side] == from
                && pair.ends[side].phase == Phase::Open
        });
        for (number, side) in deaf {
            let direction = direction.clone();
            self.0.schedule(self.0.after(idle(self)), EventKind::Timeout, 0, move |world| {
                let network = &mut *world.0.network.borrow_mut();
                let holds = network.cuts.get(&direction) == Some(&cut)
                    && network
                        .pairs
                        .get(&number)
                        .is_some_and(|p| p.ends[side].phase == Phase::Open);
                if holds {
                    lose_suffix(world, network, number, &[side]);
                    give_up(world, network, number, side);
                }
                u64::from(holds)
            });
        }
    }

    /// Cuts both directions between two processes.
    pub fn partition(&self, a: &str, b: &str) {
        self.cut(a, b);
        self.cut(b, a);
    }

    /// Ends the cuts between two processes, in both directions.
    pub fn heal(&self, a: &str, b: &str) {
        self.heal_where(|from, to| (from == a && to == b) || (from == b && to == a));
    }

    /// Ends all cuts.
    pub fn heal_all(&self) {
        self.heal_where(|_, _| true);
    }

    /// Whether messages `from` → `to` stall.
    pub fn is_cut(&self, from: &str, to: &str) -> bool {
        self.0.network.borrow().cut(from, to).is_some()
    }

    fn heal_where(&self, healed: impl Fn(&str, &str) -> bool) {
        let network = &mut *self.0.network.borrow_mut();
        let cuts = network.cuts.keys().filter(|(from, to)| healed(from, to));
        let open: Vec<(String, String)> = cuts.cloned().collect();
        network.cuts.retain(|(from, to), _| !healed(from, to));
        let numbers: Vec<u64> = network.pairs.keys().copied().collect();
        for (from, to) in open {
            for number in &numbers {
                self.resume_direction(network, *number, &from, &to);
            }
        }
    }

    /// What waited for a direction to heal goes on after one more latency.
    fn resume_direction(&self, network: &mut Network, number: u64, from: &str, to: &str) {
        for side in 0..2 {
            let Some(pair) = network.pairs.get_mut(&number) else { return };
            if pair.names[side] != from || pair.names[1 - side] != to {
                continue;
            }
            let begun = pair.ends[0].process;
            let accepted = pair.ends[1].process != 0;
            if pair.held_up && accepted == (side == 1) {
                pair.held_up = false;
                match side {
                    0 => schedule_attempt(self, number, begun),
                    _ => schedule_answer(self, number, begun),
                }
            }
            for lane in &mut pair.ends[side].lanes {
                let due = self.0.after(latency(self));
                if let Some(first) = lane.packets.front_mut() {
                    first.due = first.due.max(due);
                    lane.last_due = lane.last_due.max(first.due);
                }
            }
            arm_end(self, network, number, side);
        }
    }

    /// Breaks all connections between two processes: each side notices at its own time, and an
    /// arbitrary suffix of what is undelivered on each lane is lost. Returns how many.
    pub fn break_connections(&self, a: &str, b: &str) -> usize {
        self.break_where(|names| {
            (names[0] == a && names[1] == b) || (names[0] == b && names[1] == a)
        })
    }

    /// Breaks the connection that one of the two sides knows as `connection`, as
    /// [`break_connections`](World::break_connections) does. False when it is closed.
    pub fn break_connection(&self, connection: ConnectionId) -> bool {
        let network = &mut *self.0.network.borrow_mut();
        let Some(&(number, _)) = network.ends.get(&connection) else { return false };
        self.break_pair(network, number);
        true
    }

    fn break_where(&self, wanted: impl Fn(&[String; 2]) -> bool) -> usize {
        let network = &mut *self.0.network.borrow_mut();
        let pairs = network.pairs.iter().filter(|(_, pair)| wanted(&pair.names) && !pair.broken);
        let numbers: Vec<u64> = pairs.map(|(number, _)| *number).collect();
        for number in &numbers {
            self.break_pair(network, *number);
        }
        numbers.len()
    }

    fn break_pair(&self, network: &mut Network, number: u64) {
        self.0.count(|c| c.connections_broken += 1);
        self.0.note(EventKind::Fault, 0, number);
        lose_suffix(self, network, number, &[0, 1]);
        let slow = self.0.settings.borrow().detection;
        for side in 0..2 {
            let delay = if self.0.one_in(2) { latency(self) } else { self.0.draw(slow) };
            close_later(self, number, side, delay, "connection lost".to_owned());
        }
    }

    /// Names of the processes on both sides of every connection that neither side has closed,
    /// each pair of names once, in order.
    pub fn connected_names(&self) -> Vec<(String, String)> {
        let network = self.0.network.borrow();
        let open = network.pairs.values().filter(|p| p.ends.iter().all(|e| e.phase == Phase::Open));
        let mut names: Vec<(String, String)> =
            open.map(|pair| (pair.names[0].clone(), pair.names[1].clone())).collect();
        names.sort();
        names.dedup();
        names
    }
}
