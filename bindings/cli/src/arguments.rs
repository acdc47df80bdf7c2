//! The command line. Values are checked while it is parsed, so that nothing has happened when one is wrong.

use crate::commands::events::EventsOptions;
use crate::dev::store::StoreKind;
use crate::image::Format;
use crate::nvme::NvmeCommand;
use clap::{Args, Parser, Subcommand};
use cleave_control::config::{DRIVES_MAX, DRIVES_MIN, MEMORY_BYTES_MIN, NVLOG_BYTES_MIN};
use cleave_control::names::parse_vdisk;
use cleave_control::size::{format_size, parse_size, parse_vdisk_size};
use cleave_format::flash::FLASH_SIZE_MIN;
use cleave_format::superblock::DRIVE_SIZE_MIN;
use cleave_nvme::place::Place;
use std::path::PathBuf;

/// Cleave: split block storage for KVM.
#[derive(Debug, Parser)]
#[command(name = "cleave", version, propagate_version = true)]
pub struct Arguments {
    /// The cluster's directory.
    #[arg(long, global = true, env = "CLEAVE_DIR", value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run a whole cluster on this machine, until SIGINT, SIGTERM or SIGPWR.
    ///
    /// Creates the cluster in DIR at the first start; prints a line `ready` when every vdisk is served at
    /// DIR/vhost/NAME.sock. Sizes take K, M, G and T (powers of 1024).
    Dev(DevOptions),
    /// Show what there is and how it is.
    Status {
        /// As JSON (docs/STATUS.md).
        #[arg(long)]
        json: bool,
    },
    /// Show what was done since the engines started.
    Stats {
        /// As JSON (docs/STATUS.md).
        #[arg(long)]
        json: bool,
    },
    /// Show what happened, when, why, and what is to be done about it.
    ///
    /// Of all engines, in the order of time, also from before they were restarted. Engines that do not answer are named, and what
    /// they told before is shown.
    Events(EventsOptions),
    /// NVMe controllers that are driven from userspace; needs no cluster.
    #[command(subcommand)]
    Nvme(NvmeCommand),
    /// Create, list, change and attach vdisks.
    #[command(subcommand)]
    Vdisk(VdiskCommand),
    /// Write an image into a vdisk, which is created when it is not there.
    ///
    /// Afterwards the vdisk reads as the image, followed by zeros. Holes of the image take no space. qcow2 needs `qemu-img`.
    Import {
        /// The image: a file or a block device.
        image: PathBuf,
        /// The vdisk.
        name: String,
        /// The image's format; found out when it is not given.
        #[arg(long)]
        format: Option<Format>,
        /// Encrypt the vdisk that is created; without this, as the cluster does.
        #[arg(long)]
        encrypt: bool,
        /// How many cores of its host can serve the vdisk at once, 1 to 16, when it is created; without this, 4
        /// beyond 64 GiB, else 1.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=16))]
        shares: Option<u16>,
        /// Where a raw copy of a qcow2 image may lie meanwhile; beside the image when it is not given.
        #[arg(long, value_name = "FOLDER")]
        scratch: Option<PathBuf>,
        /// Yes, what an existing vdisk holds is to be lost.
        #[arg(long)]
        accept_data_loss: bool,
        /// Print no progress.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Write a vdisk that is not attached into an image, with holes where it is zeros.
    Export {
        /// The vdisk.
        name: String,
        /// The image.
        image: PathBuf,
        /// The image's format; by the ending of its name when it is not given.
        #[arg(long)]
        format: Option<Format>,
        /// Replace an image that exists.
        #[arg(long)]
        overwrite: bool,
        /// Print no progress.
        #[arg(long, short)]
        quiet: bool,
    },
    /// Change the host engine.
    #[command(subcommand)]
    Host(HostCommand),
    /// Add, retire and show the host's flash.
    #[command(subcommand)]
    Flash(FlashCommand),
    /// Look at the pool (drives, space, stripes), and have damage looked for.
    #[command(subcommand)]
    Pool(PoolCommand),
    /// Start an engine that has ended, or end and start one that runs.
    Restart {
        /// Its name, such as host-1.
        name: String,
    },
    /// Have the standby controller of a data node become the active one.
    ///
    /// Guests wait for a moment. Before maintenance of the active controller's machine; `cleave status` shows who is active.
    SwitchOver {
        /// The data node's number.
        #[arg(long, default_value_t = crate::dev::settings::DATANODE_ID)]
        datanode: u16,
    },
    /// Start a data node with an empty log after both controllers lost it.
    ///
    /// Acknowledged writes that were not destaged are lost, except those that a running host engine still holds.
    StartEmpty {
        /// The data node's number.
        #[arg(long, default_value_t = crate::dev::settings::DATANODE_ID)]
        datanode: u16,
        /// Yes, what only the log held is to be lost.
        #[arg(long)]
        accept_data_loss: bool,
    },
}

/// Options of `cleave dev`.
#[derive(Args, Debug, Default)]
pub struct DevOptions {
    /// Create this vdisk if it is not there yet; may be given several times.
    #[arg(long = "vdisk", value_name = "NAME:SIZE", value_parser = vdisk)]
    pub vdisks: Vec<(String, u64)>,
    /// Encrypt vdisks unless told otherwise when they are created.
    #[arg(long)]
    pub encrypt: bool,
    /// The data key: 32 bytes or 64 hexadecimal digits, mode 0600. Without it --encrypt makes one in DIR/keys.
    #[arg(long, value_name = "FILE")]
    pub key_file: Option<PathBuf>,
    /// Drives, at least 3 [default: 12]
    #[arg(long, value_name = "N", value_parser = drives)]
    pub drives: Option<u16>,
    /// Size of each drive; files are sparse [default: 16G]
    #[arg(long, value_name = "SIZE", value_parser = drive_size)]
    pub drive_size: Option<u64>,
    /// Use these NVMe namespaces as drives, driven from userspace, in place of files: at least 3, as
    /// nvme:PCI-ADDRESS/NAMESPACE.
    #[arg(long = "drive", value_name = "PLACE", conflicts_with_all = ["drives", "drive_size", "memory_drives"])]
    pub places: Vec<Place>,
    /// With --drive, when the cluster is created: erase namespaces that are not empty.
    #[arg(long, requires = "places")]
    pub erase_drives: bool,
    /// Keep drives in memory: nothing survives the end of this command.
    #[arg(long)]
    pub memory_drives: bool,
    /// The coordinator store: redb, in this process, or etcd (Debian: etcd-server), a child of it [default: redb]
    #[arg(long, value_name = "redb|etcd")]
    pub store: Option<StoreKind>,
    /// Start an engine again when it ends.
    #[arg(long)]
    pub restart: bool,
    /// Start no engines: something else does, with the configurations in DIR/run, which are kept as they are.
    #[arg(long, conflicts_with = "restart")]
    pub no_engines: bool,
    /// Hosts, each with an engine, flash and sockets of its own (DIR/vhost/host-N from the second on), at most 8. Hosts can be
    /// added at a later start [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=8))]
    pub hosts: Option<u16>,
    /// Memory that each host engine may use [default: 512M]
    #[arg(long, value_name = "SIZE", value_parser = host_memory)]
    pub host_memory: Option<u64>,
    /// Size of the mirrored log, in each controller [default: 256M]
    #[arg(long, value_name = "SIZE", value_parser = log_size)]
    pub log_size: Option<u64>,
    /// The host's flash, a cache: a block device, a file (made when it is not there), or memory:SIZE; may be given several
    /// times; `none` for none [default: a sparse file in DIR/host-1, memory:512M with --memory-drives]
    #[arg(long, value_name = "PATH")]
    pub flash: Vec<String>,
    /// Size of flash files that are made [default: 4G]
    #[arg(long, value_name = "SIZE", value_parser = flash_size)]
    pub flash_size: Option<u64>,
}

/// What to do with the host engine.
#[derive(Debug, Subcommand)]
pub enum HostCommand {
    /// Replace its program while guests go on: their requests wait for a moment, and none fails.
    ///
    /// The new program checks everything that it can beside the one that runs. When it ends before it serves all
    /// vdisks, the earlier program goes on.
    Upgrade {
        /// The new program; without this the one that is installed beside `cleave`.
        #[arg(long, value_name = "FILE")]
        program: Option<PathBuf>,
    },
    /// Show or change how many cores it runs on, while guests go on.
    ///
    /// A fifth of the processors, rounded up, unless told otherwise; two fifths in Insane Mode. What is decided is kept over
    /// restarts. Without options the cores are shown.
    Cpu {
        /// Switch Insane Mode.
        #[arg(long, value_name = "on|off", value_parser = on_or_off)]
        insane: Option<bool>,
        /// So many cores, at most one a processor; `auto`: by their share.
        #[arg(long, value_name = "N|auto", value_parser = cores)]
        cores: Option<u16>,
        /// Show them as JSON (docs/STATUS.md).
        #[arg(long)]
        json: bool,
    },
}

/// What to do with the pool.
#[derive(Debug, Subcommand)]
pub enum PoolCommand {
    /// Show its drives, what of its space is used, its stripes, what it lacks, and how far rebuild and scrub are.
    Status {
        /// As JSON (docs/STATUS.md).
        #[arg(long)]
        json: bool,
    },
    /// Show how far the scrub is, which reads all stripes whole and writes anew what is damaged; or have it done now.
    ///
    /// It goes on by itself, slowly: a pass over all stripes takes 12 days at most while guests leave it time. What readers find
    /// damaged comes first.
    Scrub {
        /// Begin anew, and look at all stripes as fast as guests let it.
        #[arg(long)]
        now: bool,
        /// With --now: until it is over. Fails when something cannot be mended.
        #[arg(long, requires = "now")]
        wait: bool,
        /// The data node's number.
        #[arg(long, default_value_t = crate::dev::settings::DATANODE_ID)]
        datanode: u16,
    },
    /// Look now for stripes that lack shards, and write these anew.
    ///
    /// That is done by itself when a drive is lost; what had no room, or could not be read, is tried again every 20 seconds.
    Rebuild {
        /// The data node's number.
        #[arg(long, default_value_t = crate::dev::settings::DATANODE_ID)]
        datanode: u16,
    },
}

/// What to do with flash, while guests go on.
#[derive(Debug, Subcommand)]
pub enum FlashCommand {
    /// Give a host another device.
    Add {
        /// A block device, a file, or memory:SIZE. It must be empty, or flash of this cluster.
        device: String,
        /// Make the file, sparse and of this size.
        #[arg(long, value_name = "SIZE", value_parser = flash_size)]
        size: Option<u64>,
        /// Which host, a number from 1.
        #[arg(long, value_name = "N", default_value_t = 1)]
        host: u32,
    },
    /// Take a device from a host; its reads go to the pool, or to the other devices once they have warmed up.
    Retire {
        /// As `cleave flash status` shows it.
        device: String,
        /// Which host, a number from 1.
        #[arg(long, value_name = "N", default_value_t = 1)]
        host: u32,
    },
    /// Show the devices.
    Status {
        /// As JSON (docs/STATUS.md).
        #[arg(long)]
        json: bool,
    },
}

/// What to do with vdisks.
#[derive(Debug, Subcommand)]
pub enum VdiskCommand {
    /// Create a vdisk.
    Create {
        /// Its name.
        name: String,
        /// Its size.
        #[arg(value_parser = vdisk_size)]
        size: u64,
        /// Encrypt it; without this, as the cluster does.
        #[arg(long)]
        encrypt: bool,
        /// How many cores of its host can serve it at once, 1 to 16; without this, 4 beyond 64 GiB, else 1. It is
        /// never changed.
        #[arg(long, value_parser = clap::value_parser!(u16).range(1..=16))]
        shares: Option<u16>,
    },
    /// List all vdisks.
    List {
        /// As JSON (docs/STATUS.md).
        #[arg(long)]
        json: bool,
    },
    /// Change a vdisk's size.
    Resize {
        /// Its name.
        name: String,
        /// The new size.
        #[arg(value_parser = vdisk_size)]
        size: u64,
        /// Yes, what lies beyond a smaller size is to be lost.
        #[arg(long)]
        accept_data_loss: bool,
    },
    /// Delete a vdisk and what it holds.
    Delete {
        /// Its name.
        name: String,
    },
    /// Print QEMU arguments and libvirt XML that attach a vdisk to a guest.
    ///
    /// With --host that host serves it first: the one that does lets go. One that does not answer (dead, stopped, cut off) is
    /// fenced: it can write no more, and after at most 13 seconds it can answer no read either; then the new one serves.
    Attach {
        /// Its name.
        name: String,
        /// Have this host serve it, a number from 1.
        #[arg(long, value_name = "N")]
        host: Option<u32>,
        /// With --host: also when a guest uses it on the host that serves it now.
        #[arg(long, requires = "host")]
        take_over: bool,
        /// Queues for the guest.
        #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
        queues: u16,
        /// The guest's memory, which must be shared with the engine.
        #[arg(long, default_value = "1G", value_parser = size)]
        memory: u64,
    },
}

fn vdisk(text: &str) -> Result<(String, u64), String> {
    parse_vdisk(text).map_err(|error| error.to_string())
}

fn vdisk_size(text: &str) -> Result<u64, String> {
    parse_vdisk_size(text).map_err(|error| error.to_string())
}

fn size(text: &str) -> Result<u64, String> {
    parse_size(text).map_err(|error| error.to_string())
}

fn at_least(text: &str, least: u64) -> Result<u64, String> {
    let bytes = size(text)?;
    if bytes < least {
        return Err(format!("it must be at least {}", format_size(least)));
    }
    Ok(bytes)
}

fn drive_size(text: &str) -> Result<u64, String> {
    at_least(text, DRIVE_SIZE_MIN)
}

fn host_memory(text: &str) -> Result<u64, String> {
    at_least(text, MEMORY_BYTES_MIN)
}

fn flash_size(text: &str) -> Result<u64, String> {
    at_least(text, FLASH_SIZE_MIN)
}

fn log_size(text: &str) -> Result<u64, String> {
    at_least(text, NVLOG_BYTES_MIN)
}

fn on_or_off(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is on or off".to_owned()),
    }
}

fn cores(text: &str) -> Result<u16, String> {
    match text.parse() {
        _ if text == "auto" => Ok(0),
        Ok(0) | Err(_) => Err("it is a number from 1 on, or auto".to_owned()),
        Ok(cores) => Ok(cores),
    }
}

fn drives(text: &str) -> Result<u16, String> {
    let count: usize = text.parse().map_err(|_| "it is not a number".to_owned())?;
    if !(DRIVES_MIN..=DRIVES_MAX).contains(&count) {
        return Err(format!("there can be {DRIVES_MIN} to {DRIVES_MAX} drives"));
    }
    Ok(count as u16)
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    fn parse(line: &str) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn a_line_of_dev_is_understood() {
        let line =
            "cleave dev --dir /d --vdisk a:1G --vdisk b:512M --encrypt --drives 3 --drive-size 64M";
        let arguments = parse(line).unwrap();
        assert_eq!(arguments.dir, Some("/d".into()));
        let Command::Dev(options) = arguments.command else { panic!("it is dev") };
        assert_eq!(options.vdisks, [("a".to_owned(), 1 << 30), ("b".to_owned(), 512 << 20)]);
        assert_eq!((options.drives, options.drive_size), (Some(3), Some(64 << 20)));
        assert!(options.encrypt && !options.restart);
        assert!(parse("cleave --dir /d vdisk create a 1G --encrypt").is_ok());
        assert!(parse("cleave vdisk list --dir /d --json").is_ok());
        assert!(parse("cleave --dir /d import a.img a --shares 16").is_ok());
    }

    #[test]
    fn wrong_values_and_unknown_options_are_refused() {
        for line in [
            "cleave",
            "cleave dev --nonsense",
            "cleave nonsense",
            "cleave dev extra",
            "cleave dev --vdisk a",
            "cleave dev --vdisk a:0",
            "cleave dev --vdisk a:1000",
            "cleave dev --vdisk ../a:1G",
            "cleave dev --drives 2",
            "cleave dev --drives 121",
            "cleave dev --drives -1",
            "cleave dev --drive-size 1M",
            "cleave dev --drive-size 16GB",
            "cleave dev --host-memory 1M",
            "cleave dev --log-size 1M",
            "cleave dev --flash-size 1M",
            "cleave dev --store zookeeper",
            "cleave host cpu --insane perhaps",
            "cleave host cpu --cores 0",
            "cleave host cpu --cores many",
            "cleave flash",
            "cleave flash add",
            "cleave vdisk create a",
            "cleave vdisk create a 65T",
            "cleave vdisk attach a --queues 0",
            "cleave import a.img",
            "cleave import a.img a --shares 0",
            "cleave import a.img a --shares 17",
            "cleave export a a.img --format vmdk",
            "cleave events --since yesterday",
            "cleave events --severity loud",
        ] {
            let error = parse(line).err().unwrap_or_else(|| panic!("{line} was accepted"));
            assert_eq!(error.exit_code(), 2, "{line}");
        }
    }
}
