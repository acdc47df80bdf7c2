//! The core's short names for stripes, as map entries hold them.
//!
//! Invariants: a handle counts the map entries that name it, those of each vdisk by themselves, because a
//! vdisk leaves a stripe that none of its entries names (C20); and it goes to another stripe only
//! when no entry names it and no plan has it pinned (C3, C19). Reads take stripe and slots from here when
//! they begin, and keep those.

use crate::hash::Map;
use cleave_format::address::{HANDLE_MAX, Handle};
use cleave_format::control::SlotPlace;
use cleave_format::ids::{StripeId, VdiskId};
use std::collections::BTreeSet;
use std::rc::Rc;

/// Where a stripe's shards lie, data first.
pub type Places = Rc<[SlotPlace]>;

struct Named {
    stripe: StripeId,
    /// Entries that name it, by vdisk: nearly always of one.
    entries: Vec<(VdiskId, u64)>,
    /// Plans that refer to it.
    pins: u32,
    places: Option<Places>,
}

impl Named {
    fn of(stripe: StripeId) -> Named {
        Named { stripe, entries: Vec::new(), pins: 0, places: None }
    }

    fn is_named(&self) -> bool {
        !self.entries.is_empty() || self.pins > 0
    }
}

/// The table. Index 0 is never used: handle 0 means "no frame".
pub struct Handles {
    named: Vec<Named>,
    free: Vec<u32>,
    by_stripe: Map<StripeId, Handle>,
}

impl Default for Handles {
    fn default() -> Handles {
        let named = vec![Named::of(StripeId(0))];
        Handles { named, free: Vec::new(), by_stripe: Map::default() }
    }
}

impl Handles {
    /// The stripe's handle, with one more entry of the vdisk that names it; and whether it is the vdisk's
    /// only one.
    ///
    /// # Panics
    /// With more than 2^29 stripes in the maps of one core: 4 PiB.
    pub fn reference(&mut self, vdisk: VdiskId, stripe: StripeId) -> (Handle, bool) {
        self.reference_often(vdisk, stripe, 1)
    }

    /// As [`reference`](Handles::reference), for `often` entries.
    pub fn reference_often(
        &mut self,
        vdisk: VdiskId,
        stripe: StripeId,
        often: u64,
    ) -> (Handle, bool) {
        let handle = match self.by_stripe.get(&stripe) {
            Some(handle) => *handle,
            None => self.name(stripe),
        };
        let entries = &mut self.named[handle.0 as usize].entries;
        match entries.iter_mut().find(|(holder, _)| *holder == vdisk) {
            Some((_, count)) => {
                *count += often;
                (handle, false)
            }
            None => {
                entries.push((vdisk, often));
                (handle, true)
            }
        }
    }

    fn name(&mut self, stripe: StripeId) -> Handle {
        let named = Named::of(stripe);
        let index = match self.free.pop() {
            Some(index) => {
                self.named[index as usize] = named;
                index
            }
            None => {
                let index = u32::try_from(self.named.len()).expect("handles have 29 bits");
                assert!(index <= HANDLE_MAX, "handles have 29 bits");
                self.named.push(named);
                index
            }
        };
        self.by_stripe.insert(stripe, Handle(index));
        Handle(index)
    }

    /// One entry of the vdisk less names it. Gives the stripe if it was the vdisk's last one.
    pub fn release(&mut self, vdisk: VdiskId, handle: Handle) -> Option<StripeId> {
        let named = &mut self.named[handle.0 as usize];
        let held = named.entries.iter().position(|(holder, _)| *holder == vdisk);
        let held = held.expect("a named stripe is released once for each reference");
        named.entries[held].1 -= 1;
        if named.entries[held].1 > 0 {
            return None;
        }
        named.entries.swap_remove(held);
        let stripe = named.stripe;
        self.forget_unnamed(handle);
        Some(stripe)
    }

    /// The handle of a stripe that entries of the vdisk name.
    pub fn find(&self, vdisk: VdiskId, stripe: StripeId) -> Option<Handle> {
        let handle = *self.by_stripe.get(&stripe)?;
        let entries = &self.named[handle.0 as usize].entries;
        entries.iter().any(|(holder, _)| *holder == vdisk).then_some(handle)
    }

    /// No entry of the vdisk names anything any more. Looks at every stripe.
    pub fn forget(&mut self, vdisk: VdiskId) {
        for index in 1..self.named.len() {
            let entries = &mut self.named[index].entries;
            if let Some(held) = entries.iter().position(|(holder, _)| *holder == vdisk) {
                entries.swap_remove(held);
                self.forget_unnamed(Handle(index as u32));
            }
        }
    }

    /// A stripe's slots, if it has a name and they are known.
    pub fn places(&self, stripe: StripeId) -> Option<Places> {
        let handle = self.by_stripe.get(&stripe)?;
        self.named[handle.0 as usize].places.clone()
    }

    fn forget_unnamed(&mut self, handle: Handle) {
        let named = &mut self.named[handle.0 as usize];
        if !named.is_named() {
            self.by_stripe.remove(&named.stripe);
            named.places = None;
            self.free.push(handle.0);
        }
    }

    /// Whether any entry or plan names the stripe.
    pub fn is_named(&self, stripe: StripeId) -> bool {
        self.by_stripe.contains_key(&stripe)
    }

    /// Whether an entry of the vdisk names the stripe.
    pub fn names(&self, vdisk: VdiskId, stripe: StripeId) -> bool {
        let found = self.by_stripe.get(&stripe).map(|handle| &self.named[handle.0 as usize]);
        found.is_some_and(|named| named.entries.iter().any(|(holder, _)| *holder == vdisk))
    }

    /// Keeps a stripe's name while a plan refers to it (C19). False when no entry names the stripe: then it
    /// may be freed by now.
    pub fn pin(&mut self, stripe: StripeId) -> bool {
        let Some(handle) = self.by_stripe.get(&stripe) else { return false };
        let named = &mut self.named[handle.0 as usize];
        let kept = !named.entries.is_empty();
        named.pins += u32::from(kept);
        kept
    }

    /// The plan ended.
    pub fn unpin(&mut self, stripe: StripeId) {
        let handle = *self.by_stripe.get(&stripe).expect("a pinned stripe keeps its name");
        let named = &mut self.named[handle.0 as usize];
        named.pins = named.pins.checked_sub(1).expect("a stripe is unpinned once for each pin");
        self.forget_unnamed(handle);
    }

    /// All stripes that entries of the vdisk name. Looks at every stripe: for judges.
    pub fn named_by(&self, vdisk: VdiskId) -> BTreeSet<StripeId> {
        let of = |named: &&Named| named.entries.iter().any(|(holder, _)| *holder == vdisk);
        self.named.iter().filter(of).map(|named| named.stripe).collect()
    }

    /// Whether a plan refers to the stripe.
    pub fn is_pinned(&self, stripe: StripeId) -> bool {
        let found = self.by_stripe.get(&stripe);
        found.is_some_and(|handle| self.named[handle.0 as usize].pins > 0)
    }

    /// The stripe and, when known, its slots.
    pub fn resolve(&self, handle: Handle) -> (StripeId, Option<Places>) {
        let named = &self.named[handle.0 as usize];
        assert!(named.is_named(), "a map entry names a stripe that is referenced");
        (named.stripe, named.places.clone())
    }

    /// Remembers a stripe's slots, if it has a name.
    pub fn learn(&mut self, stripe: StripeId, places: &Places) {
        if let Some(handle) = self.by_stripe.get(&stripe) {
            self.named[handle.0 as usize].places = Some(Rc::clone(places));
        }
    }

    /// Stripes that are named.
    pub fn len(&self) -> usize {
        self.by_stripe.len()
    }

    /// Bytes of the table, about.
    pub fn memory(&self) -> usize {
        self.named.len() * (size_of::<Named>() + 16 + 160) + self.by_stripe.capacity() * 24
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_moves_on_only_when_nothing_names_it() {
        let mut handles = Handles::default();
        let (one, two) = (VdiskId(1), VdiskId(2));
        let (first, only) = handles.reference(one, StripeId(7));
        assert!(only && first.0 != 0);
        assert_eq!(handles.reference(one, StripeId(7)), (first, false));
        assert_eq!(handles.reference(two, StripeId(7)), (first, true));
        assert_eq!(handles.release(one, first), None);
        assert_eq!(handles.release(two, first), Some(StripeId(7)));
        assert!(handles.names(one, StripeId(7)) && !handles.names(two, StripeId(7)));
        let (second, _) = handles.reference(one, StripeId(8));
        assert_ne!(second, first);
        assert_eq!(handles.resolve(first).0, StripeId(7));
        // C19: a plan's pin keeps the name.
        assert!(handles.pin(StripeId(7)) && !handles.pin(StripeId(9)));
        assert_eq!(handles.release(one, first), Some(StripeId(7)));
        assert!(handles.is_pinned(StripeId(7)) && !handles.pin(StripeId(7)));
        assert_eq!(handles.len(), 2);
        handles.unpin(StripeId(7));
        assert_eq!(handles.len(), 1);
        assert_eq!(handles.reference(two, StripeId(9)).0, first);
        assert!(handles.resolve(first).1.is_none(), "slots of the earlier stripe are forgotten");
    }
}
