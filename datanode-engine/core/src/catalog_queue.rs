//! Requests to the catalog, in order, and who waits for their replies.

use crate::catalog_port::{CatalogPort, CatalogReply, CatalogRequest};
use crate::hosts::HostWaiter;
use cleave_format::control::Control;
use cleave_format::ids::Position;
use cleave_runtime::Token;
use cleave_runtime::planted::{Planted, is_planted};
use cleave_runtime::sync::{Outcome, Promise, promise};
use std::collections::BTreeMap;

/// Who waits for a reply of the catalog.
pub(crate) enum Waiter {
    Apply,
    Flow(Promise<CatalogReply>),
    Damage,
    Host(HostWaiter),
}

/// Requests to the catalog, in order.
pub(crate) struct CatalogQueue {
    port: Box<dyn CatalogPort>,
    next: Token,
    waiting: BTreeMap<Token, Waiter>,
    pending: Vec<(Position, Control)>,
    applies: usize,
    polled: Vec<(Token, CatalogReply)>,
}

impl CatalogQueue {
    pub fn new(port: Box<dyn CatalogPort>) -> CatalogQueue {
        CatalogQueue {
            port,
            next: 1,
            waiting: BTreeMap::new(),
            pending: Vec::new(),
            applies: 0,
            polled: Vec::new(),
        }
    }

    fn submit(&mut self, waiter: Waiter, request: CatalogRequest) {
        let token = self.next;
        self.next += 1;
        self.waiting.insert(token, waiter);
        self.port.submit(token, request);
    }

    /// Asks, after everything that was to be applied before.
    pub fn ask(&mut self, waiter: Waiter, request: CatalogRequest) {
        if !is_planted(Planted::OpenStaleMap) {
            self.flush();
        }
        self.submit(waiter, request);
    }

    /// As [`ask`](CatalogQueue::ask), for a flow.
    pub fn ask_flow(&mut self, request: CatalogRequest) -> Outcome<CatalogReply> {
        let (kept, outcome) = promise();
        self.ask(Waiter::Flow(kept), request);
        outcome
    }

    /// Has a record applied, with those that come in the same turn, or while others are applied.
    pub fn apply(&mut self, position: Position, control: Control) {
        self.pending.push((position, control));
    }

    /// Begins the next transaction unless one is under way (group commit).
    pub fn flush_when_idle(&mut self) {
        if self.applies == 0 {
            self.flush();
        }
    }

    fn flush(&mut self) {
        if !self.pending.is_empty() {
            self.applies += 1;
            let entries = std::mem::take(&mut self.pending);
            self.submit(Waiter::Apply, CatalogRequest::Apply(entries));
        }
    }

    /// Takes replies, each with who waits for it.
    pub fn poll(&mut self) -> Vec<(Waiter, CatalogReply)> {
        self.port.poll(&mut self.polled);
        let mut done = Vec::with_capacity(self.polled.len());
        for (token, reply) in self.polled.drain(..) {
            let waiter = self.waiting.remove(&token).expect("a reply is to a request");
            self.applies -= usize::from(matches!(waiter, Waiter::Apply));
            done.push((waiter, reply));
        }
        done
    }
}
