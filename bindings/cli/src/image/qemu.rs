//! Formats of images, and `qemu-img` for those that are not raw.

use crate::error::{Error, Result, file, system};
use clap::ValueEnum;
use std::fs::File;
use std::io::{ErrorKind, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// First bytes of a qcow2 image (QEMU's docs/interop/qcow2.txt, "Header").
const QCOW2_MAGIC: [u8; 4] = *b"QFI\xfb";

/// A format of images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The disk's bytes as they are.
    Raw,
    /// QEMU's.
    Qcow2,
}

impl Format {
    fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// By the ending of a file's name.
    pub fn of_name(path: &Path) -> Format {
        let qcow2 = path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("qcow2"));
        if qcow2 { Format::Qcow2 } else { Format::Raw }
    }

    /// By the first bytes of a file.
    fn of_content(path: &Path) -> Result<Format> {
        let mut magic = [0; 4];
        let opened = File::open(path).map_err(file("open", path))?;
        match (&opened).read_exact(&mut magic) {
            Ok(()) if magic == QCOW2_MAGIC => Ok(Format::Qcow2),
            Ok(()) => Ok(Format::Raw),
            Err(error) if error.kind() == ErrorKind::UnexpectedEof => Ok(Format::Raw),
            Err(error) => Err(file("read", path)(error)),
        }
    }
}

/// A raw image to read: the one that was named, or a copy that goes away with this.
pub struct RawImage {
    path: PathBuf,
    is_copy: bool,
}

impl RawImage {
    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for RawImage {
    fn drop(&mut self) {
        if self.is_copy {
            // A copy that stays takes space, no more.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// The image as a raw one.
pub fn open_raw(path: &Path, format: Option<Format>, scratch: Option<&Path>) -> Result<RawImage> {
    let found = Format::of_content(path)?;
    let format = format.unwrap_or(found);
    if format == Format::Raw {
        return Ok(RawImage { path: path.to_owned(), is_copy: false });
    }
    require(format)?;
    refuse_references(path, format)?;
    let copy = match scratch {
        Some(folder) => {
            let name = path.file_name().ok_or_else(|| Error::Image {
                path: path.to_owned(),
                reason: "it has no file name".to_owned(),
            })?;
            beside(&folder.join(name), "raw-copy")
        }
        None => beside(path, "raw-copy"),
    };
    let raw = RawImage { path: copy, is_copy: true };
    convert(path, format, &raw.path, Format::Raw)?;
    Ok(raw)
}

/// `PATH.ENDING`, with the process's number: two commands do not meet.
pub fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{}.{ending}", std::process::id()));
    PathBuf::from(name)
}

/// Whether what the format needs is installed.
pub fn require(format: Format) -> Result<()> {
    if format == Format::Raw {
        return Ok(());
    }
    let version = Command::new("qemu-img").arg("--version").stdout(Stdio::null()).status();
    match version {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(tool("qemu-img --version fails".to_owned())),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let name = format.name();
            Err(tool(format!("{name} images need qemu-img; install it (Debian: qemu-utils)")))
        }
        Err(error) => Err(system("run qemu-img")(error)),
    }
}

/// An image that names other files would bring their content into the vdisk, whatever they are.
fn refuse_references(path: &Path, format: Format) -> Result<()> {
    let mut info = Command::new("qemu-img");
    info.args(["info", "--output=json", "-f", format.name()]).arg(path);
    let output = info.output().map_err(system("run qemu-img"))?;
    if !output.status.success() {
        return Err(Error::Image { path: path.to_owned(), reason: last_line(&output.stderr) });
    }
    let unreadable = |_| tool("qemu-img info gives no JSON".to_owned());
    let found: serde_json::Value = serde_json::from_slice(&output.stdout).map_err(unreadable)?;
    let data_file = &found["format-specific"]["data"]["data-file"];
    if found["backing-filename"].is_null() && data_file.is_null() {
        return Ok(());
    }
    let reason = "it needs another file (a backing or data file); make it whole first, with \
                  `qemu-img convert -O qcow2`, if you trust it";
    Err(Error::Image { path: path.to_owned(), reason: reason.to_owned() })
}

/// Converts an image; what there is of the target is replaced.
pub fn convert(from: &Path, format: Format, to: &Path, wanted: Format) -> Result<()> {
    let mut command = Command::new("qemu-img");
    command.args(["convert", "-f", format.name(), "-O", wanted.name()]).arg(from).arg(to);
    let output = command.output().map_err(system("run qemu-img"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(Error::Image { path: from.to_owned(), reason: last_line(&output.stderr) }),
    }
}

fn last_line(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.lines().last().unwrap_or("qemu-img failed without a word").to_owned()
}

fn tool(reason: String) -> Error {
    Error::Image { path: "qemu-img".into(), reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_known_by_content_and_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("image");
        for (content, format) in [
            (&b""[..], Format::Raw),
            (b"QFI", Format::Raw),
            (b"QFI\xfb\0\0\0\x03", Format::Qcow2),
            (b"\0\0\0\0\0", Format::Raw),
        ] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(Format::of_content(&path).unwrap(), format);
        }
        assert_eq!(Format::of_name(Path::new("a/b.QCOW2")), Format::Qcow2);
        assert_eq!(Format::of_name(Path::new("a.qcow2/b.img")), Format::Raw);
    }
}
