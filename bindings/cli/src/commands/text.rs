//! Status and statistics as people read them. Scripts read the JSON.

use cleave_control::status::{
    ClusterStatistics, ClusterStatus, DriveState, Fill, FlashState, HostCpuStatus, HostFlashStatus,
    Latency, OperationStatistics, ProcessState, ProcessStatus, Role, VdiskEntry, VdiskServing,
};
use std::fmt::Write;

/// What there is and how it is.
pub fn status(status: &ClusterStatus) -> String {
    let mut out = String::new();
    let ready = if status.ready { "ready" } else { "not ready" };
    let encrypted = if status.encrypted { ", encrypted" } else { "" };
    line(&mut out, format_args!("cluster {}: {ready}{encrypted}", status.cluster));
    line(&mut out, format_args!("  {}", process(&status.supervisor)));
    if let Some(etcd) = &status.store.process {
        let connected = if status.store.connected { "connected" } else { "away" };
        line(&mut out, format_args!("store: {}, {connected}", process(etcd)));
    }
    for host in &status.hosts {
        line(&mut out, format_args!("host {}: {}", host.host, process(&host.process)));
        if host.process.state != ProcessState::Running {
            continue;
        }
        line(&mut out, format_args!("  memory {}", fill(host.memory)));
        out.push_str(&cpu(&host.cpu));
        for log in &host.logs {
            let writable = if log.writable { "writable" } else { "not writable" };
            line(
                &mut out,
                format_args!(
                    "  log of data node {}: {writable}, quota {}, write buffer {}",
                    log.datanode,
                    fill(log.quota),
                    fill(log.write_buffer)
                ),
            );
        }
        out.push_str(&flash(&host.flash));
        for vdisk in &host.vdisks {
            let state = match vdisk.state {
                VdiskServing::Waiting => "waiting",
                VdiskServing::Recovering => "recovering",
                VdiskServing::Serving => "serving",
                VdiskServing::Failed => "failed",
            };
            let attached = if vdisk.vdisk.attached { ", attached" } else { "" };
            line(
                &mut out,
                format_args!(
                    "  vdisk {}: {state}{attached}, {} of {} hold data",
                    vdisk.vdisk.name,
                    bytes(vdisk.mapped),
                    bytes(vdisk.vdisk.size)
                ),
            );
        }
    }
    for controller in &status.controllers {
        let (datanode, running) = (controller.datanode, process(&controller.process));
        line(&mut out, format_args!("data node {datanode}: {running}"));
        if controller.process.state != ProcessState::Running {
            continue;
        }
        let role = match controller.role {
            Role::None => "no role",
            Role::Active => "active",
            Role::Standby => "standby",
            Role::Joining => "joining",
        };
        let in_sync = if controller.in_sync { "in sync" } else { "not in sync" };
        let memory = fill(controller.log.memory);
        let alone = match controller.log.alone_on.as_slice() {
            [] => String::new(),
            drives => format!(" and on drives {}: it is alone", numbers(drives)),
        };
        line(&mut out, format_args!("  {role}, {in_sync}, log {memory}{alone}"));
        if let Some(stripes) =
            controller.stripes.as_ref().filter(|_| controller.role == Role::Active)
        {
            line(
                &mut out,
                format_args!(
                    "  stripes of {}+{}: {} committed, {} degraded, {} lost",
                    stripes.data_shards,
                    stripes.parity_shards,
                    stripes.committed,
                    stripes.degraded,
                    stripes.lost
                ),
            );
            let online = controller.drives.iter().filter(|one| one.state == DriveState::Online);
            let (used, capacity) = online.clone().fold((0, 0), |(used, capacity), drive| {
                (used + drive.space.used, capacity + drive.space.capacity)
            });
            let (count, all) = (online.count(), controller.drives.len());
            let space = fill(Fill { used, capacity });
            line(&mut out, format_args!("  drives: {count} of {all} online, {space}"));
        }
    }
    for warning in &status.warnings {
        line(&mut out, format_args!("warning: {warning}"));
    }
    out
}

fn numbers(drives: &[u16]) -> String {
    drives.iter().map(u16::to_string).collect::<Vec<_>>().join(", ")
}

/// What was done.
pub fn statistics(statistics: &ClusterStatistics) -> String {
    let mut out = String::new();
    for host in &statistics.hosts {
        line(&mut out, format_args!("{} (process {})", host.name, host.pid));
        let guest = &host.guest;
        for (name, operations) in [
            ("reads", &guest.read),
            ("writes", &guest.write),
            ("flushes", &guest.flush),
            ("discards", &guest.discard),
            ("write-zeroes", &guest.write_zeroes),
        ] {
            operation(&mut out, name, operations);
        }
        let codec = &host.codec;
        line(
            &mut out,
            format_args!(
                "  codec: {} blocks and {} all-zero ones, {} to {}, ratio {:.2}",
                codec.blocks,
                codec.zero_blocks,
                bytes(codec.bytes_in),
                bytes(codec.bytes_out),
                codec.compression_ratio
            ),
        );
        let log = &host.log;
        line(
            &mut out,
            format_args!(
                "  log: {} records, {}; {} released, {} resent, {} stalls{}",
                log.records,
                bytes(log.bytes),
                log.released,
                log.resent,
                log.stalls,
                latency(&log.latency_us)
            ),
        );
        let destage = &host.destage;
        line(
            &mut out,
            format_args!(
                "  destage: {} stripes, {} of frames, {} to drives, {} frames covered by newer ones",
                destage.stripes,
                bytes(destage.frame_bytes),
                bytes(destage.drive_bytes),
                destage.covered
            ),
        );
        // Blocks that were destaged, for each that took room.
        let ratio = match destage.frames {
            0 => 1.0,
            frames => (frames + destage.deduplicated) as f64 / frames as f64,
        };
        line(
            &mut out,
            format_args!(
                "  dedupe: {} blocks were in the pool already (ratio {ratio:.2}), {} can be recognised; {} stripes left behind",
                destage.deduplicated, destage.recognisable, destage.stripes_left
            ),
        );
        let map = &host.map;
        line(
            &mut out,
            format_args!(
                "  map: {} in memory, {} pieces read, {} parts evicted, {} pieces unreadable",
                fill(map.pages),
                map.read,
                map.evicted,
                map.failed
            ),
        );
        let reads = &host.reads;
        line(
            &mut out,
            format_args!(
                "  blocks read: {} zero, {} write buffer, {} flash, {} pool, {} solved around lost shards",
                reads.zero, reads.write_buffer, reads.flash, reads.pool, reads.solved
            ),
        );
        let flash = &host.flash;
        line(
            &mut out,
            format_args!(
                "  flash: {:.1} % of reads hit, {} written; parts: {} destaged, {} fetched, {} moved, {} evicted",
                flash.hit_percent,
                bytes(flash.bytes_written),
                flash.parts_destaged,
                flash.parts_fetched,
                flash.parts_moved,
                flash.parts_evicted
            ),
        );
    }
    for controller in &statistics.controllers {
        line(&mut out, format_args!("{} (process {})", controller.name, controller.pid));
        operation(&mut out, "appends", &controller.appends);
        operation(&mut out, "shard writes", &controller.shard_writes);
        operation(&mut out, "shard reads", &controller.shard_reads);
        line(
            &mut out,
            format_args!(
                "  {} commits, {} released, {} stripes freed",
                controller.commits, controller.released, controller.stripes_freed
            ),
        );
    }
    out
}

/// Cores, and where they run.
pub fn cpu(cpu: &HostCpuStatus) -> String {
    let mut out = String::new();
    let insane = if cpu.insane { ", Insane Mode" } else { "" };
    let why = match cpu.cores_configured {
        0 => String::new(),
        cores => format!(", {cores} asked for"),
    };
    let changing = match cpu.changing {
        true => format!(", on the way to {}", cpu.cores_wanted),
        false => String::new(),
    };
    let (count, processors) = (cpu.cores.len(), cpu.processors);
    line(
        &mut out,
        format_args!("  CPU: {count} cores of {processors} processors{insane}{why}{changing}"),
    );
    for core in &cpu.cores {
        let place = match core.processor {
            Some(processor) => format!("on processor {processor}"),
            None => "on any processor".to_owned(),
        };
        let (busy, vdisks) = (core.busy_percent, core.vdisks);
        line(
            &mut out,
            format_args!("  core {}: {place}, {busy:.1} % busy, {vdisks} vdisks", core.core),
        );
    }
    out
}

/// Devices, and whether what vdisks hold fits.
pub fn flash(flash: &HostFlashStatus) -> String {
    let mut out = String::new();
    if flash.devices.is_empty() {
        line(&mut out, format_args!("  no flash: all reads go to the pool"));
        return out;
    }
    let missing = u64::try_from(-flash.headroom).unwrap_or(0);
    let headroom = match u64::try_from(flash.headroom) {
        Ok(left) => format!("{} left over", bytes(left)),
        Err(_) => format!("{} too little", bytes(missing)),
    };
    let (space, set) = (fill(flash.space), bytes(flash.working_set));
    line(&mut out, format_args!("  flash {space}, open vdisks hold {set}: {headroom}"));
    for device in &flash.devices {
        let state = match device.state {
            FlashState::Adding => "being added".to_owned(),
            FlashState::InUse => format!("in use, {}", fill(device.space)),
            FlashState::Retired => format!("retired: {}", device.reason),
        };
        let errors = match device.errors {
            0 => String::new(),
            errors => format!(", {errors} errors, {} places retired", device.retired_places),
        };
        line(&mut out, format_args!("  flash {}: {state}{errors}", device.device));
    }
    out
}

/// What happened to flash, the newest last.
pub fn flash_events(flash: &HostFlashStatus) -> String {
    let mut out = String::new();
    for event in &flash.events {
        let place = event.offset.map(|offset| format!(" at byte {offset}")).unwrap_or_default();
        let (at, device) = (utc(event.at), &event.device);
        line(&mut out, format_args!("  {at} {device}{place}: {}", event.event));
    }
    out
}

/// Seconds since the Unix epoch, as a date and a time.
pub fn utc(seconds: u64) -> String {
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March 0000, so that leap days come last (the proleptic Gregorian calendar).
    let days = days + 719_468;
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted + 2) / 5 + 1;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

/// A table.
pub fn vdisks(vdisks: &[VdiskEntry]) -> String {
    let mut out = String::new();
    for vdisk in vdisks {
        let encrypted = if vdisk.encrypted { "encrypted" } else { "plain" };
        let attached = if vdisk.attached { "attached" } else { "detached" };
        let size = cleave_control::size::format_size(vdisk.size);
        let socket = vdisk.socket.as_deref().unwrap_or("not served");
        line(&mut out, format_args!("{}\t{size}\t{encrypted}\t{attached}\t{socket}", vdisk.name));
    }
    out
}

fn operation(out: &mut String, name: &str, operations: &OperationStatistics) {
    if operations.operations == 0 {
        return;
    }
    line(
        out,
        format_args!(
            "  {name}: {}, {}, {} failed{}",
            operations.operations,
            bytes(operations.bytes),
            operations.errors,
            latency(&operations.latency_us)
        ),
    );
}

/// Percentiles, where latencies were measured.
fn latency(latency: &Latency) -> String {
    if latency.max == 0.0 {
        return String::new();
    }
    format!("; p50 {:.0} us, p99 {:.0} us, longest {:.0} us", latency.p50, latency.p99, latency.max)
}

fn process(process: &ProcessStatus) -> String {
    let restarts = match process.restarts {
        0 => String::new(),
        1 => ", started again once".to_owned(),
        times => format!(", started again {times} times"),
    };
    let state = match process.state {
        ProcessState::Down => "down",
        ProcessState::Starting => "starting",
        ProcessState::Running => "running",
        ProcessState::Stopping => "stopping",
    };
    match process.pid {
        Some(pid) => {
            let seconds = process.uptime_seconds;
            format!("{} {state}, process {pid} for {seconds} s{restarts}", process.name)
        }
        None => format!("{} {state}{restarts}", process.name),
    }
}

pub(super) fn fill(fill: Fill) -> String {
    format!("{} of {}", bytes(fill.used), bytes(fill.capacity))
}

/// Three digits and a unit.
pub(super) fn bytes(count: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1024.0;
        unit += 1;
    }
    let digits = if unit == 0 || value >= 100.0 {
        0
    } else if value >= 10.0 {
        1
    } else {
        2
    };
    format!("{value:.digits$} {}", units[unit])
}

/// A line of it.
pub(super) fn line(out: &mut String, text: std::fmt::Arguments<'_>) {
    writeln!(out, "{text}").expect("writing to a string does not fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_control::status::{CoreStatus, FlashEventStatus, StoreStatus};

    #[test]
    fn bytes_have_three_digits() {
        let cases = [
            (0, "0 B"),
            (999, "999 B"),
            (1024, "1.00 KiB"),
            (10 << 20, "10.0 MiB"),
            (700 << 30, "700 GiB"),
            (1000 << 30, "0.98 TiB"),
        ];
        for (count, text) in cases {
            assert_eq!(bytes(count), text);
        }
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_704_067_199), "2023-12-31 23:59:59 UTC");
        assert_eq!(utc(4_107_542_399), "2100-02-28 23:59:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00:00 UTC");
    }

    #[test]
    fn flash_events_are_described() {
        let event = FlashEventStatus {
            at: 0,
            device: "/dev/x".to_owned(),
            offset: Some(4096),
            event: "gone".to_owned(),
        };
        let flash = HostFlashStatus { events: vec![event], ..HostFlashStatus::default() };
        assert_eq!(flash_events(&flash), "  1970-01-01 00:00:00 UTC /dev/x at byte 4096: gone\n");
    }

    #[test]
    fn cores_are_described() {
        let core = CoreStatus { core: 3, processor: Some(1), busy_percent: 12.34, vdisks: 2 };
        let shown = HostCpuStatus {
            processors: 8,
            insane: true,
            cores_wanted: 4,
            changing: true,
            cores: vec![core],
            ..HostCpuStatus::default()
        };
        let text = cpu(&shown);
        assert!(text.contains("1 cores of 8 processors, Insane Mode, on the way to 4"), "{text}");
        assert!(text.contains("core 3: on processor 1, 12.3 % busy, 2 vdisks"), "{text}");
        let text = cpu(&HostCpuStatus { cores_configured: 2, ..HostCpuStatus::default() });
        assert!(text.contains("2 asked for"), "{text}");
    }

    #[test]
    fn a_cluster_that_is_down_is_described() {
        let status = ClusterStatus {
            schema: 1,
            cluster: "0".repeat(32),
            ready: false,
            encrypted: true,
            supervisor: ProcessStatus::default(),
            store: StoreStatus {
                kind: "etcd".to_owned(),
                connected: false,
                process: Some(ProcessStatus { name: "etcd".to_owned(), ..Default::default() }),
            },
            hosts: vec![Default::default()],
            controllers: vec![Default::default()],
            warnings: vec!["all is lost".to_owned()],
        };
        let text = super::status(&status);
        for part in [
            "not ready, encrypted",
            "store: etcd down, away",
            "host 0:  down",
            "warning: all is lost",
        ] {
            assert!(text.contains(part), "{part} is not in\n{text}");
        }
    }
}
