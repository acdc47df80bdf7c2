//! What the command line, the supervisor and the engines agree on beside the I/O path.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`config`] | the engines' configuration files |
//! | [`events`] | what happened, for operators, in memory and in a file |
//! | [`status`] | the schema of `status` and `stats` (docs/STATUS.md) |
//! | [`flash`] | flash devices as people name them |
//! | [`histogram`] | latency percentiles, recorded without allocation |
//! | [`protocol`] | the control protocol: requests, responses, the asking side |
//! | [`server`] | the answering side |
//! | [`records`] | the namespace in the coordinator store |
//! | [`size`], [`names`] | sizes and names as people write them |
//! | [`key_file`] | encryption keys from files |

#![forbid(unsafe_code)]

pub mod config;
pub mod events;
pub mod flash;
pub mod histogram;
pub mod key_file;
pub mod names;
pub mod protocol;
pub mod records;
pub mod server;
pub mod size;
pub mod status;
