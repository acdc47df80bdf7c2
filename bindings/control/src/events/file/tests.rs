//! Files that are torn, full, failing, or somebody else's.

use super::super::journal::{Journal, News};
use super::super::{Kind, Subject};
use super::*;
use proptest::prelude::*;

fn event(number: u64) -> Event {
    Event { number, at: 7, last: 9, count: 2, cause: "a cable".to_owned(), ..Event::default() }
}

fn line(event: &Event) -> Vec<u8> {
    let mut line = serde_json::to_vec(event).unwrap();
    line.push(b'\n');
    line
}

#[test]
fn what_was_appended_is_loaded_and_the_newest_line_of_a_number_counts() {
    let dir = tempfile::tempdir().unwrap();
    let mut file = EventFile::start(dir.path()).unwrap();
    file.append(&event(1));
    file.append(&event(2));
    file.append(&Event { count: 64, ..event(1) });
    assert_eq!(file.not_kept(), 0);
    file.close();
    let loaded = load(dir.path());
    assert_eq!(loaded.events, [Event { count: 64, ..event(1) }, event(2)]);
    assert_eq!((loaded.damaged, loaded.failure), (0, None));
}

#[test]
fn a_torn_line_is_skipped_and_what_follows_is_not_lost_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events.jsonl");
    let whole = line(&event(1));
    for length in 1..whole.len() - 1 {
        let torn = [&whole[..], &line(&event(2))[..length]].concat();
        std::fs::write(&path, torn).unwrap();
        Writer::new(dir.path()).append(&line(&event(3))).unwrap();
        let loaded = load(dir.path());
        assert_eq!((loaded.events, loaded.damaged), (vec![event(1), event(3)], 1), "{length}");
    }
}

#[test]
fn files_change_places_when_one_is_full_and_no_more_than_two_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let mut writer = Writer::new(dir.path());
    let padded = |number| Event { cause: "x".repeat(1000), ..event(number) };
    let count = 3 * FILE_MAX / 1000;
    for number in 1..=count {
        writer.append(&line(&padded(number))).unwrap();
    }
    let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
    assert_eq!(files.len(), 2);
    for file in files {
        assert!(file.metadata().unwrap().len() <= FILE_MAX, "{file:?}");
    }
    let numbers: Vec<u64> = load(dir.path()).events.iter().map(|event| event.number).collect();
    assert_eq!(numbers.last(), Some(&count));
    assert!(numbers.len() as u64 * 1000 > FILE_MAX / 2, "the file before is read, too");
    assert!(numbers.windows(2).all(|two| two[0] + 1 == two[1]), "none between is missing");
}

#[test]
fn a_disk_that_takes_nothing_stops_nobody_and_is_tried_again() {
    let dir = tempfile::tempdir().unwrap();
    let gone = dir.path().join("gone");
    let mut writer = Writer::new(&gone);
    assert!(writer.append(&line(&event(1))).is_err());
    std::fs::create_dir(&gone).unwrap();
    writer.append(&line(&event(2))).unwrap();
    assert_eq!(load(&gone).events, [event(2)]);

    // A full disk, as the kernel plays it.
    let full = dir.path().join("full");
    std::fs::create_dir(&full).unwrap();
    std::os::unix::fs::symlink("/dev/full", full.join("events.jsonl")).unwrap();
    let mut file = EventFile::start(&full).unwrap();
    let count = 2 * QUEUED as u64;
    for number in 1..=count {
        file.append(&event(number));
    }
    let shared = Arc::clone(&file.shared);
    file.close();
    assert_eq!(shared.not_kept.load(Ordering::Relaxed), count);
}

#[test]
fn a_queue_that_nobody_takes_from_never_blocks() {
    let (lines, queue) = sync_channel(2);
    let (_ended, over) = sync_channel(1);
    let mut file = EventFile { lines, over, shared: Arc::default() };
    for number in 1..=5 {
        file.append(&event(number));
    }
    assert_eq!(file.not_kept(), 3);
    drop(queue);
    file.append(&event(6));
    assert_eq!(file.not_kept(), 4);
}

#[test]
fn a_folder_in_place_of_the_file_is_said() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("events.jsonl")).unwrap();
    let loaded = load(dir.path());
    assert!(loaded.failure.unwrap().contains("events.jsonl"));
    assert!(load(&dir.path().join("none")).events.is_empty());
}

#[test]
fn numbers_go_on_after_a_restart_and_an_end_that_was_no_stop_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let file = EventFile::start(dir.path()).unwrap();
        Journal::open("host-1", file, load(dir.path()).events)
    };
    let (mut journal, clean) = start();
    assert!(clean, "there was none before");
    journal.tell(1, News::new(Kind::DriveLost, Subject::Drive(3)).because("it is gone"));
    journal.close();
    let (mut journal, clean) = start();
    assert!(!clean);
    journal.tell(2, News::new(Kind::Stopped, Subject::Engine("host-1".to_owned())));
    let told = journal.since(0).events;
    assert_eq!(told.iter().map(|event| event.number).collect::<Vec<_>>(), [1, 2]);
    assert_eq!(told[0].cause, "it is gone");
    journal.close();
    let (_, clean) = start();
    assert!(clean);
}

proptest! {
    #[test]
    fn any_bytes_are_read_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
        let (events, damaged) = parse(&bytes);
        let lines = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).count();
        prop_assert!(events.len() as u64 + damaged <= lines as u64);
    }

    /// A flipped bit damages its line, and at most the next.
    #[test]
    fn a_flipped_bit_costs_two_lines_at_most(count in 2_u64..20, at in any::<proptest::sample::Index>(), bit in 0_u8..8) {
        let mut bytes: Vec<u8> = (1..=count).flat_map(|number| line(&event(number))).collect();
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        let (events, _) = parse(&bytes);
        let same = events.iter().filter(|found| **found == event(found.number)).count() as u64;
        prop_assert!(same + 2 >= count, "{same} of {count}");
    }
}
