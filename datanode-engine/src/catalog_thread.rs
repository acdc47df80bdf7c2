//! The catalog on a thread of its own: redb blocks, the controller's core does not (C11).
//!
//! Requests go over one ring, replies come back over another, both in order. What the rings do not
//! take waits here, so the core never sees a full one. The thread ends when this is dropped, after the
//! requests that it has; an error of redb comes back as a reply, and ends the controller.

use cleave_datanode_core::catalog_port::{
    CatalogPort, CatalogReply, CatalogRequest, CatalogWorker,
};
use cleave_runtime::Token;
use cleave_runtime::executor::{Doorbell, NoDoorbell};
use cleave_runtime::ring::{Consumer, Producer, Refused, ring};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;

/// Requests with the thread at a time.
const IN_FLIGHT_MAX: usize = 256;

/// The core's end.
pub struct CatalogThread {
    /// `None` only while it is dropped.
    requests: Option<Producer<(Token, CatalogRequest)>>,
    replies: Consumer<(Token, CatalogReply)>,
    backlog: RefCell<VecDeque<(Token, CatalogRequest)>>,
    in_flight: Cell<usize>,
    thread: Option<JoinHandle<()>>,
}

impl CatalogThread {
    /// Starts the thread. `doorbell` wakes the core that polls.
    pub fn start(worker: CatalogWorker, doorbell: Arc<dyn Doorbell>) -> io::Result<CatalogThread> {
        // The thread waits in its channel, which wakes it.
        let (requests, taken) = ring(IN_FLIGHT_MAX, Arc::new(NoDoorbell));
        let (done, replies) = ring(IN_FLIGHT_MAX, doorbell);
        let thread = std::thread::Builder::new()
            .name("catalog".to_owned())
            .spawn(move || work(worker, &taken, &done))?;
        Ok(CatalogThread {
            requests: Some(requests),
            replies,
            backlog: RefCell::default(),
            in_flight: Cell::new(0),
            thread: Some(thread),
        })
    }

    /// Hands over what the rings take.
    fn feed(&self) {
        let mut backlog = self.backlog.borrow_mut();
        let requests = self.requests.as_ref().expect("set until dropped");
        while self.in_flight.get() < IN_FLIGHT_MAX
            && let Some(request) = backlog.pop_front()
        {
            match requests.push(request) {
                Ok(()) => self.in_flight.set(self.in_flight.get() + 1),
                Err(Refused::Full(_)) => unreachable!("the ring has room for all in flight"),
                Err(Refused::Closed(_)) => unreachable!("the thread ends after its core"),
            }
        }
    }
}

fn work(
    mut worker: CatalogWorker,
    requests: &Consumer<(Token, CatalogRequest)>,
    replies: &Producer<(Token, CatalogReply)>,
) {
    while let Some((token, request)) = requests.wait() {
        match replies.push((token, worker.execute(request))) {
            Ok(()) => {}
            Err(Refused::Full(_)) => unreachable!("the ring has room for all in flight"),
            // The core is gone: nobody asks any more.
            Err(Refused::Closed(_)) => return,
        }
    }
}

impl CatalogPort for CatalogThread {
    fn submit(&self, token: Token, request: CatalogRequest) {
        self.backlog.borrow_mut().push_back((token, request));
        self.feed();
    }

    fn poll(&self, replies: &mut Vec<(Token, CatalogReply)>) {
        while let Some(reply) = self.replies.pop() {
            self.in_flight.set(self.in_flight.get() - 1);
            replies.push(reply);
        }
        self.feed();
    }
}

impl Drop for CatalogThread {
    fn drop(&mut self) {
        self.requests = None;
        if let Some(thread) = self.thread.take() {
            // A panic there has ended the process already.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_catalog::{Catalog, Control, Owner};
    use cleave_format::ids::{ClusterId, DatanodeId, HostId, Incarnation, Position};
    use std::path::Path;
    use std::sync::mpsc::{SyncSender, sync_channel};

    const OWNER: Owner = Owner { cluster: ClusterId([7; 16]), datanode: DatanodeId(1) };

    fn open(path: &Path) -> CatalogWorker {
        CatalogWorker::new(Catalog::open(path, OWNER).unwrap())
    }

    struct Bell(SyncSender<()>);

    impl Doorbell for Bell {
        fn ring(&self) {
            let _ = self.0.try_send(());
        }
    }

    #[test]
    fn more_requests_than_the_rings_hold_are_answered_in_order() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog");
        let (bell, rung) = sync_channel(1);
        let thread = CatalogThread::start(open(&path), Arc::new(Bell(bell))).unwrap();
        let total = 3 * IN_FLIGHT_MAX as u64;
        for number in 0..total {
            thread.submit(number, CatalogRequest::Locate(Vec::new()));
        }
        let mut replies = Vec::new();
        while (replies.len() as u64) < total {
            thread.poll(&mut replies);
            if (replies.len() as u64) < total {
                rung.recv().unwrap();
            }
        }
        assert!(replies.iter().map(|(token, _)| *token).eq(0..total));
        assert!(replies.iter().all(|(_, reply)| matches!(reply, CatalogReply::Located(_))));
    }

    #[test]
    fn what_was_submitted_before_the_end_is_done() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("catalog");
        let thread = CatalogThread::start(open(&path), Arc::new(NoDoorbell)).unwrap();
        let start = Control::HostStart { host: HostId(1), incarnation: Incarnation(1) };
        thread.submit(1, CatalogRequest::Apply(vec![(Position(9), start)]));
        drop(thread);
        assert_eq!(Catalog::open(&path, OWNER).unwrap().applied(), Position(9));
    }
}
