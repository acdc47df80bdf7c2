//! What pure crates and engine cores may not name: the world reaches them through contracts only.
//!
//! Formats, messages, codec, erasure and the engines' cores run unchanged in the simulator, so none of them may
//! open a socket or a file, start a thread, read a clock or draw randomness by itself.

use crate::source::{code_without_tests, is_word};
use crate::tree::{File, Member};

/// Crates that see the world through contracts, or not at all.
pub const PURE: &[&str] = &[
    "cleave-codec",
    "cleave-datanode-core",
    "cleave-erasure",
    "cleave-flash",
    "cleave-format",
    "cleave-host-core",
    "cleave-wire",
];

const WORLD: &[&str] = &[
    "std::net",
    "std::fs",
    "std::os",
    "std::process",
    "std::thread",
    "std::time::Instant",
    "std::time::SystemTime",
    "Instant::now",
    "SystemTime::now",
    "TcpStream",
    "UdpSocket",
    "UnixStream",
];

/// External crates that are the world.
const WORLD_CRATES: &[&str] = &[
    "getrandom",
    "io-uring",
    "libc",
    "mio",
    "nix",
    "quinn",
    "quinn-udp",
    "rand",
    "rustix",
    "signal-hook",
    "socket2",
    "tokio",
];

/// What the crate's manifest and files name, and may not.
pub fn findings(member: &Member, files: &[File]) -> Vec<String> {
    let mut findings = Vec::new();
    for dependency in &member.dependencies {
        if WORLD_CRATES.contains(&dependency.as_str()) {
            findings.push(format!("{} may not depend on {dependency}", member.name));
        }
    }
    let root = files.iter().find(|file| file.path.ends_with("src/lib.rs"));
    let forbids = root.is_some_and(|file| file.text.contains("#![forbid(unsafe_code)]"));
    if !forbids {
        findings.push(format!("{} does not say #![forbid(unsafe_code)] in lib.rs", member.name));
    }
    for file in files.iter().filter(|file| !is_test_file(file)) {
        let code = code_without_tests(&file.text);
        for (number, line) in code.lines().enumerate() {
            for name in named(line) {
                let place = format!("{}:{}", file.path.display(), number + 1);
                findings.push(format!("{place}: {} may not name {name}", member.name));
            }
        }
    }
    findings
}

fn named(line: &str) -> Vec<&'static str> {
    let spelled = |name: &&&'static str| {
        line.match_indices(**name).any(|(at, found)| is_word(line, at, found))
    };
    let mut found: Vec<&str> = WORLD.iter().filter(spelled).copied().collect();
    // `use std::{fs, time::Instant}` names the same things.
    if let Some((_, list)) = line.split_once("std::{") {
        for module in ["net", "fs", "os", "process", "thread"] {
            let named = list.match_indices(module).any(|(at, word)| {
                let after_path = list[..at].ends_with("::");
                is_word(list, at, word) && !after_path
            });
            if named {
                found.push("a forbidden module of std");
            }
        }
    }
    if line.contains("std::time::{") && line.contains("Instant") {
        found.push("std::time::Instant");
    }
    found
}

fn is_test_file(file: &File) -> bool {
    let name = file.path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name == "tests.rs" || file.path.components().any(|part| part.as_os_str() == "tests")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn look(text: &str) -> Vec<String> {
        let member = Member {
            name: "cleave-format".to_owned(),
            folder: "/".into(),
            dependencies: Vec::new(),
            test_dependencies: Vec::new(),
        };
        let text = format!("#![forbid(unsafe_code)]\n{text}");
        findings(&member, &[File { path: "/src/lib.rs".into(), text }])
    }

    #[test]
    fn the_world_is_found_however_it_is_spelled() {
        let impure = [
            "use std::net::UdpSocket;",
            "use std::{fmt, fs};",
            "let now = std::time::Instant::now();",
            "use std::time::{Duration, Instant};",
            "let file = std::fs::File::open(path);",
            "std::thread::spawn(work);",
        ];
        for text in impure {
            assert!(!look(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn durations_comments_and_tests_are_no_world() {
        let pure = [
            "use std::time::Duration;",
            "// std::fs is not used here",
            "let text = \"std::net\";",
            "#[cfg(test)]\nmod tests { use std::fs; }",
            "use std::{fmt, offset};",
            "use my_std::network;",
        ];
        for text in pure {
            assert_eq!(look(text), Vec::<String>::new(), "{text}");
        }
    }

    #[test]
    fn unsafe_code_must_be_forbidden() {
        let member = Member {
            name: "cleave-wire".to_owned(),
            folder: "/".into(),
            dependencies: vec!["tokio".to_owned()],
            test_dependencies: Vec::new(),
        };
        let file = File { path: "/src/lib.rs".into(), text: String::new() };
        assert_eq!(findings(&member, &[file]).len(), 2);
    }
}
