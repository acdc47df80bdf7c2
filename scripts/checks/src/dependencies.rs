//! The direction of dependencies.
//!
//! A → B means A may depend on B: shells → their core → codec, erasure, wire → format; cores → the
//! contracts of runtime and coordinator; shells, the simulator and measurements → cores and
//! bindings, and the verifier's model; the simulator → the NVMe driver; nothing → shells or other tools. The two engines meet only in format, wire and erasure.
//! Tests of an engine's crates may also use the simulated runtime.

use crate::tree::Member;

const CONTRACTS: &[&str] = &["cleave-runtime", "cleave-coordinator"];
const TEST_RUNTIME: &str = "cleave-runtime-sim";

/// Which crates of the workspace a crate may depend on. A crate that is not listed is a finding:
/// whoever adds one says where it stands.
const ALLOWED: &[(&str, &[&str])] = &[
    ("cleave-format", &[]),
    ("cleave-wire", &["cleave-format"]),
    ("cleave-erasure", &["cleave-format"]),
    ("cleave-codec", &["cleave-format"]),
    ("cleave-catalog", &["cleave-format", "cleave-runtime"]),
    ("cleave-flash", &["cleave-format", "cleave-runtime"]),
    ("cleave-runtime", &[]),
    ("cleave-process", &["cleave-runtime"]),
    ("cleave-runtime-real", &["cleave-runtime"]),
    ("cleave-runtime-sim", CONTRACTS),
    ("cleave-coordinator", &["cleave-runtime"]),
    ("cleave-coordinator-etcd", &["cleave-control", "cleave-coordinator", "cleave-runtime"]),
    ("cleave-nvme", &["cleave-runtime"]),
    ("cleave-vhost-user", &["cleave-runtime"]),
    ("cleave-process", &["cleave-runtime"]),
    ("cleave-control", &["cleave-format", "cleave-runtime", "cleave-coordinator"]),
    (
        "cleave-host-core",
        &[
            "cleave-codec",
            "cleave-coordinator",
            "cleave-erasure",
            "cleave-flash",
            "cleave-format",
            "cleave-runtime",
            "cleave-wire",
        ],
    ),
    (
        "cleave-datanode-core",
        &[
            "cleave-catalog",
            "cleave-coordinator",
            "cleave-erasure",
            "cleave-format",
            "cleave-runtime",
            "cleave-wire",
        ],
    ),
    (
        "cleave-host",
        &[
            "cleave-codec",
            "cleave-control",
            "cleave-coordinator",
            "cleave-coordinator-etcd",
            "cleave-flash",
            "cleave-format",
            "cleave-host-core",
            "cleave-nvme",
            "cleave-process",
            "cleave-runtime",
            "cleave-runtime-real",
            "cleave-vhost-user",
            "cleave-wire",
        ],
    ),
    (
        "cleave-datanode",
        &[
            "cleave-catalog",
            "cleave-control",
            "cleave-coordinator",
            "cleave-coordinator-etcd",
            "cleave-datanode-core",
            "cleave-erasure",
            "cleave-format",
            "cleave-nvme",
            "cleave-process",
            "cleave-runtime",
            "cleave-runtime-real",
            "cleave-wire",
        ],
    ),
    (
        "cleave",
        &[
            "cleave-codec",
            "cleave-control",
            "cleave-coordinator",
            "cleave-coordinator-etcd",
            "cleave-format",
            "cleave-front-end",
            "cleave-nvme",
            "cleave-process",
            "cleave-runtime",
            "cleave-runtime-real",
        ],
    ),
    (
        "cleave-perf",
        &[
            "cleave-codec",
            "cleave-control",
            "cleave-coordinator",
            "cleave-datanode-core",
            "cleave-erasure",
            "cleave-format",
            "cleave-front-end",
            "cleave-host-core",
            "cleave-runtime",
            "cleave-runtime-real",
            "cleave-runtime-sim",
            "cleave-verify",
            "cleave-vhost-user",
            "cleave-wire",
        ],
    ),
    (
        "cleave-fuzz",
        &[
            "cleave-catalog",
            "cleave-codec",
            "cleave-control",
            "cleave-coordinator",
            "cleave-datanode-core",
            "cleave-format",
            "cleave-nvme",
            "cleave-runtime",
            "cleave-runtime-real",
            "cleave-vhost-user",
            "cleave-wire",
        ],
    ),
    (
        "cleave-simulator",
        &[
            "cleave-catalog",
            "cleave-codec",
            "cleave-coordinator",
            "cleave-datanode-core",
            "cleave-erasure",
            "cleave-format",
            "cleave-host-core",
            // Its driver, over its model of a controller.
            "cleave-nvme",
            "cleave-runtime",
            "cleave-runtime-sim",
            "cleave-verify",
            "cleave-wire",
        ],
    ),
    (
        "cleave-matrix",
        &[
            "cleave-catalog",
            "cleave-control",
            "cleave-coordinator",
            "cleave-datanode-core",
            "cleave-format",
            "cleave-host-core",
            "cleave-runtime",
            "cleave-runtime-real",
            "cleave-runtime-sim",
        ],
    ),
    (
        "cleave-model",
        &["cleave-coordinator", "cleave-datanode-core", "cleave-format", "cleave-wire"],
    ),
    ("cleave-front-end", &[]),
    ("cleave-verify", &["cleave-front-end"]),
    ("cleave-checks", &[]),
];

/// Dependencies between these crates that the direction does not allow.
pub fn findings(members: &[Member]) -> Vec<String> {
    let names: Vec<&str> = members.iter().map(|member| member.name.as_str()).collect();
    let mut findings = Vec::new();
    for member in members {
        let name = member.name.as_str();
        let Some((_, allowed)) = ALLOWED.iter().find(|(listed, _)| *listed == name) else {
            findings.push(format!("{name} is not in the list of who may depend on whom: add it"));
            continue;
        };
        let ours = |dependency: &&String| names.contains(&dependency.as_str());
        for dependency in member.dependencies.iter().filter(ours) {
            if !allowed.contains(&dependency.as_str()) {
                findings.push(format!("{name} may not depend on {dependency}"));
            }
        }
        for dependency in member.test_dependencies.iter().filter(ours) {
            let dependency = dependency.as_str();
            if !allowed.contains(&dependency) && dependency != TEST_RUNTIME && dependency != name {
                findings.push(format!("tests of {name} may not depend on {dependency}"));
            }
        }
    }
    for (name, _) in ALLOWED {
        if !names.contains(name) {
            findings.push(format!("{name} is in the list of who may depend on whom, but gone"));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everyone() -> Vec<Member> {
        let member = |(name, _): &(&str, &[&str])| Member {
            name: (*name).to_owned(),
            folder: "/".into(),
            dependencies: Vec::new(),
            test_dependencies: Vec::new(),
        };
        ALLOWED.iter().map(member).collect()
    }

    fn with(name: &str, dependency: &str) -> Vec<String> {
        let mut members = everyone();
        let member = members.iter_mut().find(|member| member.name == name).unwrap();
        member.dependencies.push(dependency.to_owned());
        findings(&members)
    }

    #[test]
    fn what_is_drawn_is_allowed_and_nothing_else() {
        assert_eq!(findings(&everyone()), Vec::<String>::new());
        assert!(with("cleave-wire", "cleave-format").is_empty());
        assert!(with("cleave-wire", "bincode").is_empty());
        assert_eq!(with("cleave-format", "cleave-wire").len(), 1);
        assert_eq!(with("cleave-host-core", "cleave-datanode-core").len(), 1);
        assert_eq!(with("cleave-host-core", "cleave-runtime-real").len(), 1);
        assert_eq!(with("cleave-host-core", "cleave-runtime-sim").len(), 1);
        assert_eq!(with("cleave-simulator", "cleave-host").len(), 1);
    }

    #[test]
    fn tests_may_simulate() {
        let mut members = everyone();
        let core = members.iter_mut().find(|member| member.name == "cleave-host-core").unwrap();
        core.test_dependencies.push("cleave-runtime-sim".to_owned());
        assert!(findings(&members).is_empty());
        let core = members.iter_mut().find(|member| member.name == "cleave-host-core").unwrap();
        core.test_dependencies.push("cleave-datanode-core".to_owned());
        assert_eq!(findings(&members).len(), 1);
    }

    #[test]
    fn a_crate_that_nobody_placed_is_found() {
        let mut members = everyone();
        members[0].name = "cleave-new".to_owned();
        let found = findings(&members);
        assert!(found.iter().any(|finding| finding.contains("cleave-new")), "{found:?}");
    }
}
