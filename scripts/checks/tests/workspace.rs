//! The rules, applied to this workspace.

use cleave_checks::{dependencies, purity, tree, unsafety};

fn none(findings: Vec<String>) {
    assert!(findings.is_empty(), "\n{}", findings.join("\n"));
}

#[test]
fn dependencies_point_the_way_that_the_architecture_draws() {
    none(dependencies::findings(&tree::members()));
}

#[test]
fn pure_crates_do_not_touch_the_world() {
    let members = tree::members();
    let pure = members.iter().filter(|member| purity::PURE.contains(&member.name.as_str()));
    let findings: Vec<Vec<String>> =
        pure.map(|member| purity::findings(member, &member.sources())).collect();
    assert_eq!(findings.len(), purity::PURE.len(), "every pure crate is in the workspace");
    none(findings.concat());
}

#[test]
fn every_unsafe_says_why() {
    let members = tree::members();
    let files = members.iter().flat_map(|member| member.all_sources());
    none(files.flat_map(|file| unsafety::findings(&file)).collect());
}
