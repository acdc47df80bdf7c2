//! Rules about the tree itself, checked as tests: who may depend on whom, what pure crates may not
//! name, and that every `unsafe` says why it is sound.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`dependencies`] | the direction of dependencies that ARCHITECTURE.md draws |
//! | [`purity`] | what pure crates and engine cores may not name |
//! | [`unsafety`] | reasons beside `unsafe` |
//! | [`source`] | source text with comments, literals and test modules told apart |
//! | [`tree`] | the workspace's crates and their files |
//!
//! Each rule is a function from what it looks at to a list of findings, so that it can be tested with
//! what it must find; `tests/` applies them to the workspace.
#![forbid(unsafe_code)]

pub mod dependencies;
pub mod purity;
pub mod source;
pub mod tree;
pub mod unsafety;
