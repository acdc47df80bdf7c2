//! `cleave-fuzz`: replays inputs, writes seeds, and mutates the corpora at random on any toolchain.
//!
//! An input that panics, or that runs for longer than [`TIME_MAX`], is kept in a folder; the program ends
//! with a status other than 0. A stack overflow or an abort ends the program at once; the input that ran is
//! then in the folder as `running-TARGET`.

use clap::{Parser, Subcommand};
use cleave_fuzz::mutate::Random;
use cleave_fuzz::{TARGETS, Target, corpus};
use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::{Hash, Hasher};
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

/// How long one input may take.
const TIME_MAX: Duration = Duration::from_secs(20);
/// Longest input, bytes.
const LENGTH_MAX: usize = 64 << 10;

#[derive(Parser)]
#[command(about = "Fuzzes everything that reads bytes of others")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the names of all targets
    List,
    /// Write seeds that the corpora lack
    Seeds,
    /// Run files through a target
    Replay {
        /// Which target
        target: String,
        /// Which files; without them its corpus
        files: Vec<PathBuf>,
    },
    /// Mutate corpora at random
    Random {
        /// Seconds for each target
        #[arg(long)]
        seconds: u64,
        /// Only this target
        #[arg(long)]
        target: Option<String>,
        /// Where the random changes begin
        #[arg(long, default_value_t = 1)]
        seed: u64,
        /// Where inputs go that broke something
        #[arg(long, default_value = "target/fuzz/crashes")]
        crashes: PathBuf,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(failed) => {
            eprintln!("{failed} inputs broke something");
            ExitCode::FAILURE
        }
        Err(error) => {
            eprintln!("cleave-fuzz: {error}");
            ExitCode::FAILURE
        }
    }
}

fn find(name: &str) -> io::Result<&'static Target> {
    let found = TARGETS.iter().find(|target| target.name == name);
    found
        .ok_or_else(|| io::Error::other(format!("there is no target {name}; see cleave-fuzz list")))
}

/// Gives how many inputs failed.
fn run(command: Command) -> io::Result<usize> {
    match command {
        Command::List => {
            TARGETS.iter().for_each(|target| println!("{}", target.name));
            Ok(0)
        }
        Command::Seeds => {
            for target in TARGETS {
                println!("{}: {} written", target.name, corpus::write_seeds(target)?);
            }
            Ok(0)
        }
        Command::Replay { target, files } => {
            let target = find(&target)?;
            let inputs = match files.is_empty() {
                true => corpus::load(&corpus::folder(target))?,
                false => files
                    .into_iter()
                    .map(|path| Ok((path.clone(), fs::read(path)?)))
                    .collect::<io::Result<_>>()?,
            };
            let broken = inputs.iter().filter(|(path, input)| {
                let broke = breaks(target, input);
                println!("{}: {}", path.display(), if broke { "BROKEN" } else { "fine" });
                broke
            });
            Ok(broken.count())
        }
        Command::Random { seconds, target, seed, crashes } => {
            let targets = match target {
                Some(name) => vec![find(&name)?],
                None => TARGETS.iter().collect(),
            };
            fs::create_dir_all(&crashes)?;
            let mut failed = 0;
            for target in targets {
                failed += random(target, Duration::from_secs(seconds), seed, &crashes)?;
            }
            Ok(failed)
        }
    }
}

fn breaks(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).is_err()
}

fn keep(crashes: &Path, target: &Target, what: &str, input: &[u8]) -> io::Result<PathBuf> {
    let mut hash = DefaultHasher::new();
    input.hash(&mut hash);
    let path = crashes.join(format!("{what}-{}-{:016x}", target.name, hash.finish()));
    fs::write(&path, input)?;
    Ok(path)
}

/// What a target is doing, for the one who watches it.
#[derive(Default)]
struct Progress {
    /// The input that runs, and since when.
    running: Mutex<Option<(Instant, Vec<u8>)>>,
    done: AtomicBool,
}

impl Progress {
    fn set(&self, running: Option<(Instant, Vec<u8>)>) {
        *self.running.lock().expect("nothing panics with it locked") = running;
    }

    /// Ends the process when an input takes too long.
    fn watch(&self, target: &Target, crashes: &Path) {
        while !self.done.load(Ordering::Relaxed) {
            std::thread::park_timeout(Duration::from_millis(500));
            let running = self.running.lock().expect("nothing panics with it locked");
            if let Some((since, input)) = &*running
                && since.elapsed() > TIME_MAX
            {
                let kept = keep(crashes, target, "slow", input);
                eprintln!("{}: an input takes more than {TIME_MAX:?}: {kept:?}", target.name);
                std::process::abort();
            }
        }
    }
}

/// Mutates for a while. Gives how many inputs failed; ends at the third.
fn random(target: &Target, time: Duration, seed: u64, crashes: &Path) -> io::Result<usize> {
    let inputs = corpus::load(&corpus::folder(target))?;
    let inputs: Vec<Vec<u8>> = inputs.into_iter().map(|(_, input)| input).collect();
    let mut random = Random::new(seed);
    let until = Instant::now() + time;
    let (mut count, mut failed) = (0_u64, 0);
    let running = crashes.join(format!("running-{}", target.name));
    let progress = Progress::default();
    let outcome = std::thread::scope(|scope| {
        let watcher = scope.spawn(|| progress.watch(target, crashes));
        let outcome = loop {
            if Instant::now() >= until || failed == 3 {
                break Ok(());
            }
            let input = random.input(&inputs, LENGTH_MAX);
            // Before it runs: after an abort nobody could.
            if let Err(error) = fs::write(&running, &input) {
                break Err(error);
            }
            progress.set(Some((Instant::now(), input.clone())));
            if breaks(target, &input) {
                failed += 1;
                match keep(crashes, target, "crash", &input) {
                    Ok(path) => eprintln!("{}: broken by {}", target.name, path.display()),
                    Err(error) => break Err(error),
                }
            }
            progress.set(None);
            count += 1;
        };
        progress.done.store(true, Ordering::Relaxed);
        watcher.thread().unpark();
        outcome
    });
    outcome?;
    fs::remove_file(&running)?;
    println!("{}: {count} inputs, {failed} broke something", target.name);
    Ok(failed)
}
