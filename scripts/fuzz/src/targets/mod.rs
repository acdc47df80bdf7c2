//! The targets, by what they read.

mod catalog;
mod codec;
mod control;
mod flash;
mod format;
mod identity;
mod nvme;
mod store;
mod vault;
mod vhost;
mod vhost_rig;
mod wire;

/// Something that reads bytes of others.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name, and that of its corpus.
    pub name: &'static str,
    /// Reads an input; panics when something is wrong.
    pub run: fn(&[u8]),
    /// Valid inputs to begin with, the same ones each time.
    pub seeds: fn() -> Vec<Vec<u8>>,
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "format-address", run: format::address, seeds: format::address_seeds },
    Target { name: "format-control", run: format::control, seeds: format::control_seeds },
    Target { name: "format-flash", run: flash::flash, seeds: flash::flash_seeds },
    Target { name: "format-footer", run: format::footer, seeds: format::footer_seeds },
    Target { name: "format-frame", run: format::frame, seeds: format::frame_seeds },
    Target { name: "format-map-piece", run: format::map_piece, seeds: format::map_piece_seeds },
    Target { name: "format-record", run: format::record, seeds: format::record_seeds },
    Target { name: "format-slot", run: format::slot, seeds: format::slot_seeds },
    Target { name: "format-superblock", run: format::superblock, seeds: format::superblock_seeds },
    Target { name: "solo-segment", run: vault::segment, seeds: vault::segment_seeds },
    Target { name: "vault-body", run: vault::body, seeds: vault::body_seeds },
    Target { name: "vault-header", run: vault::header, seeds: vault::header_seeds },
    Target { name: "vault-log", run: vault::log, seeds: vault::log_seeds },
    Target { name: "wire-controller", run: wire::controller, seeds: wire::controller_seeds },
    Target { name: "wire-host", run: wire::host, seeds: wire::host_seeds },
    Target { name: "wire-peer", run: wire::peer, seeds: wire::peer_seeds },
    Target { name: "codec-frame", run: codec::frame, seeds: codec::frame_seeds },
    Target { name: "catalog-file", run: catalog::file, seeds: catalog::file_seeds },
    Target { name: "catalog-rows", run: catalog::rows, seeds: catalog::rows_seeds },
    Target { name: "store-file", run: store::file, seeds: store::file_seeds },
    Target { name: "store-frames", run: store::frames, seeds: store::frames_seeds },
    Target { name: "store-records", run: store::records, seeds: store::records_seeds },
    Target { name: "control-lines", run: control::lines, seeds: control::lines_seeds },
    Target { name: "config-host", run: control::host_config, seeds: control::host_config_seeds },
    Target {
        name: "config-datanode",
        run: control::datanode_config,
        seeds: control::datanode_config_seeds,
    },
    Target { name: "events-file", run: control::events, seeds: control::events_seeds },
    Target { name: "names-sizes", run: control::names, seeds: control::names_seeds },
    Target { name: "key-file", run: control::key_file, seeds: control::key_file_seeds },
    Target { name: "identity", run: identity::certificates, seeds: identity::certificates_seeds },
    Target { name: "nvme-completions", run: nvme::completions, seeds: nvme::completions_seeds },
    Target { name: "nvme-identify", run: nvme::identify, seeds: nvme::identify_seeds },
    Target { name: "vhost-chains", run: vhost::chains, seeds: vhost::chains_seeds },
    Target { name: "vhost-inflight", run: vhost::inflight, seeds: vhost::inflight_seeds },
    Target { name: "vhost-messages", run: vhost::messages, seeds: vhost::messages_seeds },
];
