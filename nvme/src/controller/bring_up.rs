//! From power-on to namespaces and queues (Base 3.5.1).
//!
//! 1. wait until the controller is disabled;
//! 2. admin queues, page size, enable, wait for ready no longer than CAP.TO;
//! 3. identify;
//! 4. number of queues;
//! 5. namespaces;
//! 6. events;
//! 7. the queues of pairs that exist already.

use super::{Facts, Inner};
use crate::error::Error;
use crate::namespace::{CommandLimits, Namespace};
use crate::queue::{Channel, PairState, Phase, transfer_max};
use crate::registers::write_u64;
use crate::spec::command::{Command, IdentifyWhat};
use crate::spec::feature;
use crate::spec::identify::{ControllerIdentity, NamespaceIdentity, active_namespaces};
use crate::spec::registers::{
    ADMIN_COMPLETION_ADDRESS, ADMIN_QUEUE_ATTRIBUTES, ADMIN_SUBMISSION_ADDRESS, CONFIGURATION,
    Capabilities, Configuration, doorbell,
};
use std::sync::Arc;
use std::time::Duration;

/// Entries of the admin queues, which CAP.MQES does not limit (Base 3.1.3.1, 3.1.3.8).
const ADMIN_ENTRIES: u16 = 32;
/// Our page; a controller with larger ones gets larger ones.
const PAGE: u64 = 4096;

impl Inner {
    /// Waits until `done`, for at most as long as the controller says that it needs.
    async fn wait_ready(
        &self,
        what: &'static str,
        capabilities: Capabilities,
        done: impl Fn(&Inner) -> Option<Result<(), Error>>,
    ) -> Result<(), Error> {
        let milliseconds = capabilities.ready_timeout_ms();
        let until = self.clock.now() + Duration::from_millis(milliseconds);
        let look = || {
            if self.status().is_absent() {
                return Some(Err(Error::Absent));
            }
            if let Some(result) = done(self) {
                return Some(result);
            }
            (self.clock.now() >= until).then_some(Err(Error::Timeout { what, milliseconds }))
        };
        self.ticks.until(look).await
    }

    /// Makes the controller forget everything (CC.EN to 0, CSTS.RDY to 0).
    pub(super) async fn disable(&self) -> Result<(), Error> {
        let capabilities = self.capabilities()?;
        let configuration = self.configuration();
        if configuration.is_enabled() && !self.status().is_ready() && !self.status().is_fatal() {
            // EN must not change while the controller is on its way to ready (Base 3.1.3.5); one
            // that never gets there is disabled all the same.
            let ready = |inner: &Inner| {
                let status = inner.status();
                (status.is_ready() || status.is_fatal()).then_some(Ok(()))
            };
            let _ = self.wait_ready("become ready", capabilities, ready).await;
        }
        self.registers().write(CONFIGURATION, configuration.disabled().0);
        let disabled = |inner: &Inner| (!inner.status().is_ready()).then_some(Ok(()));
        self.wait_ready("become disabled", capabilities, disabled).await
    }

    /// Brings up a controller that is disabled and whose pairs hold nothing.
    pub(super) async fn bring_up(&self) -> Result<(), Error> {
        let capabilities = self.capabilities()?;
        if !capabilities.nvm_command_set() {
            return Err(Error::Unsupported("it has no NVM command set".to_owned()));
        }
        if capabilities.queue_entries_max() < 2 {
            return Err(Error::Impossible("queues of one entry".to_owned()));
        }
        let page = capabilities.page_min().max(PAGE);
        if page > capabilities.page_max() || page > PAGE << 4 {
            return Err(Error::Unsupported(format!("its memory pages have {page} bytes or more")));
        }
        self.transport.allow_dma(true).map_err(Error::system("let the controller reach memory"))?;
        self.enable(capabilities, page).await?;
        let identity = self.find_identity(capabilities, page).await?;
        self.negotiate_queues(capabilities).await?;
        self.find_namespaces().await?;
        // Controllers of version 1.0 know less events, and those without any are fine too.
        let wanted = Command::set_features(feature::ASYNCHRONOUS_EVENTS, feature::EVENTS_WANTED);
        let plain = Command::set_features(feature::ASYNCHRONOUS_EVENTS, 0xff);
        if let Err(Error::Command { .. }) = self.execute("choose events", wanted, None).await {
            let _ = self.execute("choose events", plain, None).await;
        }
        self.request_events(identity.event_requests_max);
        let queues: Vec<u16> = self.pairs.borrow().keys().copied().collect();
        for queue in queues {
            self.create_queues(queue).await?;
        }
        let resets = self.shared.phase().resets;
        self.shared.set_phase(Phase { state: PairState::Live, resets });
        self.looked.set(self.clock.now());
        Ok(())
    }

    async fn enable(&self, capabilities: Capabilities, page: u64) -> Result<(), Error> {
        let entries = ADMIN_ENTRIES;
        let stride = capabilities.doorbell_stride();
        let channel = Channel::new(
            Arc::clone(&self.transport),
            0,
            (entries, entries),
            stride,
            self.allocate(usize::from(entries) * 64)?,
            self.allocate(usize::from(entries) * 16)?,
        );
        let (submission, completion) = channel.addresses();
        let sizes = u32::from(entries - 1);
        self.registers().write(ADMIN_QUEUE_ATTRIBUTES, sizes << 16 | sizes);
        write_u64(self.registers(), ADMIN_SUBMISSION_ADDRESS, submission);
        write_u64(self.registers(), ADMIN_COMPLETION_ADDRESS, completion);
        self.registers().write(CONFIGURATION, Configuration::enabled(page).0);
        let ready = |inner: &Inner| {
            let status = inner.status();
            if status.is_fatal() {
                return Some(Err(Error::Fatal));
            }
            status.is_ready().then_some(Ok(()))
        };
        self.wait_ready("become ready", capabilities, ready).await?;
        *self.admin.borrow_mut() = Some(channel);
        Ok(())
    }

    async fn find_identity(
        &self,
        capabilities: Capabilities,
        page: u64,
    ) -> Result<ControllerIdentity, Error> {
        let command = Command::identify(IdentifyWhat::Controller, 0);
        let data = self.identify("identify the controller", command).await?;
        let identity = ControllerIdentity::parse(&data).map_err(Error::Impossible)?;
        let stated = match identity.transfer_max_shift {
            0 => u64::MAX,
            shift => capabilities.page_min() << shift,
        };
        let mut facts = self.facts.borrow_mut();
        *facts = Facts {
            identity: Some(identity.clone()),
            entries_max: capabilities.queue_entries_max(),
            stride: capabilities.doorbell_stride(),
            page,
            transfer_max: stated.min(transfer_max(page)),
            ..std::mem::take(&mut facts)
        };
        Ok(identity)
    }

    async fn negotiate_queues(&self, capabilities: Capabilities) -> Result<(), Error> {
        let wanted = u32::from(self.options.pairs.clamp(1, u16::MAX - 1)) - 1;
        let command = Command::set_features(feature::NUMBER_OF_QUEUES, wanted << 16 | wanted);
        let (given, _) = self.execute("negotiate the number of queues", command, None).await?;
        let given = (given & 0xffff).min(given >> 16).min(wanted) + 1;
        // Doorbells beyond the mapped registers cannot be rung.
        let stride = capabilities.doorbell_stride();
        let reachable = |queue: &u32| {
            doorbell(*queue as u16, true, stride).saturating_add(4) <= self.registers().length()
        };
        let pairs = (1..=given).take_while(reachable).count() as u16;
        if pairs == 0 {
            return Err(Error::Impossible("no doorbell within its registers".to_owned()));
        }
        let known = self.pairs.borrow().keys().next_back().copied().unwrap_or(0);
        if known > pairs {
            return Err(Error::Unsupported(format!(
                "it gives {pairs} queue pairs after a reset, and gave {known} before"
            )));
        }
        self.facts.borrow_mut().pairs = pairs;
        Ok(())
    }

    /// Reads the list of active namespaces and their formats.
    pub(super) async fn find_namespaces(&self) -> Result<(), Error> {
        let page_min = self.capabilities()?.page_min();
        // Limits of single commands; older controllers do not know the question.
        let mut question = Command::identify(IdentifyWhat::CommandSet, 0);
        let limits = match self.identify("identify command limits", question).await {
            Ok(data) => CommandLimits::parse(&data, page_min),
            Err(Error::Command { .. }) => CommandLimits::default(),
            Err(error) => return Err(error),
        };
        let mut numbers = Vec::new();
        while numbers.len() < self.options.namespaces {
            let above = numbers.last().copied().unwrap_or(0);
            question = Command::identify(IdentifyWhat::ActiveNamespaces, above);
            let data = self.identify("list namespaces", question).await?;
            let page = active_namespaces(above, &data).map_err(Error::Impossible)?;
            let last = page.len() < data.len() / 4;
            numbers.extend(page);
            if last {
                break;
            }
        }
        numbers.truncate(self.options.namespaces);
        let (mut namespaces, mut refused) = Default::default();
        for number in numbers {
            question = Command::identify(IdentifyWhat::Namespace, number);
            let data = self.identify("identify a namespace", question).await?;
            self.judge(number, &data, &limits, &mut namespaces, &mut refused);
        }
        let mut facts = self.facts.borrow_mut();
        (facts.namespaces, facts.refused) = (namespaces, refused);
        Ok(())
    }

    /// Sorts a namespace into those that can be used, and those that cannot.
    fn judge(
        &self,
        number: u32,
        data: &[u8; 4096],
        limits: &CommandLimits,
        namespaces: &mut std::collections::BTreeMap<u32, Namespace>,
        refused: &mut std::collections::BTreeMap<u32, String>,
    ) {
        let facts = self.facts.borrow();
        let Some(controller) = &facts.identity else { return };
        let made = match NamespaceIdentity::parse(number, data) {
            Ok(None) => return,
            Ok(Some(identity)) => Namespace::new(&identity, controller, limits, facts.transfer_max)
                .map_err(|error| error.to_string()),
            Err(why) => Err(why),
        };
        match made {
            Ok(namespace) => {
                namespaces.insert(number, namespace);
            }
            Err(why) => {
                refused.insert(number, why);
            }
        }
    }

    /// Creates the queues of a pair in the controller.
    pub(super) async fn create_queues(&self, queue: u16) -> Result<(), Error> {
        let (mut completion, mut submission) = {
            let pairs = self.pairs.borrow();
            let pair = pairs.get(&queue).ok_or(Error::Aborted)?;
            let mut completion =
                Command::create_completion_queue(queue, pair.completions, pair.vector);
            completion.data[0] = pair.completion.into();
            let mut submission = Command::create_submission_queue(queue, pair.entries);
            submission.data[0] = pair.submission.into();
            (completion, submission)
        };
        for (what, command) in [
            ("create a completion queue", &mut completion),
            ("create a submission queue", &mut submission),
        ] {
            self.execute(what, *command, None).await?;
        }
        Ok(())
    }
}
