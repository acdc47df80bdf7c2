//! What an NVMe controller says: identify data and logs, and completions that lie to the whole driver.

use crate::input::Input;
use cleave_nvme::model::misbehave;
use cleave_nvme::spec::completion::CompletionEntry;
use cleave_nvme::spec::event::AsynchronousEvent;
use cleave_nvme::spec::identify::{
    ControllerIdentity, IDENTIFY_BYTES, NamespaceIdentity, active_namespaces,
};
use cleave_nvme::spec::log::{ERROR_ENTRY_BYTES, ErrorEntry, FirmwareSlots, Health, PAGE_BYTES};
use cleave_nvme::spec::registers::{Capabilities, Configuration, doorbell};

/// A page with parts of it overwritten: a 2-byte place, a length, as many bytes, and so on.
fn page<const N: usize>(data: &[u8]) -> [u8; N] {
    let mut page = [0; N];
    let mut input = Input(data);
    while !input.is_empty() {
        let at = usize::from(input.half()) % N;
        let length = usize::from(input.byte());
        let bytes = input.bytes(length);
        let end = (at + bytes.len()).min(N);
        page[at..end].copy_from_slice(&bytes[..end - at]);
    }
    page
}

/// Every structure that is read from memory that the device wrote.
pub(super) fn identify(data: &[u8]) {
    let identify: [u8; IDENTIFY_BYTES] = page(data);
    if let Ok(identity) = ControllerIdentity::parse(&identify) {
        assert!(identity.transfer_max_shift <= 32);
        assert!(identity.event_requests_max > 0 && identity.aborts_max > 0);
        assert!(!identity.serial.contains(char::is_control));
    }
    if let Ok(Some(identity)) = NamespaceIdentity::parse(1, &identify) {
        assert!(identity.blocks > 0);
    }
    let mut above = 0;
    while let Ok(numbers) = active_namespaces(above, &identify) {
        let Some(&last) = numbers.last() else { break };
        assert!(numbers.windows(2).all(|pair| pair[0] < pair[1]) && last > above);
        above = last;
    }
    let _ = Health::parse(&page::<{ PAGE_BYTES as usize }>(data));
    let _ = FirmwareSlots::parse(&page::<{ PAGE_BYTES as usize }>(data));
    let _ = ErrorEntry::parse(&page::<{ ERROR_ENTRY_BYTES as usize }>(data));
    let mut input = Input(data);
    let event = AsynchronousEvent(input.word());
    let _ = (event.kind(), event.log());
    let capabilities = Capabilities(input.long());
    assert!(capabilities.queue_entries_max() >= 1);
    assert!(capabilities.page_min() <= 1 << 27 && capabilities.page_max() <= 1 << 27);
    let stride = capabilities.doorbell_stride();
    // More queue pairs than a core has; the registers are looked at before any doorbell is rung.
    assert!(doorbell(255, true, stride) > doorbell(0, false, stride));
    let _ = Configuration(input.word()).page();
    let _ = CompletionEntry::default().status();
}

/// A controller and a namespace as there are many.
pub(super) fn identify_seeds() -> Vec<Vec<u8>> {
    let patch =
        |at: u16, bytes: &[u8]| [&at.to_le_bytes()[..], &[bytes.len() as u8], bytes].concat();
    let controller = [
        patch(0, &[0x36, 0x1b]),
        patch(4, b"S123                "),
        patch(24, b"A drive"),
        patch(77, &[5]),
        patch(258, &[3, 3, 0, 63]),
        patch(512, &[0x66, 0x44, 0, 0, 1, 0, 0, 0, 0x5f, 0]),
    ];
    let namespace = [
        patch(0, &[0, 0, 1, 0, 0, 0, 0, 0]),
        patch(8, &[0, 0, 1, 0, 0, 0, 0, 0]),
        patch(25, &[1, 1]),
        patch(128, &[0, 0, 9, 0, 0, 0, 12, 0]),
    ];
    let list = [patch(0, &[1, 0, 0, 0, 2, 0, 0, 0])];
    vec![controller.concat(), namespace.concat(), list.concat()]
}

/// A controller that lies, and the driver with requests under way.
pub(super) fn completions(data: &[u8]) {
    // Each fault takes 20 bytes; more of them only take longer.
    misbehave(&data[..data.len().min(3 + 20 * 8)]);
}

/// An honest one, and one fault of each kind.
pub(super) fn completions_seeds() -> Vec<Vec<u8>> {
    let fault = |kind: u8| {
        let mut data = vec![1, 1, 0x40, kind, 1, 1, 0];
        data.extend([1; 16]);
        data
    };
    let mut seeds = vec![Vec::new()];
    seeds.extend((0..10).map(fault));
    seeds
}
