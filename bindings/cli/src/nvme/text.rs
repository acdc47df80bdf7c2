//! What controllers say, as text for people.

use cleave_control::size::format_size;
use cleave_nvme::bench::BenchReport;
use cleave_nvme::controller::Controller;
use cleave_nvme::namespace::Namespace;
use cleave_nvme::spec::identify::Protection;
use cleave_nvme::spec::log::{ErrorEntry, FirmwareSlots, Health};
use cleave_nvme::transport::PciAddress;
use std::fmt::Write;

/// Bytes of a unit of data in the health log.
const UNIT: u128 = 512_000;
/// Kelvins at 0 degrees Celsius.
const FREEZING: i32 = 273;

/// Controllers, one a line.
pub fn list(controllers: &[PciAddress]) -> String {
    let mut text = String::new();
    for address in controllers {
        let driver = address.driver().unwrap_or_else(|| "no driver".to_owned());
        let iommu = if address.has_iommu() { "IOMMU" } else { "no IOMMU" };
        let node = address.numa_node().map_or(String::new(), |node| format!(", node {node}"));
        let described = address.described();
        let described =
            described.map_or(String::new(), |(model, serial)| format!(", {model} {serial}"));
        let _ = writeln!(text, "{address}  {driver}, {iommu}{node}{described}");
    }
    text
}

/// What the controller says of itself.
pub fn identity(controller: &Controller) -> String {
    let mut text = String::new();
    let Some(identity) = controller.identity() else { return text };
    let mut say = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20} {value}");
    };
    let offered = |offered: bool| if offered { "yes" } else { "no" }.to_owned();
    say("model", identity.model.clone());
    say("serial number", identity.serial.clone());
    say("firmware", identity.firmware.clone());
    say("PCI vendor", format!("{:#06x}", identity.vendor));
    say("queue pairs", controller.pairs_max().to_string());
    say(
        "largest transfer",
        match identity.transfer_max_shift {
            0 => "not limited".to_owned(),
            shift => format!("2^{shift} memory pages"),
        },
    );
    say("volatile cache", offered(identity.volatile_write_cache));
    say("SGLs", offered(identity.sgl));
    say("compare", offered(identity.compare));
    say("write zeroes", offered(identity.write_zeroes));
    say("deallocate", offered(identity.dataset_management));
    say("verify", offered(identity.verify));
    say("power states", identity.power_states.to_string());
    for namespace in controller.namespaces() {
        say(&format!("namespace {}", namespace.number()), describe(&namespace));
    }
    for (number, why) in controller.refused_namespaces() {
        say(&format!("namespace {number}"), why);
    }
    text
}

fn describe(namespace: &Namespace) -> String {
    let protection = match namespace.protection() {
        Protection::None => "",
        Protection::Reference => ", protected by guard and reference tag",
        Protection::Guard => ", protected by guard",
    };
    let (size, block) = (format_size(namespace.capacity()), namespace.block_bytes());
    let transfer = format_size(namespace.transfer_max());
    format!("{size} in blocks of {block} bytes, up to {transfer} at once{protection}")
}

/// The logs of a controller.
pub fn smart(health: &Health, firmware: &FirmwareSlots, errors: &[ErrorEntry]) -> String {
    let mut text = String::new();
    let mut say = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<20} {value}");
    };
    say("critical warnings", warnings(health.critical_warning));
    let celsius = i32::from(health.temperature_kelvins) - FREEZING;
    say("temperature", format!("{celsius} degrees Celsius"));
    let (spare, least) = (health.spare_percent, health.spare_threshold_percent);
    say("spare", format!("{spare} %, warned of below {least} %"));
    say("used", format!("{} %", health.used_percent));
    let data = |units: u128| {
        let bytes = u64::try_from(units.saturating_mul(UNIT)).unwrap_or(u64::MAX);
        format_size(bytes)
    };
    say("read", format!("{} in {} commands", data(health.data_units_read), health.host_reads));
    say(
        "written",
        format!("{} in {} commands", data(health.data_units_written), health.host_writes),
    );
    say("powered on", format!("{} hours", health.power_on_hours));
    say("power cycles", health.power_cycles.to_string());
    say("unsafe shutdowns", health.unsafe_shutdowns.to_string());
    say("media errors", health.media_errors.to_string());
    say("errors logged", health.error_log_entries.to_string());
    let used = |(slot, revision): (usize, &String)| {
        (!revision.is_empty()).then(|| format!("{revision} in slot {}", slot + 1))
    };
    let slots: Vec<String> = firmware.revisions.iter().enumerate().filter_map(used).collect();
    let next = if firmware.next == 0 {
        String::new()
    } else {
        format!("; slot {} from the next reset", firmware.next)
    };
    say("firmware", format!("{}; slot {} runs{next}", slots.join(", "), firmware.active));
    for entry in errors {
        let ErrorEntry { count, queue, identifier, status, block, namespace } = entry;
        let place = format!("queue {queue}, command {identifier:#06x}");
        say(
            &format!("error {count}"),
            format!("{status}; {place}, namespace {namespace}, block {block}"),
        );
    }
    text
}

/// The bits of the critical warning (Base figure 207).
fn warnings(bits: u8) -> String {
    const MEANINGS: [&str; 6] = [
        "spare space is low",
        "temperature",
        "reliability is degraded",
        "read-only",
        "the backup of volatile memory failed",
        "persistent memory became read-only",
    ];
    let set = (0..).zip(MEANINGS).filter(|(bit, _)| bits & 1 << bit != 0);
    let set: Vec<&str> = set.map(|(_, meaning)| meaning).collect();
    if set.is_empty() { "none".to_owned() } else { set.join(", ") }
}

/// One depth's figures.
pub fn bench(depth: u16, report: &BenchReport) -> String {
    let mean = report.elapsed.as_secs_f64() * f64::from(depth) * 1e6;
    format!(
        "QD{depth}: {:.0} IOPS, {:.1} us, {:.2} us of the processor, {:.3} doorbells and no system \
         call a request, {:.2} empty polls of {} ns; {} requests\n",
        report.rate(),
        report.each(mean),
        report.each(report.processor.as_secs_f64() * 1e6),
        report.each(report.doorbells as f64),
        report.each(report.empty_polls as f64),
        report.empty_poll.as_nanos(),
        report.requests,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use cleave_nvme::spec::completion::Status;
    use std::time::Duration;

    #[test]
    fn health_is_said_in_words() {
        let mut page = [0; 512];
        page[0] = 0b101;
        page[1..3].copy_from_slice(&310u16.to_le_bytes());
        page[48] = 2;
        let mut slots = [0; 512];
        slots[0] = 0x21;
        slots[8..16].copy_from_slice(b"1.0     ");
        let entry = ErrorEntry {
            count: 7,
            queue: 1,
            identifier: 3,
            status: Status::UNRECOVERED_READ,
            block: 9,
            namespace: 1,
        };
        let text = smart(&Health::parse(&page), &FirmwareSlots::parse(&slots), &[entry]);
        for part in [
            "spare space is low, reliability is degraded",
            "37 degrees",
            "1.0 in slot 1; slot 1 runs; slot 2 from the next reset",
            "error 7",
            "unrecovered read error",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert_eq!(warnings(0), "none");
    }

    #[test]
    fn figures_are_for_each_request() {
        let report = BenchReport {
            requests: 1000,
            elapsed: Duration::from_millis(100),
            processor: Duration::from_millis(50),
            doorbells: 1016,
            empty_polls: 500,
            empty_poll: Duration::from_nanos(40),
        };
        let line = bench(1, &report);
        assert!(line.starts_with("QD1: 10000 IOPS, 100.0 us, 50.00 us"), "{line}");
        assert!(
            line.contains("1.016 doorbells")
                && line.contains("0.50 empty polls of 40 ns")
                && line.ends_with("1000 requests\n"),
            "{line}"
        );
    }
}
