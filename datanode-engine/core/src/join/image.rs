//! The image of the log at start, in the vault, or on the drives to which this controller wrote when it was alone: whether it
//! is valid, loading it, and its end (C7, C12).

use crate::log::Log;
use crate::node::Node;
use crate::notices::{Notice, VaultImage};
use crate::roles;
use crate::solo;
use crate::state::{Held, Phase};
use crate::vault;
use cleave_format::ids::{Incarnation, Position};
use cleave_format::solo::SessionIdentity;
use cleave_format::vault::VaultState;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::drives::DriveIo;
use cleave_runtime::planted::{Planted, is_planted};
use std::rc::Rc;

impl Node {
    /// Loads the vault's image if it is still valid (C7), and no log is held or the one that is held does not
    /// count: a copy of which this process was not made a member before the active was gone.
    pub(crate) async fn load_image(&self) -> Result<(), String> {
        if self.state().held.is_some() && !matches!(self.phase(), Phase::NoLog(_)) {
            return Ok(());
        }
        if !self.load_vault().await? {
            self.load_session().await?;
        }
        Ok(())
    }

    /// True when the vault's image is loaded.
    async fn load_vault(&self) -> Result<bool, String> {
        let io = self.vault_io();
        let identity = self.vault_identity();
        let header = match vault::read_header(&io, &identity).await {
            Ok(header) => header.filter(|header| header.state == VaultState::Image),
            Err(error @ (vault::VaultError::Foreign { .. } | vault::VaultError::Drive(_))) => {
                return Err(error.to_string());
            }
            Err(error) => {
                tracing::error!("{error}");
                let reason = error.to_string();
                self.state_mut().notices.tell(Notice::VaultDamaged { reason });
                None
            }
        };
        let Some(header) = header else { return Ok(false) };
        let (store, datanode) = self.store();
        let recorded = roles::read(&store, datanode).await.map_err(|error| error.to_string())?;
        let image = header.identity;
        let valid = recorded.role.is_some_and(|(role, _)| {
            let by_member = role.is_in_sync(image.incarnation.0);
            role.log == image.log_id && (by_member || is_planted(Planted::LoadOldImage))
        });
        if !valid {
            tracing::info!("the vault's image is of an older role, and is not used");
            return Ok(false);
        }
        let (settings, catalog) = {
            let state = self.state();
            (state.settings.clone(), Position(state.mirror.catalog))
        };
        let began = self.executor().now();
        match vault::load(&io, &header, settings.log, settings.advice, catalog).await {
            Ok(log) => {
                let took = self.executor().now().since(began);
                let loaded = VaultImage { entries: log.len(), bytes: header.body_length, took };
                tracing::info!("loaded the log from the vault: {loaded}");
                reached(Point::VaultLoaded);
                let mut state = self.state_mut();
                state.notices.tell(Notice::VaultLoaded(loaded));
                state.mirror.effects = 0;
                state.held = Some(Held { log, member: image.incarnation });
                state.image = Some(header);
                Ok(true)
            }
            Err(error) => {
                tracing::error!("{error}");
                let reason = error.to_string();
                self.state_mut().notices.tell(Notice::VaultDamaged { reason });
                Ok(false)
            }
        }
    }

    /// Loads the log from the drives, if the record says that this controller's process before was alone, and has it there.
    async fn load_session(&self) -> Result<(), String> {
        let (store, datanode) = self.store();
        let recorded = roles::read(&store, datanode).await.map_err(|error| error.to_string())?;
        let Some((role, _)) = recorded.role else { return Ok(()) };
        let (Some(solo), [member]) = (&role.solo, role.in_sync.as_slice()) else { return Ok(()) };
        let (settings, catalog, sources) = {
            let state = self.state();
            // Only this controller's own: the other one may be alive, and acknowledge.
            if member.controller != state.settings.controller {
                return Ok(());
            }
            let Some(pool) = &state.pool else { return Ok(()) };
            let named = pool.opened().filter(|(drive, ..)| solo.drives.contains(&drive.0));
            let sources = named.map(|(_, _, open)| {
                let area = open.superblock.solo_area(member.controller, solo.part);
                (DriveIo::new(Rc::clone(&open.drive)), area)
            });
            let sources: Vec<_> = sources.collect();
            (state.settings.clone(), Position(state.mirror.catalog), sources)
        };
        let identity = SessionIdentity {
            cluster: settings.cluster,
            datanode: settings.datanode,
            log: role.log,
            incarnation: Incarnation(member.incarnation),
            session: solo.session,
        };
        self.read_from(sources.iter().map(|(io, _)| io.clone()).collect());
        let empty = Log::new(role.log, Position(0), settings.log).advised(settings.advice);
        let loaded = solo::load(&sources, &identity, empty, catalog).await;
        self.read_from(Vec::new());
        match loaded {
            Ok(log) => {
                tracing::info!(
                    "loaded the log from drives {:?}: {} entries",
                    solo.drives,
                    log.len()
                );
                reached(Point::SoloLoaded);
                let mut state = self.state_mut();
                let (drives, entries) = (solo.drives.clone(), log.len());
                state.notices.tell(Notice::LogLoaded { drives, entries });
                state.mirror.effects = 0;
                state.solo.part = 1 - solo.part.min(1);
                state.held = Some(Held { log, member: identity.incarnation });
            }
            Err(reason) => {
                tracing::error!(
                    "the log of this controller, which was alone, cannot be read from drives {:?}: {reason}",
                    solo.drives
                );
                let (drives, reason) = (solo.drives.clone(), reason.to_string());
                self.state_mut().notices.tell(Notice::LogUnreadable { drives, reason });
            }
        }
        Ok(())
    }

    /// Marks the image that was loaded as consumed, now that the record has ended it.
    pub(super) async fn consume_image(&self) {
        let image = self.state_mut().image.take();
        if let Some(header) = image
            && !is_planted(Planted::LoadOldImage)
            && let Err(error) = vault::consume(&self.vault_io(), &header).await
        {
            tracing::warn!("the vault's image is void, but could not be marked: {error}");
        }
    }
}
