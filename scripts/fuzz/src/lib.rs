//! Fuzzing: everything that reads bytes which somebody else may have made.
//!
//! A [`Target`] is a plain function over bytes. It returns for every input, or panics, and a panic is a bug: of
//! the code under test, or of what the target says about it (most say that what was accepted is encoded
//! to the same bytes again). Targets keep nothing from one input to the next.
//!
//! Three things run them. `cargo test` replays every file of `corpus/TARGET/`. The program `cleave-fuzz`
//! mutates the corpora at random, on any toolchain. The program `cleave-fuzz-guided` is
//! libFuzzer, led by coverage. `scripts/fuzz.sh MINUTES` chooses between the last two.
//!
//! An input that broke something becomes a file of the corpus, and with the fix a test in the crate at fault.
//! A crash in the middle leaves the input in `target/fuzz/crashes/`.

pub mod corpus;
pub mod input;
pub mod mutate;
pub mod targets;

pub use targets::{TARGETS, Target};
