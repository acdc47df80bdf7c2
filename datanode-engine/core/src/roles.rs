//! The in-sync set in the coordinator store, and its compare-and-swap (C7).
//!
//! Every change raises the epoch and is made before anything is acknowledged that relies on it. There are four:
//!
//! - [`fence`]: a new process raises the epoch and leaves the members as they are, before it looks at its image or at
//!   a peer. Requests of its predecessors, which the store may execute however late, are conditional on older
//!   records, and change nothing from then on.
//! - [`take_over`]: a controller that holds the complete log becomes active, because the active one is away. The
//!   members stay: it acknowledges nothing alone, so that what the other member holds stays complete.
//! - [`go_solo`] makes an active controller the only member, once all of its log is on three drives (C12). Nobody but
//!   a process of that controller may load it from there.
//! - [`join`] makes both controllers members. It is also what ends all images and memories of older members: a
//!   crash before it leaves them valid, after it they are not. An image is valid by its incarnation being a member,
//!   whatever the epoch: a fence keeps all images that were valid.
//!
//! | Key | Record | Changed by |
//! | --- | --- | --- |
//! | `datanode/ID` | [`LogRole`] | either controller |
//! | `start-empty/ID` | the epoch that it is about | the operator; a fence, which takes it along; deleted by the change that obeys it |

use cleave_coordinator::encoding::{decode, encode};
use cleave_coordinator::records::datanode_key;
use cleave_coordinator::{LogRole, Member, Outcome, Solo, StoreClient, StoreError, Transaction};
use cleave_format::ids::{DatanodeId, Epoch, Incarnation, Position};

/// The key of the operator's word that a data node shall start with an empty log, although what its
/// log held and was not destaged is lost with it. The value is the encoded role epoch (a `u64`) that the
/// operator saw: for any other one the word is void.
pub fn start_empty_key(datanode: DatanodeId) -> String {
    format!("start-empty/{datanode}")
}

/// Writes the operator's word for the present epoch; gives that epoch. `None`: the data node never had a log.
pub async fn order_start_empty(
    client: &StoreClient,
    datanode: DatanodeId,
) -> Result<Option<Epoch>, StoreError> {
    let key = datanode_key(u64::from(datanode.0));
    loop {
        let found = client.get_record::<LogRole>(&key).await?;
        let Some((role, revision)) = found.filter(|(role, _)| role.has_log()) else {
            return Ok(None);
        };
        let word = encode(&role.epoch);
        let transaction =
            Transaction::new().require(&*key, revision).put(start_empty_key(datanode), word);
        match client.transact(transaction).await {
            Ok(Outcome::Committed(_)) => return Ok(Some(Epoch(role.epoch))),
            // A fence came between: the word is about the epoch that it made.
            Ok(Outcome::Conflict) => {}
            Err(error) => return Err(error),
        }
    }
}

/// What the store says about a data node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recorded {
    /// Its record, with the revision.
    pub role: Option<(LogRole, u64)>,
    /// The operator's word holds for the record's epoch, or there never was a log.
    pub start_empty: bool,
    /// The revision of the operator's word, of whatever epoch; 0: there is none.
    word: u64,
}

/// Reads the record.
pub async fn read(client: &StoreClient, datanode: DatanodeId) -> Result<Recorded, StoreError> {
    let key = datanode_key(u64::from(datanode.0));
    let role = client.get_record::<LogRole>(&key).await?;
    let word = client.get(&start_empty_key(datanode)).await?;
    let start_empty = match (&role, &word) {
        (None, _) => true,
        (Some((role, _)), _) if !role.has_log() => true,
        (Some((role, _)), Some(word)) => {
            decode::<u64>(&word.value).is_ok_and(|epoch| epoch == role.epoch)
        }
        (Some(_), None) => false,
    };
    Ok(Recorded { role, start_empty, word: word.map_or(0, |word| word.revision) })
}

/// Raises the epoch, and leaves everything else as it is: a request that was made by the record of before changes
/// nothing any more. Tries until that is done; an operator's word that holds goes on holding.
pub async fn fence(client: &StoreClient, datanode: DatanodeId) -> Result<(), StoreError> {
    let key = datanode_key(u64::from(datanode.0));
    loop {
        let recorded = read(client, datanode).await?;
        let (before, revision) = match recorded.role {
            Some((role, revision)) => (role, revision),
            None => (LogRole::without_log(0), 0),
        };
        let epoch = before.epoch + 1;
        let told = recorded.start_empty && before.has_log();
        let after = encode(&LogRole { epoch, ..before });
        let mut transaction = Transaction::new().require(&*key, revision).put(&*key, after);
        // Also when there is none: one that is given meanwhile must not be left behind.
        transaction = transaction.require(start_empty_key(datanode), recorded.word);
        if told {
            transaction = transaction.put(start_empty_key(datanode), encode(&epoch));
        }
        match client.transact(transaction).await {
            Ok(Outcome::Committed(_)) => return Ok(()),
            // After an unknown outcome one change more does no harm.
            Ok(Outcome::Conflict) | Err(StoreError::Unknown) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Makes this process active, and leaves the members as they are. `origin`: the position that the next entry of its log
/// gets. `None` or an error leave open whether it is active: [`find_taken`] tells.
pub async fn take_over(
    client: &StoreClient,
    datanode: DatanodeId,
    before: &Recorded,
    own: Incarnation,
    origin: Position,
) -> Result<Option<LogRole>, StoreError> {
    let Some((record, revision)) = &before.role else { return Ok(None) };
    let epoch = record.epoch + 1;
    let changed =
        LogRole { epoch, active: Some(own.0), since: epoch, origin: origin.0, ..record.clone() };
    change(client, datanode, *revision, changed).await
}

/// Whether [`take_over`] from the record `before` made this process active, and by which record. The request may be executed
/// yet, or be so by now: a fence voids it first. Who went on without knowing would hold the log of a controller that serves by an
/// older role, and that one, superseded, would take back what both of them acknowledged.
pub async fn find_taken(
    client: &StoreClient,
    datanode: DatanodeId,
    before: &Recorded,
    own: Incarnation,
) -> Result<Option<LogRole>, StoreError> {
    fence(client, datanode).await?;
    let epoch = before.role.as_ref().map(|(role, _)| role.epoch + 1);
    let now = read(client, datanode).await?.role.map(|(role, _)| role);
    Ok(now.filter(|role| role.active == Some(own.0) && Some(role.since) == epoch))
}

/// Makes the active controller the only member, by a session of its log on drives (C12). `None`: the record is another one,
/// or names another active one; look again.
pub async fn go_solo(
    client: &StoreClient,
    datanode: DatanodeId,
    before: &Recorded,
    own: Member,
    solo: Solo,
) -> Result<Option<LogRole>, StoreError> {
    let Some((record, revision)) = &before.role else { return Ok(None) };
    if record.active != Some(own.incarnation) {
        return Ok(None);
    }
    let (epoch, in_sync) = (record.epoch + 1, vec![own]);
    let changed = LogRole { epoch, in_sync, solo: Some(solo), ..record.clone() };
    change(client, datanode, *revision, changed).await
}

/// Makes both controllers members, and the one of this number active. `origin`: the position of the first entry that is
/// forwarded. `before` is what [`read`] gave when the decision was made. `None`: something else changed the record; meet again.
pub async fn join(
    client: &StoreClient,
    datanode: DatanodeId,
    before: &Recorded,
    log: u64,
    members: [Incarnation; 2],
    active: usize,
    origin: Position,
) -> Result<Option<LogRole>, StoreError> {
    let (epoch, revision) = match &before.role {
        Some((role, revision)) => (role.epoch + 1, *revision),
        None => (1, 0),
    };
    let member = |controller: usize| Member {
        controller: controller as u8,
        incarnation: members[controller].0,
    };
    let role = LogRole {
        epoch,
        log,
        active: Some(members[active].0),
        since: epoch,
        origin: origin.0,
        in_sync: vec![member(0), member(1)],
        solo: None,
    };
    change(client, datanode, revision, role).await
}

/// Puts a record in the place of the one of this revision. Whoever may do that has a log: an operator's word that it shall
/// start with an empty one is obeyed by that, or void.
async fn change(
    client: &StoreClient,
    datanode: DatanodeId,
    revision: u64,
    role: LogRole,
) -> Result<Option<LogRole>, StoreError> {
    let key = datanode_key(u64::from(datanode.0));
    let transaction = Transaction::new()
        .require(&*key, revision)
        .put(&*key, encode(&role))
        .delete(start_empty_key(datanode));
    match client.transact(transaction).await {
        Ok(Outcome::Committed(_)) => Ok(Some(role)),
        Ok(Outcome::Conflict) => Ok(None),
        // Nobody else writes exactly this record: incarnations are used once.
        Err(StoreError::Unknown) => match client.get_record::<LogRole>(&key).await? {
            Some((now, _)) if now == role => Ok(Some(role)),
            _ => Ok(None),
        },
        Err(error) => Err(error),
    }
}
