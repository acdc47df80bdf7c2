//! `cleave-fuzz-guided`: libFuzzer around the target that `CLEAVE_FUZZ_TARGET` names. Its arguments are
//! libFuzzer's; `scripts/fuzz.sh` gives them.

#![no_main]

use cleave_fuzz::{TARGETS, Target};
use libfuzzer_sys::fuzz_target;
use std::sync::OnceLock;

fn target() -> &'static Target {
    static TARGET: OnceLock<&'static Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let name = std::env::var("CLEAVE_FUZZ_TARGET").unwrap_or_default();
        let found = TARGETS.iter().find(|target| target.name == name);
        found.unwrap_or_else(|| panic!("CLEAVE_FUZZ_TARGET={name} names no target"))
    })
}

fuzz_target!(|data: &[u8]| (target().run)(data));
