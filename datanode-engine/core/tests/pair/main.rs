//! Two controllers in the simulator, a scripted host, and everything that may happen to them: what
//! was acknowledged can always be fetched (C7), and nothing released comes back (C4).

mod alone;
mod drives;
mod faults;
mod hosts;
mod leases;
mod members;
mod rebuild;
mod rig;
mod rot;
mod scrub;
mod switch;
mod takeover;

use rig::{FakeHost, Rig};

/// Both run and are joined; a host has sealed its vdisk.
fn begin(seed: u64) -> (Rig, FakeHost) {
    begin_on(Rig::new(seed))
}

fn begin_on(mut rig: Rig) -> (Rig, FakeHost) {
    rig.start(0);
    rig.start(1);
    rig.run_until_mirrored();
    let mut host = FakeHost::start(&rig, 1);
    host.connect(&rig);
    host.seal(&rig).unwrap();
    (rig, host)
}

/// Draws that repeat from their seed.
fn draws(mut draw: u64) -> impl FnMut(u64) -> u64 {
    move |below| {
        draw = draw.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (draw >> 33) % below
    }
}

fn append_some(host: &mut FakeHost, count: u32) {
    for number in 0..count {
        host.append(number % 5, (number as usize * 977) % 20_000);
    }
}

/// Grants, writes and commits one stripe.
fn destage(rig: &Rig, host: &mut FakeHost) {
    let granted = host.grant(rig, 1).remove(0);
    assert!(host.write_stripe(rig, &granted).iter().all(|result| result.is_ok()));
    assert_eq!(host.commit(rig, granted.stripe).1, []);
}
