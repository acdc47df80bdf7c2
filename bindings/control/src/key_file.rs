//! Encryption keys from files: 32 bytes, or 64 hexadecimal digits (and a line end).
//!
//! The file must be a regular file that only the caller can read: mode 0600 or stricter, owned by
//! the caller. What is checked is the file that is read, not its name. A key is never printed, and
//! is overwritten when it is dropped.

use rustix::fs::{FileType, Mode, OFlags, fstat, open};
use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Bytes of a key (AES-256).
pub const KEY_BYTES: usize = 32;
/// Longest content that can be a key: hexadecimal digits and CR LF.
const FILE_BYTES_MAX: usize = 2 * KEY_BYTES + 2;

/// A secret key.
pub struct Key([u8; KEY_BYTES]);

impl Key {
    /// A key from elsewhere.
    pub fn new(bytes: [u8; KEY_BYTES]) -> Key {
        Key(bytes)
    }

    /// The secret itself: not to be copied further than needed.
    pub fn bytes(&self) -> &[u8; KEY_BYTES] {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Key(secret)")
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        wipe(&mut self.0);
    }
}

/// Overwrites; what is handed to the black box cannot be left out as unused.
fn wipe(bytes: &mut [u8]) {
    bytes.fill(0);
    std::hint::black_box(bytes);
}

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum KeyFileError {
    /// No such file.
    #[error("the key file {0} does not exist")]
    Missing(PathBuf),
    /// A directory, a device, a pipe.
    #[error("the key file {0} is not a regular file")]
    NotAFile(PathBuf),
    /// Others may read or change it.
    #[error("the key file {path} has mode {mode:04o}; others may read it: chmod 600 it")]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its permissions.
        mode: u32,
    },
    /// Somebody else's.
    #[error("the key file {path} belongs to user {owner}, not to {caller}, who runs this")]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Its owner.
        owner: u32,
        /// The caller's user.
        caller: u32,
    },
    /// Neither of the two forms.
    #[error("the key file {path} {what}; a key is 32 bytes, or 64 hexadecimal digits")]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// What it is instead.
        what: String,
    },
    /// The system refused.
    #[error("cannot read the key file {path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
}

/// Reads a key.
pub fn load_key(path: &Path) -> Result<Key, KeyFileError> {
    let refused = |error: io::Error| KeyFileError::Io { path: path.to_owned(), error };
    // Without waiting for the other end, should it be a pipe.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | OFlags::NOCTTY;
    let file = open(path, flags, Mode::empty()).map_err(|error| match error {
        rustix::io::Errno::NOENT => KeyFileError::Missing(path.to_owned()),
        error => refused(error.into()),
    })?;
    let found = fstat(&file).map_err(|error| refused(error.into()))?;
    if FileType::from_raw_mode(found.st_mode) != FileType::RegularFile {
        return Err(KeyFileError::NotAFile(path.to_owned()));
    }
    let caller = rustix::process::geteuid().as_raw();
    if found.st_uid != caller {
        return Err(KeyFileError::Foreign { path: path.to_owned(), owner: found.st_uid, caller });
    }
    let mode = found.st_mode & 0o7777;
    if mode & !0o600 != 0 {
        return Err(KeyFileError::Exposed { path: path.to_owned(), mode });
    }
    let mut content = [0; FILE_BYTES_MAX + 1];
    let length = fill(&mut File::from(file), &mut content).map_err(refused)?;
    let key = parse(&content[..length]);
    wipe(&mut content);
    key.map_err(|what| KeyFileError::Malformed { path: path.to_owned(), what })
}

/// Reads until the end or until `content` is full.
fn fill(file: &mut File, content: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    while length < content.len() {
        match file.read(&mut content[length..]) {
            Ok(0) => break,
            Ok(count) => length += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(length)
}

fn parse(content: &[u8]) -> Result<Key, String> {
    if let Ok(raw) = <[u8; KEY_BYTES]>::try_from(content) {
        return Ok(Key(raw));
    }
    let line = content.strip_suffix(b"\n").unwrap_or(content);
    let line = line.strip_suffix(b"\r").unwrap_or(line);
    if line.len() != 2 * KEY_BYTES {
        return Err(match content.len() {
            0 => "is empty".to_owned(),
            length if length > FILE_BYTES_MAX => "is too long".to_owned(),
            length => format!("has {length} bytes"),
        });
    }
    let mut key = Key([0; KEY_BYTES]);
    for (byte, digits) in key.0.iter_mut().zip(line.chunks_exact(2)) {
        let digit = |byte: u8| char::from(byte).to_digit(16);
        match (digit(digits[0]), digit(digits[1])) {
            (Some(high), Some(low)) => *byte = (high << 4 | low) as u8,
            _ => return Err("has characters that are not hexadecimal digits".to_owned()),
        }
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn file(content: &[u8], mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn both_forms_are_read() {
        let raw: [u8; 32] = std::array::from_fn(|index| (index * 7) as u8);
        let hex: String = raw.iter().map(|byte| format!("{byte:02x}")).collect();
        let upper = hex.to_uppercase();
        for content in [
            raw.to_vec(),
            hex.clone().into_bytes(),
            format!("{hex}\n").into_bytes(),
            format!("{upper}\r\n").into_bytes(),
        ] {
            for mode in [0o600, 0o400] {
                let (_directory, path) = file(&content, mode);
                assert_eq!(load_key(&path).unwrap().bytes(), &raw);
            }
        }
        assert_eq!(format!("{:?}", Key::new(raw)), "Key(secret)");
    }

    #[test]
    fn what_is_no_key_is_refused_without_quoting_it() {
        for content in [
            &b""[..],
            &[b'a'; 31],
            &[b'a'; 33],
            &[b'a'; 63],
            &[b'a'; 65],
            &[b'g'; 64],
            &[b'a'; 1000],
        ] {
            let (_directory, path) = file(content, 0o600);
            let error = load_key(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Malformed { .. }), "{error}");
            assert!(!error.to_string().contains('\n') && !error.to_string().contains("aaa"));
        }
    }

    #[test]
    fn a_file_that_others_may_use_is_refused() {
        for mode in [0o640, 0o604, 0o620, 0o602, 0o700, 0o644] {
            let (_directory, path) = file(&[b'a'; 64], mode);
            let error = load_key(&path).unwrap_err();
            assert!(matches!(error, KeyFileError::Exposed { .. }), "{error}");
        }
        let (directory, path) = file(&[b'a'; 64], 0o600);
        let missing = directory.path().join("missing");
        assert!(matches!(load_key(&missing), Err(KeyFileError::Missing(_))));
        assert!(matches!(load_key(directory.path()), Err(KeyFileError::NotAFile(_))));
        assert!(matches!(load_key(Path::new("/dev/null")), Err(KeyFileError::NotAFile(_))));
        assert!(matches!(load_key(&path.join("below")), Err(KeyFileError::Io { .. })));
        if rustix::process::geteuid().is_root() {
            std::os::unix::fs::chown(&path, Some(12345), None).unwrap();
            assert!(matches!(load_key(&path), Err(KeyFileError::Foreign { owner: 12345, .. })));
        }
    }

    #[test]
    fn a_pipe_does_not_hang_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        let mode = Mode::RUSR | Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &path, FileType::Fifo, mode, 0).unwrap();
        assert!(matches!(load_key(&path), Err(KeyFileError::NotAFile(_))));
    }
}
