//! Opening the store that an engine's configuration names, whichever it is.

use crate::config::{ConfigError, EtcdConfig};
use crate::store::EtcdStore;
use cleave_control::config::StorePlace;
use cleave_coordinator::{SocketStore, Store};
use cleave_runtime::executor::Doorbell;
use std::rc::Rc;
use std::sync::Arc;

/// Why a store cannot be opened. That it does not answer is no reason.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The socket's client.
    #[error("cannot use the coordinator store at {place}: {error}")]
    Socket {
        /// Where.
        place: String,
        /// Why.
        error: std::io::Error,
    },
    /// The client of etcd.
    #[error("cannot use the coordinator store, etcd: {0}")]
    Etcd(#[from] ConfigError),
}

/// A client of the store at `place`, which need not be there yet. `doorbell` wakes the core that will poll.
///
/// # Errors
/// The place cannot be one, or a file of it cannot be read.
pub fn open(place: &StorePlace, doorbell: Arc<dyn Doorbell>) -> Result<Rc<dyn Store>, OpenError> {
    match place {
        StorePlace::Socket(path) => match SocketStore::new(path, doorbell) {
            Ok(store) => Ok(Rc::new(store)),
            Err(error) => Err(OpenError::Socket { place: place.to_string(), error }),
        },
        StorePlace::Etcd(access) => {
            Ok(Rc::new(EtcdStore::new(&EtcdConfig::of_access(access)?, doorbell)?))
        }
    }
}
