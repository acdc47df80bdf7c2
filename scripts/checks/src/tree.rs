//! The workspace's crates, from cargo, and their source files.

use cargo_metadata::{DependencyKind, MetadataCommand};
use std::fs;
use std::path::{Path, PathBuf};

/// A crate of the workspace.
#[derive(Clone, Debug)]
pub struct Member {
    /// Its name.
    pub name: String,
    /// The folder of its manifest.
    pub folder: PathBuf,
    /// Names of what it depends on, build dependencies too.
    pub dependencies: Vec<String>,
    /// Names of what only its tests depend on.
    pub test_dependencies: Vec<String>,
}

/// A source file.
#[derive(Clone, Debug)]
pub struct File {
    /// Where it is.
    pub path: PathBuf,
    /// Its text.
    pub text: String,
}

/// The crates of this workspace, in order of names.
///
/// # Panics
/// When cargo cannot say: then there is nothing to check.
pub fn members() -> Vec<Member> {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml");
    let metadata = MetadataCommand::new()
        .manifest_path(manifest)
        .no_deps()
        .exec()
        .expect("cargo metadata describes the workspace");
    let mut members: Vec<Member> = metadata
        .workspace_packages()
        .into_iter()
        .map(|package| {
            let (test, other): (Vec<_>, Vec<_>) = package
                .dependencies
                .iter()
                .partition(|dependency| dependency.kind == DependencyKind::Development);
            let names = |dependencies: Vec<&cargo_metadata::Dependency>| {
                dependencies.into_iter().map(|dependency| dependency.name.clone()).collect()
            };
            let folder = package.manifest_path.parent().expect("a manifest lies in a folder");
            Member {
                name: package.name.to_string(),
                folder: folder.as_std_path().to_owned(),
                dependencies: names(other),
                test_dependencies: names(test),
            }
        })
        .collect();
    members.sort_by(|one, other| one.name.cmp(&other.name));
    members
}

impl Member {
    /// Its Rust files under `src`, in order of paths.
    pub fn sources(&self) -> Vec<File> {
        rust_files(&self.folder.join("src"))
    }

    /// Its Rust files under `src`, `tests`, `benches` and `examples`, in order of paths.
    pub fn all_sources(&self) -> Vec<File> {
        let folders = ["src", "tests", "benches", "examples"];
        folders.iter().flat_map(|folder| rust_files(&self.folder.join(folder))).collect()
    }
}

fn rust_files(folder: &Path) -> Vec<File> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = fs::read_dir(&folder) else { continue };
        for entry in entries {
            let path = entry.expect("a listed entry can be looked at").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source files are readable text");
                files.push(File { path, text });
            }
        }
    }
    files.sort_by(|one, other| one.path.cmp(&other.path));
    files
}
