//! The controller of a data node: the mirrored log, roles, grants, drives; state machines and
//! flows over the runtime's contracts, the same under the real reactor and in the simulator.
#![forbid(unsafe_code)]

pub mod log;
