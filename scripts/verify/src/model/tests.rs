use super::*;

const A: Content = Content(1);
const B: Content = Content(2);

fn write(model: &mut Model, content: Content) -> Change {
    let change = model.change();
    model.begin(change, 0..1, content, true);
    change
}

fn read(model: &mut Model, content: Content) -> Result<(), Violation> {
    let begun = model.begin_read();
    model.end_read(begun, 0, &[content])
}

#[test]
fn a_completed_write_is_all_that_may_be_read() {
    let mut model = Model::zeros(1, true);
    let change = write(&mut model, A);
    read(&mut model, ZEROS).unwrap();
    model.complete(change, 0..1).unwrap();
    read(&mut model, A).unwrap();
    assert!(read(&mut model, ZEROS).is_err());
    assert!(read(&mut model, B).is_err());
    assert_eq!(model.into_contents(), [A]);
}

#[test]
fn a_read_that_began_before_the_completion_may_return_the_older_content() {
    let mut model = Model::zeros(1, true);
    let change = write(&mut model, A);
    let (early, other) = (model.begin_read(), model.begin_read());
    model.complete(change, 0..1).unwrap();
    model.end_read(early, 0, &[ZEROS]).unwrap();
    model.end_read(other, 0, &[A]).unwrap();
    let late = model.begin_read();
    assert!(model.end_read(late, 0, &[ZEROS]).is_err());
}

#[test]
fn content_is_not_read_before_its_write_is_completed() {
    let mut model = Model::zeros(1, true);
    write(&mut model, A);
    assert!(read(&mut model, A).is_err());
    // Over several queues the order of completions is not seen.
    let mut model = Model::zeros(1, false);
    write(&mut model, A);
    read(&mut model, A).unwrap();
}

#[test]
fn what_a_read_returned_does_not_go_back_while_others_are_in_flight() {
    for (seen, later) in [(A, ZEROS), (ZEROS, A)] {
        let mut model = Model::zeros(1, true);
        let lost = write(&mut model, A);
        model.lose(lost, 0..1);
        let next = write(&mut model, B);
        read(&mut model, seen).unwrap();
        let other = model.clone();
        assert!(read(&mut model, later).is_err());
        // What was read may be read again, and the one in flight comes once it is completed.
        model = other;
        read(&mut model, seen).unwrap();
        model.complete(next, 0..1).unwrap();
        read(&mut model, B).unwrap();
    }
}

#[test]
fn after_a_loss_older_contents_are_possible_until_one_is_read() {
    let mut model = Model::zeros(2, true);
    for content in [A, B] {
        let change = write(&mut model, content);
        model.complete(change, 0..1).unwrap();
    }
    model.doubt(0, &[ZEROS, A, B]);
    model.doubt(1, &[ZEROS]);
    assert_eq!(model.undecided(), 1);
    assert_eq!((model.possible(0), model.possible(1)), (vec![B, ZEROS, A], vec![ZEROS]));
    assert!(read(&mut model.clone(), Content(3)).is_err());
    read(&mut model, A).unwrap();
    assert!(read(&mut model, B).is_err());
    // A later write ends it.
    model.doubt(0, &[ZEROS, B]);
    let change = write(&mut model, B);
    model.complete(change, 0..1).unwrap();
    assert!(read(&mut model.clone(), ZEROS).is_err());
    read(&mut model, B).unwrap();
    assert_eq!(model.into_contents(), [B, ZEROS]);
}

#[test]
fn a_read_that_met_one_of_two_equal_contents_decides_nothing() {
    let mut model = Model::zeros(1, false);
    let lost = write(&mut model, A);
    model.lose(lost, 0..1);
    let next = write(&mut model, A);
    read(&mut model, A).unwrap();
    read(&mut model, ZEROS).unwrap_or_else(|what| panic!("the first one may never happen: {what}"));
    model.complete(next, 0..1).unwrap();
    assert!(read(&mut model, ZEROS).is_err());
}

#[test]
fn overlapping_writes_of_one_queue_complete_in_order() {
    let mut model = Model::zeros(1, true);
    let first = write(&mut model, A);
    let second = write(&mut model, B);
    model.complete(first, 0..1).unwrap();
    model.complete(second, 0..1).unwrap();
    read(&mut model, B).unwrap();
    assert!(read(&mut model, A).is_err());

    let first = write(&mut model, A);
    let second = write(&mut model, B);
    model.complete(second, 0..1).unwrap();
    assert!(model.complete(first, 0..1).is_err());
}

#[test]
fn overlapping_writes_of_several_queues_are_decided_by_a_read() {
    let mut model = Model::zeros(1, false);
    let first = write(&mut model, A);
    let second = write(&mut model, B);
    model.complete(second, 0..1).unwrap();
    model.complete(first, 0..1).unwrap();
    assert!(read(&mut model, ZEROS).is_err());
    read(&mut model, B).unwrap();
    assert!(read(&mut model, A).is_err(), "a decided sector changed without a write");
}

#[test]
fn a_write_in_flight_at_a_kill_happened_or_did_not_and_stays_so() {
    for outcome in [ZEROS, A, B] {
        let mut model = Model::zeros(1, true);
        let lost = [write(&mut model, A), write(&mut model, B)];
        lost.into_iter().for_each(|change| model.lose(change, 0..1));
        read(&mut model, outcome).unwrap();
        for other in [ZEROS, A, B].into_iter().filter(|&other| other != outcome) {
            assert!(read(&mut model, other).is_err(), "{other:?} came after {outcome:?}");
        }
        assert_eq!(model.into_contents(), [outcome]);
    }
}

#[test]
fn a_completed_write_survives_a_kill() {
    let mut model = Model::zeros(1, true);
    let kept = write(&mut model, A);
    model.complete(kept, 0..1).unwrap();
    let lost = write(&mut model, B);
    model.lose(lost, 0..1);
    assert!(read(&mut model, ZEROS).is_err());
    read(&mut model, A).unwrap();
}

#[test]
fn a_write_after_a_kill_ends_what_was_open() {
    let mut model = Model::zeros(1, true);
    let lost = write(&mut model, A);
    model.lose(lost, 0..1);
    let newer = write(&mut model, B);
    model.complete(newer, 0..1).unwrap();
    assert!(read(&mut model, A).is_err());
    assert_eq!(model.into_contents(), [B]);
}

#[test]
fn an_uncertain_change_leaves_both_contents_possible() {
    for outcome in [ZEROS, A] {
        let mut model = Model::holding(vec![A], true);
        let discard = model.change();
        model.begin(discard, 0..1, ZEROS, false);
        model.complete(discard, 0..1).unwrap();
        read(&mut model, outcome).unwrap();
    }
}

#[test]
fn versions_that_only_a_read_keeps_are_swept() {
    let mut model = Model::zeros(1, true);
    let reading = model.begin_read();
    let change = write(&mut model, A);
    model.complete(change, 0..1).unwrap();
    assert_eq!(model.undecided(), 1);
    model.lose_read(reading);
    model.sweep();
    assert_eq!(model.undecided(), 0);
}

mod against_a_disk {
    //! Whatever an honest disk answers is accepted, and what it cannot answer is not.

    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Step {
        Begin(u64, u64),
        Finish,
        Read(u64),
        Kill(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0..8u64, 1..4u64).prop_map(|(first, length)| Step::Begin(first, length)),
            4 => Just(Step::Finish),
            3 => (0..8u64).prop_map(Step::Read),
            1 => any::<u64>().prop_map(Step::Kill),
        ];
        prop::collection::vec(step, 1..80)
    }

    /// A disk of several queues: changes take effect in any order, at any time in their flight,
    /// and reads take their content at any time in theirs.
    #[derive(Clone, Debug)]
    enum Loose {
        Begin(u64, u64),
        Effect(usize),
        Complete(usize),
        BeginRead,
        Sample(usize),
        EndRead(usize),
        Kill,
    }

    fn loose_steps() -> impl Strategy<Value = Vec<Loose>> {
        let step = prop_oneof![
            4 => (0..4u64, 1..3u64).prop_map(|(first, length)| Loose::Begin(first, length)),
            5 => any::<usize>().prop_map(Loose::Effect),
            4 => any::<usize>().prop_map(Loose::Complete),
            4 => Just(Loose::BeginRead),
            5 => any::<usize>().prop_map(Loose::Sample),
            4 => any::<usize>().prop_map(Loose::EndRead),
            1 => Just(Loose::Kill),
        ];
        prop::collection::vec(step, 1..120)
    }

    proptest! {
        #[test]
        fn an_honest_disk_of_several_queues_is_never_accused(steps in loose_steps()) {
            let mut model = Model::zeros(6, false);
            let mut disk = [ZEROS; 6];
            let mut flying: Vec<(Change, Sectors, Content, bool)> = Vec::new();
            let mut reading: Vec<(Moment, Option<[Content; 6]>)> = Vec::new();
            let mut next = 1;
            for step in steps {
                match step {
                    Loose::Begin(first, length) => {
                        let (sectors, content) = (first..first + length, Content(next));
                        next += 1;
                        let change = model.change();
                        model.begin(change, sectors.clone(), content, true);
                        flying.push((change, sectors, content, false));
                    }
                    Loose::Effect(which) if !flying.is_empty() => {
                        let which = which % flying.len();
                        let (_, sectors, content, effective) = &mut flying[which];
                        if !std::mem::replace(effective, true) {
                            sectors.clone().for_each(|sector| disk[sector as usize] = *content);
                        }
                    }
                    Loose::Complete(which) if !flying.is_empty() => {
                        let which = which % flying.len();
                        if flying[which].3 {
                            let (change, sectors, ..) = flying.remove(which);
                            prop_assert_eq!(model.complete(change, sectors), Ok(()));
                        }
                    }
                    Loose::BeginRead => reading.push((model.begin_read(), None)),
                    Loose::Sample(which) if !reading.is_empty() => {
                        let which = which % reading.len();
                        reading[which].1.get_or_insert(disk);
                    }
                    Loose::EndRead(which) if !reading.is_empty() => {
                        let (begun, sample) = reading.remove(which % reading.len());
                        let found = sample.unwrap_or(disk);
                        prop_assert_eq!(model.end_read(begun, 0, &found), Ok(()));
                    }
                    Loose::Kill => {
                        flying.drain(..).for_each(|(change, sectors, ..)| model.lose(change, sectors));
                        reading.drain(..).for_each(|(begun, _)| model.lose_read(begun));
                    }
                    _ => {}
                }
            }
        }

        #[test]
        fn an_honest_disk_is_never_accused(steps in steps()) {
            let mut model = Model::zeros(12, true);
            let mut disk = [ZEROS; 12];
            let mut flying: Vec<(Change, Sectors, Content)> = Vec::new();
            let mut next = 1;
            for step in steps {
                match step {
                    Step::Begin(first, length) => {
                        let (sectors, content) = (first..first + length, Content(next));
                        next += 1;
                        let change = model.change();
                        model.begin(change, sectors.clone(), content, true);
                        flying.push((change, sectors, content));
                    }
                    Step::Finish if !flying.is_empty() => {
                        let (change, sectors, content) = flying.remove(0);
                        sectors.clone().for_each(|sector| disk[sector as usize] = content);
                        model.complete(change, sectors).unwrap();
                    }
                    Step::Finish => {}
                    Step::Read(sector) => {
                        let begun = model.begin_read();
                        let found = disk[sector as usize];
                        prop_assert_eq!(model.end_read(begun, sector, &[found]), Ok(()));
                    }
                    Step::Kill(fates) => {
                        for (bit, (change, sectors, content)) in flying.drain(..).enumerate() {
                            if fates >> (bit % 64) & 1 == 1 {
                                sectors.clone().for_each(|sector| disk[sector as usize] = content);
                            }
                            model.lose(change, sectors);
                        }
                    }
                }
            }
            for (change, sectors, content) in flying {
                sectors.clone().for_each(|sector| disk[sector as usize] = content);
                model.complete(change, sectors).unwrap();
            }
            let begun = model.begin_read();
            prop_assert_eq!(model.end_read(begun, 0, &disk), Ok(()));
            // Content of no write is refused everywhere.
            for sector in 0..12 {
                let begun = model.begin_read();
                prop_assert!(model.end_read(begun, sector, &[Content(next)]).is_err());
            }
            prop_assert_eq!(model.into_contents(), disk.to_vec());
        }
    }
}
