//! One connection: what the front end said about features, memory, rings, dirty log and inflight
//! region, and what has to be resumed before anything new (C24).
//!
//! Resume: when the front end gives an inflight region, the rings with marks in it are *awaited*.
//! Each one, when it starts, adds its unfinished requests. When none is awaited any more and all
//! of them are enabled, the unfinished requests are taken in the order of their counters (one
//! counter for the whole vdisk, so the order holds across rings); new requests are taken once all
//! of those are published.
//!
//! GET_VRING_BASE is answered when its ring has nothing in flight (C26); until then no later
//! message is read.

use crate::channel::{Channel, Message};
use crate::config::{CONFIG_SPACE, CONFIG_WRITEBACK, DiskConfig};
use crate::error::Hangup;
use crate::inflight::Region;
use crate::memory::{Memory, REGIONS_MAX};
use crate::ring::Ring;
use std::collections::{BTreeSet, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use vhost::vhost_user::message::{
    FrontendReq, VhostUserConfig, VhostUserInflight, VhostUserLog, VhostUserMemory,
    VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserSingleMemoryRegion, VhostUserU64,
    VhostUserVirtioFeatures, VhostUserVringAddr, VhostUserVringState,
};
use virtio_bindings::bindings::virtio_ring::VIRTIO_RING_F_EVENT_IDX;
use vm_memory::ByteValued;

/// Bit 8 of a ring's descriptor message: there is no descriptor.
const NO_FILE: u64 = 0x100;

/// What messages are answered from.
pub(crate) struct Device<'a> {
    pub(crate) config: &'a DiskConfig,
    pub(crate) capacity: u64,
    /// The cache mode byte, which a driver may change; it changes nothing else.
    pub(crate) writeback: &'a mut u8,
}

/// Whether a message was dealt with.
pub(crate) enum Handled {
    Done,
    /// To be tried again later, before any other.
    Later(u16, Message),
}

/// A request of an earlier connection: counter, ring, head.
pub(crate) type Unfinished = (u64, u16, u16);

/// One connection.
pub(crate) struct Frontend {
    pub(crate) channel: Channel,
    pub(crate) memory: Memory,
    pub(crate) rings: Vec<Ring>,
    /// Position of the next request in the order of taking.
    pub(crate) counter: u64,
    /// A message that waits for a ring to drain, and the ring.
    pub(crate) waiting: Option<(u16, Message)>,
    /// The owner let go of the vdisk since a ring last started, or does not want to be asked.
    pub(crate) released: bool,
    features: u64,
    protocol: VhostUserProtocolFeatures,
    region: Option<Arc<Region>>,
    awaited: BTreeSet<u16>,
    unfinished: VecDeque<Unfinished>,
    /// The order of `unfinished` is settled; those that it lacks are with the engine.
    resuming: bool,
    requests: Option<OwnedFd>,
}

impl Frontend {
    /// A new connection.
    pub(crate) fn new(stream: OwnedFd, config: &DiskConfig) -> Frontend {
        Frontend {
            channel: Channel::new(stream),
            memory: Memory::default(),
            rings: (0..config.queues).map(|_| Ring::new(config.queue_size_max)).collect(),
            counter: 0,
            waiting: None,
            released: !config.confirm_release,
            features: 0,
            protocol: VhostUserProtocolFeatures::empty(),
            region: None,
            awaited: BTreeSet::new(),
            unfinished: VecDeque::new(),
            resuming: false,
            requests: None,
        }
    }

    /// Requests taken and not published.
    pub(crate) fn in_flight(&self) -> u32 {
        self.rings.iter().map(Ring::in_flight).sum()
    }

    /// The socket on which the front end listens to this side.
    pub(crate) fn requests(&self) -> Option<&OwnedFd> {
        self.requests.as_ref()
    }

    /// Whether requests may be taken from the rings: all of an earlier connection are published.
    pub(crate) fn takes_new(&mut self) -> bool {
        if !self.awaited.is_empty() || !self.unfinished.is_empty() {
            return false;
        }
        if self.resuming && self.in_flight() == 0 {
            self.resuming = false;
        }
        !self.resuming
    }

    /// Whether [`next_unfinished`](Frontend::next_unfinished) would give one.
    pub(crate) fn has_next_unfinished(&self) -> bool {
        let ready = |(_, ring, _): &Unfinished| self.rings[usize::from(*ring)].enabled;
        let settled = self.resuming || self.unfinished.iter().all(ready);
        self.awaited.is_empty() && settled && !self.unfinished.is_empty()
    }

    /// Whether every request of an earlier connection was begun again.
    pub(crate) fn unfinished_begun(&self) -> bool {
        self.awaited.is_empty() && self.unfinished.is_empty()
    }

    /// The next request of an earlier connection.
    pub(crate) fn next_unfinished(&mut self) -> Option<Unfinished> {
        if !self.has_next_unfinished() {
            return None;
        }
        if !self.resuming {
            self.unfinished.make_contiguous().sort_unstable();
            self.resuming = true;
            tracing::info!(requests = self.unfinished.len(), "resuming what was in flight");
        }
        self.unfinished.pop_front()
    }

    /// Whether a ring has nothing with the engine, and nothing that must go there first.
    fn drained(&self, index: u16) -> bool {
        let pending = self.unfinished.iter().any(|(_, ring, _)| *ring == index);
        self.rings[usize::from(index)].in_flight() == 0 && !(self.resuming && pending)
    }

    /// Whether a ring is the last one that runs, and its stop needs the owner's word.
    fn needs_release(&self, index: u16) -> bool {
        let running = self.rings.iter().filter(|ring| ring.started()).count();
        !self.released && running == 1 && self.rings[usize::from(index)].started()
    }

    /// Whether the owner's word is all that the last ring's stop waits for.
    pub(crate) fn wants_release(&self) -> bool {
        let waits = |(ring, _): &(u16, _)| self.drained(*ring) && self.needs_release(*ring);
        self.waiting.as_ref().is_some_and(waits)
    }

    /// Whether the connection has something to do that no readable descriptor will tell of.
    pub(crate) fn can_go_on(&self) -> bool {
        let ready = |(ring, _): &(u16, _)| self.drained(*ring) && !self.needs_release(*ring);
        self.waiting.as_ref().is_some_and(ready) || self.channel.unsent()
    }

    /// Reads and handles a message. True when there was one.
    pub(crate) fn serve(&mut self, device: &mut Device<'_>) -> Result<bool, Hangup> {
        let message = match self.waiting.take() {
            Some((_, message)) => message,
            None => match self.channel.receive()? {
                Some(message) => message,
                None => return Ok(false),
            },
        };
        match self.handle(message, device)? {
            Handled::Done => Ok(true),
            Handled::Later(ring, message) => {
                self.waiting = Some((ring, message));
                Ok(false)
            }
        }
    }

    fn handle(&mut self, mut message: Message, device: &mut Device<'_>) -> Result<Handled, Hangup> {
        let code = message.code;
        tracing::debug!(vdisk = %device.config.name, ?code, "message");
        let outcome = match code {
            FrontendReq::GET_FEATURES => {
                return self.reply_u64(&message, device.config.features());
            }
            FrontendReq::GET_PROTOCOL_FEATURES => {
                return self.reply_u64(&message, DiskConfig::protocol_features().bits());
            }
            FrontendReq::GET_QUEUE_NUM => {
                return self.reply_u64(&message, device.config.queues.into());
            }
            FrontendReq::GET_MAX_MEM_SLOTS => return self.reply_u64(&message, REGIONS_MAX as u64),
            FrontendReq::GET_CONFIG => return self.get_config(&message, device),
            FrontendReq::GET_VRING_BASE => return self.get_base(message),
            FrontendReq::GET_INFLIGHT_FD => return self.get_inflight(&message, device.config),
            FrontendReq::SET_LOG_BASE => return self.set_log(&mut message),
            FrontendReq::SET_OWNER | FrontendReq::RESET_OWNER => {
                message.no_body()?;
                Ok(())
            }
            // Deprecated: where the log used to announce itself.
            FrontendReq::SET_LOG_FD => Ok(()),
            FrontendReq::SET_FEATURES => self.set_features(&message, device.config),
            FrontendReq::SET_PROTOCOL_FEATURES => {
                let bits = message.body::<VhostUserU64>()?.value;
                self.protocol = VhostUserProtocolFeatures::from_bits_truncate(bits)
                    & DiskConfig::protocol_features();
                Ok(())
            }
            FrontendReq::SET_CONFIG => {
                let fine = set_config(&message, device)?;
                return self.acknowledge(&message, fine);
            }
            FrontendReq::SET_BACKEND_REQ_FD => {
                self.requests = Some(message.file()?);
                Ok(())
            }
            FrontendReq::SET_INFLIGHT_FD => self.set_inflight(&mut message, device.config),
            FrontendReq::SET_MEM_TABLE | FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG => {
                self.set_memory(&mut message)
            }
            FrontendReq::SET_VRING_NUM
            | FrontendReq::SET_VRING_BASE
            | FrontendReq::SET_VRING_ENABLE
            | FrontendReq::SET_VRING_ADDR => self.set_ring(&message),
            FrontendReq::SET_VRING_KICK
            | FrontendReq::SET_VRING_CALL
            | FrontendReq::SET_VRING_ERR => self.set_ring_file(&mut message, device.config),
            _ => return Err(message.wrong("a request of a feature that was not offered")),
        };
        // The front end learns of it, then the connection goes: half a setup serves nobody.
        self.acknowledge(&message, outcome.is_ok())?;
        outcome.map(|()| Handled::Done).map_err(|what| message.wrong(what))
    }

    fn reply_u64(&mut self, message: &Message, value: u64) -> Result<Handled, Hangup> {
        message.no_body()?;
        self.channel.reply(message.code, &[&value.to_ne_bytes()], None)?;
        Ok(Handled::Done)
    }

    fn acknowledge(&mut self, message: &Message, fine: bool) -> Result<Handled, Hangup> {
        if message.need_reply && self.protocol.contains(VhostUserProtocolFeatures::REPLY_ACK) {
            let value = u64::from(!fine);
            self.channel.reply(message.code, &[&value.to_ne_bytes()], None)?;
        }
        Ok(Handled::Done)
    }

    fn set_features(&mut self, message: &Message, config: &DiskConfig) -> Result<(), String> {
        let bits = message.body::<VhostUserU64>().map_err(|error| error.to_string())?.value;
        let unknown = bits & !config.features();
        if unknown != 0 {
            return Err(format!("features {unknown:#x} were not offered"));
        }
        self.features = bits;
        self.memory.set_logging(bits & VhostUserVirtioFeatures::LOG_ALL.bits() != 0);
        let plain = bits & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0;
        for ring in &mut self.rings {
            ring.set_event_idx(bits & 1 << VIRTIO_RING_F_EVENT_IDX != 0);
            // Without protocol features there is no message that enables a ring.
            ring.enabled |= plain;
        }
        Ok(())
    }

    fn set_memory(&mut self, message: &mut Message) -> Result<(), String> {
        match message.code {
            FrontendReq::SET_MEM_TABLE => {
                let regions = memory_table(message)?;
                let files = std::mem::take(&mut message.files);
                self.memory.replace(&regions, files)?;
            }
            code => {
                let region = message.body::<VhostUserSingleMemoryRegion>();
                let region = region.map_err(|error| error.to_string())?;
                if code == FrontendReq::ADD_MEM_REG {
                    let file = message.file().map_err(|error| error.to_string())?;
                    self.memory.add(&region, file)?;
                } else {
                    // Some front ends send a descriptor along; it means nothing.
                    self.memory.remove(&region)?;
                }
            }
        }
        for ring in self.rings.iter_mut().filter(|ring| ring.started()) {
            // A ring whose memory went waits until it is back.
            if let Err(reason) = ring.map(&self.memory) {
                tracing::debug!(reason, "a ring lost its memory");
            }
        }
        Ok(())
    }

    fn ring(&mut self, index: u64) -> Result<&mut Ring, String> {
        let known = usize::try_from(index).ok().and_then(|index| self.rings.get_mut(index));
        known.ok_or_else(|| format!("there is no ring {index}"))
    }

    fn set_ring(&mut self, message: &Message) -> Result<(), String> {
        let text = |error: Hangup| error.to_string();
        if message.code == FrontendReq::SET_VRING_ADDR {
            let addresses = message.body::<VhostUserVringAddr>().map_err(text)?;
            let index = addresses.index as usize;
            let ring = self.rings.get_mut(index).ok_or("there is no such ring")?;
            return ring.set_addresses(addresses, &self.memory);
        }
        let VhostUserVringState { index, num } = message.body().map_err(text)?;
        let ring = self.ring(index.into())?;
        match message.code {
            FrontendReq::SET_VRING_NUM => ring.set_size(num),
            FrontendReq::SET_VRING_BASE => ring.set_base(num),
            _ if num > 1 => Err(format!("a ring is enabled with 0 or 1, not {num}")),
            _ => {
                ring.enabled = num == 1;
                Ok(())
            }
        }
    }

    fn set_ring_file(&mut self, message: &mut Message, config: &DiskConfig) -> Result<(), String> {
        let text = |error: Hangup| error.to_string();
        let value = message.body::<VhostUserU64>().map_err(text)?.value;
        let file = match value & NO_FILE {
            0 => Some(message.file().map_err(text)?),
            _ => None,
        };
        let index = value & 0xff;
        match message.code {
            FrontendReq::SET_VRING_KICK => {
                self.released = !config.confirm_release;
                self.start(index as u16, file)
            }
            FrontendReq::SET_VRING_CALL => self.ring(index)?.set_call(file),
            _ => self.ring(index)?.set_fault_event(file),
        }
    }

    fn start(&mut self, index: u16, kick: Option<OwnedFd>) -> Result<(), String> {
        let records = match self.region.clone() {
            None => None,
            Some(region) => {
                let (_, size) = self.ring(index.into())?.table();
                if size > region.queue_size() {
                    return Err(format!("ring of {size} is larger than its inflight region"));
                }
                let records = region.records(index);
                Some(records.ok_or("the inflight region lacks the ring")?)
            }
        };
        let ring = self.rings.get_mut(usize::from(index)).ok_or("there is no such ring")?;
        let found = ring.start(kick, &self.memory, records)?;
        self.awaited.remove(&index);
        for (counter, head) in found {
            self.counter = self.counter.max(counter.wrapping_add(1));
            self.unfinished.push_back((counter, index, head));
        }
        Ok(())
    }

    fn get_base(&mut self, message: Message) -> Result<Handled, Hangup> {
        let VhostUserVringState { index, .. } = message.body()?;
        let known =
            u16::try_from(index).ok().filter(|index| usize::from(*index) < self.rings.len());
        let Some(index) = known else { return Err(message.wrong("there is no such ring")) };
        let mine = |(_, ring, _): &Unfinished| *ring == index;
        let pending = self.unfinished.iter().any(mine);
        if !self.drained(index) || self.needs_release(index) {
            self.rings[usize::from(index)].draining = true;
            return Ok(Handled::Later(index, message));
        }
        if pending {
            // Not begun: they stay marked in the region, and are found again at the next start.
            self.unfinished.retain(|unfinished| !mine(unfinished));
            self.awaited.insert(index);
        }
        let base = self.rings[usize::from(index)].stop();
        let state = VhostUserVringState::new(index.into(), base.into());
        self.channel.reply(message.code, &[state.as_slice()], None)?;
        Ok(Handled::Done)
    }

    fn no_ring_runs(&self, message: &Message) -> Result<(), Hangup> {
        match self.rings.iter().any(Ring::started) {
            false => Ok(()),
            true => Err(message.wrong("the inflight region changes while a ring runs")),
        }
    }

    fn get_inflight(&mut self, message: &Message, config: &DiskConfig) -> Result<Handled, Hangup> {
        let asked = inflight_body(message, config)?;
        self.no_ring_runs(message)?;
        let alarm = self.memory.alarm();
        let (region, given, file) = Region::create(asked.num_queues, asked.queue_size, alarm)
            .map_err(|what| message.wrong(what))?;
        self.region = Some(Arc::new(region));
        self.awaited.clear();
        self.channel.reply(message.code, &[given.as_slice()], Some(file))?;
        Ok(Handled::Done)
    }

    fn set_inflight(&mut self, message: &mut Message, config: &DiskConfig) -> Result<(), String> {
        let given = inflight_body(message, config).map_err(|error| error.to_string())?;
        self.no_ring_runs(message).map_err(|error| error.to_string())?;
        let file = message.file().map_err(|error| error.to_string())?;
        let region = Arc::new(Region::open(&given, file, self.memory.alarm())?);
        self.awaited = (0..given.num_queues).filter(|queue| region.marked(*queue)).collect();
        tracing::debug!(vdisk = %config.name, rings = ?self.awaited, "inflight region is back");
        self.region = Some(region);
        Ok(())
    }

    fn set_log(&mut self, message: &mut Message) -> Result<Handled, Hangup> {
        let log: VhostUserLog = message.body()?;
        let file = message.file()?;
        self.memory.set_log(&log, file).map_err(|what| message.wrong(what))?;
        self.channel.reply(message.code, &[log.as_slice()], None)?;
        Ok(Handled::Done)
    }

    fn get_config(&mut self, message: &Message, device: &Device<'_>) -> Result<Handled, Hangup> {
        let header = config_header(message)?;
        let (offset, size) = (header.offset as usize, header.size as usize);
        let space = device.config.space(device.capacity, *device.writeback);
        let Some(part) = offset.checked_add(size).and_then(|end| space.get(offset..end)) else {
            // An empty answer is an error to the front end.
            let empty = VhostUserConfig { size: 0, ..header };
            self.channel.reply(message.code, &[empty.as_slice()], None)?;
            return Ok(Handled::Done);
        };
        self.channel.reply(message.code, &[header.as_slice(), part], None)?;
        Ok(Handled::Done)
    }
}

fn config_header(message: &Message) -> Result<VhostUserConfig, Hangup> {
    let length = size_of::<VhostUserConfig>();
    let Some(raw) = message.body.get(..length) else { return Err(message.wrong("short body")) };
    let mut header = VhostUserConfig::default();
    header.as_mut_slice().copy_from_slice(raw);
    let size = header.size as usize;
    if size == 0 || size > CONFIG_SPACE || message.body.len() - length != size {
        return Err(message.wrong(format!("{size} bytes of configuration space")));
    }
    Ok(header)
}

/// Only the cache mode can be written; it is remembered and changes nothing.
fn set_config(message: &Message, device: &mut Device<'_>) -> Result<bool, Hangup> {
    let header = config_header(message)?;
    let data = &message.body[size_of::<VhostUserConfig>()..];
    match (header.offset as usize, data) {
        (CONFIG_WRITEBACK, [mode @ (0 | 1)]) => {
            *device.writeback = *mode;
            Ok(true)
        }
        _ => Ok(false),
    }
}

fn inflight_body(message: &Message, config: &DiskConfig) -> Result<VhostUserInflight, Hangup> {
    // Its fields have 20 bytes; compilers pad the structure to 24, and front ends send either.
    let mut padded = message.body.clone();
    if padded.len() == 20 {
        padded.resize(size_of::<VhostUserInflight>(), 0);
    }
    if padded.len() != size_of::<VhostUserInflight>() {
        return Err(message.wrong(format!("{} bytes of body", message.body.len())));
    }
    let mut body = VhostUserInflight::default();
    body.as_mut_slice().copy_from_slice(&padded);
    let queues = 1..=config.queues;
    let sizes = 1..=config.queue_size_max;
    if !queues.contains(&body.num_queues) || !sizes.contains(&body.queue_size) {
        let (queues, size) = (body.num_queues, body.queue_size);
        return Err(message.wrong(format!("inflight region of {queues} queues of {size}")));
    }
    Ok(body)
}

fn memory_table(message: &Message) -> Result<Vec<VhostUserMemoryRegion>, String> {
    let (header, each) = (size_of::<VhostUserMemory>(), size_of::<VhostUserMemoryRegion>());
    let Some((head, rest)) = message.body.split_at_checked(header) else {
        return Err("short memory table".into());
    };
    let count = u32::from_ne_bytes(head[..4].try_into().expect("4 bytes")) as usize;
    if count == 0 || rest.len() != count * each || message.files.len() != count {
        return Err(format!("memory table of {count} regions, {} bytes", rest.len()));
    }
    let region = |raw: &[u8]| {
        let mut region = VhostUserMemoryRegion::default();
        region.as_mut_slice().copy_from_slice(raw);
        region
    };
    Ok(rest.chunks_exact(each).map(region).collect())
}
