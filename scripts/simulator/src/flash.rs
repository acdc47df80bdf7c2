//! The hosts' flash, and what strikes it: in some seeds each host has a device, of which anything may be lost at any
//! time, because nothing is ever needed from it (rule 3.4).
//!
//! Its draws are of a stream of its own, so that seeds without flash bring what they brought.

use crate::cluster::Cluster;
use crate::plan::stream;
use cleave_format::flash::FIRST_ZONE;
use cleave_runtime::random::Random;
use cleave_runtime_sim::{SimDrive, World};
use std::time::Duration;

/// The hosts' devices, and what is drawn for them.
pub struct Flash {
    /// By the host's number, from 1.
    devices: Vec<SimDrive>,
    random: Box<dyn Random>,
}

impl Flash {
    /// A device of `size` bytes for each of so many hosts.
    pub fn new(world: &World, seed: u64, size: u64, hosts: usize) -> Flash {
        let device = |host| world.create_drive(&format!("flash-{host}"), size);
        let devices = (1..=hosts).map(device).collect();
        Flash { devices, random: Box::new(stream(seed, "strikes of flash")) }
    }

    /// The devices, by the host's number, from 1.
    pub fn devices(&self) -> &[SimDrive] {
        &self.devices
    }

    /// A host's device.
    pub fn of(&self, host: u32) -> SimDrive {
        self.devices[host as usize - 1].clone()
    }
}

/// Something may happen to the present host's flash.
pub fn strike(cluster: &Cluster) {
    let Some(flash) = &cluster.flash else { return };
    let (device, random) = (flash.of(cluster.host_number()), &flash.random);
    // Without both copies of its superblock a device is not used any more, and nothing more comes of it.
    let beyond = |page: &u64| *page >= FIRST_ZONE;
    let page = device.any_stored_page().filter(beyond);
    let note = |what: &str| cluster.journal.note(format!("{}: {what}", device.name()));
    cluster.journal.at(&cluster.world);
    match (random.below(12), page) {
        (0 | 1, _) => {
            note("writes go elsewhere");
            device.misdirect_next(1 + random.below(4));
        }
        (2, _) => {
            note("requests fail");
            device.fail_next(1 + random.below(20));
        }
        (3..=5, Some(_)) => {
            note("bits flip");
            for _ in 0..1 + random.below(20) {
                let Some(page) = device.any_stored_page().filter(beyond) else { continue };
                device.flip_bit(page + random.below(4096), random.below(8) as u8);
            }
        }
        (6, Some(page)) => {
            note("sectors cannot be read");
            device.spoil(page, 4096 * (1 + random.below(32)));
        }
        (7, _) => {
            note("it loses power");
            match cluster.nvme.as_ref().and_then(|nvme| nvme.of_flash(cluster.host_number())) {
                Some(controller) => controller.cut_power(&cluster.journal),
                None => device.power_loss(),
            }
        }
        (8, _) => {
            note("it is lost");
            device.lose();
            cluster.pass(Duration::from_millis(random.below(2_000)));
            // The engine's next start finds it again.
            device.come_back();
        }
        (9, _) => {
            note("it is slow");
            device.slow(100 + random.below(100_000) as u32);
            cluster.pass(Duration::from_millis(random.below(3_000)));
            device.slow(1);
        }
        (10, _) => {
            note("there is no space behind it");
            device.set_full(true);
            cluster.pass(Duration::from_millis(random.below(500)));
            device.set_full(false);
        }
        _ => {}
    }
}
