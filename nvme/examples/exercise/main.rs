//! Exercises the driver on a real controller, or on QEMU's: what the guest tests run.
//!
//! **Overwrites the first megabytes of every namespace.**
//!
//!     exercise [--without-iommu] [--gigantic] [--timeout-ms N] PCI-ADDRESS TEST...
//!
//! Tests: identify, content, vectors, depths, threads, drive, pages, protection, sleep, reset, errors,
//! timeout, event. Each prints a line `ok TEST ...`; the first failure ends the program with status 1.
//! `protection`, `errors`, `timeout` and `event` need a helper that spoils, injects, slows and reports.

mod content;
mod memory;
mod rig;
mod trouble;

use cleave_nvme::dma::PageKind;
use cleave_nvme::transport::{OpenOptions, PciAddress};
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
    let (mut options, mut timeout) = (OpenOptions::default(), Duration::from_secs(60));
    while let Some(option) = arguments.next_if(|argument| argument.starts_with("--")) {
        match option.as_str() {
            "--without-iommu" => options.without_iommu = true,
            "--gigantic" => options.pages = vec![PageKind::Huge1G],
            "--timeout-ms" => {
                let value = arguments.next().and_then(|value| value.parse().ok());
                timeout = Duration::from_millis(value.ok_or("--timeout-ms needs a number")?);
            }
            other => return Err(format!("unknown option {other}")),
        }
    }
    let address: PciAddress = arguments.next().ok_or("which controller?")?.parse()?;
    let rig = Rig::start(address, &options, timeout)?;
    for test in arguments {
        let said = match test.as_str() {
            "identify" => content::identify(&rig)?,
            "content" => content::content(&rig)?,
            "depths" => content::depths(&rig)?,
            "threads" => content::threads(&rig)?,
            "vectors" => memory::vectors(&rig)?,
            "pages" => memory::pages(&rig, &options.pages, address.numa_node())?,
            "protection" => trouble::protection(&rig)?,
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
