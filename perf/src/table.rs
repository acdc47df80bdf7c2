//! `table`: every layer in turns, several rounds, medians, ratios to `qemu-storage-daemon`.

use crate::Failure;
use crate::layers::Layer;
use crate::load::{Figures, Load, Pattern};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Duration;

/// Arguments of `table`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Rounds; the table shows medians.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Seconds a measurement.
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
    /// Bytes of the disk that are used.
    #[arg(long, default_value_t = 256 << 20)]
    span: u64,
    /// Where disks and clusters are put; a temporary directory by default.
    #[arg(long)]
    dir: Option<PathBuf>,
    /// Also write the medians as JSON.
    #[arg(long)]
    json: Option<PathBuf>,
}

/// What is asked of each layer.
const SHAPES: [(&str, Pattern, usize, usize); 4] = [
    ("read 4K QD1", Pattern::Read, 4096, 1),
    ("read 4K QD32", Pattern::Read, 4096, 32),
    ("write 4K QD1", Pattern::Write, 4096, 1),
    ("write 4K QD32", Pattern::Write, 4096, 32),
];

/// One measurement.
#[derive(Clone, Copy, Serialize)]
struct Sample {
    figures: Figures,
    /// Microseconds of CPU a request, all serving processes together.
    cpu_us: f64,
}

/// The medians of one layer and shape.
#[derive(Serialize)]
struct Cell {
    layer: &'static str,
    shape: &'static str,
    iops: f64,
    p50_us: f64,
    p99_us: f64,
    cpu_us: f64,
    rounds: usize,
}

/// Measures and prints.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut samples: Vec<Vec<Vec<Sample>>> = vec![vec![Vec::new(); SHAPES.len()]; Layer::ALL.len()];
    for round in 0..arguments.rounds {
        for (layer, shapes) in Layer::ALL.into_iter().zip(&mut samples) {
            eprintln!("round {} of {}: {}", round + 1, arguments.rounds, layer.name());
            measure(layer, arguments, shapes)
                .map_err(|error| format!("{}: {error}", layer.name()))?;
        }
    }
    let cells: Vec<Cell> = Layer::ALL
        .into_iter()
        .zip(&samples)
        .flat_map(|(layer, shapes)| {
            SHAPES.iter().zip(shapes).map(move |((shape, ..), samples)| cell(layer, shape, samples))
        })
        .collect();
    print(&cells);
    if let Some(path) = &arguments.json {
        std::fs::write(path, serde_json::to_string_pretty(&cells)?)?;
    }
    Ok(())
}

fn measure(layer: Layer, arguments: &Arguments, shapes: &mut [Vec<Sample>]) -> Result<(), Failure> {
    let directory = match &arguments.dir {
        Some(parent) => tempfile::tempdir_in(parent)?,
        None => tempfile::tempdir()?,
    };
    let running = layer.start(directory.path(), arguments.span)?;
    let mut load = Load::connect(&running.socket, 32)?;
    load.fill(arguments.span)?;
    let time = Duration::from_secs_f64(arguments.seconds);
    for ((_, pattern, block, depth), samples) in SHAPES.into_iter().zip(shapes) {
        let before: f64 = running.cpu()?.iter().map(|(_, seconds)| seconds).sum();
        let figures = load.measure(pattern, block, depth, arguments.span, time)?;
        let after: f64 = running.cpu()?.iter().map(|(_, seconds)| seconds).sum();
        // CPU was counted over the warm-up too, which is a tenth of the time.
        let cpu_us = (after - before) / 1.1 / figures.requests as f64 * 1e6;
        samples.push(Sample { figures, cpu_us });
    }
    drop(load);
    running.stop()
}

fn cell(layer: Layer, shape: &'static str, samples: &[Sample]) -> Cell {
    let of = |value: fn(&Sample) -> f64| {
        let mut values: Vec<f64> = samples.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values[values.len() / 2]
    };
    Cell {
        layer: layer.name(),
        shape,
        iops: of(|sample| sample.figures.iops),
        p50_us: of(|sample| sample.figures.p50_us),
        p99_us: of(|sample| sample.figures.p99_us),
        cpu_us: of(|sample| sample.cpu_us),
        rounds: samples.len(),
    }
}

fn print(cells: &[Cell]) {
    println!(
        "| {:<14} | {:<26} | {:>9} | {:>8} | {:>8} | {:>12} | {:>8} |",
        "request", "layer", "IOPS", "p50 µs", "p99 µs", "CPU µs/req", "vs qsd"
    );
    println!("|{0:-<16}|{0:-<28}|{0:-<11}|{0:-<10}|{0:-<10}|{0:-<14}|{0:-<10}|", "");
    for (shape, ..) in SHAPES {
        let peer = Layer::QemuStorageDaemon.name();
        let peer = cells.iter().find(|cell| cell.layer == peer && cell.shape == shape);
        for cell in cells.iter().filter(|cell| cell.shape == shape) {
            let ratio = peer.map_or(f64::NAN, |peer| cell.iops / peer.iops);
            println!(
                "| {:<14} | {:<26} | {:>9.0} | {:>8.1} | {:>8.1} | {:>12.2} | {:>7.2}x |",
                cell.shape, cell.layer, cell.iops, cell.p50_us, cell.p99_us, cell.cpu_us, ratio
            );
        }
    }
}
