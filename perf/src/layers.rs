//! The layers of the table: how each is started, and whose CPU time counts as its own.

use crate::Failure;
use crate::process::{Process, children, cpu_seconds};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layer {
    /// vhost-user and nothing behind it.
    Null,
    /// vhost-user and memory.
    Memory,
    /// And LZ4, CRC32C.
    Codec,
    /// And AES-256-GCM.
    CodecEncrypted,
    /// A whole cluster.
    Cleave,
    /// A whole cluster, encrypted.
    CleaveEncrypted,
    /// The peer: `qemu-storage-daemon` over a file.
    QemuStorageDaemon,
}

impl Layer {
    /// All, in the order of the table.
    pub const ALL: [Layer; 7] = [
        Layer::Null,
        Layer::Memory,
        Layer::Codec,
        Layer::CodecEncrypted,
        Layer::Cleave,
        Layer::CleaveEncrypted,
        Layer::QemuStorageDaemon,
    ];

    /// Its row's name.
    pub fn name(self) -> &'static str {
        match self {
            Layer::Null => "null device",
            Layer::Memory => "memory device",
            Layer::Codec => "codec, log off",
            Layer::CodecEncrypted => "codec, log off, encrypted",
            Layer::Cleave => "whole path",
            Layer::CleaveEncrypted => "whole path, encrypted",
            Layer::QemuStorageDaemon => "qemu-storage-daemon",
        }
    }

    /// Starts it, with a disk of `capacity` bytes, its files under `directory`.
    pub fn start(self, directory: &Path, capacity: u64) -> Result<Running, Failure> {
        let socket = directory.join("disk.sock");
        let own = std::env::current_exe()?;
        let size = capacity.to_string();
        let serve = |kind: &str| -> Result<Running, Failure> {
            let arguments = ["serve", kind].map(OsString::from);
            let arguments: Vec<&OsStr> = arguments
                .iter()
                .map(OsString::as_os_str)
                .chain([socket.as_os_str(), OsStr::new(&size)])
                .collect();
            Running::start(&own, &arguments, socket.clone())
        };
        match self {
            Layer::Null => serve("null"),
            Layer::Memory => serve("memory"),
            Layer::Codec => serve("codec"),
            Layer::CodecEncrypted => serve("codec-encrypted"),
            Layer::Cleave | Layer::CleaveEncrypted => {
                let program = own.with_file_name("cleave");
                let vdisk = format!("perf:{}M", capacity >> 20);
                let mut arguments =
                    vec!["dev", "--dir"].into_iter().map(OsStr::new).collect::<Vec<_>>();
                arguments.push(directory.as_os_str());
                arguments.extend(["--drive-size", "4G", "--vdisk", &vdisk].map(OsStr::new));
                if self == Layer::CleaveEncrypted {
                    arguments.push(OsStr::new("--encrypt"));
                }
                Running::start(&program, &arguments, directory.join("vhost/perf.sock"))
            }
            Layer::QemuStorageDaemon => {
                let image = directory.join("image");
                File::create(&image)?.set_len(capacity)?;
                let blockdev = format!(
                    "driver=file,node-name=disk,filename={},cache.direct=on,aio=io_uring",
                    image.display()
                );
                let export = format!(
                    "type=vhost-user-blk,id=export,node-name=disk,writable=on,num-queues=1,\
                     addr.type=unix,addr.path={}",
                    socket.display()
                );
                let arguments = ["--blockdev", &blockdev, "--export", &export].map(OsStr::new);
                Running::start(Path::new("qemu-storage-daemon"), &arguments, socket.clone())
            }
        }
    }
}

/// A layer that is up.
pub struct Running {
    process: Process,
    /// Where its disk is.
    pub socket: PathBuf,
}

impl Running {
    fn start(program: &Path, arguments: &[&OsStr], socket: PathBuf) -> Result<Running, Failure> {
        let mut process = Process::start(program, arguments)?;
        process.wait_until(|| socket.exists())?;
        Ok(Running { process, socket })
    }

    /// CPU seconds used so far by the processes that serve the disk, by name.
    pub fn cpu(&self) -> Result<Vec<(String, f64)>, Failure> {
        let own = self.process.id();
        let children = children(own)?;
        if children.is_empty() {
            return Ok(vec![("server".into(), cpu_seconds(own)?)]);
        }
        children.into_iter().map(|(id, name)| Ok((name, cpu_seconds(id)?))).collect()
    }

    /// Ends it.
    pub fn stop(mut self) -> Result<(), Failure> {
        self.process.stop()
    }
}
