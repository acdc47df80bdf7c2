//! Serves a file as a vhost-user-blk disk: the device by itself, without the engine.
//!
//! `memory_disk SOCKET FILE BYTES [QUEUES [LATE_MS]]`. Put the file on a tmpfs for a RAM disk. Each
//! request is answered after a random time of up to `LATE_MS` (0), out of order, so that there are
//! some in flight at any time; what was written is in the file when a write is answered. Kill it at any time and start
//! it again: a front end that reconnects and keeps the inflight region (QEMU with `reconnect=1`)
//! goes on without an error.

use cleave_runtime::buffer::BufferPool;
use cleave_runtime::random::{Random, SplitMix};
use cleave_vhost_user::{BlockRange, Disk, DiskConfig, Outcome, Request, RequestKind};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::cmp::Ordering;
use std::collections::BinaryHeap;
use std::error::Error;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

/// Turns without work before the process sleeps.
const IDLE_TURNS: u32 = 2000;

/// A request that is answered when it is due; the first one due is the greatest.
struct Held {
    due: Instant,
    request: Request,
}

impl Ord for Held {
    fn cmp(&self, other: &Held) -> Ordering {
        (other.due, other.request.tag).cmp(&(self.due, self.request.tag))
    }
}

impl PartialOrd for Held {
    fn partial_cmp(&self, other: &Held) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Held {
    fn eq(&self, other: &Held) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Held {}

fn main() -> Result<(), Box<dyn Error>> {
    let levels =
        tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    tracing_subscriber::fmt().with_env_filter(levels).with_writer(std::io::stderr).init();
    let arguments: Vec<String> = std::env::args().collect();
    let [_, socket, path, bytes, rest @ ..] = arguments.as_slice() else {
        return Err("usage: memory_disk SOCKET FILE BYTES [QUEUES]".into());
    };
    let capacity = bytes.parse()?;
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path)?;
    file.set_len(capacity)?;
    let mut config = DiskConfig::new("memory", socket, capacity);
    config.serial = "memory-disk".into();
    if let Some(queues) = rest.first() {
        config.queues = queues.parse()?;
    }
    let pools = vec![BufferPool::new(64 << 10, 256), BufferPool::new(4 << 20, 4)];
    let late = rest.get(1).map_or(Ok(0), |text| text.parse())?;
    serve(Disk::bind(config, pools)?, &file, Duration::from_millis(late))
}

fn serve(mut disk: Disk, file: &File, late: Duration) -> Result<(), Box<dyn Error>> {
    let random = SplitMix::new(u64::from(std::process::id()));
    let mut requests = Vec::new();
    let mut held = BinaryHeap::new();
    let mut scratch = Vec::new();
    let mut idle = 0;
    loop {
        let worked = disk.turn(&mut requests);
        let now = Instant::now();
        for request in requests.drain(..) {
            let wait = Duration::from_nanos(random.below(late.as_nanos() as u64 + 1));
            held.push(Held { due: now + wait, request });
        }
        while held.peek().is_some_and(|first| first.due <= now) {
            let Some(Held { request, .. }) = held.pop() else { break };
            answer(&mut disk, file, request, &mut scratch);
        }
        disk.flush_notifications();
        idle = if worked || !held.is_empty() { 0 } else { idle + 1 };
        if idle > IDLE_TURNS {
            if disk.arm() {
                sleep(&disk)?;
            }
            disk.disarm();
            idle = 0;
        }
    }
}

fn sleep(disk: &Disk) -> Result<(), Box<dyn Error>> {
    let watched = disk.watched();
    let mut entries: Vec<PollFd<'_>> = watched
        .iter()
        .map(|descriptor| {
            // SAFETY: `disk` owns the descriptors and is borrowed until this function returns.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*descriptor) };
            PollFd::from_borrowed_fd(descriptor, PollFlags::IN)
        })
        .collect();
    poll(&mut entries, Some(&Timespec { tv_sec: 10, tv_nsec: 0 }))?;
    Ok(())
}

fn answer(disk: &mut Disk, file: &File, request: Request, scratch: &mut Vec<u8>) {
    let done = match request.kind {
        RequestKind::Read { offset, length } => {
            scratch.resize(length as usize, 0);
            match file.read_exact_at(scratch, offset) {
                Ok(()) => return disk.complete(request.tag, Outcome::Read(&[scratch])),
                Err(error) => Err(error),
            }
        }
        RequestKind::Write { offset, data } => file.write_all_at(&data, offset),
        RequestKind::Flush => Ok(()),
        RequestKind::Discard { ranges } | RequestKind::WriteZeroes { ranges } => {
            ranges.iter().try_for_each(|range| zero(file, range))
        }
    };
    match done {
        Ok(()) => disk.complete(request.tag, Outcome::Done),
        Err(error) => {
            eprintln!("memory_disk: {error}");
            disk.complete(request.tag, Outcome::Failed);
        }
    }
}

fn zero(file: &File, range: &BlockRange) -> std::io::Result<()> {
    let zeros = vec![0; 1 << 20];
    let mut at = 0;
    while at < range.length {
        let count = (range.length - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..count as usize], range.offset + at)?;
        at += count;
    }
    Ok(())
}
