//! A vdisk in memory, served by a thread of its own until it is dropped.

use cleave_runtime::buffer::BufferPool;
use cleave_vhost_user::{Disk, DiskConfig, Outcome, Request, RequestKind, Statistics};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

/// How the vdisk is answered.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    /// Each request when it is taken.
    Prompt,
    /// The last taken first, once several are held or nothing more comes.
    Backwards,
    /// As `Prompt`, but every request fails.
    Failing,
}

/// The thread.
pub struct Server {
    pub socket: PathBuf,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<(Vec<u8>, Statistics)>>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub fn start(capacity: u64, manner: Manner, adjust: fn(&mut DiskConfig)) -> Server {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("disk");
        let stop = Arc::new(AtomicBool::new(false));
        let mut config = DiskConfig::new("test", &socket, capacity);
        config.serial = "serial-of-a-test".into();
        adjust(&mut config);
        let (ready, bound) = std::sync::mpsc::channel();
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let disk = Disk::bind(config, BufferPool::new(64 << 10, 16)).unwrap();
            ready.send(()).unwrap();
            serve(disk, vec![0; capacity as usize], manner, &stopped)
        });
        bound.recv().unwrap();
        Server { socket, stop, thread: Some(thread), _folder: folder }
    }

    /// Ends the thread; gives the vdisk's content and its counts.
    pub fn stop(mut self) -> (Vec<u8>, Statistics) {
        self.stop.store(true, Ordering::Release);
        self.thread.take().unwrap().join().unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn serve(
    mut disk: Disk,
    mut content: Vec<u8>,
    manner: Manner,
    stop: &AtomicBool,
) -> (Vec<u8>, Statistics) {
    let mut requests = Vec::new();
    while !stop.load(Ordering::Acquire) {
        let worked = disk.turn(&mut requests);
        if manner == Manner::Backwards && worked && requests.len() < 8 {
            continue;
        }
        while let Some(request) = requests.pop() {
            if manner == Manner::Failing {
                disk.complete(request.tag, Outcome::Failed);
            } else {
                answer(&mut disk, &mut content, request);
            }
        }
        disk.flush_notifications();
        if !worked {
            if disk.arm() {
                std::thread::yield_now();
            }
            disk.disarm();
        }
    }
    (content, disk.statistics())
}

fn answer(disk: &mut Disk, content: &mut [u8], request: Request) {
    match request.kind {
        RequestKind::Read { offset, length } => {
            let data = &content[offset as usize..][..length as usize];
            let (front, back) = data.split_at(data.len() / 3);
            return disk.complete(request.tag, Outcome::Read(&[front, back]));
        }
        RequestKind::Write { offset, data } => {
            content[offset as usize..][..data.len()].copy_from_slice(&data);
        }
        RequestKind::Flush => {}
        RequestKind::Discard { ranges } | RequestKind::WriteZeroes { ranges } => {
            for range in ranges {
                content[range.offset as usize..][..range.length as usize].fill(0);
            }
        }
    }
    disk.complete(request.tag, Outcome::Done);
}
