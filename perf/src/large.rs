//! How soon a large vdisk is read after it is opened: its whole map exists, and is far larger than what is kept of it
//! in memory.
//!
//! A cluster serves a vdisk into which one block of each map piece is written, at a random place and in random order.
//! It is stopped and started again. From the host engine's log and the front end's clock it is told when the engine
//! ran, when it reached the data node's log, which is when opening begins, and when the first read was answered. Then
//! blocks in random places are read one after the other; each needs a piece of the map that is not in memory. All
//! content is checked.

use crate::process::Process;
use crate::{Failure, fill_block};
use cleave_format::layout::{BLOCK, PIECE_SLICES, SLICE_BLOCKS};
use cleave_front_end::{Buffers, Connection, Done, SECTOR};
use cleave_verify::random::Random;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

const DEPTH: usize = 64;
/// Blocks that a map piece covers.
const PIECE_BLOCKS: u64 = PIECE_SLICES as u64 * SLICE_BLOCKS as u64;
const SEED: u64 = 11;
/// How long a request, or an opening, may take.
const PATIENCE: Duration = Duration::from_secs(120);
const DAY: f64 = 86_400.0;

/// Arguments of `large`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// Where the cluster goes: a folder that is not there yet. It stays.
    pub dir: PathBuf,
    /// The vdisk's size in GiB.
    #[arg(long, default_value_t = 1024)]
    pub gib: u64,
    /// Reads after the first one.
    #[arg(long, default_value_t = 1000)]
    pub reads: usize,
}

/// The one block of each piece.
struct Places {
    pieces: u64,
}

impl Places {
    fn block(&self, piece: u64) -> u64 {
        piece * PIECE_BLOCKS + Random::new(SEED ^ piece).below(PIECE_BLOCKS)
    }

    /// All pieces, in random order.
    fn shuffled(&self) -> Vec<u64> {
        let mut all: Vec<u64> = (0..self.pieces).collect();
        let mut random = Random::new(SEED);
        for end in (1..all.len()).rev() {
            all.swap(end, random.below(end as u64 + 1) as usize);
        }
        all
    }
}

/// Measures, and prints.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let dir = &arguments.dir;
    if dir.exists() {
        return Err(format!("{} is there already", dir.display()).into());
    }
    let places = Places { pieces: (arguments.gib << 30) / (PIECE_BLOCKS * BLOCK as u64) };
    let vdisk = format!("large:{}G", arguments.gib);
    let mut cluster = start(dir, &["--vdisk", &vdisk])?;
    let written = Instant::now();
    write(&socket(dir), &places)?;
    println!(
        "{} blocks in {} GiB, one for each piece of the map, written in {:.0} s",
        places.pieces,
        arguments.gib,
        written.elapsed().as_secs_f64()
    );
    cluster.stop()?;
    let mut cluster = launch(dir, &[])?;
    let (mut connection, mut buffers) = connect(&socket(dir))?;
    let mut random = Random::new(SEED + 1);
    let mut read = |connection: &mut Connection, buffers: &mut Buffers| {
        let block = places.block(random.below(places.pieces));
        read_block(connection, buffers, block)
    };
    let first = read(&mut connection, &mut buffers)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64() % DAY;
    let mut times = Vec::with_capacity(arguments.reads);
    for _ in 0..arguments.reads {
        times.push(read(&mut connection, &mut buffers)?);
    }
    let log = fs::read_to_string(dir.join("log/host-1.log"))?;
    let newest = |text: &str| log.lines().rev().find(|line| line.contains(text));
    let since =
        |text: &str| newest(text).and_then(time_of_day).map(|then| (now - then).rem_euclid(DAY));
    let opened = newest("a vdisk is open").and_then(|line| line.split_once(" pieces="));
    let pieces = opened.and_then(|(_, after)| after.split_whitespace().next());
    println!(
        "{} of the pieces were durable, the log had what the others lack",
        pieces.unwrap_or("?")
    );
    for (what, text) in [
        ("the engine ran", ": running name="),
        ("it reached the log, and began to open", "connected class=Log"),
        ("the vdisk was open", "a vdisk is open"),
    ] {
        let seconds = since(text).ok_or_else(|| format!("the engine's log lacks {text:?}"))?;
        println!("the first read was answered {:.0} ms after {what}", seconds * 1e3);
    }
    times.sort_unstable();
    let at = |share: f64| {
        let index = (times.len().saturating_sub(1) as f64 * share) as usize;
        times.get(index).map_or(0, Duration::as_micros)
    };
    println!(
        "it took {} us; the {} reads after it {} us in the median, {} us in 99 %, {} us at most",
        first.as_micros(),
        times.len(),
        at(0.5),
        at(0.99),
        at(1.0)
    );
    cluster.stop()
}

fn socket(dir: &Path) -> PathBuf {
    dir.join("vhost/large.sock")
}

fn launch(dir: &Path, more: &[&str]) -> Result<Process, Failure> {
    let program = std::env::current_exe()?.with_file_name("cleave");
    let mut arguments = vec![OsStr::new("dev"), OsStr::new("--dir"), dir.as_os_str()];
    arguments.extend(more.iter().map(OsStr::new));
    Process::start(&program, &arguments)
}

fn start(dir: &Path, more: &[&str]) -> Result<Process, Failure> {
    let mut process = launch(dir, more)?;
    process.wait_until(|| socket(dir).exists())?;
    Ok(process)
}

/// Connects as soon as the vdisk is served.
fn connect(socket: &Path) -> Result<(Connection, Buffers), Failure> {
    let (start, buffers) = (Instant::now(), Buffers::new(DEPTH, BLOCK)?);
    loop {
        match Connection::open(socket, 1, DEPTH, &buffers) {
            Ok(connection) => return Ok((connection, buffers)),
            Err(error) if start.elapsed() > PATIENCE => {
                return Err(format!("nobody serves {}: {error}", socket.display()).into());
            }
            Err(_) => std::thread::sleep(Duration::from_millis(1)),
        }
    }
}

/// Writes every piece's block.
fn write(socket: &Path, places: &Places) -> Result<(), Failure> {
    let (mut connection, mut buffers) = connect(socket)?;
    let (mut free, mut done): (Vec<usize>, Vec<Done>) = ((0..DEPTH).collect(), Vec::new());
    let mut left = places.shuffled();
    while !left.is_empty() || free.len() < DEPTH {
        while let (Some(piece), Some(slot)) = (left.last(), free.last().copied()) {
            let block = places.block(*piece);
            fill_block(buffers.slot(slot), block, SEED);
            connection.write(slot, block * (BLOCK / SECTOR) as u64, BLOCK, &buffers)?;
            left.pop();
            free.pop();
        }
        finish(&mut connection, &mut done)?;
        free.extend(done.drain(..).map(|one| one.slot));
    }
    Ok(())
}

/// Reads a block and checks it; how long that took.
fn read_block(
    connection: &mut Connection,
    buffers: &mut Buffers,
    block: u64,
) -> Result<Duration, Failure> {
    let (start, mut done) = (Instant::now(), Vec::new());
    connection.read(0, block * (BLOCK / SECTOR) as u64, BLOCK, buffers)?;
    finish(connection, &mut done)?;
    let took = start.elapsed();
    let mut expected = vec![0; BLOCK];
    fill_block(&mut expected, block, SEED);
    if buffers.slot(0) != expected {
        return Err(format!("block {block} has other content than was written").into());
    }
    Ok(took)
}

/// Waits until at least one request is done, which must be a success.
fn finish(connection: &mut Connection, done: &mut Vec<Done>) -> Result<(), Failure> {
    let start = Instant::now();
    connection.notify()?;
    loop {
        connection.completed(done);
        if let Some(failed) = done.iter().find(|one| one.result != 0) {
            return Err(format!("the disk answered with error {}", failed.result).into());
        }
        if !done.is_empty() {
            return Ok(());
        }
        if start.elapsed() > PATIENCE {
            return Err("the disk does not answer".into());
        }
        connection.wait(Duration::from_secs(1))?;
    }
}

/// Seconds since midnight of a log's line, which begins with its time: 2026-01-31T12:34:56.789Z.
fn time_of_day(line: &str) -> Option<f64> {
    let (_, after) = line.split_once('T')?;
    let (time, _) = after.split_once('Z')?;
    let mut seconds = 0.0;
    for part in time.split(':') {
        seconds = seconds * 60.0 + part.parse::<f64>().ok()?;
    }
    Some(seconds)
}
