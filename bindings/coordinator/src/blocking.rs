//! A store's client for threads that may wait: a supervisor's, whose store is elsewhere.
//!
//! An operation waits for the connection, but no longer than a patience that begins when the connection was lost: while
//! the store is away every operation is refused at once. Many threads may wait; whoever is woken takes what
//! has happened for all of them.

use crate::contract::{Answer, Operation, Store, StoreError, StoreEvent, Token};
use cleave_runtime::executor::Doorbell;
use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// The client.
pub struct BlockingStore {
    state: Mutex<State>,
    bell: Arc<Bell>,
    patience: Duration,
}

struct State {
    store: Box<dyn Store + Send>,
    next: Token,
    connected: bool,
    /// When the connection was lost, or the client began.
    lost: Instant,
    answers: BTreeMap<Token, Result<Answer, StoreError>>,
}

/// Counts what happened, for threads that wait for it.
#[derive(Default)]
struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Doorbell for Bell {
    fn ring(&self) {
        *self.rings.lock().expect("nobody panics while counting") += 1;
        self.rung.notify_all();
    }
}

impl Bell {
    fn rings(&self) -> u64 {
        *self.rings.lock().expect("nobody panics while counting")
    }

    /// Waits until there were more rings than these, or for `span`.
    fn wait(&self, rings: u64, span: Duration) {
        let guard = self.rings.lock().expect("nobody panics while counting");
        let waited = self.rung.wait_timeout_while(guard, span, |now| *now == rings);
        drop(waited.expect("nobody panics while counting"));
    }
}

impl BlockingStore {
    /// Wraps the store that `open` makes; it is given the doorbell that the store is to ring.
    ///
    /// # Errors
    /// Those of `open`.
    pub fn new<S: Store + Send + 'static, E>(
        patience: Duration,
        open: impl FnOnce(Arc<dyn Doorbell>) -> Result<S, E>,
    ) -> Result<BlockingStore, E> {
        let bell = Arc::<Bell>::default();
        let store = Box::new(open(Arc::clone(&bell) as Arc<dyn Doorbell>)?);
        let (answers, lost) = (BTreeMap::new(), Instant::now());
        let state = State { store, next: 1, connected: false, lost, answers };
        Ok(BlockingStore { state: Mutex::new(state), bell, patience })
    }

    /// Whether operations reach the store at present, as far as is known.
    pub fn is_connected(&self) -> bool {
        self.lock().connected
    }

    /// Carries an operation out. Not for watches, whose events nobody would take.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] also when the store is away for longer than the patience.
    pub fn execute(&self, operation: Operation) -> Result<Answer, StoreError> {
        if matches!(operation, Operation::Watch { .. } | Operation::Unwatch { .. }) {
            return Err(StoreError::Invalid("a watch without a client".to_owned()));
        }
        let mut submitted = None;
        loop {
            let rings = self.bell.rings();
            let mut state = self.lock();
            if let Some(token) = submitted
                && let Some(result) = state.answers.remove(&token)
            {
                // It never left: once more, while there is patience.
                if result != Err(StoreError::Unavailable) {
                    return result;
                }
                submitted = None;
            }
            let left = self.patience.saturating_sub(state.lost.elapsed());
            if submitted.is_none() && state.connected {
                let token = state.next;
                state.next += 1;
                state.store.submit(token, operation.clone());
                submitted = Some(token);
            } else if submitted.is_none() && left.is_zero() {
                return Err(StoreError::Unavailable);
            }
            drop(state);
            // An answer comes, or the connection is lost, which is one too.
            let span = if submitted.is_some() { Duration::from_secs(1) } else { left };
            self.bell.wait(rings, span);
        }
    }

    /// The state, with what happened since it was looked at.
    fn lock(&self) -> MutexGuard<'_, State> {
        let mut state = self.state.lock().expect("no thread panics while it holds the client");
        let mut events = Vec::new();
        state.store.poll(&mut events);
        let any = !events.is_empty();
        for event in events {
            match event {
                StoreEvent::Answer { token, result } => drop(state.answers.insert(token, result)),
                StoreEvent::Connected => state.connected = true,
                StoreEvent::Disconnected => {
                    state.connected = false;
                    state.lost = Instant::now();
                }
                StoreEvent::Changed { .. } => unreachable!("nobody watches"),
            }
        }
        if any {
            // Some of it may be for others.
            self.bell.ring();
        }
        state
    }
}
