//! `stages`: nanoseconds a 4 KiB block of each stage, from the kernels, warm.

use crate::Failure;
use crate::kernels::{self, Kernel};
use std::time::Instant;

/// Prints one line a stage.
pub fn run() -> Result<(), Failure> {
    println!("| {:<18} | {:>12} |", "stage", "ns a block");
    println!("|{0:-<20}|{0:-<14}|", "");
    for kernel in Kernel::ALL {
        let count = if kernel == Kernel::Parity { 200 } else { 20_000 };
        let time = |count| {
            let start = Instant::now();
            kernels::run(kernel, count);
            start.elapsed().as_nanos() as f64
        };
        time(count / 10);
        // The difference of a long and a short run leaves the set-up out.
        let (short, long) = (time(count / 10), time(count));
        let spent = (long - short) / (count - count / 10) as f64 / kernel.blocks();
        println!("| {:<18} | {spent:>12.1} |", kernel.name());
    }
    Ok(())
}
