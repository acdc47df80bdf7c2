//! `cleave events`: what happened, of all engines, in the order of time.
//!
//! Clocks of machines differ, and so may the order of what happened on two of them; what one engine tells stays in its own order.

use super::text::{line, utc};
use crate::dev::events::{gather_kept, now};
use crate::error::{Error, Result};
use clap::Args;
use cleave_control::events::{Event, Severity, Unreachable};
use cleave_control::protocol::{CallError, Reply, Request, call};
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long the supervisor may take: it asks all engines at once.
const ANSWER: Duration = Duration::from_secs(10);
/// How often `--follow` looks.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// How far back `--follow` looks for repetitions, seconds: those of one event are told within this.
const REPEATED: u64 = 2 * cleave_control::events::journal::FOLDED;

/// Which events, and how they are shown.
#[derive(Args, Clone, Debug, Default)]
pub struct EventsOptions {
    /// What happened since then: 30s, 15m, 2h or 7d ago, or a time such as 2026-05-01T12:00:00Z.
    #[arg(long, value_name = "TIME", value_parser = parse_since)]
    pub since: Option<Since>,
    /// Of this engine alone, such as host-1, or cleave for the supervisor; may be given several times.
    #[arg(long = "engine", value_name = "NAME")]
    pub engines: Vec<String>,
    /// Of this severity or a worse one.
    #[arg(long, value_name = "info|warning|error", default_value = "info")]
    pub severity: Severity,
    /// Go on, and show what happens from now on, too.
    #[arg(long, short)]
    pub follow: bool,
    /// As JSON (docs/STATUS.md); with --follow one event a line.
    #[arg(long)]
    pub json: bool,
    /// Ask the engine with this control socket, and no supervisor; may be given several times.
    #[arg(long = "socket", value_name = "PATH")]
    pub sockets: Vec<PathBuf>,
}

/// From when on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Since {
    /// So many seconds before now.
    Ago(u64),
    /// Seconds since the Unix epoch.
    At(u64),
}

impl Since {
    fn seconds(self, now: u64) -> u64 {
        match self {
            Since::Ago(seconds) => now.saturating_sub(seconds),
            Since::At(seconds) => seconds,
        }
    }
}

/// As on the command line.
fn parse_since(text: &str) -> std::result::Result<Since, String> {
    let wrong = || "it is a span such as 15m (s, m, h, d), or a time such as 2026-05-01T12:00:00Z";
    if let Some((at, 's' | 'm' | 'h' | 'd')) = text.char_indices().next_back() {
        let seconds = match &text[at..] {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            _ => 86_400,
        };
        let count: u64 = text[..at].parse().map_err(|_| wrong())?;
        return count.checked_mul(seconds).map(Since::Ago).ok_or_else(|| wrong().to_owned());
    }
    parse_time(text).map(Since::At).ok_or_else(|| wrong().to_owned())
}

/// RFC 3339, whole seconds, with an offset.
fn parse_time(text: &str) -> Option<u64> {
    let bytes = text.as_bytes();
    if !text.is_ascii() || bytes.len() < 20 {
        return None;
    }
    let number = |from: usize, length: usize| -> Option<u64> {
        let digits = &text[from..from + length];
        digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse().ok()).flatten()
    };
    let marks = [(4, b"-" as &[u8]), (7, b"-"), (10, b"Tt "), (13, b":"), (16, b":")];
    if !marks.iter().all(|(at, allowed)| allowed.contains(&bytes[*at])) {
        return None;
    }
    let (year, month, day) = (number(0, 4)?, number(5, 2)?, number(8, 2)?);
    let (hour, minute, second) = (number(11, 2)?, number(14, 2)?, number(17, 2)?);
    let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
    let days = match month {
        2 => 28 + u64::from(leap),
        4 | 6 | 9 | 11 => 30,
        1..=12 => 31,
        _ => return None,
    };
    if year < 1970 || day == 0 || day > days || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    // Days are counted as by `utc`: from 1 March 0000.
    let (shifted_year, shifted_month) =
        if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let day_of_year = (153 * shifted_month + 2) / 5 + day - 1;
    let leap_days = shifted_year / 4 - shifted_year / 100 + shifted_year / 400;
    let day = 365 * shifted_year + leap_days + day_of_year - 719_468;
    let local = day * 86_400 + hour * 3600 + minute * 60 + second;
    match &text[19..] {
        "Z" | "z" => Some(local),
        offset if offset.len() == 6 && bytes[22] == b':' => {
            let (hours, minutes) = (number(20, 2)?, number(23, 2)?);
            let span = (hours <= 23 && minutes <= 59).then_some(hours * 3600 + minutes * 60)?;
            match bytes[19] {
                b'+' => local.checked_sub(span),
                b'-' => Some(local + span),
                _ => None,
            }
        }
        _ => None,
    }
}

/// What was found.
#[derive(Clone, Debug, Default, Serialize)]
struct Shown {
    /// In order of time.
    events: Vec<Event>,
    /// Whose are not known, or not the newest.
    unreachable: Vec<Unreachable>,
    /// Engines that could not keep some for a restart.
    not_kept: BTreeMap<String, u64>,
}

/// Carries the command out.
pub fn run(dir: Option<&Path>, options: &EventsOptions) -> Result<()> {
    let begun = now();
    let since = options.since.map_or(0, |since| since.seconds(begun));
    let found = shown(ask(dir, options, since)?, options, since);
    match options.json {
        true if options.follow => print_lines(&found.events)?,
        true => super::print_json(&found)?,
        false => super::print(&found.events.iter().map(text).collect::<String>())?,
    }
    if !options.json || options.follow {
        warn(&found);
    }
    if !options.follow {
        return Ok(());
    }
    let mut known: BTreeMap<(String, u64), (u64, u64)> = BTreeMap::new();
    let mut away = found.unreachable.clone();
    remember(&mut known, &found.events);
    loop {
        std::thread::sleep(LOOK_AGAIN);
        let since = since.max(now().saturating_sub(REPEATED));
        let mut found = match ask(dir, options, since) {
            Ok(reply) => shown(reply, options, since),
            // It may be started again.
            Err(Error::Call(CallError::NotRunning(_) | CallError::Timeout(_))) => continue,
            Err(error) => return Err(error),
        };
        if found.unreachable != away {
            warn(&found);
            away.clone_from(&found.unreachable);
        }
        found.events.retain(|event| {
            known.get(&(event.engine.clone(), event.number)) != Some(&(event.at, event.count))
        });
        known.retain(|_, (at, _)| *at + 2 * REPEATED >= since);
        remember(&mut known, &found.events);
        match options.json {
            true => print_lines(&found.events)?,
            false => super::print(&found.events.iter().map(text).collect::<String>())?,
        }
    }
}

fn remember(known: &mut BTreeMap<(String, u64), (u64, u64)>, events: &[Event]) {
    for event in events {
        known.insert((event.engine.clone(), event.number), (event.at, event.count));
    }
}

fn ask(dir: Option<&Path>, options: &EventsOptions, since: u64) -> Result<Reply> {
    let request = Request::Events { since };
    if options.sockets.is_empty() {
        let dir = dir.ok_or(Error::NoDirectory)?;
        let dir = std::path::absolute(dir).map_err(crate::error::file("find", dir))?;
        return match call(&crate::dev::directory::control_socket(&dir), &request, ANSWER) {
            Err(CallError::NotRunning(_)) if dir.is_dir() => Ok(gather_kept(&dir, since)),
            other => Ok(other?),
        };
    }
    let (mut engines, mut unreachable) = (Vec::new(), Vec::new());
    for socket in &options.sockets {
        match call(socket, &request, ANSWER) {
            Ok(Reply::Events { engines: told, unreachable: away }) => {
                engines.extend(told);
                unreachable.extend(away);
            }
            Ok(_) => return Err(Error::UnknownAnswer),
            Err(error) => unreachable.push(Unreachable {
                engine: socket.display().to_string(),
                reason: error.to_string(),
            }),
        }
    }
    Ok(Reply::Events { engines, unreachable })
}

fn shown(reply: Reply, options: &EventsOptions, since: u64) -> Shown {
    let Reply::Events { engines, unreachable } = reply else { return Shown::default() };
    let named =
        |name: &str| options.engines.is_empty() || options.engines.iter().any(|n| n == name);
    let mut shown = Shown::default();
    for told in engines.into_iter().filter(|told| named(&told.engine)) {
        if told.not_kept > 0 {
            shown.not_kept.insert(told.engine, told.not_kept);
        }
        let wanted = |event: &Event| event.severity >= options.severity && event.last >= since;
        shown.events.extend(told.events.into_iter().filter(wanted));
    }
    shown.unreachable = unreachable.into_iter().filter(|away| named(&away.engine)).collect();
    shown.events.sort_by(|one, other| {
        (one.at, &one.engine, one.number).cmp(&(other.at, &other.engine, other.number))
    });
    shown
}

fn print_lines(events: &[Event]) -> Result<()> {
    let line = |event| serde_json::to_string(event).expect("an event is plain data") + "\n";
    super::print(&events.iter().map(line).collect::<String>())
}

fn warn(shown: &Shown) {
    for Unreachable { engine, reason } in &shown.unreachable {
        eprintln!("cleave: {engine}: {reason}");
    }
    for (engine, count) in &shown.not_kept {
        eprintln!("cleave: {engine} could not keep {count} events on disk; a restart loses them");
    }
}

/// One line, and a second one where something is to be done.
fn text(event: &Event) -> String {
    let Event { severity, engine, subject, name, .. } = event;
    let mut out = String::new();
    let name = if name.is_empty() { String::new() } else { format!(" {name}") };
    let place = if event.place.is_empty() { String::new() } else { format!(", {}", event.place) };
    let cause = if event.cause.is_empty() { String::new() } else { format!(": {}", event.cause) };
    let again = match event.count {
        0 | 1 => String::new(),
        count => format!(" ({count} times, last at {})", utc(event.last)),
    };
    let (at, what) = (utc(event.at), &event.text);
    line(
        &mut out,
        format_args!("{at} {severity:7} {engine}: {subject}{name}{place} {what}{cause}{again}"),
    );
    if !event.action.is_empty() {
        line(&mut out, format_args!("    to do: {}", event.action));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_control::events::EngineEvents;

    #[test]
    fn times_and_spans_are_understood_and_nonsense_is_refused() {
        assert_eq!(parse_since("90s"), Ok(Since::Ago(90)));
        assert_eq!(parse_since("15m"), Ok(Since::Ago(900)));
        assert_eq!(parse_since("2h"), Ok(Since::Ago(7200)));
        assert_eq!(parse_since("7d"), Ok(Since::Ago(604_800)));
        assert_eq!(parse_since("1970-01-01T00:00:00Z"), Ok(Since::At(0)));
        assert_eq!(parse_since("2000-02-29T12:30:01Z"), Ok(Since::At(951_827_401)));
        assert_eq!(parse_since("2000-02-29T14:30:01+02:00"), Ok(Since::At(951_827_401)));
        assert_eq!(parse_since("2000-02-29 10:30:01-02:00"), Ok(Since::At(951_827_401)));
        for wrong in [
            "",
            "1",
            "h",
            "-1h",
            "99999999999999999999s",
            "1w",
            "2001-02-29T00:00:00Z",
            "2000-13-01T00:00:00Z",
            "2000-01-01",
            "2000-01-01T00:00:00",
            "2000-01-01T24:00:00Z",
            "2000-01-01T00:00:00+2:00",
            "1969-12-31T23:59:59Z",
            "1ä",
            "2000-01-01T00:00:00ä",
        ] {
            assert!(parse_since(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn times_are_read_as_they_are_printed() {
        for seconds in (0..4_000_000_000).step_by(86_399 * 7) {
            let printed = utc(seconds).replace(" UTC", "Z").replace(' ', "T");
            assert_eq!(parse_time(&printed), Some(seconds), "{printed}");
        }
    }

    fn event(engine: &str, number: u64, at: u64, severity: Severity) -> Event {
        Event {
            engine: engine.to_owned(),
            number,
            at,
            last: at,
            count: 1,
            severity,
            ..Event::default()
        }
    }

    #[test]
    fn engines_are_merged_by_time_and_filtered() {
        let of =
            |engine: &str, events| EngineEvents { engine: engine.to_owned(), events, not_kept: 0 };
        let a = of("a", vec![event("a", 1, 5, Severity::Info), event("a", 2, 9, Severity::Error)]);
        let b = of("b", vec![event("b", 1, 7, Severity::Warning)]);
        let reply = Reply::Events { engines: vec![a, b], unreachable: Vec::new() };
        let found = |options: EventsOptions, since| -> Vec<u64> {
            shown(reply.clone(), &options, since).events.iter().map(|event| event.at).collect()
        };
        assert_eq!(found(EventsOptions::default(), 0), [5, 7, 9]);
        assert_eq!(found(EventsOptions::default(), 7), [7, 9]);
        let warning = EventsOptions { severity: Severity::Warning, ..EventsOptions::default() };
        assert_eq!(found(warning, 0), [7, 9]);
        let only = EventsOptions { engines: vec!["a".to_owned()], ..EventsOptions::default() };
        assert_eq!(found(only, 0), [5, 9]);
    }

    #[test]
    fn a_line_says_when_who_what_where_why_how_often_and_what_to_do() {
        let event = Event {
            subject: "drive".to_owned(),
            name: "3".to_owned(),
            place: "slot 9".to_owned(),
            text: "failed a request".to_owned(),
            cause: "an I/O error".to_owned(),
            action: "replace it".to_owned(),
            count: 4,
            last: 61,
            ..event("datanode-1-a", 1, 0, Severity::Warning)
        };
        assert_eq!(
            text(&event),
            "1970-01-01 00:00:00 UTC warning datanode-1-a: drive 3, slot 9 failed a request: an I/O error \
             (4 times, last at 1970-01-01 00:01:01 UTC)\n    to do: replace it\n"
        );
    }
}
