//! Hash maps whose order follows from the keys alone, so that simulated runs repeat.

pub use cleave_runtime::hash::Mixer;
use std::hash::BuildHasherDefault;

/// A hash map that behaves the same in every run.
pub type Map<K, V> = hashbrown::HashMap<K, V, BuildHasherDefault<Mixer>>;
