//! A host core in the simulated world, against a scripted controller (`rig`) that is strict about what a
//! host core promises.

mod disk;
mod full;
mod memory;
mod order;
mod rig;
