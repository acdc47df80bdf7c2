//! What a host engine tells its operator: what cores report, and what is seen by looking at their figures now and then.
//!
//! Everything that can happen to many requests in a row (solved reads, failed requests, leases, the pool without room) is
//! seen by comparing figures every [`LOOK`], so that nothing on the way of a request knows of events. What comes and goes between two
//! looks is not told; counts are. Nothing here survives but what [`Events`](cleave_control::events::Events) keeps.

use crate::engine::Engine;
use crate::messages::CoreView;
use crate::status;
use cleave_control::events::{Kind, News, Subject};
use cleave_control::status::HostFlashStatus;
use cleave_format::ids::{DriveId, StripeId, VdiskId};
use cleave_host_core::Event;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// What a core's event says to an operator, if it does; others the control thread tells.
pub fn of_core(event: &Event) -> Option<News> {
    match event {
        Event::LogReplaced { records } => Some(
            News::new(Kind::LogReplaced, Subject::Log(0))
                .because(format!("the data node began a new log; {records} records of this host")),
        ),
        Event::Damaged { vdisk, block } => Some(
            News::new(Kind::BlockDamaged, Subject::Vdisk(vdisk.to_string()))
                .at(format!("block {}", block.0))
                .because("its check fails, and no good copy is left"),
        ),
        Event::Fenced { .. } | Event::Rejected { .. } | Event::Shortage { .. } => None,
    }
}

impl Engine {
    /// Takes news.
    pub fn tell(&self, news: News) {
        self.events.tell(self.executor.clock().unix_seconds(), news);
    }

    /// Takes news of a core, which knows vdisks by number and no data nodes.
    pub fn tell_of_core(&self, news: News) {
        let subject = match &news.subject {
            Subject::Vdisk(number) => {
                let known = number.parse().ok().map(VdiskId);
                known.map_or_else(|| news.subject.clone(), |vdisk| self.vdisk_subject(vdisk))
            }
            Subject::Log(_) => Subject::Log(self.config.datanodes[0].id),
            other => other.clone(),
        };
        self.tell(News { subject, ..news });
    }

    /// The vdisk that has a share, by its name, if it is known.
    pub fn vdisk_subject(&self, share: VdiskId) -> Subject {
        let known = self.share(share).map(|(vdisk, _)| vdisk.name.clone());
        Subject::Vdisk(known.unwrap_or_else(|| share.to_string()))
    }
}

/// Looks at the cores' figures for as long as the engine runs.
pub async fn watch(engine: Rc<Engine>) {
    let mut before = Seen::default();
    loop {
        engine.executor.sleep(LOOK).await;
        if engine.stopping.get() || engine.cores.borrow().is_empty() {
            continue;
        }
        let views = status::look(&engine).await;
        let seen = Seen::of(&views, &status::flash_status(&engine, &views));
        for news in seen.news(&before, engine.config.datanodes[0].id) {
            match news.subject {
                Subject::Vdisk(_) => engine.tell_of_core(news),
                _ => engine.tell(news),
            }
        }
        before = seen;
    }
}

/// What a look saw.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Seen {
    /// All cores have their log connection; `None`: this was never so.
    connected: Option<bool>,
    shortage: Option<String>,
    /// Vdisks without a lease that had one.
    leases_lost: u64,
    solved: u64,
    last_solved: Option<(DriveId, StripeId, u16)>,
    /// Requests of guests that failed.
    failed: BTreeMap<VdiskId, u64>,
    /// Bytes of flash, of the working set, and whether the first are fewer.
    flash: (u64, u64, bool),
}

impl Seen {
    fn of(views: &[CoreView], flash: &HostFlashStatus) -> Seen {
        let connected = !views.is_empty() && views.iter().all(|view| view.core.connected);
        let vdisks = views.iter().flat_map(|view| &view.vdisks);
        let capacity = flash.space.capacity;
        Seen {
            connected: Some(connected),
            shortage: views.iter().find_map(|view| view.core.shortage.clone()),
            leases_lost: views.iter().map(|view| view.core.leases_lost).sum(),
            solved: views.iter().map(|view| view.core.reads_solved).sum(),
            last_solved: views.iter().find_map(|view| view.core.last_solved),
            failed: vdisks.map(|vdisk| (vdisk.vdisk, vdisk.stats.errors)).collect(),
            flash: (capacity, flash.working_set, capacity > 0 && flash.headroom < 0),
        }
    }

    /// What is another way than before.
    fn news(&self, before: &Seen, datanode: u16) -> Vec<News> {
        let mut news = Vec::new();
        let log = || Subject::Log(datanode);
        match (before.connected, self.connected) {
            (Some(true), Some(false)) => {
                let cause = "not every core has a connection to an active controller";
                news.push(News::new(Kind::LinkLost, log()).because(cause));
            }
            (Some(false), Some(true)) => news.push(News::new(Kind::LinkBack, log())),
            _ => {}
        }
        let pool = || Subject::Pool(datanode);
        match (&before.shortage, &self.shortage) {
            (None, Some(reason)) => news.push(News::new(Kind::PoolShort, pool()).because(reason)),
            (Some(_), None) => news.push(News::new(Kind::PoolBack, pool())),
            _ => {}
        }
        match (before.leases_lost, self.leases_lost) {
            (0, 1..) => {
                let cause =
                    format!("{} vdisks: no controller renewed it in time", self.leases_lost);
                news.push(News::new(Kind::LeaseLost, log()).because(cause));
            }
            (1.., 0) => news.push(News::new(Kind::LeaseBack, log())),
            _ => {}
        }
        let solved = self.solved.saturating_sub(before.solved);
        if solved > 0 {
            let told = match self.last_solved {
                Some((drive, stripe, shard)) => {
                    let place = format!("stripe {stripe}, shard {shard}");
                    News::new(Kind::ReadSolved, Subject::Drive(drive.0)).at(place)
                }
                None => News::new(Kind::ReadSolved, pool()),
            };
            let cause = "its drive did not give it, or its check failed (the last of them)";
            news.push(News { count: solved, ..told.because(cause) });
        }
        for (vdisk, errors) in &self.failed {
            // A vdisk that was opened anew counts from nothing.
            let known = before.failed.get(vdisk).copied().unwrap_or(0);
            let count = if *errors < known { *errors } else { errors - known };
            if count > 0 {
                let subject = Subject::Vdisk(vdisk.to_string());
                let told = News::new(Kind::GuestErrors, subject);
                news.push(News { count, ..told.because("the engine's log says why") });
            }
        }
        let ((capacity, set, small), (.., was_small)) = (self.flash, before.flash);
        if small != was_small && capacity > 0 {
            let kind = if small { Kind::FlashSmall } else { Kind::FlashEnough };
            let (capacity, set) = (capacity >> 20, set >> 20);
            let cause = format!("flash has {capacity} MiB, the open vdisks hold {set} MiB");
            news.push(News::new(kind, Subject::Flash("of this host".to_owned())).because(cause));
        }
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_host_core::CoreStats;

    fn kinds(now: &Seen, before: &Seen) -> Vec<Kind> {
        now.news(before, 1).into_iter().map(|news| news.kind).collect()
    }

    #[test]
    fn what_changes_is_told_and_what_stays_is_not() {
        let quiet = Seen { connected: Some(true), ..Seen::default() };
        assert_eq!(kinds(&quiet, &Seen::default()), []);
        let bad = Seen {
            connected: Some(false),
            shortage: Some("no slots".to_owned()),
            leases_lost: 2,
            solved: 7,
            last_solved: Some((DriveId(3), StripeId::default(), 1)),
            failed: [(VdiskId(5), 4)].into(),
            flash: (1 << 30, 2 << 30, true),
        };
        let told = bad.news(&quiet, 1);
        let all = [
            Kind::LinkLost,
            Kind::PoolShort,
            Kind::LeaseLost,
            Kind::ReadSolved,
            Kind::GuestErrors,
            Kind::FlashSmall,
        ];
        assert_eq!(told.iter().map(|news| news.kind).collect::<Vec<_>>(), all);
        assert_eq!((&told[3].subject, told[3].count), (&Subject::Drive(3), 7));
        assert_eq!((&told[4].subject, told[4].count), (&Subject::Vdisk("5".to_owned()), 4));
        assert_eq!(told[1].cause, "no slots");
        assert_eq!(kinds(&bad, &bad), []);
        let well = Seen {
            connected: Some(true),
            shortage: None,
            leases_lost: 0,
            flash: (4 << 30, 2 << 30, false),
            ..bad.clone()
        };
        let back = [Kind::LinkBack, Kind::PoolBack, Kind::LeaseBack, Kind::FlashEnough];
        assert_eq!(kinds(&well, &bad), back);
        let anew = Seen { failed: [(VdiskId(5), 1)].into(), ..well.clone() };
        assert_eq!(anew.news(&well, 1)[0].count, 1);
    }

    #[test]
    fn all_cores_are_looked_at() {
        let view = |connected, solved| CoreView {
            core: CoreStats { connected, reads_solved: solved, ..CoreStats::default() },
            ..CoreView::default()
        };
        let seen = Seen::of(&[view(true, 1), view(false, 2)], &HostFlashStatus::default());
        assert_eq!((seen.connected, seen.solved), (Some(false), 3));
        assert!(!seen.flash.2, "a host without flash has not too little of it");
    }
}
