//! What the hosts' engines may use of the machine's processors, kept in the settings and in the engines' configurations, so
//! that their next start finds what was decided while they ran.

use crate::dev::directory::{Directory, write_private};
use crate::dev::settings::Settings;
use crate::error::{Result, file};
use cleave_control::config::HostConfig;
use std::io;

/// Keeps what an operator decided; what is `None` stays.
pub fn keep(directory: &Directory, insane: Option<bool>, cores: Option<u16>) -> Result<()> {
    let path = directory.settings();
    let missing = || file("read", &path)(io::Error::from(io::ErrorKind::NotFound));
    let mut settings = Settings::load(directory)?.ok_or_else(missing)?;
    settings.insane = insane.unwrap_or(settings.insane);
    settings.cores = cores.unwrap_or(settings.cores);
    settings.save(directory)?;
    for host in settings.host_names() {
        let path = directory.engine_config(host);
        let mut config = HostConfig::load(&path)?;
        (config.insane, config.cores) = (settings.insane, settings.cores);
        write_private(&path, config.to_toml().as_bytes())?;
    }
    Ok(())
}
