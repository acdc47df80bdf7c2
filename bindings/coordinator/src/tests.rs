//! One suite for every way to a store, run over the direct store and over the socket.

mod conformance;
mod faults;
mod sockets;
mod world;
