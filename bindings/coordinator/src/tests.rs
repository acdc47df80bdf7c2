//! The suite over the direct store and over the socket, and what is particular to them.

mod faults;
mod sockets;
mod world;

mod direct {
    crate::store_conformance!(super::world::Direct::new());
}

mod socket {
    crate::store_conformance!(super::world::Sockets::new());
}
