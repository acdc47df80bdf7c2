//! What an operator asks of the pool: how it is, that damage is looked for, that lacking shards are written anew.

use super::text::{bytes, fill, line};
use super::{ask, done, print, print_json};
use crate::arguments::PoolCommand;
use crate::error::{Error, Result};
use cleave_control::protocol::{Reply, Request};
use cleave_control::status::{
    DriveState, PoolStatus, RebuildStatus, ScrubFigures, ScrubStatus, StripeStatus,
};
use std::path::Path;
use std::time::Duration;

/// How often it is asked how far an ordered scrub is.
const LOOK_AGAIN: Duration = Duration::from_millis(200);

/// Carries a command out and prints what comes of it.
pub fn run(dir: &Path, command: PoolCommand) -> Result<()> {
    match command {
        PoolCommand::Status { json: true } => print_json(&pool(dir)?),
        PoolCommand::Status { json: false } => print(&describe(&pool(dir)?)),
        PoolCommand::Rebuild { datanode } => done(dir, &Request::Rebuild { datanode }),
        PoolCommand::Scrub { datanode, now, wait } => {
            let before = if wait { known_scrub(dir)?.passes } else { 0 };
            if now {
                done(dir, &Request::Scrub { datanode })?;
            }
            if wait {
                return wait_for_scrub(dir, before);
            }
            let Some(stripes) = pool(dir)?.stripes else { return Err(Error::NoActiveController) };
            print(&describe_scrub(&stripes.scrub, stripes.committed))
        }
    }
}

fn pool(dir: &Path) -> Result<PoolStatus> {
    match (ask(dir, &Request::Status {})?, ask(dir, &Request::Stats {})?) {
        (Reply::Status(status), Reply::Statistics(statistics)) => {
            Ok(PoolStatus::of(&status, &statistics))
        }
        _ => Err(Error::UnknownAnswer),
    }
}

/// How far the scrub is, once the active controller has read that from the store: before, it knows of no passes.
fn known_scrub(dir: &Path) -> Result<ScrubStatus> {
    loop {
        match pool(dir)?.stripes {
            Some(StripeStatus { scrub, .. }) if scrub.running => return Ok(scrub),
            Some(_) => std::thread::sleep(LOOK_AGAIN),
            None => return Err(Error::NoActiveController),
        }
    }
}

/// Until a pass is over that was ordered when `passes` were.
fn wait_for_scrub(dir: &Path, passes: u64) -> Result<()> {
    loop {
        // While the role moves nobody knows; whoever has it then goes on with what was recorded.
        if let Some(StripeStatus { scrub, .. }) = pool(dir)?.stripes
            && scrub.running
        {
            if scrub.passes > passes && !scrub.hurried {
                let ScrubFigures { looked, unrepairable, .. } = scrub.before;
                print(&format!("{looked} stripes{}\n", came_upon(&scrub.before)))?;
                return match unrepairable {
                    0 => Ok(()),
                    stripes => Err(Error::Damaged { stripes }),
                };
            }
            if !scrub.hurried {
                return Err(Error::ScrubForgotten);
            }
        }
        std::thread::sleep(LOOK_AGAIN);
    }
}

/// Shards that are written anew, if there is anything to say of them.
fn describe_rebuild(rebuild: RebuildStatus) -> String {
    let mut out = String::new();
    let RebuildStatus { running, waiting, done, without_room, unreadable, left } = rebuild;
    if running && waiting + done > 0 {
        let left = left.map(|left| format!(", about {left} s left")).unwrap_or_default();
        line(&mut out, format_args!("  rebuild: {done} of {} stripes{left}", done + waiting));
    }
    if without_room > 0 {
        line(
            &mut out,
            format_args!(
                "  rebuild: {without_room} stripes lack shards for which no other drive has a free slot; it goes on when one has"
            ),
        );
    }
    if unreadable > 0 {
        line(
            &mut out,
            format_args!(
                "  rebuild: of {unreadable} stripes too few shards can be read; they are tried again"
            ),
        );
    }
    out
}

/// How far it is with looking for damage, and what came of it the last time.
fn describe_scrub(scrub: &ScrubStatus, stripes: u64) -> String {
    let mut out = String::new();
    if !scrub.running {
        line(&mut out, format_args!("  scrub: waits until the store says how far it was"));
        return out;
    }
    let when = match (scrub.hurried, scrub.left) {
        (true, _) => ", as fast as guests let it".to_owned(),
        (false, Some(left)) => format!(", to be over in {}", rough(left)),
        (false, None) => String::new(),
    };
    let ScrubFigures { looked, .. } = scrub.found;
    let all = looked.max(stripes);
    line(
        &mut out,
        format_args!("  scrub: {looked} of {all} stripes{when}{}", came_upon(&scrub.found)),
    );
    if scrub.suspects > 0 {
        line(
            &mut out,
            format_args!("  scrub: {} stripes come first: damage was met there", scrub.suspects),
        );
    }
    if scrub.passes > 0 {
        line(
            &mut out,
            format_args!(
                "  last scrub: {} stripes{}",
                scrub.before.looked,
                came_upon(&scrub.before)
            ),
        );
    }
    out
}

/// What a pass came upon.
fn came_upon(found: &ScrubFigures) -> String {
    let ScrubFigures { damaged, repaired, unrepairable, .. } = found;
    if damaged + unrepairable == 0 {
        return ", no damage".to_owned();
    }
    let left = match unrepairable {
        0 => String::new(),
        _ => format!("; {unrepairable} stripes cannot be mended"),
    };
    format!(", {damaged} shards were damaged, {repaired} of them written anew{left}")
}

/// A time that nobody counts in seconds.
fn rough(seconds: u64) -> String {
    match seconds {
        0..7_200 => format!("{} min", seconds.div_ceil(60)),
        7_200..172_800 => format!("{} h", seconds.div_ceil(3_600)),
        _ => format!("{} d", seconds.div_ceil(86_400)),
    }
}

/// Drives, space, stripes.
fn describe(pool: &PoolStatus) -> String {
    let mut out = String::new();
    let free = bytes(pool.space.capacity.saturating_sub(pool.space.used));
    let percent = pool.space.used as f64 * 100.0 / pool.space.capacity.max(1) as f64;
    line(&mut out, format_args!("pool: {} used ({percent:.1} %), {free} free", fill(pool.space)));
    match &pool.stripes {
        None => {
            line(&mut out, format_args!("  no controller is active: its stripes are not known"))
        }
        Some(StripeStatus { data_shards, parity_shards, committed, degraded, lost, .. }) => line(
            &mut out,
            format_args!(
                "  stripes: {committed}, {degraded} degraded, {lost} lost; {} freed; new ones are {data_shards}+{parity_shards}",
                pool.stripes_freed
            ),
        ),
    }
    if let Some(stripes) = &pool.stripes {
        out.push_str(&describe_rebuild(stripes.rebuild));
        out.push_str(&describe_scrub(&stripes.scrub, stripes.committed));
    }
    line(
        &mut out,
        format_args!(
            "  of what is used {} is reserved for stripes to be written; {} stripes wait for a map run to be left",
            bytes(pool.reserved),
            pool.stripes_dead
        ),
    );
    if let Some(shortage) = &pool.shortage {
        line(
            &mut out,
            format_args!("  destage waits: {shortage}; writes stall when the log is full"),
        );
    }
    for drive in &pool.drives {
        let state = match drive.state {
            DriveState::Online => fill(drive.space),
            DriveState::Lost => format!("lost: {}", drive.reason),
        };
        let (number, path) = (drive.drive, &drive.path);
        let faults = match (drive.errors, drive.check_failures) {
            (0, 0) => String::new(),
            (errors, checks) => format!(", {errors} errors, {checks} shards failed their check"),
        };
        let damaged = match (drive.damaged, drive.repaired) {
            (0, _) => String::new(),
            (damaged, repaired) => {
                format!(", {damaged} shards were damaged, {repaired} of them written anew")
            }
        };
        line(&mut out, format_args!("  drive {number} ({path}): {state}{faults}{damaged}"));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_control::status::Fill;

    #[test]
    fn a_pool_is_described() {
        let mut shown = PoolStatus {
            space: Fill { used: 1 << 30, capacity: 4 << 30 },
            shortage: Some("no slots are free".to_owned()),
            reserved: 30 << 20,
            stripes_dead: 7,
            ..PoolStatus::default()
        };
        let text = describe(&shown);
        for part in [
            "1.00 GiB of 4.00 GiB used (25.0 %), 3.00 GiB free",
            "not known",
            "no slots are free",
            "30.0 MiB is reserved",
            "; 7 stripes",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        shown.stripes =
            Some(StripeStatus { data_shards: 4, parity_shards: 2, ..Default::default() });
        let text = describe(&shown);
        assert!(text.contains("new ones are 4+2") && !text.contains("rebuild"), "{text}");
        let rebuild = RebuildStatus {
            running: true,
            waiting: 30,
            done: 10,
            without_room: 2,
            unreadable: 1,
            left: Some(90),
        };
        shown.stripes = Some(StripeStatus { rebuild, ..Default::default() });
        let text = describe(&shown);
        for part in ["10 of 40 stripes, about 90 s left", "2 stripes lack shards", "of 1 stripes"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }

    #[test]
    fn a_scrub_is_described() {
        let before = ScrubFigures { looked: 90, damaged: 4, repaired: 2, unrepairable: 1 };
        let found = ScrubFigures { looked: 30, ..ScrubFigures::default() };
        let left = Some(86_400 * 11);
        let mut scrub =
            ScrubStatus { running: true, passes: 2, found, before, left, ..Default::default() };
        let text = describe_scrub(&scrub, 100);
        for part in [
            "scrub: 30 of 100 stripes, to be over in 11 d, no damage\n",
            "last scrub: 90 stripes, 4 shards were damaged, 2 of them written anew; 1 stripes cannot be mended\n",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        (scrub.hurried, scrub.suspects, scrub.left) = (true, 3, None);
        let text = describe_scrub(&scrub, 20);
        for part in ["scrub: 30 of 30 stripes, as fast as guests let it", "3 stripes come first"] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
        scrub.running = false;
        assert!(describe_scrub(&scrub, 20).contains("waits until the store"));
        assert_eq!([rough(59), rough(7_200), rough(180_000)], ["1 min", "2 h", "3 d"]);
    }
}
