//! What is folded, what is not, and what is forgotten.

use super::super::Severity;
use super::*;
use proptest::prelude::*;

fn fault(place: &str) -> News {
    News::new(Kind::FlashFault, Subject::Flash("/dev/x".to_owned())).at(place).because("it failed")
}

#[test]
fn an_event_says_what_where_why_and_what_to_do() {
    let mut journal = Journal::new("host-1");
    journal.tell(
        60,
        News::new(Kind::DriveLost, Subject::Drive(3)).because("three\nreads failed").at("slot 9"),
    );
    let told = journal.since(0).events;
    let [event] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!((event.number, event.at, event.last, event.count), (1, 60, 60, 1));
    assert_eq!((event.engine.as_str(), event.kind.as_str()), ("host-1", "drive_lost"));
    assert_eq!((event.subject.as_str(), event.name.as_str()), ("drive", "3"));
    assert_eq!((event.place.as_str(), event.cause.as_str()), ("slot 9", "three reads failed"));
    assert!(event.severity == Severity::Error && event.action.contains("replace"));
    assert!(journal.since(61).events.is_empty());
}

#[test]
fn repetitions_are_counted_with_the_first_and_the_last_time() {
    let mut journal = Journal::new("host-1");
    for second in 0..1000 {
        journal.tell(second, fault("byte 4096"));
    }
    let told = journal.since(0).events;
    assert_eq!(told.len(), 1);
    assert_eq!((told[0].at, told[0].last, told[0].count), (0, 999, 1000));
    // After a quiet time it is told anew.
    journal.tell(999 + FOLDED + 1, fault("byte 4096"));
    assert_eq!(journal.since(0).events.len(), 2);
}

#[test]
fn what_happens_again_after_something_else_is_told_anew() {
    let mut journal = Journal::new("host-1");
    for _ in 0..2 {
        journal.tell(1, News::new(Kind::StoreAway, Subject::Store));
        journal.tell(1, News::new(Kind::DriveLost, Subject::Drive(1)));
        journal.tell(1, News::new(Kind::StoreBack, Subject::Store));
    }
    let told = journal.since(0).events;
    let kinds: Vec<&str> = told.iter().map(|event| event.kind.as_str()).collect();
    let expected = ["store_away", "drive_lost", "store_back", "store_away", "store_back"];
    assert_eq!(kinds, expected);
    assert_eq!(told[1].count, 2);
}

#[test]
fn a_device_that_fails_everywhere_is_a_few_events() {
    let mut journal = Journal::new("host-1");
    journal.tell(0, News::new(Kind::TookOver, Subject::Controller("datanode-1-b".to_owned())));
    for place in 0..100_000 {
        journal.tell(place / 1000, fault(&format!("byte {place}")));
    }
    let told = journal.since(0).events;
    assert_eq!(told.len(), 1 + PLACES);
    assert_eq!(told[0].kind, "took_over");
    let last = told.last().unwrap();
    assert_eq!((last.place.as_str(), last.count), ("byte 99999", 100_000 - PLACES as u64 + 1));
}

#[test]
fn causes_are_one_line_of_bounded_length() {
    let news = fault("p").because("ä".repeat(5000));
    assert!(news.cause.len() <= TEXT_MAX && news.cause.starts_with('ä'));
}

#[derive(Clone, Debug)]
struct Step {
    after: u64,
    kind: usize,
    drive: u16,
    place: u8,
}

fn step() -> impl Strategy<Value = Step> {
    (0_u64..90, 0_usize..4, 0_u16..3, 0_u8..20).prop_map(|(after, kind, drive, place)| Step {
        after,
        kind,
        drive,
        place,
    })
}

proptest! {
    /// Whatever happens: bounded, every happening counted once while nothing was forgotten, numbers in order.
    #[test]
    fn nothing_is_uncounted_and_nothing_grows(steps in proptest::collection::vec(step(), 0..1500)) {
        let kinds = [Kind::DriveFault, Kind::DriveLost, Kind::ShardDamaged, Kind::DriveMissing];
        let mut journal = Journal::new("datanode-1-a");
        let mut now = 1_000_000;
        for step in &steps {
            now += step.after;
            let news = News::new(kinds[step.kind], Subject::Drive(step.drive));
            journal.tell(now, news.at(step.place));
        }
        let told = journal.since(0).events;
        prop_assert!(told.len() <= KEPT);
        prop_assert!(told.windows(2).all(|two| two[0].number < two[1].number));
        prop_assert!(told.iter().all(|event| event.at <= event.last && event.last <= now));
        let forgotten = told.first().is_some_and(|first| first.number > 1);
        let counted: u64 = told.iter().map(|event| event.count).sum();
        prop_assert!(forgotten || counted == steps.len() as u64);
    }

    /// Within the time of folding a subject takes no more than its share, however its kinds follow each other.
    #[test]
    fn a_subject_takes_its_share_at_most(kinds in proptest::collection::vec((0_usize..4, 0_u8..200), 0..3000)) {
        let all = [Kind::StoreAway, Kind::StoreBack, Kind::Alone, Kind::NotAlone];
        let mut journal = Journal::new("datanode-1-a");
        for (kind, place) in kinds {
            journal.tell(5, News::new(all[kind], Subject::Store).at(place));
        }
        prop_assert!(journal.since(0).events.len() <= OF_A_SUBJECT + all.len());
    }
}

#[test]
fn the_oldest_leave() {
    let mut journal = Journal::new("host-1");
    for vdisk in 0..KEPT as u64 + 10 {
        journal.tell(1, News::new(Kind::Fenced, Subject::Vdisk(format!("v{vdisk}"))));
    }
    let told = journal.since(0).events;
    assert_eq!((told.len(), told[0].number), (KEPT, 11));
}
