//! Which owners of a vdisk are known to serve it no more, when a host takes it (C9, C25).
//!
//! A seal is acknowledged at once when the owner whose seal the log has last *served*, so that it waited for those before it
//! itself, and is gone. The host that takes the vdisk knows that of two kinds: owners that let go, as the store says; and
//! engines of its own, which are dead because it holds the vdisk's kernel lock. An epoch that was taken and
//! perhaps sealed, but never served, says nothing about those before it; so a host remembers the unbroken row of epochs of its
//! own, beginning with one that was served, beside the lock (`vdisk-ID.epochs`). What it does not remember costs
//! the new owner a wait, and nothing else.
//!
//! ```text
//! vdisk-ID.epochs:  first epoch, a space, last epoch, a line feed; decimal
//! ```

use cleave_format::ids::Epoch;

/// Owners that are named at most: of a long row of starts that never served, the last ones.
const NAMED_MAX: u64 = 64;

/// The owner record of a vdisk, as it is found before a new epoch is taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OwnerBefore {
    /// Its epoch.
    pub epoch: Epoch,
    /// It is this host's.
    pub own: bool,
    /// It let go.
    pub released: bool,
}

/// An unbroken row of epochs whose owners are gone once the lock is held; the first one served, or let go, or there was
/// none before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tenure {
    first: Epoch,
    last: Epoch,
}

impl Tenure {
    /// What is known before a new epoch is taken: from what is remembered, and the record in the store.
    pub fn before(remembered: Option<Tenure>, owner: Option<OwnerBefore>) -> Option<Tenure> {
        match owner {
            None => Some(Tenure::served(Epoch(0))),
            Some(owner) => {
                // It says more: shares of the vdisk may have been served under older epochs.
                let row = remembered.filter(|row| owner.own && row.last == owner.epoch);
                row.or(owner.released.then(|| Tenure::served(owner.epoch)))
            }
        }
    }

    /// The shares of the vdisk are served under epochs of this row, none of them under one before this.
    pub fn since(self, oldest: Epoch) -> Tenure {
        Tenure { first: self.first.max(oldest).min(self.last), ..self }
    }

    /// This epoch is served.
    pub fn served(epoch: Epoch) -> Tenure {
        Tenure { first: epoch, last: epoch }
    }

    /// This host took the next epoch.
    pub fn taken(self) -> Tenure {
        Tenure { last: Epoch(self.last.0 + 1), ..self }
    }

    /// The epochs, for the seal.
    pub fn gone(self) -> Vec<Epoch> {
        let first = self.first.0.max((self.last.0 + 1).saturating_sub(NAMED_MAX));
        (first..=self.last.0).map(Epoch).collect()
    }

    /// As it is remembered.
    pub fn to_text(self) -> String {
        format!("{} {}\n", self.first, self.last)
    }

    /// What is remembered; `None`: nothing that can be relied on.
    pub fn from_text(text: &str) -> Option<Tenure> {
        let (first, last) = text.strip_suffix('\n')?.split_once(' ')?;
        let (first, last) = (first.parse().ok()?, last.parse().ok()?);
        (first <= last).then_some(Tenure { first: Epoch(first), last: Epoch(last) })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner(epoch: u64, own: bool, released: bool) -> Option<OwnerBefore> {
        Some(OwnerBefore { epoch: Epoch(epoch), own, released })
    }

    fn gone(remembered: Option<Tenure>, owner: Option<OwnerBefore>) -> Option<Vec<u64>> {
        let known = Tenure::before(remembered, owner)?;
        Some(known.gone().into_iter().map(|epoch| epoch.0).collect())
    }

    #[test]
    fn only_those_that_served_or_followed_one_that_did_are_known_to_be_gone() {
        assert_eq!(gone(None, None), Some(vec![0]));
        // It let go: so it served.
        assert_eq!(gone(None, owner(4, false, true)), Some(vec![4]));
        assert_eq!(gone(None, owner(4, false, false)), None);
        // Of this host, but it may never have served, over one that may be alive.
        assert_eq!(gone(None, owner(4, true, false)), None);
        let served = Tenure::served(Epoch(4));
        assert_eq!(gone(Some(served), owner(4, true, false)), Some(vec![4]));
        assert_eq!(gone(Some(served.taken().taken()), owner(6, true, false)), Some(vec![4, 5, 6]));
        // Another host came between, or the file is an older one.
        assert_eq!(gone(Some(served), owner(5, false, false)), None);
        assert_eq!(gone(Some(served), owner(6, true, false)), None);
        // Shares were served under epochs of the row, and let go with the newest one.
        let row = served.taken().taken();
        assert_eq!(gone(Some(row), owner(6, true, true)), Some(vec![4, 5, 6]));
        assert_eq!(gone(Some(row.since(Epoch(5))), owner(6, true, true)), Some(vec![5, 6]));
        assert_eq!(gone(Some(row), owner(6, false, true)), Some(vec![6]));
        assert_eq!(gone(Some(row), owner(7, true, true)), Some(vec![7]));
        let long = Tenure { first: Epoch(4), last: Epoch(1_000) };
        let named = long.gone();
        assert_eq!((named.len(), named[0], named[63]), (64, Epoch(937), Epoch(1_000)));
    }

    #[test]
    fn what_is_torn_is_not_relied_on() {
        let row = Tenure::served(Epoch(12)).taken();
        assert_eq!(row.to_text(), "12 13\n");
        assert_eq!(Tenure::from_text("12 13\n"), Some(row));
        for torn in ["", "12", "12 ", "12 13", "12 1\n", "x 13\n", "12 13\n\n", " 12 13\n"] {
            assert_eq!(Tenure::from_text(torn), None, "{torn:?}");
        }
    }
}
