//! What is done by the clock: devices that vanish or hang, reads that take too long, errors that are forgotten.
//! And taking a retired device's parts out of the table, in small steps.

use crate::Inner;
use crate::device::Phase;
use crate::state::DeviceKey;
use crate::table::DIVISIONS;
use cleave_runtime::drives::DriveError;
use cleave_runtime::executor::Priority;
use cleave_runtime::time::Moment;
use std::rc::Rc;
use std::time::Duration;

/// Between two looks.
const TICK: Duration = Duration::from_millis(250);
/// A guest's read that takes longer is answered from the pool.
const LATE: Duration = Duration::from_secs(1);
/// A device that answers a request this late is not used any more.
const HANGS: Duration = Duration::from_secs(30);
/// One error is forgotten.
const FORGIVES: Duration = Duration::from_secs(60);
/// A retired device may be let go when nothing is on its way.
const LETS_GO: Duration = Duration::from_millis(100);

/// Looks at all devices, for as long as there are any.
pub(crate) async fn watch(inner: Rc<Inner>) {
    let mut forgiven = inner.executor.now();
    loop {
        inner.changed.until(|| (!inner.state.borrow().devices.is_empty()).then_some(())).await;
        inner.executor.sleep(TICK).await;
        let now = inner.executor.now();
        let forgives = now.since(forgiven) >= FORGIVES;
        if forgives {
            forgiven = now;
        }
        let mut state = inner.state.borrow_mut();
        let keys: Vec<DeviceKey> = state.devices.keys().copied().collect();
        for key in keys {
            let Some(device) = state.device(key) else { continue };
            device.score -= u32::from(forgives && device.score > 0);
            device.changed.notify();
            let port = Rc::clone(&device.port);
            let hangs = port.oldest().is_some_and(|oldest| now.since(oldest) >= HANGS);
            let reason = match port.drive().probe() {
                Err(DriveError::Lost(reason) | DriveError::Io(reason)) => Some(reason),
                Err(DriveError::NoSpace) | Ok(()) if hangs => {
                    Some(format!("it did not answer for {} seconds", HANGS.as_secs()))
                }
                Err(DriveError::NoSpace) | Ok(()) => None,
            };
            if let Some(reason) = reason {
                state.retire(key, reason);
            }
        }
        let limit = now.0.saturating_sub(LATE.as_nanos() as u64);
        state.answer_late(Moment(limit));
    }
}

/// Takes the parts of retired devices out of the table, and lets the devices go.
pub(crate) async fn sweep(inner: Rc<Inner>) {
    let retired = inner.state.borrow().retired_signal.clone();
    loop {
        let key = retired.until(|| inner.state.borrow_mut().retiring.pop()).await;
        let sweeping = sweep_device(Rc::clone(&inner), key);
        inner.executor.spawn(Priority::Background, sweeping);
    }
}

async fn sweep_device(inner: Rc<Inner>, key: DeviceKey) {
    let found = inner.state.borrow().devices.get(&key).map(|device| {
        assert_eq!(device.phase, Phase::Retired, "only what is retired is swept");
        (device.numbers(), Rc::clone(&device.port))
    });
    let Some((numbers, port)) = found else { return };
    for division in 0..DIVISIONS {
        inner.state.borrow_mut().sweep(division, &numbers);
        inner.executor.yield_now().await;
    }
    // Its buffers are the device's until it has answered.
    while port.oldest().is_some() {
        inner.executor.sleep(LETS_GO).await;
    }
    inner.state.borrow_mut().devices.remove(&key);
    inner.ports.borrow_mut().retain(|other| !Rc::ptr_eq(other, &port));
    inner.changed.notify();
}
