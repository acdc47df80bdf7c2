//! The corpora: files in `corpus/TARGET/`, each one an input.

use crate::Target;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

/// The folder of a target's corpus in the source tree.
pub fn folder(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name)
}

/// The files of a folder with their content, in order of names; none when there is no such folder.
pub fn load(folder: &Path) -> io::Result<Vec<(PathBuf, Vec<u8>)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut paths = Vec::new();
    for entry in entries {
        paths.push(entry?.path());
    }
    paths.sort();
    paths.into_iter().map(|path| Ok((path.clone(), fs::read(path)?))).collect()
}

/// Writes the target's seeds as `seed-NN`, where they are not there yet or others. Gives how many.
pub fn write_seeds(target: &Target) -> io::Result<usize> {
    let folder = folder(target);
    fs::create_dir_all(&folder)?;
    let mut written = 0;
    for (number, seed) in (target.seeds)().into_iter().enumerate() {
        let path = folder.join(format!("seed-{number:02}"));
        if fs::read(&path).ok().as_ref() != Some(&seed) {
            fs::write(path, seed)?;
            written += 1;
        }
    }
    Ok(written)
}
