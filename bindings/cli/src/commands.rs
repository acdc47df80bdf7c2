//! What an operator asks a running cluster: each command is one request on its control socket.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`attach`] | QEMU arguments and libvirt XML for a vdisk |
//! | [`events`] | what happened |
//! | [`pool`] | drives, space, stripes, scrub |
//! | [`text`] | status and statistics for people |

pub mod attach;
pub mod events;
pub mod pool;
pub mod text;

use crate::arguments::{Command, FlashCommand, HostCommand, VdiskCommand};
use crate::dev::directory::control_socket;
use crate::error::{Error, Result};
use crate::image::{self, Export, Import};
use cleave_control::names::check_name;
use cleave_control::protocol::{Reply, Request, call};
use cleave_control::status::{HostStatus, VdiskEntry};
use serde::Serialize;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a cluster may take to answer: a restart waits for a clean stop.
const ANSWER: Duration = Duration::from_secs(180);
/// How long a host engine's cores may take to be started or ended; it goes on with it afterwards.
const CORES: Duration = Duration::from_secs(60);
/// How long an engine that has much to do may take to notice that a front end is gone.
const FREE: Duration = Duration::from_secs(5);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Carries a command out and prints what comes of it.
pub fn run(dir: Option<PathBuf>, command: Command) -> Result<()> {
    if let Command::Events(options) = &command {
        return events::run(dir.as_deref(), options);
    }
    let dir = dir.ok_or(Error::NoDirectory)?;
    let dir = std::path::absolute(&dir).map_err(crate::error::file("find", &dir))?;
    match command {
        Command::Dev(_) | Command::Nvme(_) | Command::Events(_) => {
            unreachable!("this is not a command to a running cluster")
        }
        Command::Status { json } => match ask(&dir, &Request::Status {})? {
            Reply::Status(status) if json => print_json(&status),
            Reply::Status(status) => print(&text::status(&status)),
            _ => Err(Error::UnknownAnswer),
        },
        Command::Stats { json } => match ask(&dir, &Request::Stats {})? {
            Reply::Statistics(statistics) if json => print_json(&statistics),
            Reply::Statistics(statistics) => print(&text::statistics(&statistics)),
            _ => Err(Error::UnknownAnswer),
        },
        Command::Vdisk(command) => vdisk(&dir, command),
        Command::Import {
            image,
            name,
            format,
            encrypt,
            shares,
            scratch,
            accept_data_loss,
            quiet,
        } => {
            check_name(&name)?;
            if shares.is_some() && find(&dir, &name)?.is_some() {
                let reason =
                    "it exists, and the number of its shares is never changed; leave --shares out";
                return Err(Error::Vdisk { name, reason: reason.to_owned() });
            }
            let asked = Import { image, name, format, scratch, accept_data_loss, quiet };
            let name = &asked.name;
            let create = |size| create(&dir, name, size, encrypt, shares);
            image::import(&asked, || find(&dir, name), create)?;
            until_free(&dir, name);
            Ok(())
        }
        Command::Export { name, image, format, overwrite, quiet } => {
            let asked = Export { image, format, overwrite, quiet };
            image::export(&asked, &existing(&dir, &name)?)?;
            until_free(&dir, &name);
            Ok(())
        }
        Command::Host(HostCommand::Upgrade { program }) => {
            let absolute = |path: PathBuf| {
                std::path::absolute(&path).map_err(crate::error::file("find", &path))
            };
            let program = program.map(absolute).transpose()?;
            match ask(&dir, &Request::UpgradeHost { program })? {
                Reply::Upgraded { hosts, version, stall_milliseconds } => {
                    let run = if hosts.len() == 1 { "runs" } else { "run" };
                    let hosts = hosts.join(", ");
                    print(&format!(
                        "{hosts} {run} {version}; guests waited at most {stall_milliseconds} ms\n"
                    ))
                }
                _ => Err(Error::UnknownAnswer),
            }
        }
        Command::Host(HostCommand::Cpu { insane, cores, json }) => cpu(&dir, insane, cores, json),
        Command::Flash(command) => flash(&dir, command),
        Command::Pool(command) => pool::run(&dir, command),
        Command::Restart { name } => done(&dir, &Request::RestartChild { name }),
        Command::SwitchOver { datanode } => match ask(&dir, &Request::SwitchOver { datanode })? {
            Reply::SwitchedOver { active, stall_milliseconds } => print(&format!(
                "{active} is active; hosts were not served for {stall_milliseconds} ms\n"
            )),
            _ => Err(Error::UnknownAnswer),
        },
        Command::StartEmpty { datanode, accept_data_loss } => {
            if !accept_data_loss {
                let what = format!("starting data node {datanode} with an empty log");
                return Err(Error::NoConsent { what });
            }
            done(&dir, &Request::StartEmptyLog { datanode, accept_data_loss })
        }
    }
}

/// Changes the host engine's cores when that is asked for, waits until it is so, and shows them.
fn cpu(dir: &Path, insane: Option<bool>, cores: Option<u16>, json: bool) -> Result<()> {
    let hosts = || match ask(dir, &Request::Status {})? {
        Reply::Status(status) => Ok(status.hosts),
        _ => Err(Error::UnknownAnswer),
    };
    if insane.is_some() || cores.is_some() {
        done(dir, &Request::SetCpu { insane, cores })?;
    }
    let deadline = Instant::now() + CORES;
    let hosts = loop {
        let hosts = hosts()?;
        if !hosts.iter().any(|host| host.cpu.changing) || Instant::now() > deadline {
            break hosts;
        }
        std::thread::sleep(LOOK_AGAIN);
    };
    match json {
        true => print_json(&hosts.iter().map(|host| &host.cpu).collect::<Vec<_>>()),
        false => print(&hosts.iter().map(|host| text::cpu(&host.cpu)).collect::<String>()),
    }
}

fn flash(dir: &Path, command: FlashCommand) -> Result<()> {
    let named = |text: &str| {
        let none = || {
            let reason = "a device is needed".to_owned();
            Error::Option { option: "flash", value: text.to_owned(), reason }
        };
        crate::dev::flash::named(text)?.ok_or_else(none)
    };
    match command {
        FlashCommand::Add { device, size, host } => {
            let (device, host) = (named(&device)?, Some(host));
            done(dir, &Request::AddFlash { device, size, host })
        }
        FlashCommand::Retire { device, host } => {
            let (device, host) = (named(&device)?, Some(host));
            done(dir, &Request::RetireFlash { device, host })
        }
        FlashCommand::Status { json } => {
            let Reply::Status(status) = ask(dir, &Request::Status {})? else {
                return Err(Error::UnknownAnswer);
            };
            let several = status.hosts.len() > 1;
            let shown = |host: &HostStatus| {
                let name = if several { format!("{}\n", host.process.name) } else { String::new() };
                name + &text::flash(&host.flash) + &text::flash_events(&host.flash)
            };
            match json {
                true => {
                    print_json(&status.hosts.iter().map(|host| &host.flash).collect::<Vec<_>>())
                }
                false => print(&status.hosts.iter().map(shown).collect::<String>()),
            }
        }
    }
}

fn vdisk(dir: &Path, command: VdiskCommand) -> Result<()> {
    match command {
        VdiskCommand::Create { name, size, encrypt, shares } => {
            check_name(&name)?;
            create(dir, &name, size, encrypt, shares)
        }
        VdiskCommand::List { json } => match ask(dir, &Request::ListVdisks {})? {
            Reply::Vdisks { vdisks } if json => print_json(&vdisks),
            Reply::Vdisks { vdisks } => print(&text::vdisks(&vdisks)),
            _ => Err(Error::UnknownAnswer),
        },
        VdiskCommand::Resize { name, size, accept_data_loss } => {
            done(dir, &Request::ResizeVdisk { name, size, accept_data_loss })
        }
        VdiskCommand::Delete { name } => done(dir, &Request::DeleteVdisk { name }),
        VdiskCommand::Attach { name, host, take_over, queues, memory } => {
            if let Some(host) = host {
                let name = name.clone();
                done(dir, &Request::MoveVdisk { name, host, take_over })?;
            }
            let socket = existing(dir, &name)?.socket.ok_or_else(|| {
                let reason = "it is not served; look at `cleave status`".to_owned();
                Error::Vdisk { name: name.clone(), reason }
            })?;
            print(&attach::text(&attach::Guest { name: &name, socket: &socket, queues, memory }))
        }
    }
}

fn create(dir: &Path, name: &str, size: u64, encrypt: bool, shares: Option<u16>) -> Result<()> {
    let name = name.to_owned();
    // Without the option the cluster decides.
    let encrypted = encrypt.then_some(true);
    match ask(dir, &Request::CreateVdisk { name, size, encrypted, shares })? {
        Reply::Vdisk(_) => Ok(()),
        _ => Err(Error::UnknownAnswer),
    }
}

fn find(dir: &Path, name: &str) -> Result<Option<VdiskEntry>> {
    let Reply::Vdisks { vdisks } = ask(dir, &Request::ListVdisks {})? else {
        return Err(Error::UnknownAnswer);
    };
    Ok(vdisks.into_iter().find(|vdisk| vdisk.name == name))
}

/// Waits until the engine noticed that the connection of an import or export is gone, so that the next command finds the
/// vdisk free. What was asked for is done, whatever comes of this: a guest may have connected meanwhile.
fn until_free(dir: &Path, name: &str) {
    let deadline = Instant::now() + FREE;
    let attached = || matches!(find(dir, name), Ok(Some(vdisk)) if vdisk.attached);
    while attached() && Instant::now() < deadline {
        std::thread::sleep(LOOK_AGAIN);
    }
}

fn existing(dir: &Path, name: &str) -> Result<VdiskEntry> {
    find(dir, name)?.ok_or_else(|| {
        let reason = "there is none of that name".to_owned();
        Error::Vdisk { name: name.to_owned(), reason }
    })
}

fn done(dir: &Path, request: &Request) -> Result<()> {
    match ask(dir, request)? {
        Reply::Done {} => Ok(()),
        _ => Err(Error::UnknownAnswer),
    }
}

fn ask(dir: &Path, request: &Request) -> Result<Reply> {
    Ok(call(&control_socket(dir), request, ANSWER)?)
}

fn print_json<T: Serialize>(value: &T) -> Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value).expect("answers are plain data")))
}

/// Prints to standard output.
pub fn print(text: &str) -> Result<()> {
    match std::io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read it has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        other => other.map_err(crate::error::system("print")),
    }
}
