//! The copy of a log, and of a catalog where the copier's lacks more than the log holds: both sides.

use super::{Ended, Meeting};
use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::log::Log;
use crate::mirror::Standing;
use crate::state::{Phase, Release, insert_entries, peer_entry};
use bytes::Bytes;
use cleave_format::ids::Position;
use cleave_runtime::crash_points::{Point, reached};
use cleave_wire::{Decision, PeerMessage};
use std::time::Duration;

/// Bytes of entries in one message of a copy, but for a longer entry alone.
const COPY_BYTES_MAX: usize = 1 << 20;
/// Entries in one message of a copy.
const COPY_ENTRIES_MAX: usize = 4096;
/// Bytes queued on the link beyond which a copy waits.
const COPY_QUEUED_MAX: usize = 8 << 20;
/// When so many positions are lacking, a controller that is alone acknowledges no more until the copy is over.
const NEARLY_ALL: u64 = 1024;
/// As above, when what came meanwhile was gone after so many times: the copy is slower than the hosts.
const ROUNDS_MAX: u32 = 16;

impl Meeting {
    /// Active: the standby copies. Gives the position from which entries are forwarded.
    pub(super) async fn give(&self, standby: &Standing) -> Result<Position, Ended> {
        self.say(&PeerMessage::Decision(Decision::StandbyCopies), &[])?;
        let next = self.send_copy(standby).await?;
        self.hear_done().await?;
        self.node.state_mut().counters.copies += 1;
        Ok(next)
    }

    pub(super) async fn hear_done(&self) -> Result<(), Ended> {
        // The copier also writes its catalog.
        match self.word().await? {
            (PeerMessage::CopyDone, _) => Ok(()),
            _ => Err("the peer did not finish its copy".to_owned()),
        }
    }

    async fn room(&self) -> Result<(), Ended> {
        while self.node.links().queued(self.connection) > COPY_QUEUED_MAX {
            self.node.executor().sleep(Duration::from_millis(1)).await;
            self.check_current()?;
        }
        Ok(())
    }

    /// Sends the log, and the catalog if the copier's lacks more than the log has. A controller that is alone goes on with
    /// its hosts meanwhile: control records stay in its log until the copy has them, so that what they release after it was
    /// sent is released again there (C2). The position that is given is the copy's end: what is beyond it is not acknowledged
    /// until the meeting is over.
    pub(super) async fn send_copy(&self, copier: &Standing) -> Result<Position, Ended> {
        self.node.set_phase(Phase::Copying);
        let start = {
            let mut state = self.node.state_mut();
            state.solo.copying = Some(Position(state.mirror.effects));
            match &state.held {
                Some(held) => {
                    let catalog = copier.catalog < held.log.trimmed();
                    PeerMessage::CopyStart { log: held.log.id(), catalog }
                }
                None => PeerMessage::CopyStart { log: 0, catalog: true },
            }
        };
        self.say(&start, &[])?;
        if matches!(start, PeerMessage::CopyStart { catalog: true, .. }) {
            self.send_catalog().await?;
        }
        let mut from = Position(0);
        let (mut round, mut round_end) = (0, Position(0));
        let next = loop {
            self.room().await?;
            let (mut entries, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
            {
                let mut state = self.node.state_mut();
                let next = state.held.as_ref().map_or(Position(0), |held| held.log.next());
                if from >= round_end {
                    (round, round_end) = (round + 1, next);
                }
                let nearly = next.0 - from.0.min(next.0) <= NEARLY_ALL || round > ROUNDS_MAX;
                state.solo.frozen |= nearly;
                while let Some(held) = &state.held
                    && let Some((position, entry)) = held.log.next_entry(from, next)
                {
                    // The copier gave its own log up: there is no other copy.
                    if !held.log.is_readable(position) {
                        state.give_up(position);
                        if let Some(reason) = state.fatal.clone() {
                            return Err(reason);
                        }
                        continue;
                    }
                    let full = bytes + entry.bytes.len() > COPY_BYTES_MAX
                        || entries.len() == COPY_ENTRIES_MAX;
                    if full && !entries.is_empty() {
                        break;
                    }
                    entries.push(peer_entry(position, entry));
                    bytes += entry.bytes.len();
                    parts.push(entry.bytes.clone());
                    from = Position(position.0 + 1);
                }
            }
            if entries.is_empty() {
                let mut state = self.node.state_mut();
                // Also when much came since the last entry, and is released by now.
                state.solo.frozen = true;
                break match &state.held {
                    Some(held) => held.log.next(),
                    None => Position(state.mirror.catalog + 1),
                };
            }
            self.say(&PeerMessage::CopyEntries { entries }, &parts)?;
        };
        self.say(&PeerMessage::CopyEnd { next }, &[])?;
        Ok(next)
    }

    async fn send_catalog(&self) -> Result<(), Ended> {
        let mut begin = true;
        loop {
            self.room().await?;
            let request = CatalogRequest::Dump { begin };
            begin = false;
            let asked = self.node.state_mut().catalog.ask_flow(request);
            match asked.wait().await {
                Some(CatalogReply::Dumped(Some(piece))) => {
                    let message = PeerMessage::CopyCatalog { last: false };
                    self.say(&message, &[Bytes::from(piece)])?;
                }
                Some(CatalogReply::Dumped(None)) => {
                    return self.say(&PeerMessage::CopyCatalog { last: true }, &[]);
                }
                _ => return Err("the catalog failed".to_owned()),
            }
        }
    }

    /// Copies the peer's log, and its catalog if that comes first.
    pub(super) async fn take(&self) -> Result<Log, Ended> {
        self.node.set_phase(Phase::Copying);
        reached(Point::CopyBegun);
        let (PeerMessage::CopyStart { log: id, catalog }, _) = self.word().await? else {
            return Err("the peer did not begin its copy".to_owned());
        };
        if catalog && let Err(reason) = self.take_catalog().await {
            let abandon = self.node.state_mut().catalog.ask_flow(CatalogRequest::RestoreAbandon);
            abandon.wait().await;
            return Err(reason);
        }
        let settings = self.node.state().settings.clone();
        let mut log = Log::new(id, Position(0), settings.log).advised(settings.advice);
        let next = loop {
            match self.word().await? {
                (PeerMessage::CopyEntries { entries }, mut payload) => {
                    insert_entries(&mut log, &entries, &mut payload, Release::AtOnce)?;
                }
                (PeerMessage::CopyEnd { next }, _) => break next,
                _ => return Err("the peer did not go on with its copy".to_owned()),
            }
        };
        let catalog = Position(self.node.state().mirror.catalog);
        log.finish_copy(next, catalog).map_err(|error| error.to_string())?;
        if catalog >= next {
            return Err("the catalog here is ahead of the peer's log".to_owned());
        }
        reached(Point::CopyTaken);
        Ok(log)
    }

    async fn take_catalog(&self) -> Result<(), Ended> {
        let ask = async |request| {
            let asked = self.node.state_mut().catalog.ask_flow(request);
            match asked.wait().await {
                Some(CatalogReply::Rejected(reason)) => Err(reason),
                Some(CatalogReply::Failed(reason)) => Err(reason),
                Some(reply) => Ok(reply),
                None => Err("the catalog failed".to_owned()),
            }
        };
        ask(CatalogRequest::RestoreBegin).await?;
        loop {
            let (PeerMessage::CopyCatalog { last }, mut payload) = self.word().await? else {
                return Err("the peer did not send its catalog".to_owned());
            };
            if !payload.is_empty() {
                let piece = payload.take_rest().to_vec();
                ask(CatalogRequest::RestorePiece(piece)).await?;
            }
            if last {
                break;
            }
        }
        let CatalogReply::Restored(position) = ask(CatalogRequest::RestoreFinish).await? else {
            return Err("the catalog failed".to_owned());
        };
        self.node.state_mut().mirror.catalog = position.0;
        Ok(())
    }
}
