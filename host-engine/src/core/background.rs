//! How much of the core's time destage gets: more, the fuller the log is.
//!
//! With an empty write buffer 10 % (the rest is the guests'), with a full one 50 %, in a straight line between.
//! It follows in steps of one percent, so that a burst does not make the guests' latency jump.

/// Percent for an empty and for a full write buffer.
const LEAST: u8 = 10;
const MOST: u8 = 50;
/// Turns between two steps: about a millisecond of a busy core.
const TURNS: u32 = 64;

/// The share of background tasks, step by step.
#[derive(Debug)]
pub struct BackgroundShare {
    percent: u8,
    turns: u32,
}

impl Default for BackgroundShare {
    fn default() -> BackgroundShare {
        BackgroundShare { percent: LEAST, turns: 0 }
    }
}

impl BackgroundShare {
    /// A turn of the core; `fill` says how full the write buffer is, in percent, and is asked once per some
    /// turns. Returns the share when it changed.
    pub fn turn(&mut self, fill: impl FnOnce() -> u64) -> Option<u8> {
        self.turns += 1;
        if self.turns < TURNS {
            return None;
        }
        self.turns = 0;
        let fill = fill().min(100) as u8;
        let wanted = LEAST + ((u16::from(MOST - LEAST) * u16::from(fill)) / 100) as u8;
        if wanted == self.percent {
            return None;
        }
        self.percent = if wanted > self.percent { self.percent + 1 } else { self.percent - 1 };
        Some(self.percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn follow(share: &mut BackgroundShare, fill: u64, turns: u32) -> Vec<u8> {
        (0..turns).filter_map(|_| share.turn(|| fill)).collect()
    }

    #[test]
    fn the_share_follows_the_fill_smoothly() {
        let mut share = BackgroundShare::default();
        assert!(follow(&mut share, 0, 10_000).is_empty(), "an empty log changes nothing");
        let up = follow(&mut share, 100, TURNS * 100);
        assert_eq!(up, (LEAST + 1..=MOST).collect::<Vec<u8>>());
        assert!(follow(&mut share, 250, TURNS * 10).is_empty(), "more than full is full");
        let down = follow(&mut share, 50, TURNS * 100);
        assert_eq!(down.last(), Some(&30));
        assert_eq!(follow(&mut share, 0, TURNS), [29]);
    }

    #[test]
    fn the_fill_is_asked_once_per_some_turns() {
        let mut share = BackgroundShare::default();
        let mut asked = 0;
        for _ in 0..TURNS * 5 {
            share.turn(|| {
                asked += 1;
                0
            });
        }
        assert_eq!(asked, 5);
    }
}
