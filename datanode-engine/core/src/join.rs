//! How the controllers meet: controller 1 dials; both say what they have; both come to the same leader, which is active
//! from then on; it decides who copies; the copy; the compare-and-swap that makes both members (C7); then the mirror
//! runs. While the peer is away, the role may change (`role`).
//!
//! One flow a controller, one meeting at a time, and no change of the role during one but its own. A connection that
//! breaks ends the meeting, and the next one begins anew: whatever a crash or a break leaves,
//! [`leader`](crate::mirror::leader) and [`decide`](crate::mirror::decide) see it from the record, the logs and the
//! images. A copier gives its old log up when it begins to copy, which happens only when that log is of no use any
//! more, or still stands in its vault. What was copied counts (is reported as held) when it is complete, and is relied
//! on once both are members.

mod alone;
mod copy;
mod follow;
mod image;
mod lead;
mod role;
mod switch;

pub(crate) use switch::SwitchOver;

use crate::log::Log;
use crate::mirror::{Leader, Standing, leader};
use crate::node::Node;
use crate::roles;
use crate::state::{Held, PeerInput, Phase};
use bytes::Bytes;
use cleave_format::ids::Position;
use cleave_runtime::executor::Priority;
use cleave_runtime::links::ConnectionId;
use cleave_runtime::message::Message;
use cleave_runtime::sync::Queue;
use cleave_wire::{Decision, PeerHello, PeerMessage, WIRE_VERSION};
use std::time::Duration;

/// How long a peer may keep the other waiting for its next word in a meeting.
const WORD_TIME_MAX: Duration = Duration::from_secs(30);
/// A former active controller that learns of its successor may take so long to step down.
const STEPPED_DOWN: Duration = Duration::from_millis(200);
/// Controller 1 dials again after this.
const DIAL_AGAIN: Duration = Duration::from_millis(100);
/// After a meeting without a log, and while there is none, it dials again after this.
const DIAL_AGAIN_WITHOUT_LOG: Duration = Duration::from_millis(500);
/// While the role moves by an order (`switch`).
const DIAL_AGAIN_AT_ONCE: Duration = Duration::from_millis(2);
/// Without a peer, what the store says about the role is looked at this often.
const LOOK: Duration = Duration::from_millis(100);

/// Why a meeting ended.
type Ended = String;

/// One connection's meeting.
pub(crate) struct Meeting {
    node: Node,
    connection: ConnectionId,
    inbox: Queue<PeerInput>,
}

/// A controller's flow: fences its predecessors (C7), then meets the peer whenever it is there, until it is stopped.
pub(crate) async fn run(node: Node, accepted: Queue<(ConnectionId, Queue<PeerInput>)>) {
    let (store, datanode) = node.store();
    if let Err(error) = roles::fence(&store, datanode).await {
        node.fail(format!("the role's epoch could not be raised: {error}"));
        return;
    }
    node.executor().spawn(Priority::Foreground, role::watch(node.clone()));
    node.executor().spawn(Priority::Foreground, alone::run(node.clone()));
    let dials = node.state().settings.controller == 1;
    let mut image = true;
    loop {
        // An image may have been given up for a copy that was cut short.
        if image && let Err(reason) = node.load_image().await {
            node.fail(reason);
            return;
        }
        let next = match dials {
            true => node.dial(),
            false => node.executor().timeout(LOOK, accepted.pop()).await,
        };
        image = next.is_some();
        if let Some((connection, inbox)) = next {
            let meeting = Meeting { node: node.clone(), connection, inbox };
            if meeting.is_current() {
                let ended = match meeting.meet().await {
                    Ok(()) => meeting.until_closed().await,
                    Err(reason) => reason,
                };
                meeting.end(&ended);
                node.state_mut().solo.met_in_vain();
            }
        }
        if node.state().stopping {
            return;
        }
        node.look_at_role().await;
        if dials {
            let without = matches!(node.phase(), Phase::NoLog(_));
            let pause = match without {
                _ if node.state().hurries() => DIAL_AGAIN_AT_ONCE,
                true => DIAL_AGAIN_WITHOUT_LOG,
                false => DIAL_AGAIN,
            };
            node.executor().sleep(pause).await;
        }
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

    async fn meet(&self) -> Result<(), Ended> {
        let own = self.say_hello()?;
        let peer = match self.hear_hello().await? {
            Ok(peer) => peer,
            Err(reason) => {
                self.say(&PeerMessage::Decision(Decision::Refuse { reason: reason.clone() }), &[])?;
                return Err(format!("refused the peer: {reason}"));
            }
        };
        let controller = self.node.state().settings.controller;
        match leader(controller, &own, &peer) {
            Leader::This => {
                self.node.set_phase(Phase::Meeting);
                self.lead(&peer).await
            }
            Leader::Peer => {
                self.node.set_phase(Phase::Meeting);
                self.follow(&peer).await
            }
            Leader::ThisAlone => {
                // It ends the connection once it did. Ending it here would take away what was said before it is heard.
                self.node.executor().timeout(STEPPED_DOWN, self.until_closed()).await;
                Err("the peer has to step down first".to_owned())
            }
            Leader::PeerAlone(origin) => {
                self.node.step_down(origin).await;
                Err("the peer is active now".to_owned())
            }
        }
    }

    fn say_hello(&self) -> Result<Standing, Ended> {
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
            serves: standing.serves,
            able: standing.able,
        };
        self.say(&PeerMessage::Hello(hello), &[])?;
        Ok(standing)
    }

    /// The peer's hello; or why it is none of ours. While it is waited for, the role may change, which ends the meeting:
    /// what was said is not so any more.
    async fn hear_hello(&self) -> Result<Result<Standing, String>, Ended> {
        let executor = self.node.executor();
        let limit = executor.now() + WORD_TIME_MAX;
        let input = loop {
            match executor.timeout(LOOK, self.inbox.pop()).await {
                Some(input) => break input,
                None if self.node.look_at_role().await => return Err("the role changed".to_owned()),
                None if executor.now() >= limit => {
                    return Err("the peer said nothing for too long".to_owned());
                }
                None => {}
            }
        };
        let message = match input {
            PeerInput::Message(message, _) => message,
            PeerInput::Closed(reason) => return Err(reason),
        };
        let PeerMessage::Hello(hello) = message else {
            return Err("the peer did not say hello".to_owned());
        };
        let settings = self.node.state().settings.clone();
        if hello.version != WIRE_VERSION {
            return Ok(Err(format!("version {WIRE_VERSION} is spoken here")));
        }
        if (hello.cluster, hello.datanode) != (settings.cluster, settings.datanode) {
            return Ok(Err("this is another data node".to_owned()));
        }
        let PeerHello { incarnation, log, catalog, serves, able, .. } = hello;
        Ok(Ok(Standing { incarnation, log, catalog, serves, able }))
    }

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
}

fn next_before(next: Position) -> Position {
    Position(next.0.saturating_sub(1))
}
