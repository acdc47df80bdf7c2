//! Memory in pieces, and the pages of which the pool is made.

use crate::rig::{Rig, check, fill, must};
use cleave_nvme::dma::{PageKind, Vectored};
use cleave_nvme::queue::{Operation, QueuePair};

/// Data in several pieces: such as lists of pages describe, and such as only SGLs do.
pub fn vectors(rig: &Rig) -> Result<String, String> {
    let rings = rig.run(rig.controller.create_pair(4)).map_err(|error| error.to_string())?;
    let mut pair: QueuePair<Vectored> = QueuePair::new(rings, 4);
    let scattered = rig.controller.identity().is_some_and(|identity| identity.sgl);
    let mut shapes: Vec<&[u32]> = vec![&[4096, 8192, 4096], &[65536, 4096, 4096, 8192, 49152]];
    if scattered {
        shapes.extend([&[512, 3584, 4096][..], &[4096, 512, 512, 3072], &[1024; 64]]);
    }
    for namespace in rig.controller.namespaces() {
        for (round, shape) in shapes.iter().enumerate() {
            let round = round as u64;
            let bytes: u32 = shape.iter().sum();
            let blocks = u64::from(bytes / namespace.block_bytes());
            let first = 64;
            let parts = || {
                let part = |length: &u32| Ok((rig.memory(*length as usize)?, *length));
                shape.iter().map(part).collect::<Result<Vec<_>, String>>().map(Vectored::parts)
            };
            let written = parts()?;
            for (index, buffer) in (0..).zip(written.buffers()) {
                fill(buffer, index, round);
            }
            let write = Operation::Write { first, blocks, durable: false };
            let (result, _) = rig.one(&mut pair, namespace, write, written);
            must(result, || format!("write of {shape:?}"))?;
            let read = Operation::Read { first, blocks };
            let (result, found) = rig.one(&mut pair, namespace, read, parts()?);
            must(result, || format!("read of {shape:?}"))?;
            for ((index, buffer), length) in (0..).zip(found.buffers()).zip(*shape) {
                check(buffer, *length as usize, index, round)?;
            }
        }
    }
    let sgl = if scattered { "with" } else { "without" };
    Ok(format!("{} shapes, {sgl} SGLs", shapes.len()))
}

/// The pool is made of pages of the kind that was asked for, on the controller's node.
pub fn pages(rig: &Rig, kinds: &[PageKind], node: Option<u32>) -> Result<String, String> {
    let kilobytes = match kinds[0] {
        PageKind::Normal => 4,
        PageKind::Huge2M => 2048,
        PageKind::Huge1G => 1 << 20,
    };
    let _memory = rig.memory(1 << 20)?;
    let text =
        std::fs::read_to_string("/proc/self/numa_maps").map_err(|error| error.to_string())?;
    let size = format!("kernelpagesize_kB={kilobytes}");
    let lines: Vec<&str> =
        text.lines().filter(|line| line.contains(" huge ") && line.contains(&size)).collect();
    if lines.is_empty() {
        return Err(format!("no memory in pages of {kilobytes} KiB: {text}"));
    }
    let Some(node) = node else { return Ok(format!("{} mappings of {size}", lines.len())) };
    let here = format!(" N{node}=");
    for line in &lines {
        let elsewhere = line.split(' ').any(|word| {
            word.starts_with('N') && word.contains('=') && !format!(" {word}").starts_with(&here)
        });
        if elsewhere || !line.contains(&here) {
            return Err(format!("memory is not on node {node}: {line}"));
        }
    }
    Ok(format!("{} mappings of {size} on node {node}", lines.len()))
}
