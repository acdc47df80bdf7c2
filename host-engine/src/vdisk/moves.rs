//! How a share goes to another core of this engine while its vdisk is served (C1, C8, C9).
//!
//! An epoch is taken first, so that afterwards only the log is needed. The first share takes the device along; for another
//! one the device's core has that share's requests wait. What cannot let go in time stays where it is, under the epoch
//! under which it was opened. A crash leaves the vdisk with the newest epoch in the store, as any crash of its owner.

use super::{Failure, Opening, Share, Vdisk, device, opened, route, take_ownership};
use crate::core::CoreHandle;
use crate::engine::Engine;
use crate::messages::{Answer, Handed, OpenError, OpenOrder, Order};
use cleave_host_core::front::Place;
use cleave_runtime::crash_points::{Point, reached};
use std::rc::Rc;

/// Has another core of this engine serve a share; with the first one the device goes along. When the first core
/// cannot let go of it in time, it stays there.
pub(super) async fn change_core(
    engine: &Engine,
    vdisk: &Vdisk,
    share: &Share,
    target: &Rc<CoreHandle>,
    size: u64,
) -> Result<(), Failure> {
    let from = share.core();
    if from.core == target.core {
        return Ok(());
    }
    let encrypted = vdisk.record.borrow().encrypted;
    let keys = if encrypted { engine.keys.clone() } else { None };
    // Whatever could fail does so before the first core lets go.
    device(engine, vdisk, size)?;
    // So that nothing but the log is needed then. Until the log is sealed under it, the first core serves under the
    // epoch before.
    let epoch = match take_ownership(engine, vdisk).await {
        Ok((epoch, _)) => epoch,
        Err(error) => {
            tracing::warn!(vdisk = vdisk.name, "stays on its core: {error}");
            return Ok(());
        }
    };
    // That is what there is to release.
    vdisk.epoch.set(epoch.0);
    let since = engine.executor.now();
    // C9: this engine opened the share under it, and the core that did lets go before the next one seals.
    let gone = vec![share.epoch.get()];
    let opening = Opening { epoch, gone, keys, size };
    let moved = match share.number {
        0 => move_first(engine, vdisk, share, target, &opening).await?,
        _ => move_other(engine, vdisk, share, target, &opening).await?,
    };
    let (from, to, share) = (from.core, target.core, share.number);
    match moved {
        Ok(()) => {
            vdisk.remember_served(engine);
            let took = engine.executor.now().since(since);
            engine.cpu.moves.set(engine.cpu.moves.get() + 1);
            let epoch = epoch.0;
            tracing::info!(
                vdisk = vdisk.name,
                share,
                epoch,
                from,
                to,
                ?took,
                "serving on another core"
            );
        }
        Err(reason) => {
            tracing::info!(vdisk = vdisk.name, share, core = from, "stays on its core: {reason}");
        }
    }
    Ok(())
}

/// Moves the first share and the device. The inner error says why both stay.
async fn move_first(
    engine: &Engine,
    vdisk: &Vdisk,
    share: &Share,
    target: &Rc<CoreHandle>,
    opening: &Opening,
) -> Result<Result<(), String>, Failure> {
    let handed: Option<Box<Handed>> =
        match share.core().ask(Order::Hand { vdisk: vdisk.id }).wait().await {
            Some(Answer::Handed(Ok(handed))) => handed,
            Some(Answer::Handed(Err(reason))) => return Ok(Err(reason)),
            _ => return Err(OpenError::Stopping.into()),
        };
    share.open.set(false);
    share.core.replace(Rc::clone(target));
    let mut places = vec![Place::Here];
    for other in &vdisk.shares[1..] {
        let (place, carry) = route(target, &other.core());
        places.push(place);
        let Some(end) = carry else { continue };
        let carry = Order::Carry { share: other.identity, end };
        if !matches!(other.core().ask(carry).wait().await, Some(Answer::Carried)) {
            return Err(OpenError::Stopping.into());
        }
    }
    let mut order = opening.order(engine, vdisk, share, None)?;
    order.without_device = false;
    (order.handed, order.places) = (handed, places);
    open_there(engine, vdisk, share, target, order).await?;
    Ok(Ok(()))
}

/// Moves a share that is not the first, while the device has its requests wait. The inner error says why it stays.
async fn move_other(
    engine: &Engine,
    vdisk: &Vdisk,
    share: &Share,
    target: &Rc<CoreHandle>,
    opening: &Opening,
) -> Result<Result<(), String>, Failure> {
    let (home, from) = (vdisk.core(), share.core());
    from.ask(Order::Prepare { share: share.identity }).wait().await;
    let (vdisk_id, number) = (vdisk.id, share.number);
    match home.ask(Order::Pause { vdisk: vdisk_id, share: number }).wait().await {
        Some(Answer::Paused(Ok(()))) => {}
        Some(Answer::Paused(Err(reason))) => return Ok(Err(reason)),
        _ => return Err(OpenError::Stopping.into()),
    }
    share.open.set(false);
    from.ask(Order::Close { vdisk: share.identity }).wait().await;
    reached(Point::HostHanded);
    share.core.replace(Rc::clone(target));
    let (place, carry) = route(&home, target);
    let order = opening.order(engine, vdisk, share, carry)?;
    open_there(engine, vdisk, share, target, order).await?;
    let resume = Order::Resume { vdisk: vdisk_id, share: number, place };
    match home.ask(resume).wait().await {
        Some(Answer::Resumed) => Ok(Ok(())),
        _ => Err(OpenError::Stopping.into()),
    }
}

/// Opens a share on its next core.
async fn open_there(
    engine: &Engine,
    vdisk: &Vdisk,
    share: &Share,
    target: &CoreHandle,
    order: OpenOrder,
) -> Result<(), Failure> {
    let epoch = order.epoch;
    let answer = target.ask(Order::Open(Box::new(order))).wait().await;
    opened(engine, vdisk, share, epoch, answer, false).await
}
