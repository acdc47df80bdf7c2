//! The world: that runs repeat; clocks and timers; crash and pause of processes.

use super::*;
use crate::{Counters, FaultPlan, Settings, Span};
use cleave_runtime::buffer::PAGE;
use cleave_runtime::drives::DriveIo;
use cleave_runtime::executor::Priority;
use cleave_runtime::random::Random;
use cleave_runtime::sync::Queue;
use std::cell::Cell;
use std::collections::BTreeSet;

const NAMES: [&str; 4] = ["alpha", "beta", "gamma", "delta"];

/// Starts a process that stores what it is told, answers it once durable, and keeps telling the next.
fn start_player(world: &World, index: usize, answers: &Rc<Cell<u64>>) {
    let process = world.start_process(NAMES[index]);
    let drive = world.drive(NAMES[index]).unwrap();
    let (links, drive) = (process.links(), DriveIo::new(process.open_drive(&drive)));
    let (executor, random) = (process.executor(), process.random());
    let queue: Queue<(ConnectionId, u8, Bytes)> = Queue::default();
    let (told, storing, replies) = (queue.clone(), drive.clone(), Rc::clone(&links));
    let places = process.random();
    executor.spawn(Priority::Background, async move {
        loop {
            let (connection, lane, content) = told.pop().await;
            let mut buffer = storing.drive().buffer(PAGE);
            buffer[..content.len()].copy_from_slice(&content);
            let offset = places.below(256) * PAGE as u64;
            let stored = storing.write(offset, buffer).await.is_ok();
            if stored && storing.flush().await.is_ok() {
                let _ = replies.send(connection, lane, &[Bytes::from_static(b"r"), content]);
            }
        }
    });
    let (telling, next) = (Rc::clone(&links), address(NAMES[(index + 1) % NAMES.len()]));
    let out = Rc::new(Cell::new(telling.connect(&next, Class::Bulk)));
    let (to, timer, choice) = (Rc::clone(&out), executor.clone(), Rc::clone(&random));
    executor.spawn(Priority::Foreground, async move {
        loop {
            timer.sleep(Duration::from_micros(100 + choice.below(2_000))).await;
            let content = vec![choice.next_u64() as u8; choice.below(PAGE as u64) as usize];
            let parts = [Bytes::from_static(b"q"), Bytes::from(content)];
            let _ = telling.send(to.get(), choice.below(4) as u8, &parts);
        }
    });
    let (answers, again) = (Rc::clone(answers), process.clone());
    let mut events = Vec::new();
    process.set_turn(move || {
        links.poll(&mut events);
        let mut any = drive.turn();
        for event in events.drain(..) {
            any = true;
            match event {
                LinkEvent::Received { connection, lane, mut message } => {
                    match &message.take(1).unwrap()[..] {
                        b"q" => queue.push((connection, lane, message.take_rest())),
                        _ => answers.set(answers.get() + 1),
                    }
                }
                LinkEvent::Closed { connection, .. } if connection == out.get() => {
                    let (out, links, next) = (Rc::clone(&out), Rc::clone(&links), next.clone());
                    let wait = Duration::from_millis(10);
                    again.call_later(wait, move || out.set(links.connect(&next, Class::Bulk)));
                }
                _ => {}
            }
        }
        any
    });
}

/// A crash of a random player now and then, with or without its drive's power.
fn crash_sometimes(world: &World, random: Rc<dyn Random>, answers: Rc<Cell<u64>>) {
    world.call_later(Duration::from_millis(50 + random.below(400)), move |world| {
        let index = random.below(NAMES.len() as u64) as usize;
        if let Some(player) = world.process(NAMES[index]) {
            player.kill();
            if random.below(2) == 0 {
                world.drive(NAMES[index]).unwrap().power_loss();
            }
            let answers = Rc::clone(&answers);
            world.call_later(Duration::from_millis(random.below(300)), move |world| {
                start_player(world, index, &answers);
            });
        }
        crash_sometimes(world, random, answers);
    });
}

fn play(seed: u64) -> (u64, Counters, u64) {
    // Shorter than the lives of the players, so that silence ends connections, too.
    let settings = Settings { idle_timeout: Duration::from_millis(200), ..Settings::default() };
    let world = World::with_settings(seed, settings);
    let answers = Rc::new(Cell::new(0));
    for (index, name) in NAMES.iter().enumerate() {
        world.create_drive(name, 1 << 20);
        start_player(&world, index, &answers);
    }
    world.run_faults(FaultPlan {
        interval: Span::micros(1_000, 100_000),
        lasting: Span::micros(1_000, 3_000_000),
        damage: 4,
        damaged_drives: vec!["gamma".to_owned()],
        ..FaultPlan::default()
    });
    crash_sometimes(&world, world.random(), Rc::clone(&answers));
    world.run_for(SECOND * 5);
    assert!(NAMES[..2].iter().all(|name| world.drive(name).unwrap().damaged().is_empty()));
    (world.trace_hash(), world.counters(), answers.get())
}

#[test]
fn the_same_seed_is_the_same_run() {
    let mut hashes = BTreeSet::new();
    for seed in 0..8 {
        let (first, second) = (play(seed), play(seed));
        assert_eq!(first, second);
        hashes.insert(first.0);
        let (_, counters, answers) = first;
        assert!(answers > 100, "players make progress: {counters:?}");
        assert!(counters.processes_killed > 5 && counters.connections_broken > 0);
        assert!(counters.cuts > 0 && counters.pauses > 0 && counters.timeouts > 0, "{counters:#?}");
    }
    assert_eq!(hashes.len(), 8, "different seeds are different runs");
}

#[test]
fn contents_count_in_the_hash() {
    let hash = |content: &'static [u8], contents| {
        let world = World::new(1);
        world.change_settings(|settings| settings.trace_contents = contents);
        let (a, b) = (node(&world, "a"), node(&world, "b"));
        let (connection, _) = connected(&world, &a, &b);
        a.links.send(connection, 0, &[Bytes::from_static(content)]).unwrap();
        world.run_for(SECOND);
        world.trace_hash()
    };
    assert_ne!(hash(b"one", true), hash(b"two", true));
    assert_eq!(hash(b"one", false), hash(b"two", false));
}

#[test]
fn timers_fire_when_due_by_the_clock_of_their_process() {
    let world = World::new(4);
    let spans = [700u64, 30, 30, 5_000_000, 1];
    let mut origins = BTreeSet::new();
    for name in ["a", "b", "c"] {
        let process = world.start_process(name);
        let (clock, log) = (process.clock(), Rc::new(RefCell::new(Vec::new())));
        let begin = clock.now();
        origins.insert(begin);
        for (index, span) in spans.into_iter().enumerate() {
            let (executor, clock, log) = (process.executor(), process.clock(), Rc::clone(&log));
            process.executor().spawn(Priority::Foreground, async move {
                executor.sleep(Duration::from_micros(span)).await;
                log.borrow_mut().push((index, clock.now().since(begin)));
            });
        }
        world.run_for(SECOND * 6);
        let log = log.borrow();
        assert_eq!(log.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [4, 1, 2, 0, 3]);
        for (index, took) in log.iter() {
            let late = took.saturating_sub(Duration::from_micros(spans[*index]));
            assert!(
                *took >= Duration::from_micros(spans[*index]) && late.as_nanos() < 3,
                "{late:?}"
            );
        }
    }
    assert_eq!(origins.len(), 3, "moments of processes do not compare");
}

#[test]
fn clocks_drift_apart() {
    let world = World::new(6);
    let clocks: Vec<_> = ["a", "b", "c"].map(|name| world.start_process(name).clock()).into();
    let begins: Vec<_> = clocks.iter().map(|clock| clock.now()).collect();
    world.run_for(SECOND * 1000);
    let passed = clocks.iter().zip(begins).map(|(clock, begin)| clock.now().since(begin));
    let passed: BTreeSet<Duration> = passed.collect();
    assert_eq!(passed.len(), 3);
    let (least, most) = (Duration::from_millis(999_900), Duration::from_millis(1_000_100));
    assert!(passed.iter().all(|passed| (least..=most).contains(passed)), "{passed:?}");
}

#[test]
fn a_dead_process_does_nothing_more() {
    let world = World::new(1);
    let process = world.start_process("a");
    let count = Rc::new(Cell::new(0));
    let (executor, counting) = (process.executor(), Rc::clone(&count));
    process.executor().spawn(Priority::Foreground, async move {
        loop {
            executor.sleep(Duration::from_millis(1)).await;
            counting.set(counting.get() + 1);
        }
    });
    let counting = Rc::clone(&count);
    process.call_later(SECOND, move || counting.set(1_000_000));
    let held = Rc::downgrade(&count);
    world.run_for(Duration::from_millis(10));
    assert!(count.get() >= 9);
    process.kill();
    assert_eq!(held.strong_count(), 1, "tasks and calls are dropped");
    let before = count.get();
    world.run_for(SECOND * 2);
    assert_eq!(count.get(), before);
    assert!(!process.alive() && world.process("a").is_none());
    process.wake();
    process.call_later(Duration::ZERO, || panic!("the dead are not called"));
    assert!(!world.step());
}

#[test]
fn a_process_can_end_in_its_own_turn() {
    let world = World::new(1);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, _) = connected(&world, &a, &b);
    let (process, links) = (a.process.clone(), Rc::clone(&a.links));
    a.process.set_turn(move || {
        process.kill();
        assert!(links.send(connection, 0, &[]).is_err());
        true
    });
    world.run_for(SECOND * 2);
    assert!(!a.process.alive());
    assert_eq!(b.closed().unwrap(), "peer died");
}

#[test]
fn a_pause_delays_and_a_long_one_breaks_connections() {
    let world = World::new(8);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, _) = connected(&world, &a, &b);
    b.process.pause();
    a.send(connection, 0, 0);
    world.run_for(SECOND);
    assert!(b.received()[0].is_empty());
    b.process.resume();
    world.run_for(SECOND);
    assert_eq!(b.received()[0], [0]);
    b.process.pause();
    let late = a.connect("b");
    assert!(world.run_until(|| a.closed().is_some(), SECOND * 3));
    world.run_for(SECOND * 3);
    assert_eq!(b.closed(), None, "it has not looked yet");
    b.process.resume();
    world.run_for(SECOND);
    assert!(b.closed().is_some());
    let closed = |wanted| {
        let events = a.events.borrow();
        events.iter().any(|e| matches!(e, LinkEvent::Closed { connection: c, .. } if *c == wanted))
    };
    assert!(closed(connection) && closed(late));
}

#[test]
fn a_busy_loop_takes_virtual_time() {
    let world = World::new(1);
    let process = world.start_process("a");
    let executor = process.executor();
    let done = Rc::new(Cell::new(false));
    let (flag, end) = (Rc::clone(&done), executor.now() + Duration::from_millis(1));
    process.executor().spawn(Priority::Foreground, async move {
        while executor.now() < end {
            executor.yield_now().await;
        }
        flag.set(true);
    });
    assert!(world.run_until(|| done.get(), SECOND));
    assert!(world.counters().turns_cut_short > 10);
    process.set_turn(|| true);
    world.run_for(Duration::from_millis(1));
}

#[test]
fn a_task_woken_by_another_process_runs() {
    let world = World::new(1);
    let (a, b) = (world.start_process("a"), world.start_process("b"));
    let queue: Queue<u32> = Queue::default();
    let (filled, got) = (queue.clone(), Rc::new(Cell::new(0)));
    let seen = Rc::clone(&got);
    a.executor().spawn(Priority::Foreground, async move { seen.set(filled.pop().await) });
    b.call_later(SECOND, move || queue.push(5));
    assert!(!world.run_until(|| got.get() == 5, Duration::from_millis(999)));
    assert!(world.run_until(|| got.get() == 5, SECOND));
    assert_eq!(world.now(), SECOND);
}

#[test]
fn calm_ends_what_faults_began() {
    let world = World::new(1);
    let (a, b) = (node(&world, "a"), node(&world, "b"));
    let (connection, _) = connected(&world, &a, &b);
    world.partition("a", "b");
    b.process.pause();
    world.create_drive("d", 1 << 20).slow(1_000);
    world.run_faults(FaultPlan { interval: Span::micros(1, 1), ..FaultPlan::default() });
    world.calm();
    let before = world.counters();
    a.send(connection, 0, 0);
    world.run_for(SECOND * 10);
    assert_eq!(b.received()[0], [0]);
    let after = world.counters();
    assert_eq!((before.cuts, before.pauses), (after.cuts, after.pauses));
    assert_eq!(after.connections_broken, 0);
}

#[test]
fn a_world_that_is_dropped_leaves_nothing() {
    let world = World::new(1);
    let process = world.start_process("a");
    let drive = world.create_drive("d", 1 << 20);
    let (open, links) = (process.open_drive(&drive), process.links());
    let token = Rc::new(());
    let (in_task, in_turn, own) = (Rc::clone(&token), Rc::clone(&token), process.clone());
    process.executor().spawn(Priority::Background, async move {
        let (_open, _own, _in_task) = (open, own, in_task);
        std::future::pending::<()>().await;
    });
    process.set_turn(move || {
        let (_links, _in_turn) = (&links, &in_turn);
        false
    });
    world.run_for(SECOND);
    drop(world);
    assert_eq!(Rc::strong_count(&token), 1);
    assert!(!process.alive());
}

#[test]
fn faults_are_counted_apart_while_users_wait() {
    let world = World::new(3);
    let process = world.start_process("one");
    let load = world.load();
    process.pause();
    process.resume();
    load.set(2);
    process.pause();
    process.resume();
    load.set(0);
    process.pause();
    assert_eq!((world.counters().pauses, world.counters_under_load().pauses), (3, 1));
}

#[test]
fn clocks_that_are_far_off_are_counted() {
    let settings = Settings { clock_drift_ppm_max: 400_000, ..Settings::default() };
    let world = World::with_settings(4, settings);
    (0..20).for_each(|number| drop(world.start_process(&format!("process-{number}"))));
    assert!(world.counters().clocks_skewed > 15);
    let world = World::new(4);
    (0..20).for_each(|number| drop(world.start_process(&format!("process-{number}"))));
    assert_eq!(world.counters().clocks_skewed, 0);
}
