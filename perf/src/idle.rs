//! Front ends that are connected and ask for nothing: for what an engine costs then, and how soon it answers.
//!
//! One block of each disk is written and read first, so that its queues are set up as a guest's. Then `idle` is printed.
//! For each line on standard input each disk is asked for that block once, one after another, and the times are printed
//! in microseconds; at its end the front ends go.

use crate::{Failure, fill_block};
use cleave_front_end::{Buffers, Connection, Done};
use std::io::{BufRead, Write, stdin, stdout};
use std::path::PathBuf;
use std::time::{Duration, Instant};

const BLOCK: usize = 4096;
/// As many as a guest has with two processors.
const QUEUES: usize = 2;
/// How long a request may take.
const ANSWER: Duration = Duration::from_secs(60);

/// Arguments of `idle`.
#[derive(Clone, Debug, clap::Args)]
pub struct Arguments {
    /// The disks' sockets.
    #[arg(required = true)]
    pub sockets: Vec<PathBuf>,
}

/// Runs until standard input ends.
pub fn run(arguments: &Arguments) -> Result<(), Failure> {
    let mut buffers = Buffers::new(QUEUES, BLOCK)?;
    fill_block(buffers.slot(0), 1, 1);
    let mut connections = Vec::with_capacity(arguments.sockets.len());
    for socket in &arguments.sockets {
        let mut connection = Connection::open(socket, QUEUES, QUEUES, &buffers)?;
        connection.write(0, 0, BLOCK, &buffers)?;
        finish(&mut connection)?;
        connections.push(connection);
    }
    println!("idle");
    for line in stdin().lock().lines() {
        line?;
        let mut times = Vec::with_capacity(connections.len());
        for connection in &mut connections {
            let start = Instant::now();
            connection.read(1, 0, BLOCK, &buffers)?;
            finish(connection)?;
            times.push(start.elapsed().as_micros().to_string());
        }
        println!("{}", times.join(" "));
        stdout().flush()?;
    }
    Ok(())
}

/// Waits for the one request in flight.
fn finish(connection: &mut Connection) -> Result<(), Failure> {
    let (start, mut done) = (Instant::now(), Vec::<Done>::new());
    connection.notify()?;
    loop {
        connection.completed(&mut done);
        match done.pop() {
            Some(Done { result: 0, .. }) => return Ok(()),
            Some(Done { result, .. }) => {
                return Err(format!("the disk answered with error {result}").into());
            }
            None if start.elapsed() > ANSWER => return Err("the disk does not answer".into()),
            None => connection.wait(Duration::from_secs(1))?,
        }
    }
}
