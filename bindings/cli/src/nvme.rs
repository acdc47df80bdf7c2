//! `cleave nvme`: NVMe controllers through the driver in userspace, without a cluster.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`text`] | what controllers say, for people |
//!
//! A controller is taken alone, for as long as the command runs; one that the kernel drives is not touched.

mod text;

use crate::commands::print;
use crate::error::{Error, Result, system};
use clap::{Args, Subcommand};
use cleave_control::size::parse_size;
use cleave_nvme::bench::{BenchOptions, Until, bench};
use cleave_nvme::controller::{Controller, ControllerOptions};
use cleave_nvme::transport::{OpenOptions, PciAddress, list, open};
use cleave_runtime::time::Clock;
use cleave_runtime_real::clock::RealClock;
use std::rc::Rc;
use std::time::Duration;

/// What to do with NVMe controllers.
#[derive(Debug, Subcommand)]
pub enum NvmeCommand {
    /// List this machine's controllers, and who drives them.
    List,
    /// Show what a controller says of itself and of its namespaces.
    Identify(Target),
    /// Show a controller's health, its firmware slots and its last errors.
    Smart(Target),
    /// Measure random requests, at one depth after the other.
    Bench {
        /// The controller.
        #[command(flatten)]
        target: Target,
        /// The namespace.
        #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
        namespace: u32,
        /// Requests outstanding; may be given several times [default: 1 and 32]
        #[arg(long = "depth", value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1023))]
        depths: Vec<u16>,
        /// Bytes of a request.
        #[arg(long, default_value = "4K", value_parser = size)]
        size: u64,
        /// How long each depth is measured.
        #[arg(long, default_value_t = 2)]
        seconds: u64,
        /// Measure so many requests of each depth instead.
        #[arg(long)]
        requests: Option<u64>,
        /// Write instead of reading; what the namespace holds is lost.
        #[arg(long)]
        write: bool,
        /// Yes, what the namespace holds is to be lost.
        #[arg(long)]
        accept_data_loss: bool,
    },
}

/// Which controller.
#[derive(Args, Clone, Copy, Debug)]
pub struct Target {
    /// Its PCI address, such as 0000:3b:00.0.
    pub address: PciAddress,
    /// Take it though no IOMMU keeps it from memory that is not its own.
    #[arg(long)]
    pub unsafe_without_iommu: bool,
}

fn size(text: &str) -> std::result::Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

/// Carries a command out and prints what comes of it.
pub fn run(command: NvmeCommand) -> Result<()> {
    match command {
        NvmeCommand::List => {
            let controllers = list().map_err(system("list PCI devices"))?;
            print(&text::list(&controllers))
        }
        NvmeCommand::Identify(target) => {
            with(target, |controller, _| print(&text::identity(controller)))
        }
        NvmeCommand::Smart(target) => with(target, |controller, clock| {
            let run = || idle(clock);
            let health = controller.run(controller.health(), run)?;
            let firmware = controller.run(controller.firmware(), run)?;
            let errors = controller.run(controller.errors(), run)?;
            print(&text::smart(&health, &firmware, &errors))
        }),
        NvmeCommand::Bench { write: true, accept_data_loss: false, .. } => {
            Err(Error::NoConsent { what: "writing to a namespace".to_owned() })
        }
        NvmeCommand::Bench {
            target, namespace, depths, size, seconds, requests, write, ..
        } => with(target, |controller, clock| {
            let found = controller.namespace(namespace).ok_or(Error::Option {
                option: "--namespace",
                value: namespace.to_string(),
                reason: "the controller has none of that number that can be used".to_owned(),
            })?;
            let span = Until::Span(Duration::from_secs(seconds));
            let until = requests.map_or(span, Until::Requests);
            let bytes = usize::try_from(size).unwrap_or(usize::MAX);
            let depths = if depths.is_empty() { vec![1, 32] } else { depths };
            for depth in depths {
                let options = BenchOptions { depth, bytes, writes: write, until };
                let report = bench(controller, found, &options, || clock.refresh())?;
                print(&text::bench(depth, &report))?;
            }
            Ok(())
        }),
    }
}

fn idle(clock: &RealClock) {
    clock.refresh();
    std::thread::yield_now();
}

/// Takes a controller, does something with it, and stops it.
fn with(target: Target, work: impl FnOnce(&Controller, &RealClock) -> Result<()>) -> Result<()> {
    let options = OpenOptions {
        without_iommu: target.unsafe_without_iommu,
        wait: Duration::ZERO,
        ..OpenOptions::default()
    };
    let clock = Rc::new(RealClock::new());
    let transport = open(target.address, &options)?;
    let shown = Rc::clone(&clock) as Rc<dyn Clock>;
    let controller = Controller::new(transport, shown, ControllerOptions::default());
    controller.run(controller.start(), || idle(&clock))?;
    let done = work(&controller, &clock);
    let stopped = controller.run(controller.shut_down(), || idle(&clock));
    done.and(stopped.map_err(Error::from))
}
