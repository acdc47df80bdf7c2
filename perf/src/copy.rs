//! A file written to a disk in requests of one size: what the size of requests does to what is stored.

use crate::Failure;
use cleave_front_end::{Buffers, Connection, Done};
use std::fs::File;
use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

const SECTOR: usize = cleave_front_end::SECTOR;
const DEPTH: usize = 16;

/// Arguments of `copy`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The file.
    pub file: PathBuf,
    /// The disk's socket.
    pub socket: PathBuf,
    /// Bytes of a request, a multiple of 512.
    #[arg(long, default_value_t = 4096)]
    pub block: usize,
}

/// Copies, and prints how many bytes that were.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let block = arguments.block;
    if block == 0 || !block.is_multiple_of(SECTOR) {
        return Err(format!("--block must be a multiple of {SECTOR}").into());
    }
    let mut file = File::open(&arguments.file)?;
    let mut buffers = Buffers::new(DEPTH, block)?;
    let mut connection = Connection::open(&arguments.socket, 1, DEPTH, &buffers)?;
    let (mut free, mut done): (Vec<usize>, Vec<Done>) = ((0..DEPTH).collect(), Vec::new());
    let (mut offset, mut more) = (0, true);
    while more || free.len() < DEPTH {
        while more && let Some(slot) = free.last().copied() {
            let buffer = buffers.slot(slot);
            let length = fill(&mut file, buffer)?;
            more = length == block;
            if length == 0 {
                break;
            }
            // The file's end is followed by zeros.
            buffer[length..].fill(0);
            let whole = length.next_multiple_of(SECTOR);
            free.pop();
            connection.write(slot, (offset / SECTOR) as u64, whole, &buffers)?;
            offset += whole;
        }
        connection.notify()?;
        connection.completed(&mut done);
        if done.is_empty() && free.len() < DEPTH {
            connection.wait(Duration::from_secs(1))?;
            connection.completed(&mut done);
        }
        for Done { slot, result } in done.drain(..) {
            if result != 0 {
                return Err(format!("the disk answered with error {result}").into());
            }
            free.push(slot);
        }
    }
    println!("{offset}");
    Ok(())
}

/// Reads until the buffer is full or the file ends; how much that is.
fn fill(file: &mut File, buffer: &mut [u8]) -> std::io::Result<usize> {
    let mut length = 0;
    while length < buffer.len() {
        match file.read(&mut buffer[length..])? {
            0 => break,
            count => length += count,
        }
    }
    Ok(length)
}
