//! The vault's image at start: whether it is valid, loading it, and its end (C7).

use crate::node::Node;
use crate::roles;
use crate::state::{Held, Phase};
use crate::vault;
use cleave_format::ids::Position;
use cleave_format::vault::VaultState;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::planted::{Planted, is_planted};

impl Node {
    /// Loads the vault's image if it is still valid (C7), and no log is held or the one that is held does not
    /// count: a copy of which this process was not made a member before the active was gone.
    pub(crate) async fn load_image(&self) -> Result<(), String> {
        if self.state().held.is_some() && !matches!(self.phase(), Phase::NoLog(_)) {
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
            let by_member = role.is_in_sync(image.incarnation.0);
            role.log == image.log_id && (by_member || is_planted(Planted::LoadOldImage))
        });
        if !valid {
            tracing::info!("the vault's image is of an older role, and is not used");
            return Ok(());
        }
        let (settings, catalog) = {
            let state = self.state();
            (state.settings.clone(), Position(state.mirror.catalog))
        };
        match vault::load(&io, &header, settings.log, settings.advice, catalog).await {
            Ok(log) => {
                tracing::info!("loaded the log from the vault: {} entries", log.len());
                reached(Point::VaultLoaded);
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
