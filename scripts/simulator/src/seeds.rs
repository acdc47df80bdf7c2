//! Seeds that once failed: kept in `seeds.txt`, and run again with every budget.
//!
//! A seed stands for draws, not for a schedule: what it hits moves with every change of the engines. So that its
//! draws stay the same, whatever a newer version of the simulator draws in addition comes from a stream
//! of its own (see [`plan`](crate::plan)).

use crate::plan::Scale;

/// The file, as it was when this was built.
const TEXT: &str = include_str!("../seeds.txt");

/// A run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// Its seed.
    pub seed: u64,
    /// How large it is.
    pub scale: Scale,
}

/// All kept seeds, in the order of the file.
///
/// # Panics
/// When a line of the file is neither empty nor a comment nor `SCALE SEED  what it found`.
pub fn kept() -> Vec<Kept> {
    parse(TEXT)
        .unwrap_or_else(|line| panic!("seeds.txt: {line:?} is not \"small|usual SEED WHAT\""))
}

fn parse(text: &str) -> Result<Vec<Kept>, &str> {
    let lines = text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    let kept = |line| {
        let mut words = str::split_whitespace(line);
        let scale = match words.next() {
            Some("small") => Scale::Small,
            Some("usual") => Scale::Usual,
            _ => return Err(line),
        };
        let seed = words.next().and_then(|word| word.parse().ok()).ok_or(line)?;
        // A seed without what it found is worth little.
        words.next().map(|_| Kept { seed, scale }).ok_or(line)
    };
    lines.map(kept).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_file_can_be_read() {
        assert!(!kept().is_empty());
    }

    #[test]
    fn lines_say_scale_seed_and_what_was_found() {
        let found = parse("# seeds\n\nsmall 3 a lost zero\nusual 12 a leak\n");
        let small = Kept { seed: 3, scale: Scale::Small };
        assert_eq!(found, Ok(vec![small, Kept { seed: 12, scale: Scale::Usual }]));
        assert_eq!(parse("small 3"), Err("small 3"));
        assert_eq!(parse("3 a lost zero"), Err("3 a lost zero"));
    }
}
