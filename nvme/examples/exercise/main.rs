//! Exercises the driver on a real controller, or on QEMU's: what the guest tests run.
//!
//! **Overwrites the first megabytes of every namespace.**
//!
//!     exercise [--without-iommu] [--timeout-ms N] PCI-ADDRESS TEST...
//!
//! Tests: identify, content, depths, threads, drive, bench, sleep, reset, errors, timeout, event.
//! Each prints a line `ok TEST ...`; the first failure ends the program with status 1.

mod bench;
mod content;
mod rig;
mod trouble;

use rig::Rig;
use std::process::ExitCode;
use std::time::Duration;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("FAILED: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let mut arguments = std::env::args().skip(1).peekable();
    let (mut iommu, mut timeout) = (true, Duration::from_secs(60));
    while let Some(option) = arguments.next_if(|argument| argument.starts_with("--")) {
        match option.as_str() {
            "--without-iommu" => iommu = false,
            "--timeout-ms" => {
                let value = arguments.next().and_then(|value| value.parse().ok());
                timeout = Duration::from_millis(value.ok_or("--timeout-ms needs a number")?);
            }
            other => return Err(format!("unknown option {other}")),
        }
    }
    let address = arguments.next().ok_or("which controller?")?.parse()?;
    let rig = Rig::start(address, iommu, timeout)?;
    for test in arguments {
        let said = match test.as_str() {
            "identify" => content::identify(&rig)?,
            "content" => content::content(&rig)?,
            "depths" => content::depths(&rig)?,
            "threads" => content::threads(&rig)?,
            "bench" => bench::bench(&rig)?,
            "drive" => content::drive(&rig)?,
            "sleep" => trouble::sleep(&rig)?,
            "reset" => trouble::reset(&rig)?,
            "errors" => trouble::errors(&rig)?,
            "timeout" => trouble::timeout(&rig)?,
            "event" => trouble::event(&rig)?,
            other => return Err(format!("there is no test {other}")),
        };
        println!("ok {test} {said}");
    }
    rig.run(rig.controller.shut_down()).map_err(|error| format!("shutdown: {error}"))?;
    println!("ok shutdown");
    Ok(())
}
