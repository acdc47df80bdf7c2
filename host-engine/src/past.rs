//! What cores did that have ended: so that statistics of the engine never go back.

use crate::messages::CoreView;
use cleave_flash::FlashStats;
use cleave_host_core::CoreStats;

/// Views of ended cores, added up, with nothing in them that was only so when they ended.
#[derive(Default)]
pub struct Past(Option<CoreView>);

impl Past {
    /// What is known, as if of one more core; `None` when no core has ended.
    pub fn view(&self) -> Option<&CoreView> {
        self.0.as_ref()
    }

    /// Adds what a core did that ends. Devices of flash keep their own figures.
    pub fn add(&mut self, last: &CoreView) {
        let past = self.0.get_or_insert_with(|| CoreView {
            // It keeps nobody from writing.
            core: CoreStats { connected: true, ..CoreStats::default() },
            ..CoreView::default()
        });
        add_core(&mut past.core, &last.core);
        add_flash(&mut past.flash, &last.flash);
        past.mirrored.merge(&last.mirrored);
        past.stalls += last.stalls;
        past.guests.merge(&last.guests);
        past.closed.encoded_bytes += last.closed.encoded_bytes;
        past.closed.frame_bytes += last.closed.frame_bytes;
        past.closed.zero_blocks += last.closed.zero_blocks;
        past.closed.stored_blocks += last.closed.stored_blocks;
    }
}

macro_rules! add {
    ($past:ident, $last:ident: $($counter:ident)*) => {
        $($past.$counter += $last.$counter;)*
    };
}

fn add_core(past: &mut CoreStats, last: &CoreStats) {
    add!(past, last:
        appended appended_bytes resent records_mirrored covered reads_buffer reads_flash reads_pool reads_zero
        pool_bytes flash_checks_failed parts_fetched parts_destaged parts_not_kept reads_solved checks_failed
        stripes_committed stripe_bytes stripe_frames drive_bytes stripes_abandoned damaged stripeless_commits
        records_released runs_begun runs pieces deduplicated stripes_left refused connections pages_read
        pages_failed pages_evicted
    );
}

fn add_flash(past: &mut FlashStats, last: &FlashStats) {
    add!(past, last:
        reads read_bytes reads_moved reads_failed reads_late parts_written parts_refused parts_moved parts_evicted
        parts_came_damaged parts_lost_with_power zones_evicted
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_are_added_and_the_present_state_is_not() {
        let mut past = Past::default();
        assert!(past.view().is_none());
        let mut view = CoreView::default();
        (view.core.appended, view.core.buffer_bytes, view.stalls) = (5, 100, 2);
        view.flash.parts_moved = 3;
        view.mirrored.record(1000);
        past.add(&view);
        past.add(&view);
        let found = past.view().unwrap();
        assert_eq!((found.core.appended, found.stalls, found.flash.parts_moved), (10, 4, 6));
        assert_eq!((found.core.buffer_bytes, found.core.connected), (0, true));
        assert_eq!(found.mirrored.latency().max, 1.0);
    }
}
