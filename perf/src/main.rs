//! `cleave-perf`: what a request costs, layer by layer, beside `qemu-storage-daemon`.
//!
//! | Command | Does |
//! | --- | --- |
//! | `table` | measures every layer in turns, several rounds, and prints medians and ratios |
//! | `stages` | prints what each stage of the codec and of destage costs a 4 KiB block |
//! | `load` | measures one socket |
//! | `idle` | keeps disks connected without a request, and times the first one after a pause |
//! | `large` | times the first read of a vdisk of 1 TiB after it is opened |
//! | `copy` | writes a file to a disk in requests of one size |
//! | `serve` | serves the null, memory or codec device: the layers below the whole path |
//! | `guard` | counts instructions a block under valgrind and compares them with `perf/instructions.toml` |
//!
//! The machine is assumed to be noisy: compare ratios of one run, never figures of two.

mod copy;
mod devices;
mod guard;
mod idle;
mod kernels;
mod large;
mod layers;
mod load;
mod process;
mod serve;
mod stages;
mod table;

use clap::{Parser, Subcommand};
use std::path::PathBuf;
use std::process::ExitCode;

/// Measures Cleave's layers.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Measure all layers and print the table.
    Table(table::Arguments),
    /// Print the cost of each stage a block.
    Stages,
    /// Measure the disk behind a socket.
    Load(load::Arguments),
    /// Stay connected to disks, and ask for a block when told to.
    Idle(idle::Arguments),
    /// Time the first read of a large vdisk after it is opened.
    Large(large::Arguments),
    /// Write a file to the disk behind a socket.
    Copy(copy::Arguments),
    /// Serve a device without the engine.
    Serve(serve::Arguments),
    /// Run a kernel a number of times: what `guard` counts.
    Kernel {
        /// Which.
        kernel: kernels::Kernel,
        /// Times.
        count: u64,
    },
    /// Compare instructions a block with the recorded ones.
    Guard {
        /// The recorded figures.
        #[arg(long, default_value = "perf/instructions.toml")]
        file: PathBuf,
        /// Record instead of comparing.
        #[arg(long)]
        record: bool,
    },
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Table(arguments) => table::run(&arguments),
        Command::Stages => stages::run(),
        Command::Load(arguments) => load::run(&arguments),
        Command::Idle(arguments) => idle::run(&arguments),
        Command::Large(arguments) => large::run(&arguments),
        Command::Copy(arguments) => copy::run(&arguments),
        Command::Serve(arguments) => serve::run(&arguments),
        Command::Kernel { kernel, count } => {
            kernels::run(kernel, count);
            Ok(())
        }
        Command::Guard { file, record } => guard::run(&file, record),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cleave-perf: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Whatever ends a measurement: the message is for the person who ran it.
pub type Failure = Box<dyn std::error::Error>;

/// Content of block `number`: compressible by about a half and different for each number and seed.
pub fn fill_block(block: &mut [u8], number: u64, seed: u64) {
    let mut state = cleave_verify::random::Random::new(number.wrapping_mul(0x9e37) ^ seed << 40);
    let (unique, copied) = block.split_at_mut(block.len() / 2);
    for chunk in unique.chunks_exact_mut(8) {
        chunk.copy_from_slice(&state.draw().to_le_bytes());
    }
    // Pieces of the first half again, in another order: matches as text and code have them.
    for piece in copied.chunks_exact_mut(64) {
        let from = state.below((unique.len() / 64) as u64) as usize * 64;
        piece.copy_from_slice(&unique[from..from + 64]);
    }
}
