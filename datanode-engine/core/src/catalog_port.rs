//! The catalog as the controller's core sees it: submit a request, poll for its reply.
//!
//! Requests are carried out one after another, in the order of their submission, so that a query sees every
//! record that was submitted before it. The shell has the catalog on a thread of its own, behind
//! two rings; the simulator runs it inline, with a delay; both by [`CatalogWorker`].

use cleave_catalog::tables::StripeRow;
use cleave_catalog::{
    Applied, Catalog, CatalogError, Cursor, Damage, Dump, EndangeredPage, MapPage, Resident,
};
use cleave_format::control::{Control, GrantedStripe};
use cleave_format::ids::{DriveId, Position, StripeId, VdiskId};
use cleave_runtime::Token;
use cleave_runtime::crash_points::{Point, reached};
use cleave_runtime::executor::{Executor, Priority};
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;

/// Bytes of a page of a map, roughly.
pub const MAP_PAGE_BYTES: usize = 256 << 10;
/// Stripes that are looked at for one page.
pub const STRIPES_A_PAGE: usize = 4096;
/// Bytes of a piece of a dump, roughly.
pub const DUMP_PIECE_BYTES: usize = 512 << 10;

/// What to do.
#[derive(Debug)]
pub enum CatalogRequest {
    /// Apply control records as one durable transaction.
    Apply(Vec<(Position, Control)>),
    /// A page of a vdisk's map.
    MapPage {
        /// Which vdisk.
        vdisk: VdiskId,
        /// Where to go on.
        cursor: Option<Cursor>,
    },
    /// Where stripes lie.
    Locate(Vec<StripeId>),
    /// Stripes that a vdisk may name, from one on.
    StripesOf {
        /// Which vdisk.
        vdisk: VdiskId,
        /// From this one on.
        from: StripeId,
    },
    /// Who may name stripes.
    Holders(Vec<StripeId>),
    /// The row of a stripe.
    Stripe(StripeId),
    /// Everything that an active controller keeps resident.
    Resident,
    /// How many stripes lack shards when these drives, in order, are lost.
    Damage(Vec<DriveId>),
    /// Stripes, from one on, that lack shards when these drives, in order, are lost, and can be solved.
    Endangered {
        /// Lost drives.
        lost: Vec<DriveId>,
        /// From this one on.
        from: StripeId,
    },
    /// Committed stripes, from one on.
    Committed(StripeId),
    /// The first piece of a new dump, or the next of the one under way.
    Dump {
        /// Begin anew.
        begin: bool,
    },
    /// Begin to replace everything.
    RestoreBegin,
    /// Add a piece of a dump.
    RestorePiece(Vec<u8>),
    /// Make the restored catalog the current one.
    RestoreFinish,
    /// Keep the old one.
    RestoreAbandon,
}

/// What came of a request.
#[derive(Debug)]
pub enum CatalogReply {
    /// To an apply.
    Applied(Applied),
    /// To a map page.
    MapPage(MapPage),
    /// To a locate.
    Located(Vec<GrantedStripe>),
    /// To a question for a vdisk's stripes: these, and where to go on.
    StripesOf(Vec<(StripeId, Position)>, Option<StripeId>),
    /// To a question for holders: each stripe's, when the catalog was at that position.
    Holders(Position, Vec<Vec<VdiskId>>),
    /// To a stripe.
    Stripe(Option<StripeRow>),
    /// To a resident.
    Resident(Box<Resident>),
    /// To a damage.
    Damage(Damage),
    /// To a question for endangered stripes.
    Endangered(EndangeredPage),
    /// To a question for committed stripes: these, and where to go on.
    Committed(Vec<StripeId>, Option<StripeId>),
    /// To a dump; `None` after the last piece.
    Dumped(Option<Vec<u8>>),
    /// To a beginning, piece or abandonment of a restore.
    Done,
    /// To the finish of a restore: its position.
    Restored(Position),
    /// The request was not carried out. What another catalog sent was unusable; the catalog itself is well.
    Rejected(String),
    /// The catalog failed: the controller cannot go on.
    Failed(String),
}

/// The contract.
pub trait CatalogPort {
    /// Starts a request.
    fn submit(&self, token: Token, request: CatalogRequest);

    /// Appends replies, in the order of their requests.
    fn poll(&self, replies: &mut Vec<(Token, CatalogReply)>);
}

/// Carries requests out, wherever it runs.
pub struct CatalogWorker {
    catalog: Catalog,
    dump: Option<Dump>,
}

impl CatalogWorker {
    /// A worker of this catalog.
    pub fn new(catalog: Catalog) -> CatalogWorker {
        CatalogWorker { catalog, dump: None }
    }

    /// Carries one request out.
    pub fn execute(&mut self, request: CatalogRequest) -> CatalogReply {
        match self.try_execute(request) {
            Ok(reply) => reply,
            Err(CatalogError::Transfer(what)) => CatalogReply::Rejected(what.to_owned()),
            Err(error) => CatalogReply::Failed(error.to_string()),
        }
    }

    fn try_execute(&mut self, request: CatalogRequest) -> Result<CatalogReply, CatalogError> {
        let catalog = &mut self.catalog;
        Ok(match request {
            CatalogRequest::Apply(entries) => {
                reached(Point::CatalogApplying);
                let applied = catalog.apply(&entries)?;
                reached(Point::CatalogApplied);
                CatalogReply::Applied(applied)
            }
            CatalogRequest::MapPage { vdisk, cursor } => {
                CatalogReply::MapPage(catalog.map_page(vdisk, cursor, MAP_PAGE_BYTES)?)
            }
            CatalogRequest::Locate(stripes) => CatalogReply::Located(catalog.locate(&stripes)?),
            CatalogRequest::StripesOf { vdisk, from } => {
                let (stripes, next) = catalog.stripes_of(vdisk, from, STRIPES_A_PAGE)?;
                CatalogReply::StripesOf(stripes, next)
            }
            CatalogRequest::Holders(stripes) => {
                CatalogReply::Holders(catalog.applied(), catalog.holders(&stripes)?)
            }
            CatalogRequest::Stripe(stripe) => CatalogReply::Stripe(catalog.stripe(stripe)?),
            CatalogRequest::Resident => CatalogReply::Resident(Box::new(catalog.resident()?)),
            CatalogRequest::Damage(lost) => CatalogReply::Damage(catalog.damage(&lost)?),
            CatalogRequest::Endangered { lost, from } => {
                CatalogReply::Endangered(catalog.endangered(&lost, from, STRIPES_A_PAGE)?)
            }
            CatalogRequest::Committed(from) => {
                let (stripes, next) = catalog.committed(from, STRIPES_A_PAGE)?;
                CatalogReply::Committed(stripes, next)
            }
            CatalogRequest::Dump { begin } => {
                if begin {
                    self.dump = Some(catalog.dump()?);
                }
                let piece = match &mut self.dump {
                    Some(dump) => dump.next_piece(DUMP_PIECE_BYTES)?,
                    None => None,
                };
                if piece.is_none() {
                    self.dump = None;
                }
                CatalogReply::Dumped(piece)
            }
            CatalogRequest::RestoreBegin => {
                catalog.restore_begin()?;
                reached(Point::CatalogRestoreBegun);
                CatalogReply::Done
            }
            CatalogRequest::RestorePiece(piece) => {
                catalog.restore_piece(&piece)?;
                reached(Point::CatalogRestorePiece);
                CatalogReply::Done
            }
            CatalogRequest::RestoreFinish => {
                let position = catalog.restore_finish()?;
                reached(Point::CatalogRestored);
                CatalogReply::Restored(position)
            }
            CatalogRequest::RestoreAbandon => {
                catalog.restore_abandon()?;
                CatalogReply::Done
            }
        })
    }
}

/// A catalog on the core's own thread, each of whose replies takes a while: for the simulator.
#[derive(Clone)]
pub struct InlineCatalog(Rc<Inline>);

struct Inline {
    worker: RefCell<CatalogWorker>,
    requests: RefCell<VecDeque<(Token, CatalogRequest)>>,
    replies: RefCell<Vec<(Token, CatalogReply)>>,
    executor: Executor,
    delay: Duration,
}

impl InlineCatalog {
    /// Carries a request out `delay` after its submission.
    pub fn new(catalog: Catalog, executor: Executor, delay: Duration) -> InlineCatalog {
        InlineCatalog(Rc::new(Inline {
            worker: RefCell::new(CatalogWorker::new(catalog)),
            requests: RefCell::default(),
            replies: RefCell::default(),
            executor,
            delay,
        }))
    }
}

impl CatalogPort for InlineCatalog {
    fn submit(&self, token: Token, request: CatalogRequest) {
        self.0.requests.borrow_mut().push_back((token, request));
        let inline = Rc::downgrade(&self.0);
        let sleep = self.0.executor.sleep(self.0.delay);
        self.0.executor.spawn(Priority::Foreground, async move {
            sleep.await;
            let Some(inline) = inline.upgrade() else { return };
            let request = inline.requests.borrow_mut().pop_front();
            if let Some((token, request)) = request {
                let reply = inline.worker.borrow_mut().execute(request);
                inline.replies.borrow_mut().push((token, reply));
            }
        });
    }

    fn poll(&self, replies: &mut Vec<(Token, CatalogReply)>) {
        replies.append(&mut self.0.replies.borrow_mut());
    }
}
