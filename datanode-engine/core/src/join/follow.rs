//! The follower's side of a meeting: it does what the leader decided.

use super::{Ended, Meeting, next_before};
use crate::log::Log;
use crate::mirror::Standing;
use crate::notices::Notice;
use crate::state::{Held, Phase};
use cleave_format::ids::{Epoch, Position};
use cleave_runtime::crash_points::{Point, reached};
use cleave_wire::{Decision, PeerMessage};

impl Meeting {
    pub(super) async fn follow(&self, active: &Standing) -> Result<(), Ended> {
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
                self.send_copy(active).await?;
                self.hear_done().await?;
            }
            Decision::NoLog => {
                let lost =
                    "neither controller holds the log, and there is no image of it".to_owned();
                self.node.log_lost(lost);
                return Err("there is no log".to_owned());
            }
            Decision::Refuse { reason } => return Err(format!("refused by the peer: {reason}")),
        }
        let (PeerMessage::Joined { epoch, log, next }, _) = self.word().await? else {
            return Err("the peer did not join".to_owned());
        };
        self.run_standby(epoch, log, next)?;
        reached(Point::Joined);
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
            let log = Log::new(log, next, state.settings.log).advised(state.settings.advice);
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
        state.notices.tell(Notice::Mirrored { active: false });
        state.epoch = epoch;
        state.peer.as_mut().expect("checked before").joined = true;
        state.advance_effects(next_before(next));
        drop(state);
        self.drain();
        Ok(())
    }
}
