//! A host core in the simulated world, against a scripted controller (`rig`) that is strict about what a
//! host core promises.

mod damage;
mod dedupe;
mod disk;
mod flash;
mod freeing;
mod full;
mod large;
mod leases;
mod memory;
mod order;
mod paging;
mod rig;
