//! `guard`: instructions a block, counted by valgrind, against the recorded ones.
//!
//! Valgrind's processor has fewer instruction sets than the machine's, so the counts are not those
//! of production; but they are the same on every run, and a change of the code shows.

use crate::Failure;
use crate::kernels::Kernel;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

/// A count may be that much above the recorded one: compilers differ a little.
const TOLERANCE: f64 = 1.10;

#[derive(Serialize, Deserialize)]
struct Recorded {
    /// Instructions a block, by kernel.
    instructions: BTreeMap<String, f64>,
}

/// Counts, and compares or records.
pub fn run(file: &Path, record: bool) -> Result<(), Failure> {
    let mut counted = BTreeMap::new();
    for kernel in Kernel::ALL {
        let (few, many) = if kernel == Kernel::Parity { (2, 12) } else { (200, 1200) };
        let difference = instructions(kernel, many)? - instructions(kernel, few)?;
        counted.insert(kernel.name(), difference / (many - few) as f64 / kernel.blocks());
    }
    if record {
        let text = toml::to_string(&Recorded { instructions: counted })?;
        let head = "# Instructions a 4 KiB block under valgrind: written by `cleave-perf guard --record`.\n";
        std::fs::write(file, format!("{head}{text}"))?;
        return Ok(());
    }
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let recorded: Recorded = toml::from_str(&text)?;
    let mut worse = Vec::new();
    for (name, count) in &counted {
        let before = recorded.instructions.get(name).ok_or(format!("{name} was never recorded"))?;
        println!("{name}: {count:.0} instructions a block, recorded {before:.0}");
        if *count > before * TOLERANCE {
            worse.push(name.as_str());
        }
    }
    if worse.is_empty() {
        return Ok(());
    }
    Err(format!(
        "more instructions than recorded: {}; make it cheaper, or record the new figures with the reason",
        worse.join(", ")
    )
    .into())
}

fn instructions(kernel: Kernel, count: u64) -> Result<f64, Failure> {
    let output = Command::new("valgrind")
        .args(["--tool=none", "--version"])
        .output()
        .map_err(|error| format!("cannot start valgrind: {error}"))?;
    if !output.status.success() {
        return Err("valgrind does not work here".into());
    }
    let directory = tempfile::tempdir()?;
    let out = directory.path().join("callgrind");
    let output = Command::new("valgrind")
        .arg("--tool=callgrind")
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(std::env::current_exe()?)
        .args(["kernel", &kernel.name(), &count.to_string()])
        .output()?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        return Err(format!("valgrind failed on {}: {said}", kernel.name()).into());
    }
    let text = std::fs::read_to_string(&out)?;
    let totals = text
        .lines()
        .find_map(|line| line.strip_prefix("totals:").or_else(|| line.strip_prefix("summary:")))
        .ok_or("valgrind wrote no total")?;
    Ok(totals.trim().parse()?)
}
