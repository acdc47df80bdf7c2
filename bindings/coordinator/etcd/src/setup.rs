//! Preparing a fresh etcd: a user for everything below a prefix, root, and authentication switched on.
//!
//! Each step may be repeated, so a set-up that was cut short goes on where it stopped. Until authentication is on, only
//! the members' wish for certificates of the authority keeps others out.

use crate::config::{ConfigError, EtcdConfig};
use etcd_client::{Client, Error, Permission};
use std::time::{Duration, Instant};

/// Between two attempts to reach a member that is starting.
const AGAIN: Duration = Duration::from_millis(50);
/// How long one attempt may take.
const ATTEMPT: Duration = Duration::from_secs(5);
/// The role of the user.
const ROLE: &str = "cleave";
/// etcd's name of who may do everything, and of the role that says so.
const ROOT: &str = "root";

/// Why a set-up failed.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// What it should use.
    #[error("{0}")]
    Config(#[from] ConfigError),
    /// No member answered.
    #[error("etcd does not answer after {seconds} s: {reason}")]
    Away {
        /// How long was waited.
        seconds: u64,
        /// What it said the last time.
        reason: String,
    },
    /// A member refused.
    #[error("etcd refused to {what}: {reason}")]
    Refused {
        /// What it was asked.
        what: &'static str,
        /// What it said.
        reason: String,
    },
}

/// Waits for a member, and sees to it that `config`'s user can use everything below its prefix and nobody else anything,
/// except `root`. Blocks.
///
/// # Errors
/// No member answers within `patience`, or one refuses.
///
/// # Panics
/// When `config` names no user, or the system is out of files.
pub fn set_up(config: &EtcdConfig, root: &str, patience: Duration) -> Result<(), SetupError> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.expect("the system has files for a runtime").block_on(prepare(config, root, patience))
}

async fn prepare(config: &EtcdConfig, root: &str, patience: Duration) -> Result<(), SetupError> {
    let (user, password) = config.user.clone().expect("the caller names the user");
    let stranger = EtcdConfig { user: None, ..config.clone() };
    let begun = Instant::now();
    loop {
        // With authentication on, the user gets in; before, nobody is asked who he is.
        let known = match attempt(config).await {
            Ok(_) => return Ok(()),
            Err(reason) => reason,
        };
        match attempt(&stranger).await {
            Ok(client) => return create(client, &config.prefix, (&user, &password), root).await,
            Err(_) if begun.elapsed() < patience => tokio::time::sleep(AGAIN).await,
            Err(_) => {
                return Err(SetupError::Away { seconds: patience.as_secs(), reason: known });
            }
        }
    }
}

/// A connection over which a key could be read.
async fn attempt(config: &EtcdConfig) -> Result<Client, String> {
    let options = config.options().map_err(|error| error.to_string())?;
    let opening = async {
        let mut client = Client::connect(&config.endpoints, Some(options)).await?;
        client.get(config.prefix.as_str(), None).await?;
        Ok::<_, Error>(client)
    };
    match tokio::time::timeout(ATTEMPT, opening).await {
        Ok(opened) => opened.map_err(|error| error.to_string()),
        Err(_) => Err("it does not answer".to_owned()),
    }
}

async fn create(
    mut client: Client,
    prefix: &str,
    (user, password): (&str, &str),
    root: &str,
) -> Result<(), SetupError> {
    let everything = Permission::read_write(prefix).with_prefix();
    done("add the user root", client.user_add(ROOT, root, None).await)?;
    done("add the role root", client.role_add(ROOT).await)?;
    done("make root what it is", client.user_grant_role(ROOT, ROOT).await)?;
    done("add a role", client.role_add(ROLE).await)?;
    done("let a role write", client.role_grant_permission(ROLE, everything).await)?;
    done("add a user", client.user_add(user, password, None).await)?;
    done("give a user its role", client.user_grant_role(user, ROLE).await)?;
    done("switch authentication on", client.auth_enable().await)
}

/// What exists already was made by a set-up that was cut short.
fn done<T>(what: &'static str, result: Result<T, Error>) -> Result<(), SetupError> {
    match result {
        Ok(_) => Ok(()),
        Err(Error::GRpcStatus(status)) if status.message().contains("already exists") => Ok(()),
        Err(error) => Err(SetupError::Refused { what, reason: error.to_string() }),
    }
}
