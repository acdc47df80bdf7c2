//! The core's short names for stripes, as map entries hold them.
//!
//! Invariant: a handle counts the map entries that name it, and goes to another stripe only when
//! there are none (C3). Reads take stripe and slots from here when they begin, and keep those.

use crate::hash::Map;
use cleave_format::address::{HANDLE_MAX, Handle};
use cleave_format::control::SlotPlace;
use cleave_format::ids::StripeId;
use std::rc::Rc;

/// Where a stripe's shards lie, data first.
pub type Places = Rc<[SlotPlace]>;

struct Named {
    stripe: StripeId,
    references: u64,
    places: Option<Places>,
}

/// The table. Index 0 is never used: handle 0 means "no frame".
pub struct Handles {
    named: Vec<Named>,
    free: Vec<u32>,
    by_stripe: Map<StripeId, Handle>,
}

impl Default for Handles {
    fn default() -> Handles {
        let nothing = Named { stripe: StripeId(0), references: 0, places: None };
        Handles { named: vec![nothing], free: Vec::new(), by_stripe: Map::default() }
    }
}

impl Handles {
    /// The stripe's handle, with one more entry that names it.
    ///
    /// # Panics
    /// With more than 2^29 stripes in the maps of one core: 4 PiB.
    pub fn reference(&mut self, stripe: StripeId) -> Handle {
        if let Some(handle) = self.by_stripe.get(&stripe) {
            self.named[handle.0 as usize].references += 1;
            return *handle;
        }
        let named = Named { stripe, references: 1, places: None };
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

    /// One entry less names it.
    pub fn release(&mut self, handle: Handle) {
        let named = &mut self.named[handle.0 as usize];
        assert!(named.references > 0, "a named stripe is released once for each reference");
        named.references -= 1;
        if named.references == 0 {
            self.by_stripe.remove(&named.stripe);
            named.places = None;
            self.free.push(handle.0);
        }
    }

    /// The stripe and, when known, its slots.
    pub fn resolve(&self, handle: Handle) -> (StripeId, Option<Places>) {
        let named = &self.named[handle.0 as usize];
        assert!(named.references > 0, "a map entry names a stripe that is referenced");
        (named.stripe, named.places.clone())
    }

    /// Remembers a stripe's slots, if a map entry names it.
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
        self.named.len() * (size_of::<Named>() + 160) + self.by_stripe.capacity() * 24
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_handle_moves_on_only_when_nothing_names_it() {
        let mut handles = Handles::default();
        let first = handles.reference(StripeId(7));
        assert_eq!(handles.reference(StripeId(7)), first);
        assert_ne!(first.0, 0);
        handles.release(first);
        let second = handles.reference(StripeId(8));
        assert_ne!(second, first);
        assert_eq!(handles.resolve(first).0, StripeId(7));
        handles.release(first);
        assert_eq!(handles.len(), 1);
        assert_eq!(handles.reference(StripeId(9)), first);
        assert!(handles.resolve(first).1.is_none(), "slots of the earlier stripe are forgotten");
    }
}
