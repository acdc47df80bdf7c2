//! What the model's commands do.

use super::faults::Outcome;
use super::queues::Work;
use super::{Model, ModelNamespace, State};
use crate::spec::command::{
    Command, FLAG_SGL, FORCE_UNIT_ACCESS, PROTECTION_ACTION, PROTECTION_CHECK_GUARD,
    PROTECTION_CHECK_REFERENCE, PROTECTION_CHECKS, admin, io,
};
use crate::spec::completion::Status;
use crate::spec::{feature, log};
use cleave_runtime::random::Random;

/// Invalid Queue Identifier (Base figure 94).
const INVALID_QUEUE: Status = Status(0x101);

impl Model {
    /// Does what is due, in the order of its times. True when there was anything.
    pub(super) fn finish_commands(&self, state: &mut State) -> bool {
        let mut any = false;
        state.working.sort_by_key(|work| work.due);
        let mut index = 0;
        while index < state.working.len() {
            let work = &state.working[index];
            let ends = match work.outcome {
                Outcome::Hangs => work.aborted,
                Outcome::HangsForGood => false,
                _ => work.due <= state.now,
            };
            if !ends {
                index += 1;
                continue;
            }
            let work = state.working.remove(index);
            any = true;
            if work.goes_outside(state) {
                self.send_outside(state, work);
                continue;
            }
            if !self.finish(state, &work) {
                state.working.insert(index, work);
                break;
            }
        }
        any | self.report_events(state)
    }

    /// False when its completion has no room.
    fn finish(&self, state: &mut State, work: &Work) -> bool {
        let identifier = work.command.identifier.get();
        if work.queue == 0 && work.command.opcode == admin::ASYNCHRONOUS_EVENT_REQUEST {
            state.event_requests.push_back(identifier);
            return true;
        }
        let done = match work.outcome {
            Outcome::Fails(status) => Err(status),
            Outcome::Answered(status) if status.is_success() => Ok(0),
            Outcome::Answered(status) => Err(status),
            Outcome::Hangs | Outcome::HangsForGood => Err(Status::ABORT_REQUESTED),
            Outcome::Done if work.queue == 0 => self.administer(state, &work.command),
            Outcome::Done | Outcome::Flips => self.transfer(state, &work.command).map(|()| 0),
        };
        if done.is_ok() && work.outcome == Outcome::Flips {
            self.flip(state, &work.command);
        }
        let (status, result) = match done {
            Ok(result) => (Status::SUCCESS, result),
            Err(status) => (status, 0),
        };
        let completed = self.complete(state, work.queue, identifier, status, result);
        if completed && work.queue != 0 {
            state.note_order(work);
        }
        completed
    }

    /// Flips a bit of what a read gave.
    pub(super) fn flip(&self, state: &mut State, command: &Command) {
        let bytes = self.data_bytes(state, command).filter(|_| command.opcode == io::READ);
        let Some(bytes) = bytes else { return };
        let at = state.random.below(bytes as u64) as usize;
        if let Ok(mut byte) = self.fetch(state, command, at, 1) {
            byte[0] ^= 1 << state.random.below(8);
            // It was there a moment ago.
            let _ = self.give(state, command, at, &byte);
        }
    }

    fn report_events(&self, state: &mut State) -> bool {
        let mut any = false;
        while !state.events.is_empty() && !state.event_requests.is_empty() {
            let event = state.events[0];
            let identifier = state.event_requests[0];
            if !self.complete(state, 0, identifier, Status::SUCCESS, event) {
                break;
            }
            state.events.pop_front();
            state.event_requests.pop_front();
            any = true;
        }
        any
    }

    fn administer(&self, state: &mut State, command: &Command) -> Result<u32, Status> {
        let [dword10, dword11] = [command.dword10[0].get(), command.dword10[1].get()];
        let (low, high) = (dword10 as u16, (dword10 >> 16) as u16);
        let address = command.data[0].get();
        let pairs = 1..=self.options.pairs;
        match command.opcode {
            admin::IDENTIFY => self.identify(state, command).map(|()| 0),
            admin::CREATE_COMPLETION_QUEUE => {
                let good = pairs.contains(&low)
                    && high < self.options.queue_entries
                    && state.queues.create_completion(low, address, high + 1);
                if good { Ok(0) } else { Err(INVALID_QUEUE) }
            }
            admin::CREATE_SUBMISSION_QUEUE => {
                let completion = (dword11 >> 16) as u16;
                let good = pairs.contains(&low)
                    && high < self.options.queue_entries
                    && state.queues.create_submission(low, address, high + 1, completion);
                if good { Ok(0) } else { Err(INVALID_QUEUE) }
            }
            admin::DELETE_SUBMISSION_QUEUE => {
                state.working.retain(|work| work.queue != low);
                state.outside.forget(low);
                let good = state.queues.delete_submission(low, &mut state.doorbells);
                if good { Ok(0) } else { Err(INVALID_QUEUE) }
            }
            admin::DELETE_COMPLETION_QUEUE => {
                let good = state.queues.delete_completion(low, &mut state.doorbells);
                if good { Ok(0) } else { Err(INVALID_QUEUE) }
            }
            admin::ABORT => {
                let wanted = |work: &&mut Work| {
                    work.queue == low
                        && work.command.identifier.get() == high
                        && work.outcome == Outcome::Hangs
                };
                let found = state.working.iter_mut().find(wanted);
                let aborted = found.map(|work| work.aborted = true).is_some();
                Ok(u32::from(!aborted))
            }
            admin::SET_FEATURES if low as u8 == feature::NUMBER_OF_QUEUES => {
                let most = u32::from(self.options.pairs) - 1;
                Ok(most << 16 | most)
            }
            admin::SET_FEATURES => {
                state.features.insert(low as u8, dword11);
                Ok(0)
            }
            admin::GET_FEATURES => Ok(state.features.get(&(low as u8)).copied().unwrap_or(0)),
            admin::GET_LOG_PAGE => self.log_page(state, command).map(|()| 0),
            _ => Err(Status::INVALID_OPCODE),
        }
    }

    fn log_page(&self, state: &mut State, command: &Command) -> Result<(), Status> {
        let dword10 = command.dword10[0].get();
        let bytes = 4 * ((dword10 >> 16 & 0xffff) as usize + 1);
        let mut page = vec![0; bytes];
        if dword10 as u8 == log::HEALTH {
            page[1..3].copy_from_slice(&310u16.to_le_bytes());
            page[3] = 100;
        }
        self.give(state, command, 0, &page)
    }

    fn identify(&self, state: &mut State, command: &Command) -> Result<(), Status> {
        let what = command.dword10[0].get() as u8;
        let number = command.namespace.get();
        let mut data = vec![0; 4096];
        match what {
            0 => {
                let media = state.media.get((number as usize).wrapping_sub(1));
                let format = &media.ok_or(Status::INVALID_NAMESPACE)?.format;
                data[0..8].copy_from_slice(&format.blocks.to_le_bytes());
                data[8..16].copy_from_slice(&format.blocks.to_le_bytes());
                data[29] = format.protection;
                data[33] = 1;
                data[46..48].copy_from_slice(&format.optimal_boundary.to_le_bytes());
                let metadata = if format.protection == 0 { 0 } else { 8u16 };
                data[128..130].copy_from_slice(&metadata.to_le_bytes());
                data[130] = format.block_shift;
            }
            1 => {
                data[4..24].copy_from_slice(b"MODEL-0001          ");
                data[24..36].copy_from_slice(b"Cleave model");
                data[77] = self.options.transfer_max_shift;
                data[259] = 3;
                data[512..514].copy_from_slice(&[0x66, 0x44]);
                data[516] = state.media.len() as u8;
                data[520..522].copy_from_slice(&0x8du16.to_le_bytes());
                data[525] = 1;
                data[536] = u8::from(self.options.sgl);
            }
            2 => {
                let numbers = number + 1..=state.media.len() as u32;
                for (at, number) in (0..).step_by(4).zip(numbers) {
                    data[at..at + 4].copy_from_slice(&number.to_le_bytes());
                }
            }
            6 => [data[0], data[1]] = self.options.limits.into(),
            _ => return Err(Status::INVALID_FIELD),
        }
        for (about, at, bytes) in &state.faults.identify {
            if *about == what {
                data[*at..*at + bytes.len()].copy_from_slice(bytes);
            }
        }
        self.give(state, command, 0, &data)
    }

    fn transfer(&self, state: &mut State, command: &Command) -> Result<(), Status> {
        let index = command.namespace.get().wrapping_sub(1) as usize;
        let format = state.format(command)?;
        if command.opcode == io::FLUSH {
            state.media[index].flush();
            return Ok(());
        }
        if command.opcode == io::DATASET_MANAGEMENT {
            return self.deallocate(state, command, index);
        }
        let dword12 = command.dword10[2].get();
        let (first, blocks) = self.range(&format, command)?;
        let size = 1usize << format.block_shift;
        let acts = dword12 & PROTECTION_ACTION != 0;
        if acts && matches!(command.opcode, io::COMPARE | io::VERIFY) {
            return Err(Status::INVALID_PROTECTION);
        }
        if dword12 & PROTECTION_CHECKS != 0 && command.opcode == io::WRITE_ZEROES {
            return Err(Status::INVALID_PROTECTION);
        }
        let tagged = format.protection == 1 || format.protection == 2;
        if tagged
            && dword12 & PROTECTION_CHECK_REFERENCE != 0
            && command.dword10[4].get() != first as u32
        {
            return Err(Status::REFERENCE_CHECK);
        }
        for (offset, block) in (first..first + blocks).enumerate() {
            let at = offset * size;
            let media = &state.media[index];
            let reads = matches!(command.opcode, io::READ | io::COMPARE | io::VERIFY);
            if reads && dword12 & PROTECTION_CHECK_GUARD != 0 && media.is_spoiled(block) {
                return Err(Status::GUARD_CHECK);
            }
            match command.opcode {
                io::READ => {
                    let content = media.read(block).to_vec();
                    self.give(state, command, at, &content)?;
                }
                io::WRITE => {
                    let content = self.fetch(state, command, at, size)?;
                    if dword12 & FORCE_UNIT_ACCESS != 0 {
                        state.media[index].write_through(block, &content);
                    } else {
                        state.media[index].write(block, &content);
                    }
                }
                io::COMPARE => {
                    let content = self.fetch(state, command, at, size)?;
                    if content != state.media[index].read(block) {
                        return Err(Status::COMPARE_FAILURE);
                    }
                }
                io::WRITE_ZEROES => state.media[index].write(block, &vec![0; size]),
                io::VERIFY => {}
                _ => return Err(Status::INVALID_OPCODE),
            }
        }
        Ok(())
    }

    fn deallocate(&self, state: &mut State, command: &Command, index: usize) -> Result<(), Status> {
        let format = state.format(command)?;
        let zeroes = vec![0; 1 << format.block_shift];
        for (first, blocks) in self.ranges(state, command, &format)? {
            let media = &mut state.media[index];
            (first..first + blocks).for_each(|block| media.write(block, &zeroes));
        }
        Ok(())
    }

    /// The blocks of a command that names a range of them, which is as the driver promises.
    pub(super) fn range(
        &self,
        format: &ModelNamespace,
        command: &Command,
    ) -> Result<(u64, u64), Status> {
        let (first, blocks) =
            (command.first_block(), u64::from(command.dword10[2].get() & 0xffff) + 1);
        if first.checked_add(blocks).is_none_or(|end| end > format.blocks) {
            return Err(Status::OUT_OF_RANGE);
        }
        let size = 1usize << format.block_shift;
        let page = 4096u64 << self.options.page_shift;
        let limit = match command.opcode {
            io::VERIFY => self.options.limits.0,
            io::WRITE_ZEROES => self.options.limits.1,
            _ => self.options.transfer_max_shift,
        };
        if limit != 0 && blocks * size as u64 > page << limit {
            return Err(Status::INVALID_FIELD);
        }
        let boundary = u64::from(format.optimal_boundary);
        let moves = matches!(command.opcode, io::READ | io::WRITE | io::COMPARE);
        if moves && boundary > 0 && first / boundary != (first + blocks - 1) / boundary {
            // Allowed by the specification, but the driver promises not to.
            return Err(Status::INVALID_FIELD);
        }
        Ok((first, blocks))
    }

    /// The device address of each piece of the command's data from `at` on.
    fn pieces(
        &self,
        state: &mut State,
        command: &Command,
        at: usize,
        length: usize,
    ) -> Result<Vec<(u64, usize)>, Status> {
        if command.flags & FLAG_SGL != 0 {
            return self.scattered(state, command, at, length);
        }
        let page = 4096usize << self.options.page_shift;
        let first = command.data[0].get();
        let offset = first as usize % page;
        let total = match command.opcode {
            io::DATASET_MANAGEMENT => length,
            _ => self.data_bytes(state, command).unwrap_or(4096),
        };
        let pages = (offset + total).div_ceil(page);
        let mut found = Vec::new();
        let (mut at, mut left) = (at + offset, length);
        while left > 0 {
            let (index, inside) = (at / page, at % page);
            let base = match index {
                0 => first - offset as u64,
                1 if pages <= 2 => command.data[1].get(),
                _ => {
                    let mut entry = [0; 8];
                    let place = command.data[1].get() + 8 * (index as u64 - 1);
                    if !self.read_memory(state, place, &mut entry) {
                        return Err(Status::DATA_TRANSFER);
                    }
                    u64::from_le_bytes(entry)
                }
            };
            if index > 0 && base % page as u64 != 0 {
                return Err(Status::INVALID_FIELD);
            }
            let bytes = (page - inside).min(left);
            found.push((base + inside as u64, bytes));
            (at, left) = (at + bytes, left - bytes);
        }
        Ok(found)
    }

    /// Bytes of data of an I/O command over blocks; `None` for admin commands.
    fn data_bytes(&self, state: &State, command: &Command) -> Option<usize> {
        let moves = matches!(command.opcode, io::READ | io::WRITE | io::COMPARE);
        let media = state.media.get((command.namespace.get() as usize).wrapping_sub(1))?;
        let blocks = (command.dword10[2].get() as usize & 0xffff) + 1;
        // Identify and log pages share opcodes with I/O, but have no count of blocks.
        (moves && blocks > 0).then(|| blocks << media.format.block_shift)
    }

    fn scattered(
        &self,
        state: &mut State,
        command: &Command,
        at: usize,
        length: usize,
    ) -> Result<Vec<(u64, usize)>, Status> {
        if !self.options.sgl {
            return Err(Status::INVALID_FIELD);
        }
        let [address, rest] = command.data.map(|word| word.get());
        let mut bytes = [address.to_le_bytes(), rest.to_le_bytes()].concat();
        if rest >> 60 == 3 {
            bytes = vec![0; rest as u32 as usize];
            if !self.read_memory(state, address, &mut bytes) {
                return Err(Status::DATA_TRANSFER);
            }
        }
        let (mut skip, mut left) = (at, length);
        let mut found = Vec::new();
        for descriptor in bytes.chunks_exact(16) {
            let address = u64::from_le_bytes(descriptor[..8].try_into().expect("8 bytes"));
            let whole = u32::from_le_bytes(descriptor[8..12].try_into().expect("4 bytes")) as usize;
            let from = skip.min(whole);
            skip -= from;
            let take = (whole - from).min(left);
            left -= take;
            if take > 0 {
                found.push((address + from as u64, take));
            }
        }
        if left > 0 { Err(Status::INVALID_FIELD) } else { Ok(found) }
    }

    pub(super) fn give(
        &self,
        state: &mut State,
        command: &Command,
        at: usize,
        data: &[u8],
    ) -> Result<(), Status> {
        let mut done = 0;
        for (address, bytes) in self.pieces(state, command, at, data.len())? {
            if !self.write_memory(state, address, &data[done..done + bytes]) {
                return Err(Status::DATA_TRANSFER);
            }
            done += bytes;
        }
        Ok(())
    }

    pub(super) fn fetch(
        &self,
        state: &mut State,
        command: &Command,
        at: usize,
        length: usize,
    ) -> Result<Vec<u8>, Status> {
        let mut data = vec![0; length];
        let mut done = 0;
        for (address, bytes) in self.pieces(state, command, at, length)? {
            if !self.read_memory(state, address, &mut data[done..done + bytes]) {
                return Err(Status::DATA_TRANSFER);
            }
            done += bytes;
        }
        Ok(data)
    }
}
