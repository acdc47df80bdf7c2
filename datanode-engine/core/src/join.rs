//! How the controllers meet: the standby dials; both say what they have; the active decides who
//! copies; the copy; the compare-and-swap that makes both members (C7); then the mirror runs.
//!
//! One flow a controller, one meeting at a time. A connection that breaks ends the meeting, and the next
//! one begins anew: whatever a crash or a break leaves, [`decide`](crate::mirror::decide) sees it from
//! the record, the logs and the images. A copier gives its old log up when it begins to copy, which
//! happens only when that log is of no use any more, or still stands in its vault. What was copied counts
//! (is reported as held) when it is complete, and is relied on once both are members.

use crate::catalog_port::{CatalogReply, CatalogRequest};
use crate::grants::Grants;
use crate::log::Log;
use crate::mirror::{Plan, Standing, decide};
use crate::node::Node;
use crate::resident::Resident;
use crate::roles::{self, Recorded};
use crate::state::{Active, Held, PeerInput, Phase, insert_entries, peer_entry};
use crate::vault;
use bytes::Bytes;
use cleave_format::control::Control;
use cleave_format::ids::{Epoch, Position};
use cleave_format::vault::VaultState;
use cleave_runtime::links::ConnectionId;
use cleave_runtime::message::Message;
use cleave_runtime::sync::Queue;
use cleave_wire::{Decision, PeerHello, PeerMessage, WIRE_VERSION};
use slab::Slab;
use std::collections::VecDeque;
use std::time::Duration;

/// Bytes of entries in one message of a copy, but for a longer entry alone.
const COPY_BYTES_MAX: usize = 1 << 20;
/// Entries in one message of a copy.
const COPY_ENTRIES_MAX: usize = 4096;
/// Bytes queued on the link beyond which a copy waits.
const COPY_QUEUED_MAX: usize = 8 << 20;
/// How long a peer may keep the other waiting for its next word in a meeting.
const WORD_TIME_MAX: Duration = Duration::from_secs(30);
/// The standby dials again after this.
const DIAL_AGAIN: Duration = Duration::from_millis(100);
/// After a meeting without a log, and while there is none, the standby dials again after this.
const DIAL_AGAIN_WITHOUT_LOG: Duration = Duration::from_millis(500);

/// Why a meeting ended.
type Ended = String;

/// One connection's meeting.
pub(crate) struct Meeting {
    node: Node,
    connection: ConnectionId,
    inbox: Queue<PeerInput>,
}

/// The active's flow: meets whoever the peer is.
pub(crate) async fn active(node: Node, accepted: Queue<(ConnectionId, Queue<PeerInput>)>) {
    if let Err(reason) = node.load_image().await {
        node.fail(reason);
        return;
    }
    loop {
        let (connection, inbox) = accepted.pop().await;
        let meeting = Meeting { node: node.clone(), connection, inbox };
        if !meeting.is_current() {
            continue;
        }
        node.set_phase(Phase::Meeting);
        let ended = match meeting.lead().await {
            Ok(()) => meeting.until_closed().await,
            Err(reason) => reason,
        };
        meeting.end(&ended);
    }
}

/// The standby's flow: dials until it is stopped.
pub(crate) async fn standby(node: Node) {
    loop {
        // An image may have been given up for a copy that was cut short.
        if let Err(reason) = node.load_image().await {
            node.fail(reason);
            return;
        }
        let Some((connection, inbox)) = node.dial() else { return };
        let meeting = Meeting { node: node.clone(), connection, inbox };
        let ended = match meeting.follow().await {
            Ok(()) => meeting.until_closed().await,
            Err(reason) => reason,
        };
        meeting.end(&ended);
        let without = matches!(node.phase(), Phase::NoLog(_));
        let pause = if without { DIAL_AGAIN_WITHOUT_LOG } else { DIAL_AGAIN };
        node.executor().sleep(pause).await;
    }
}

impl Meeting {
    fn is_current(&self) -> bool {
        let state = self.node.state();
        state.peer.as_ref().is_some_and(|peer| peer.connection == self.connection)
    }

    fn check_current(&self) -> Result<(), Ended> {
        if self.is_current() { Ok(()) } else { Err("the connection is gone".to_owned()) }
    }

    fn end(&self, reason: &str) {
        if self.is_current() {
            tracing::info!("the connection to the peer ends: {reason}");
            self.node.links().close(self.connection, reason);
            self.node.peer_gone(self.connection, reason);
        }
    }

    async fn until_closed(&self) -> Ended {
        loop {
            if let PeerInput::Closed(reason) = self.inbox.pop().await {
                return reason;
            }
        }
    }

    async fn word(&self) -> Result<(PeerMessage, Message), Ended> {
        let executor = self.node.executor();
        match executor.timeout(WORD_TIME_MAX, self.inbox.pop()).await {
            Some(PeerInput::Message(message, payload)) => Ok((message, payload)),
            Some(PeerInput::Closed(reason)) => Err(reason),
            None => Err("the peer said nothing for too long".to_owned()),
        }
    }

    fn say(&self, message: &PeerMessage, payload: &[Bytes]) -> Result<(), Ended> {
        self.check_current()?;
        let sent = self.node.state().send_peer(message, payload);
        sent.map_err(|error| error.to_string())
    }

    fn say_hello(&self) -> Result<(), Ended> {
        let (standing, settings) = {
            let state = self.node.state();
            (state.standing(), state.settings.clone())
        };
        let hello = PeerHello {
            version: WIRE_VERSION,
            cluster: settings.cluster,
            datanode: settings.datanode,
            incarnation: standing.incarnation,
            log: standing.log,
            catalog: standing.catalog,
        };
        self.say(&PeerMessage::Hello(hello), &[])
    }

    /// The peer's hello; or why it is none of ours.
    async fn hear_hello(&self) -> Result<Result<Standing, String>, Ended> {
        let (PeerMessage::Hello(hello), _) = self.word().await? else {
            return Err("the peer did not say hello".to_owned());
        };
        let settings = self.node.state().settings.clone();
        if hello.version != WIRE_VERSION {
            return Ok(Err(format!("version {WIRE_VERSION} is spoken here")));
        }
        if (hello.cluster, hello.datanode) != (settings.cluster, settings.datanode) {
            return Ok(Err("this is another data node".to_owned()));
        }
        let PeerHello { incarnation, log, catalog, .. } = hello;
        Ok(Ok(Standing { incarnation, log, catalog }))
    }

    // ---- the active's side

    async fn lead(&self) -> Result<(), Ended> {
        let heard = self.hear_hello().await?;
        self.say_hello()?;
        let standby = match heard {
            Ok(standby) => standby,
            Err(reason) => {
                self.say(&PeerMessage::Decision(Decision::Refuse { reason: reason.clone() }), &[])?;
                return Err(format!("refused the peer: {reason}"));
            }
        };
        if self.resumes(&standby) {
            return self.resume(&standby);
        }
        let recorded = self.read_record().await?;
        self.check_current()?;
        let own = self.node.state().standing();
        let role = recorded.role.as_ref().map(|(role, _)| role);
        let plan = decide(role, recorded.start_empty, &own, &standby);
        tracing::info!("met the peer: {plan:?}");
        let next = match plan {
            Plan::Resume => return self.resume(&standby),
            Plan::StandbyCopies => self.give(&standby).await?,
            Plan::ActiveCopies => {
                self.say(&PeerMessage::Decision(Decision::ActiveCopies), &[])?;
                let log = self.take().await?;
                let next = log.next();
                self.install(log);
                self.say(&PeerMessage::CopyDone, &[])?;
                next
            }
            Plan::StartEmpty { catalog_from_standby } => {
                if catalog_from_standby {
                    self.say(&PeerMessage::Decision(Decision::ActiveCopies), &[])?;
                    self.take().await?;
                    self.say(&PeerMessage::CopyDone, &[])?;
                }
                let next = self.start_empty(&standby);
                if catalog_from_standby { next } else { self.give(&standby).await? }
            }
            Plan::NoLog => {
                let lost = self.lost(&recorded);
                self.node.set_phase(Phase::NoLog(lost));
                self.say(&PeerMessage::Decision(Decision::NoLog), &[])?;
                return Err(self.until_closed().await);
            }
        };
        self.join(&recorded, &standby, next).await
    }

    /// Whether both kept everything, by what is known without asking the store: only this
    /// controller changes the record.
    fn resumes(&self, standby: &Standing) -> bool {
        let state = self.node.state();
        let own = state.standing();
        let role = state.role.as_ref();
        role.is_some_and(|role| decide(Some(role), false, &own, standby) == Plan::Resume)
    }

    fn resume(&self, standby: &Standing) -> Result<(), Ended> {
        let next = standby.log.map_or(Position(1), |held| held.next);
        self.say(&PeerMessage::Decision(Decision::Resume), &[])?;
        self.run_active(next)
    }

    async fn read_record(&self) -> Result<Recorded, Ended> {
        let (store, datanode) = self.node.store();
        roles::read(&store, datanode).await.map_err(|error| error.to_string())
    }

    /// An empty log of its own, after everything that either catalog knows.
    fn start_empty(&self, standby: &Standing) -> Position {
        let mut state = self.node.state_mut();
        let next = Position(state.mirror.catalog.max(standby.catalog.0) + 1);
        let log = Log::new(state.incarnation.0, next, state.settings.log);
        tracing::warn!("starting with an empty log {}, at position {next}", log.id());
        drop(state.held.take());
        state.mirror.effects = next.0 - 1;
        state.held = Some(Held { log, member: state.incarnation });
        next
    }

    /// What is lost when nobody has the log.
    fn lost(&self, recorded: &Recorded) -> String {
        let Some((role, _)) = &recorded.role else { return String::new() };
        let catalog = self.node.state().mirror.catalog;
        let text = format!(
            "neither controller holds log {} of role epoch {}, and there is no image of it: writes that were \
             acknowledged and not yet destaged are lost, unless hosts still hold them; the catalog reaches \
             position {catalog}; bring the controller back that has it, or order an empty log",
            role.log, role.epoch
        );
        if self.node.phase() != Phase::NoLog(text.clone()) {
            tracing::error!("{text}");
        }
        text
    }

    /// Makes both members, then runs.
    async fn join(
        &self,
        recorded: &Recorded,
        standby: &Standing,
        next: Position,
    ) -> Result<(), Ended> {
        let built = self.build_active().await?;
        self.check_current()?;
        let (store, datanode) = self.node.store();
        let (log, own) = {
            let state = self.node.state();
            let held = state.held.as_ref().expect("the log was copied, given or started");
            (held.log.id(), state.incarnation)
        };
        let joined = roles::join(&store, datanode, recorded, log, own, standby.incarnation).await;
        let Some(role) = joined.map_err(|error| error.to_string())? else {
            return Err("the record in the store changed meanwhile".to_owned());
        };
        {
            // Also when the connection is gone by now: the record says so, and the next meeting resumes by it.
            let mut state = self.node.state_mut();
            state.role = Some(role);
            if let Some(held) = &mut state.held {
                held.member = own;
            }
            if let Some((mut active, stripes)) = built {
                state.stripes = stripes;
                let drives = state.pool.take().expect("the drives are handed over once");
                active.take_drives(drives);
                state.active = Some(active);
                state.confirmed = true;
            }
        }
        self.check_current()?;
        self.run_active(next)?;
        self.node.consume_image().await;
        Ok(())
    }

    /// What an active controller keeps resident, unless it has that already: from the catalog, and the control
    /// entries of the log beyond it.
    async fn build_active(&self) -> Result<Option<(Active, u64)>, Ended> {
        if self.node.state().active.is_some() {
            return Ok(None);
        }
        let asked = self.node.state_mut().catalog.ask_flow(CatalogRequest::Resident);
        let Some(CatalogReply::Resident(catalog)) = asked.wait().await else {
            return Err("the catalog failed".to_owned());
        };
        let mut state = self.node.state_mut();
        let mut resident = Resident::load(&catalog);
        let mut grants = Grants::default();
        let pool = state.pool.as_mut().ok_or("the drives are gone")?;
        for (drive, row) in &catalog.drives {
            pool.set_state(*drive, row.state, row.generation);
        }
        for (drive, _, slots, _) in pool.states() {
            grants.allocator.add_drive(drive, slots);
        }
        for (drive, used) in &catalog.used {
            grants.allocator.mark_all(*drive, used);
        }
        grants.load(catalog.newest_stripe, catalog.grants.clone());
        let mut active = Active {
            resident: Resident::default(),
            grants,
            drives: crate::drives::Drives::new(state.settings.cluster, Vec::new()),
            requests: Slab::new(),
            acks: VecDeque::new(),
            replies: VecDeque::new(),
            deferred: VecDeque::new(),
            quota: state.settings.log.record_bytes_max / 4 * 3,
        };
        let mut stripes = catalog.stripes;
        let state = &mut *state;
        let held = state.held.as_ref().ok_or("the log is gone")?;
        let mut after = catalog.applied;
        while let Some((position, control)) = held.log.next_control(after, held.log.next()) {
            after = position;
            resident.apply(position, &control);
            match &control {
                Control::Grant { incarnation, stripes } => {
                    active.grants.replay(*incarnation, stripes);
                }
                Control::Drive { drive, state: drive_state, generation } => {
                    let pool = state.pool.as_mut().expect("looked at before");
                    pool.set_state(*drive, *drive_state, *generation);
                }
                Control::Commit(commit) => stripes += u64::from(!commit.slots.is_empty()),
                _ => {}
            }
            std::mem::swap(&mut active.resident, &mut resident);
            active.effect(&control);
            std::mem::swap(&mut active.resident, &mut resident);
        }
        active.resident = resident;
        Ok(Some((active, stripes)))
    }

    /// The mirror runs from here on: everything before `next` is held by both.
    fn run_active(&self, next: Position) -> Result<(), Ended> {
        {
            let state = self.node.state();
            let role = state.role.as_ref().expect("joined or resumed by a record");
            let (epoch, log) = (Epoch(role.epoch), role.log);
            drop(state);
            self.say(&PeerMessage::Joined { epoch, log, next }, &[])?;
        }
        let mut state = self.node.state_mut();
        state.mirror.forwarded = next.0 - 1;
        state.mirror.mirrored = next.0 - 1;
        state.mirror.peer_catalog = 0;
        state.phase = Phase::Mirrored;
        let peer = state.peer.as_mut().ok_or("the connection is gone")?;
        peer.joined = true;
        state.advance_effects(next_before(next));
        drop(state);
        self.drain();
        Ok(())
    }

    // ---- the standby's side

    async fn follow(&self) -> Result<(), Ended> {
        self.say_hello()?;
        let heard = self.hear_hello().await?;
        if let Err(reason) = heard {
            return Err(format!("this peer is none: {reason}"));
        }
        let active = heard.expect("looked at before");
        let (PeerMessage::Decision(decision), _) = self.word().await? else {
            return Err("the peer did not decide".to_owned());
        };
        tracing::info!("met the peer: {decision:?}");
        match decision {
            Decision::Resume => {}
            Decision::StandbyCopies => {
                drop(self.node.state_mut().held.take());
                let log = self.take().await?;
                self.install(log);
                self.say(&PeerMessage::CopyDone, &[])?;
            }
            Decision::ActiveCopies => {
                self.send_copy(&active).await?;
                self.hear_done().await?;
            }
            Decision::NoLog => {
                let lost =
                    "neither controller holds the log, and there is no image of it".to_owned();
                self.node.set_phase(Phase::NoLog(lost));
                return Err("there is no log".to_owned());
            }
            Decision::Refuse { reason } => return Err(format!("refused by the peer: {reason}")),
        }
        let (PeerMessage::Joined { epoch, log, next }, _) = self.word().await? else {
            return Err("the peer did not join".to_owned());
        };
        self.run_standby(epoch, log, next)?;
        self.node.consume_image().await;
        Ok(())
    }

    fn run_standby(&self, epoch: Epoch, log: u64, next: Position) -> Result<(), Ended> {
        self.check_current()?;
        let mut state = self.node.state_mut();
        let own = state.incarnation;
        let same = state.held.as_ref().is_some_and(|held| held.log.id() == log);
        if !same {
            // Only the catalog was copied: the log begins empty on both sides.
            let log = Log::new(log, next, state.settings.log);
            state.held = Some(Held { log, member: own });
            state.mirror.effects = next.0 - 1;
        }
        let held = state.held.as_mut().expect("made sure before");
        if held.log.next() != next {
            return Err(format!("the peer goes on at {next}, not at {}", held.log.next()));
        }
        held.member = own;
        state.mirror.mirrored = next.0 - 1;
        state.mirror.answered = (u64::MAX, u64::MAX);
        state.confirmed = true;
        state.phase = Phase::Mirrored;
        state.epoch = epoch;
        state.peer.as_mut().expect("checked before").joined = true;
        state.advance_effects(next_before(next));
        drop(state);
        self.drain();
        Ok(())
    }

    // ---- both

    /// What arrived behind the last word of the meeting.
    fn drain(&self) {
        while let Some(input) = self.inbox.try_pop() {
            match input {
                PeerInput::Message(message, payload) => {
                    self.node.peer_message(self.connection, message, payload);
                }
                PeerInput::Closed(reason) => {
                    self.inbox.push(PeerInput::Closed(reason));
                    break;
                }
            }
        }
        self.node.state_mut().finish();
    }

    fn install(&self, log: Log) {
        let mut state = self.node.state_mut();
        let member = state.incarnation;
        // Effects of all control entries that were copied happen once both are members; those that
        // had happened change nothing.
        state.mirror.effects = 0;
        state.counters.copies += 1;
        state.held = Some(Held { log, member });
    }

    /// Active: the standby copies. Gives the position from which entries are forwarded.
    async fn give(&self, standby: &Standing) -> Result<Position, Ended> {
        self.say(&PeerMessage::Decision(Decision::StandbyCopies), &[])?;
        let next = self.send_copy(standby).await?;
        self.hear_done().await?;
        self.node.state_mut().counters.copies += 1;
        Ok(next)
    }

    async fn hear_done(&self) -> Result<(), Ended> {
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

    /// Sends the log, and the catalog if the copier's lacks more than the log has. While there is no
    /// mirror nothing leaves the log, so what is announced stays.
    async fn send_copy(&self, copier: &Standing) -> Result<Position, Ended> {
        self.node.set_phase(Phase::Copying);
        let (start, next) = {
            let state = self.node.state();
            match &state.held {
                Some(held) => {
                    let catalog = copier.catalog < held.log.trimmed();
                    let (log, next, entries) = (held.log.id(), held.log.next(), held.log.len());
                    (PeerMessage::CopyStart { log, next, entries, catalog }, next)
                }
                None => {
                    let next = Position(state.mirror.catalog + 1);
                    (PeerMessage::CopyStart { log: 0, next, entries: 0, catalog: true }, next)
                }
            }
        };
        self.say(&start, &[])?;
        if matches!(start, PeerMessage::CopyStart { catalog: true, .. }) {
            self.send_catalog().await?;
        }
        let mut from = Position(0);
        loop {
            self.room().await?;
            let (mut entries, mut parts, mut bytes) = (Vec::new(), Vec::new(), 0);
            {
                let state = self.node.state();
                let Some(held) = &state.held else { break };
                while let Some((position, entry)) = held.log.next_entry(from, next) {
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
                break;
            }
            self.say(&PeerMessage::CopyEntries { entries }, &parts)?;
        }
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
    async fn take(&self) -> Result<Log, Ended> {
        self.node.set_phase(Phase::Copying);
        let (PeerMessage::CopyStart { log: id, next, mut entries, catalog }, _) =
            self.word().await?
        else {
            return Err("the peer did not begin its copy".to_owned());
        };
        if catalog && let Err(reason) = self.take_catalog().await {
            let abandon = self.node.state_mut().catalog.ask_flow(CatalogRequest::RestoreAbandon);
            abandon.wait().await;
            return Err(reason);
        }
        let settings = self.node.state().settings.log;
        let mut log = Log::new(id, Position(0), settings);
        while entries > 0 {
            let (PeerMessage::CopyEntries { entries: batch }, mut payload) = self.word().await?
            else {
                return Err("the peer did not go on with its copy".to_owned());
            };
            entries = entries
                .checked_sub(batch.len() as u64)
                .filter(|_| !batch.is_empty())
                .ok_or("the peer sent more entries than it said")?;
            insert_entries(&mut log, &batch, &mut payload)?;
        }
        let catalog = Position(self.node.state().mirror.catalog);
        log.finish_copy(next, catalog).map_err(|error| error.to_string())?;
        if catalog >= next {
            return Err("the catalog here is ahead of the peer's log".to_owned());
        }
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

fn next_before(next: Position) -> Position {
    Position(next.0.saturating_sub(1))
}

impl Node {
    /// Loads the vault's image if no log is held and the image is still valid (C7).
    pub(crate) async fn load_image(&self) -> Result<(), String> {
        if self.state().held.is_some() {
            return Ok(());
        }
        let io = self.vault_io();
        let identity = self.vault_identity();
        let header = match vault::read_header(&io, &identity).await {
            Ok(header) => header.filter(|header| header.state == VaultState::Image),
            Err(error @ (vault::VaultError::Foreign { .. } | vault::VaultError::Drive(_))) => {
                return Err(error.to_string());
            }
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        };
        let Some(header) = header else { return Ok(()) };
        let (store, datanode) = self.store();
        let recorded = roles::read(&store, datanode).await.map_err(|error| error.to_string())?;
        let image = header.identity;
        let valid = recorded.role.is_some_and(|(role, _)| {
            role.log == image.log_id && role.is_in_sync(image.incarnation.0)
        });
        if !valid {
            tracing::info!("the vault's image is of an older role, and is not used");
            return Ok(());
        }
        let (settings, catalog) = {
            let state = self.state();
            (state.settings.log, Position(state.mirror.catalog))
        };
        match vault::load(&io, &header, settings, catalog).await {
            Ok(log) => {
                tracing::info!("loaded the log from the vault: {} entries", log.len());
                let mut state = self.state_mut();
                state.mirror.effects = 0;
                state.held = Some(Held { log, member: image.incarnation });
                state.image = Some(header);
            }
            Err(error) => tracing::error!("{error}"),
        }
        Ok(())
    }

    /// Marks the image that was loaded as consumed, now that the record has ended it.
    async fn consume_image(&self) {
        let image = self.state_mut().image.take();
        if let Some(header) = image
            && let Err(error) = vault::consume(&self.vault_io(), &header).await
        {
            tracing::warn!("the vault's image is void, but could not be marked: {error}");
        }
    }
}
