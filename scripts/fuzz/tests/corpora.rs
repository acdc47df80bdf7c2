//! Every input of every corpus, once more; and the corpora are complete and small.

use cleave_fuzz::{TARGETS, corpus};
use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

#[test]
fn nothing_in_the_corpora_breaks_its_target() {
    let mut broken = Vec::new();
    for target in TARGETS {
        for (path, input) in corpus::load(&corpus::folder(target)).unwrap() {
            if catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err() {
                broken.push(path);
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

#[test]
fn every_target_has_a_corpus_with_its_seeds() {
    let named: BTreeSet<String> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    assert_eq!(named.len(), TARGETS.len(), "names are not used twice");
    let folders = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus")).unwrap();
    let found: BTreeSet<String> =
        folders.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    assert_eq!(found, named, "write missing ones with: cargo run -p cleave-fuzz -- seeds");
    let mut bytes = 0;
    for target in TARGETS {
        let inputs = corpus::load(&corpus::folder(target)).unwrap();
        bytes += inputs.iter().map(|(_, input)| input.len()).sum::<usize>();
        for seed in (target.seeds)() {
            let kept = inputs.iter().any(|(_, input)| *input == seed);
            assert!(
                kept,
                "{} has another seed now: cargo run -p cleave-fuzz -- seeds",
                target.name
            );
        }
    }
    assert!(bytes < 1 << 20, "the corpora have {bytes} bytes");
}
