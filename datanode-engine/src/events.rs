//! What a controller tells its operator: the core's notices, and what only the process sees, as events.

use crate::drives::ConfiguredDrive;
use cleave_control::config::DatanodeConfig;
use cleave_control::events::{Events, Kind, News, Subject};
use cleave_coordinator::records::ScrubFigures;
use cleave_datanode_core::DataNode;
use cleave_datanode_core::notices::Notice;
use cleave_runtime::time::Clock;

/// Takes everything that the core has to tell. Cheap while there is nothing.
pub fn take(events: &Events, config: &DatanodeConfig, node: &DataNode, clock: &dyn Clock) {
    while let Some((notice, count)) = node.next_notice() {
        let news = News { count, ..news(config, notice) };
        events.tell(clock.unix_seconds(), news);
    }
}

/// Drives that could not be opened.
pub fn missing_drives(events: &Events, drives: &[ConfiguredDrive], now: u64) {
    for drive in drives {
        if let Err(reason) = &drive.open {
            let news = News::new(Kind::DriveMissing, Subject::Drive(drive.drive.0));
            events.tell(now, news.at(drive.path.display()).because(reason));
        }
    }
}

fn news(config: &DatanodeConfig, notice: Notice) -> News {
    let own = || Subject::Controller(config.name.clone());
    let peer = || Subject::Controller(config.peer.name.clone());
    let log = || Subject::Log(config.datanode);
    let vault = || Subject::Vault(config.name.clone());
    let host = |host: &dyn std::fmt::Display| Subject::Host(format!("host-{host}"));
    match notice {
        Notice::PeerAway { reason } => News::new(Kind::PeerAway, peer()).because(reason),
        Notice::Mirrored { active } => {
            let role = if active { "this one is active" } else { "this one is its standby" };
            News::new(Kind::Mirrored, peer()).because(role)
        }
        Notice::TookOver { epoch, origin } => News::new(Kind::TookOver, own()).because(format!(
            "the active controller gave no sign of life; role epoch {epoch}, from position {origin} on"
        )),
        Notice::SteppedDown => News::new(Kind::SteppedDown, own())
            .because("the store says that the other controller is active"),
        Notice::Alone { drives } => News::new(Kind::Alone, own())
            .at(format!("drives {drives:?}"))
            .because("the other controller is away"),
        Notice::NotAlone { reason } => News::new(Kind::NotAlone, own()).because(reason),
        Notice::AloneBroken => News::new(Kind::AloneBroken, own()),
        Notice::LogLost { reason } => News::new(Kind::LogLost, log()).because(reason),
        Notice::LogEmpty { next } => News::new(Kind::LogEmpty, log())
            .at(format!("position {next}"))
            .because("there was none before, or an operator gave it up"),
        Notice::VaultWritten(image) => {
            News::new(Kind::VaultWritten, vault()).because(format!("{image}, at the stop"))
        }
        Notice::VaultLoaded(image) => {
            News::new(Kind::VaultLoaded, vault()).because(image)
        }
        Notice::VaultDamaged { reason } => {
            News::new(Kind::VaultDamaged, vault()).because(reason)
        }
        Notice::LogLoaded { drives, entries } => News::new(Kind::LogLoaded, log())
            .at(format!("drives {drives:?}"))
            .because(format!("{entries} entries")),
        Notice::LogUnreadable { drives, reason } => {
            News::new(Kind::LogUnreadable, log()).at(format!("drives {drives:?}")).because(reason)
        }
        Notice::Rotted { position } => {
            News::new(Kind::LogRot, log()).at(format!("position {position}"))
        }
        Notice::Mended { position } => {
            News::new(Kind::LogMended, log()).at(format!("position {position}"))
        }
        Notice::RecordLost { position, vdisk } => {
            let place = match vdisk {
                Some(vdisk) => format!("position {position}, of vdisk {vdisk}"),
                None => format!("position {position}"),
            };
            News::new(Kind::LogRecordLost, log())
                .at(place)
                .because("it rotted in the memory of both controllers, or of the only one")
        }
        Notice::DriveFault { drive, slot, reason } => News::new(Kind::DriveFault, Subject::Drive(drive.0))
            .at(format!("slot {}", slot.0))
            .because(reason),
        Notice::ShardDamaged { drive, slot } => {
            News::new(Kind::ShardDamaged, Subject::Drive(drive.0))
                .at(format!("slot {}", slot.0))
                .because("its header is damaged or another shard's; or it was given out anew since the reader looked it up")
        }
        Notice::ShardRepaired { drive, slot } => {
            News::new(Kind::ShardRepaired, Subject::Drive(drive.0)).at(format!("slot {}", slot.0))
        }
        Notice::StripeDamaged { stripe, vdisks, reason } => {
            let names: Vec<String> = vdisks.iter().map(ToString::to_string).collect();
            let place = match names.is_empty() {
                true => format!("stripe {stripe}, of no known vdisk"),
                false => format!("stripe {stripe}, of vdisks {}", names.join(", ")),
            };
            News::new(Kind::StripeDamaged, own()).at(place).because(reason)
        }
        Notice::Scrubbed(ScrubFigures { looked, damaged, repaired, unrepairable }) => {
            let kind = if unrepairable > 0 { Kind::ScrubbedDamaged } else { Kind::Scrubbed };
            News::new(kind, own()).because(format!(
                "{looked} stripes: {damaged} shards were damaged, {repaired} written anew; {unrepairable} stripes could not be mended"
            ))
        }
        Notice::DriveLost { drive, reason } => {
            News::new(Kind::DriveLost, Subject::Drive(drive.0)).because(reason)
        }
        Notice::HostConnected { host: number, incarnation } => {
            News::new(Kind::HostConnected, host(&number.0))
                .because(format!("incarnation {incarnation}"))
        }
        Notice::HostGone { host: number, incarnation } => News::new(Kind::HostGone, host(&number.0))
            .because(format!("the last connection of incarnation {incarnation} was closed")),
        Notice::GrantsEnded { incarnation, grants } => {
            let name = format!("incarnation {incarnation}");
            News::new(Kind::HostGrantsEnded, Subject::Host(name))
                .because(format!("{grants} stripes, of an engine without a connection"))
        }
        Notice::OwnerWaits { vdisk, epoch, host } => {
            News::new(Kind::OwnerWaits, Subject::Vdisk(vdisk.to_string()))
                .because(format!("host-{} opened it at epoch {epoch}", host.0))
        }
    }
}
