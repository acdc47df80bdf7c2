//! What every daemon of ours does before and beside its work: arguments, its log, signals, its
//! parent's death, kernel locks, and what the machine gives it.
//!
//! | Module | Owns |
//! | --- | --- |
//! | [`daemon`] | the frame of `main`: arguments, log, limits; one fatal line and an exit code |
//! | [`arguments`] | `--config FILE`, `--help`, `--version` |
//! | [`log`] | lines on standard error, by `CLEAVE_LOG` |
//! | [`stop`] | SIGTERM and its like as a flag that wakes sleeping cores |
//! | [`parent`] | ending with the supervisor |
//! | [`lock`] | files locked by the kernel until the process is dead (C25) |
//! | [`crash_points`] | ending at a named place, for tests, by `CLEAVE_CRASH_POINT` |
//! | [`ask`] | questions from control threads to a core |
//! | [`machine`] | processors, cores to run on, limits of open files |
//!
//! Nothing here is in the path of an I/O. A crash leaves lock files, which are unlocked by it and
//! taken over by whoever comes next.

#![forbid(unsafe_code)]

pub mod arguments;
pub mod ask;
pub mod crash_points;
pub mod daemon;
pub mod lock;
pub mod log;
pub mod machine;
pub mod parent;
pub mod stop;
