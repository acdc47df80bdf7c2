//! What a host engine answers on its control socket: gathered from the cores, which are asked one
//! after another and answer from their loops.

use crate::cores;
use crate::cpu::CpuPolicy;
use crate::engine::Engine;
use crate::flash;
use crate::measure::Measures;
use crate::messages::{Answer, CoreView, DeviceView, Order, VdiskView};
use crate::vdisk::{Share, Vdisk};
use cleave_control::histogram::Histogram;
use cleave_control::names::vhost_socket;
use cleave_control::protocol::{Reply, Request, Response};
use cleave_control::status::{
    CodecStatistics, CoreStatus, DestageStatistics, Fill, FlashStatistics, HostCpuStatus,
    HostFlashStatus, HostLogStatistics, HostLogStatus, HostStatistics, HostStatus, MapStatistics,
    ProcessState, ProcessStatus, ReadStatistics, VdiskEntry, VdiskServing, VdiskStatistics,
    VdiskStatus,
};
use cleave_format::layout::BLOCK;
use cleave_process::machine::processors;
use cleave_process::stop::Stop;
use cleave_vhost_user::DiskState;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Answers one request.
pub async fn answer(engine: &Rc<Engine>, request: Request, stop: &Stop) -> Response {
    match request {
        Request::Status {} => {
            cores::look(engine).await;
            Response::Ok(Reply::Host(status(engine, &look(engine).await)))
        }
        Request::Stats {} => {
            Response::Ok(Reply::HostStatistics(statistics(engine, &look(engine).await)))
        }
        Request::Events { since } => Response::Ok(Reply::Events {
            engines: vec![engine.events.since(since)],
            unreachable: Vec::new(),
        }),
        Request::Stop {} => {
            stop.ask();
            Response::Ok(Reply::Done {})
        }
        Request::SetCpu { insane, cores } => {
            let before = engine.cpu.policy.get();
            let insane = insane.unwrap_or(before.insane);
            let cores = cores.unwrap_or(before.cores);
            cores::decide(engine, CpuPolicy { insane, cores });
            Response::Ok(Reply::Done {})
        }
        Request::AddFlash { device, .. } => {
            done(flash::add_online(Rc::clone(engine), device).await)
        }
        Request::RetireFlash { device, .. } => done(flash::retire(Rc::clone(engine), device).await),
        _ => Response::error("a host engine does not do this; ask the cluster's supervisor"),
    }
}

fn done(result: Result<(), String>) -> Response {
    match result {
        Ok(()) => Response::Ok(Reply::Done {}),
        Err(reason) => Response::error(reason),
    }
}

/// How each core is, and what those did that have ended, as if of one more.
pub async fn look(engine: &Engine) -> Vec<CoreView> {
    let leaving = engine.cpu.leaving.borrow().clone();
    let cores: Vec<_> = engine.cores.borrow().iter().cloned().chain(leaving).collect();
    let asked: Vec<_> = cores.iter().map(|core| core.ask(Order::Look)).collect();
    let mut views = Vec::with_capacity(asked.len());
    for answer in asked {
        if let Some(Answer::View(view)) = answer.wait().await {
            views.push(*view);
        }
    }
    views.extend(engine.cpu.past.borrow().view().cloned());
    views
}

fn shares(vdisks: &BTreeMap<u64, Rc<Vdisk>>) -> impl Iterator<Item = &Share> {
    vdisks.values().flat_map(|vdisk| &vdisk.shares)
}

fn cpu_status(engine: &Engine) -> HostCpuStatus {
    let (cpu, processors) = (&engine.cpu, processors());
    let policy = cpu.policy.get();
    let vdisks = engine.vdisks.borrow();
    let cores = engine.cores.borrow();
    let shown = cores.iter().map(|core| CoreStatus {
        core: core.core,
        processor: core.processor.and_then(|processor| u32::try_from(processor).ok()),
        busy_percent: core.busy_percent(),
        vdisks: shares(&vdisks).filter(|share| share.core().core == core.core).count() as u32,
    });
    HostCpuStatus {
        processors: processors as u32,
        insane: policy.insane,
        cores_configured: policy.cores,
        cores_wanted: policy.wanted(processors),
        changing: cpu.changing.get(),
        moves: cpu.moves.get(),
        cores: shown.collect(),
    }
}

fn status(engine: &Engine, views: &[CoreView]) -> HostStatus {
    let config = &engine.config;
    let sum = |what: fn(&CoreView) -> u64| views.iter().map(what).sum::<u64>();
    let memory = |view: &CoreView| {
        view.core.buffer_memory + view.core.map_memory + view.flash.memory + view.taken_bytes
    };
    let buffered = sum(|view| view.core.buffer_bytes);
    let log = HostLogStatus {
        datanode: config.datanodes[0].id,
        writable: !views.is_empty() && views.iter().all(|view| view.core.connected),
        quota: Fill { used: buffered, capacity: sum(|view| view.core.buffer_limit) },
        write_buffer: Fill { used: buffered, capacity: config.write_buffer },
    };
    let mut vdisks: Vec<VdiskStatus> =
        engine.vdisks.borrow().values().map(|vdisk| vdisk_status(engine, vdisk, views)).collect();
    vdisks.sort_by(|one, other| one.vdisk.name.cmp(&other.vdisk.name));
    HostStatus {
        host: config.id,
        process: process(engine),
        cores: engine.cores.borrow().len() as u32,
        cpu: cpu_status(engine),
        memory: Fill { used: sum(memory), capacity: config.memory_budget },
        memory_resident: resident(),
        shortage: views.iter().find_map(|view| view.core.shortage.clone()),
        flash: flash_status(engine, views),
        store_connected: engine.store.is_connected(),
        logs: vec![log],
        vdisks,
    }
}

/// Bytes of the process that are resident, guests' memory, which is shared, left out.
fn resident() -> u64 {
    std::fs::read_to_string("/proc/self/status").map_or(0, |status| resident_of(&status))
}

fn resident_of(status: &str) -> u64 {
    let field = |line: &str, name: &str| -> Option<u64> {
        line.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok()
    };
    let own = |line| field(line, "RssAnon:").or_else(|| field(line, "RssFile:"));
    status.lines().filter_map(own).sum::<u64>() << 10
}

fn process(engine: &Engine) -> ProcessStatus {
    let state = if engine.stopping.get() {
        ProcessState::Stopping
    } else if engine.cores.borrow().is_empty() {
        ProcessState::Starting
    } else {
        ProcessState::Running
    };
    ProcessStatus {
        name: engine.config.name.clone(),
        pid: Some(std::process::id()),
        state,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        incarnation: engine.incarnation.get().0,
        uptime_seconds: engine.since.elapsed().as_secs(),
        restarts: 0,
    }
}

/// What the core with its device says.
fn device_of<'v>(views: &'v [CoreView], vdisk: &Vdisk) -> Option<&'v DeviceView> {
    let mut all = views.iter().flat_map(|view| &view.vdisks);
    all.find(|view| view.vdisk == vdisk.id)?.device.as_ref()
}

/// Blocks that its shares have a frame for.
fn mapped_blocks(views: &[CoreView], vdisk: &Vdisk) -> u64 {
    let own = |view: &&VdiskView| vdisk.shares.iter().any(|share| share.identity == view.vdisk);
    let all = views.iter().flat_map(|view| &view.vdisks);
    all.filter(own).map(|view| view.stats.mapped_blocks).sum()
}

fn vdisk_status(engine: &Engine, vdisk: &Vdisk, views: &[CoreView]) -> VdiskStatus {
    let view = device_of(views, vdisk);
    let record = vdisk.record.borrow();
    let serving = vdisk.serving.get();
    let served = view.filter(|_| serving == VdiskServing::Serving);
    let socket = served.and_then(|_| vhost_socket(&engine.config.vhost_dir, &vdisk.name).ok());
    VdiskStatus {
        vdisk: VdiskEntry {
            name: vdisk.name.clone(),
            id: record.id,
            size: record.size,
            encrypted: record.encrypted,
            created: record.created,
            host: record.host,
            socket: socket.map(|path| path.display().to_string()),
            attached: view.is_some_and(|view| view.state != DiskState::Listening),
        },
        state: serving,
        epoch: vdisk.epoch.get(),
        core: vdisk.core().core,
        shares: vdisk.shares.iter().map(|share| share.core().core).collect(),
        queues: view.map_or(0, |view| view.queues),
        in_flight: view.map_or(0, |view| view.in_flight),
        mapped: mapped_blocks(views, vdisk) * BLOCK as u64,
    }
}

fn statistics(engine: &Engine, views: &[CoreView]) -> HostStatistics {
    let mut guests = Measures::default();
    views.iter().for_each(|view| guests.merge(&view.guests));
    let mut vdisks: Vec<VdiskStatistics> = engine
        .vdisks
        .borrow()
        .values()
        .map(|vdisk| VdiskStatistics {
            name: vdisk.name.clone(),
            id: vdisk.id.0,
            guest: device_of(views, vdisk).map(|view| view.guest.shown()).unwrap_or_default(),
        })
        .collect();
    vdisks.sort_by(|one, other| one.name.cmp(&other.name));
    let sum = |what: fn(&CoreView) -> u64| views.iter().map(what).sum::<u64>();
    HostStatistics {
        host: engine.config.id,
        name: engine.config.name.clone(),
        pid: std::process::id(),
        guest: guests.shown(),
        vdisks,
        codec: codec(views),
        log: log(views),
        destage: DestageStatistics {
            stripes: sum(|view| view.core.stripes_committed),
            frames: sum(|view| view.core.stripe_frames),
            frame_bytes: sum(|view| view.core.stripe_bytes),
            drive_bytes: sum(|view| view.core.drive_bytes),
            covered: sum(|view| view.core.covered),
            deduplicated: sum(|view| view.core.deduplicated),
            recognisable: sum(|view| view.core.index_entries),
            stripes_left: sum(|view| view.core.stripes_left),
            stripes_dead: sum(|view| view.core.stripes_dead),
            retries: sum(|view| view.core.stripes_abandoned),
        },
        map: MapStatistics {
            pages: Fill {
                used: sum(|view| view.core.map_resident),
                capacity: engine.config.map_budget(),
            },
            leaves: sum(|view| view.core.map_leaves),
            memory: sum(|view| view.core.map_memory),
            read: sum(|view| view.core.pages_read),
            failed: sum(|view| view.core.pages_failed),
            evicted: sum(|view| view.core.pages_evicted),
        },
        reads: ReadStatistics {
            zero: sum(|view| view.core.reads_zero),
            write_buffer: sum(|view| view.core.reads_buffer),
            flash: sum(|view| view.core.reads_flash),
            pool: sum(|view| view.core.reads_pool),
            solved: sum(|view| view.core.reads_solved),
            ..ReadStatistics::default()
        },
        flash: flash_statistics(engine, views),
    }
}

/// The devices, and how much of what vdisks hold fits.
pub fn flash_status(engine: &Engine, views: &[CoreView]) -> HostFlashStatus {
    let devices = engine.flash.shown(views);
    let space = devices.iter().fold(Fill::default(), |all, device| Fill {
        used: all.used + device.space.used,
        capacity: all.capacity + device.space.capacity,
    });
    let vdisks = views.iter().flat_map(|view| &view.vdisks);
    let mapped: u64 = vdisks.map(|vdisk| vdisk.stats.mapped_blocks * BLOCK as u64).sum();
    // As blocks of this start shrank, so did those before, for all that is known here.
    let working_set = (mapped as f64 / codec(views).compression_ratio.max(1.0)) as u64;
    HostFlashStatus {
        devices,
        space,
        working_set,
        headroom: space.capacity as i64 - working_set as i64,
        memory: views.iter().map(|view| view.flash.memory).sum(),
        events: engine.flash.events(),
    }
}

fn flash_statistics(engine: &Engine, views: &[CoreView]) -> FlashStatistics {
    let sum = |what: fn(&CoreView) -> u64| views.iter().map(what).sum::<u64>();
    let (flash, pool) = (sum(|view| view.core.reads_flash), sum(|view| view.core.reads_pool));
    let devices = views.iter().flat_map(|view| &view.flash.devices);
    FlashStatistics {
        hit_percent: match flash + pool {
            0 => 0.0,
            all => flash as f64 * 100.0 / all as f64,
        },
        reads: sum(|view| view.flash.reads),
        read_bytes: sum(|view| view.flash.read_bytes),
        check_failures: sum(|view| view.core.flash_checks_failed),
        late_reads: sum(|view| view.flash.reads_late),
        bytes_written: engine.flash.written_before()
            + devices.map(|device| device.bytes_written).sum::<u64>(),
        parts_destaged: sum(|view| view.core.parts_destaged),
        parts_fetched: sum(|view| view.core.parts_fetched),
        parts_refused: sum(|view| view.flash.parts_refused),
        parts_moved: sum(|view| view.flash.parts_moved),
        parts_evicted: sum(|view| view.flash.parts_evicted),
    }
}

fn log(views: &[CoreView]) -> HostLogStatistics {
    let sum = |what: fn(&CoreView) -> u64| views.iter().map(what).sum::<u64>();
    let mut mirrored = Histogram::new();
    views.iter().for_each(|view| mirrored.merge(&view.mirrored));
    HostLogStatistics {
        records: sum(|view| view.core.appended),
        bytes: sum(|view| view.core.appended_bytes),
        resent: sum(|view| view.core.resent),
        released: sum(|view| view.core.records_released),
        stalls: sum(|view| view.stalls),
        latency_us: mirrored.latency(),
    }
}

fn codec(views: &[CoreView]) -> CodecStatistics {
    let mut codec = CodecStatistics::default();
    for view in views {
        codec.check_failures += view.core.checks_failed;
        for encoded in view.vdisks.iter().map(|vdisk| &vdisk.stats).chain([&view.closed]) {
            codec.blocks += encoded.encoded_bytes / BLOCK as u64;
            codec.zero_blocks += encoded.zero_blocks;
            codec.stored_blocks += encoded.stored_blocks;
            codec.bytes_in += encoded.encoded_bytes;
            codec.bytes_out += encoded.frame_bytes;
        }
    }
    codec.with_ratio()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(times: &[u64]) -> CoreView {
        let mut mirrored = Histogram::new();
        times.iter().for_each(|time| mirrored.record(*time));
        CoreView {
            core: Default::default(),
            flash: Default::default(),
            mirrored,
            taken_bytes: 0,
            stalls: 2,
            guests: Measures::default(),
            closed: Default::default(),
            vdisks: Vec::new(),
        }
    }

    #[test]
    fn resident_memory_is_that_of_the_process_and_not_of_guests() {
        let status = "VmRSS:\t  900 kB\nRssAnon:\t     200 kB\nRssFile:\t      30 kB\nRssShmem:\t     670 kB\n";
        assert_eq!(resident_of(status), 230 << 10);
        assert_eq!(resident_of("nothing of the kind"), 0);
        assert!(resident() > 1 << 20, "a process has some");
    }

    #[test]
    fn the_logs_latencies_of_all_cores_are_shown() {
        let shown = log(&[view(&[1_000, 3_000]), view(&[]), view(&[500_000])]);
        assert_eq!(shown.stalls, 6);
        assert_eq!((shown.latency_us.mean, shown.latency_us.max), (168.0, 500.0));
        assert!(shown.latency_us.p50 >= 3.0 && shown.latency_us.p50 < 3.5, "{shown:?}");
        assert_eq!(log(&[]).latency_us, Default::default());
    }
}
