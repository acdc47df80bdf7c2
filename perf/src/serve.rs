//! `serve`: one polled core with a [`Device`] behind it. It spins; end it with a signal.

use crate::Failure;
use crate::devices::{Coded, Device, Memory, Null};
use clap::ValueEnum;
use cleave_runtime::buffer::BufferPool;
use cleave_vhost_user::{Disk, DiskConfig};
use rustix::event::{PollFd, PollFlags, poll};
use std::os::fd::BorrowedFd;
use std::path::PathBuf;

/// Turns without work before the loop sleeps: as the engine's, it does not burn an idle core.
const IDLE_TURNS: u32 = 20_000;

/// What stands behind the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// Nothing.
    Null,
    /// Memory.
    Memory,
    /// Memory behind LZ4 and CRC32C.
    Codec,
    /// Memory behind LZ4, AES-256-GCM and CRC32C.
    CodecEncrypted,
}

/// Arguments of `serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// What to serve.
    kind: Kind,
    /// Where.
    socket: PathBuf,
    /// Bytes.
    capacity: u64,
}

/// Serves until killed.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut config = DiskConfig::new("perf", &arguments.socket, arguments.capacity);
    config.logical_block = 4096;
    let pools = vec![BufferPool::new(64 << 10, 256), BufferPool::new(4 << 20, 4)];
    let disk = Disk::bind(config, pools)?;
    match arguments.kind {
        Kind::Null => serve(disk, Null),
        Kind::Memory => serve(disk, Memory::new(arguments.capacity)),
        Kind::Codec => serve(disk, Coded::new(arguments.capacity, false)),
        Kind::CodecEncrypted => serve(disk, Coded::new(arguments.capacity, true)),
    }
}

fn serve(mut disk: Disk, mut device: impl Device) -> Result<(), Failure> {
    let mut requests = Vec::new();
    let mut idle = 0;
    loop {
        let worked = disk.turn(&mut requests);
        for request in requests.drain(..) {
            device.answer(&mut disk, request);
        }
        disk.flush_notifications();
        idle = if worked { 0 } else { idle + 1 };
        if idle > IDLE_TURNS {
            if disk.arm() {
                sleep(&disk)?;
            }
            disk.disarm();
            idle = 0;
        }
    }
}

fn sleep(disk: &Disk) -> Result<(), Failure> {
    let watched = disk.watched();
    let mut entries: Vec<PollFd<'_>> = watched
        .iter()
        .map(|descriptor| {
            // SAFETY: `disk` owns the descriptors and is borrowed until this function returns.
            let descriptor = unsafe { BorrowedFd::borrow_raw(*descriptor) };
            PollFd::from_borrowed_fd(descriptor, PollFlags::IN)
        })
        .collect();
    match poll(&mut entries, None) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
