//! Logs and features of a controller.

use super::Controller;
use crate::error::Error;
use crate::spec::command::Command;
use crate::spec::feature;
use crate::spec::log::{self, ErrorEntry, FirmwareSlots, Health};

/// All namespaces, for logs of the whole controller.
const WHOLE: u32 = u32::MAX;

impl Controller {
    async fn log(&self, what: &'static str, page: u8, bytes: u32) -> Result<Vec<u8>, Error> {
        // Events are allowed again only by the keeper, which asked for them (RAE).
        let command = Command::get_log_page(page, WHOLE, bytes, true);
        self.inner.fetch(what, command, bytes as usize).await
    }

    /// The health page.
    ///
    /// # Errors
    /// The controller refuses, or is reset meanwhile.
    pub async fn health(&self) -> Result<Health, Error> {
        let page = self.log("read the health log", log::HEALTH, log::PAGE_BYTES).await?;
        Ok(Health::parse(&page.try_into().expect("as many bytes as were asked for")))
    }

    /// The latest entries of the error log, at most 64.
    ///
    /// # Errors
    /// As for [`health`](Controller::health).
    pub async fn errors(&self) -> Result<Vec<ErrorEntry>, Error> {
        let held = self.identity().map_or(1, |identity| identity.error_log_entries);
        let bytes = u32::from(held.min(64)) * log::ERROR_ENTRY_BYTES;
        let page = self.log("read the error log", log::ERROR_INFORMATION, bytes).await?;
        let entries = page.as_chunks().0;
        Ok(entries.iter().filter_map(ErrorEntry::parse).collect())
    }

    /// The firmware slots.
    ///
    /// # Errors
    /// As for [`health`](Controller::health).
    pub async fn firmware(&self) -> Result<FirmwareSlots, Error> {
        let page = self.log("read the firmware log", log::FIRMWARE_SLOTS, log::PAGE_BYTES).await?;
        Ok(FirmwareSlots::parse(&page.try_into().expect("as many bytes as were asked for")))
    }

    /// A feature's current value (see [`feature`]); `selector` is dword 11 of the command.
    ///
    /// # Errors
    /// As for [`health`](Controller::health).
    pub async fn get_feature(&self, feature: u8, selector: u32) -> Result<u32, Error> {
        let command = Command::get_features(feature, selector);
        Ok(self.inner.execute("read a feature", command, None).await?.0)
    }

    /// Sets a feature until the next reset.
    ///
    /// # Errors
    /// As for [`health`](Controller::health).
    pub async fn set_feature(&self, feature: u8, value: u32) -> Result<(), Error> {
        let command = Command::set_features(feature, value);
        self.inner.execute("set a feature", command, None).await.map(|_| ())
    }

    /// Turns the volatile write cache on or off.
    ///
    /// # Errors
    /// As for [`health`](Controller::health).
    pub async fn set_write_cache(&self, on: bool) -> Result<(), Error> {
        self.set_feature(feature::VOLATILE_WRITE_CACHE, u32::from(on)).await
    }

    /// Above this composite temperature, in kelvins, the controller reports its health.
    ///
    /// # Errors
    /// As for [`health`](Controller::health).
    pub async fn set_temperature_threshold(&self, kelvins: u16) -> Result<(), Error> {
        self.set_feature(feature::TEMPERATURE_THRESHOLD, u32::from(kelvins)).await
    }

    /// Puts the controller into a power state (Base 8.15.1); 0 is the most powerful.
    ///
    /// # Errors
    /// As for [`health`](Controller::health); also when it has no such state.
    pub async fn set_power_state(&self, state: u8) -> Result<(), Error> {
        let states = self.identity().map_or(1, |identity| identity.power_states);
        if state >= states || state > 31 {
            return Err(Error::Unsupported(format!("it has no power state {state}")));
        }
        self.set_feature(feature::POWER_MANAGEMENT, u32::from(state)).await
    }
}
