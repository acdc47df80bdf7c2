//! The schema and its page say the same.

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;

/// Every structure once.
fn examples() -> (ClusterStatus, ClusterStatistics) {
    let status = ClusterStatus {
        schema: SCHEMA,
        cluster: "0".repeat(32),
        ready: true,
        encrypted: false,
        supervisor: ProcessStatus::default(),
        store: StoreStatus { process: Some(ProcessStatus::default()), ..StoreStatus::default() },
        hosts: vec![HostStatus {
            logs: vec![HostLogStatus::default()],
            vdisks: vec![VdiskStatus::default()],
            cpu: HostCpuStatus { cores: vec![CoreStatus::default()], ..HostCpuStatus::default() },
            flash: HostFlashStatus {
                devices: vec![FlashStatus::default()],
                events: vec![FlashEventStatus::default()],
                ..HostFlashStatus::default()
            },
            ..HostStatus::default()
        }],
        controllers: vec![ControllerStatus {
            stripes: Some(StripeStatus::default()),
            drives: vec![DriveStatus::default()],
            ..ControllerStatus::default()
        }],
        warnings: vec!["a line".to_owned()],
    };
    let statistics = ClusterStatistics {
        schema: SCHEMA,
        cluster: "0".repeat(32),
        hosts: vec![HostStatistics {
            vdisks: vec![VdiskStatistics::default()],
            ..HostStatistics::default()
        }],
        controllers: vec![ControllerStatistics {
            drives: vec![DriveStatistics::default()],
            ..ControllerStatistics::default()
        }],
    };
    (status, statistics)
}

fn fields(value: &Value, names: &mut BTreeSet<String>) {
    match value {
        Value::Object(object) => {
            for (name, value) in object {
                names.insert(name.clone());
                fields(value, names);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| fields(value, names)),
        _ => {}
    }
}

#[test]
fn every_field_and_state_is_on_the_page() {
    let page = include_str!("../../../../docs/STATUS.md");
    let (status, statistics) = examples();
    let mut names = BTreeSet::new();
    fields(&serde_json::to_value(&status).unwrap(), &mut names);
    fields(&serde_json::to_value(&statistics).unwrap(), &mut names);
    assert!(names.len() > 80, "{}", names.len());
    for name in &names {
        assert!(page.contains(&format!("`{name}`")), "docs/STATUS.md does not speak of {name}");
    }
    for state in [
        "down",
        "starting",
        "running",
        "stopping",
        "waiting",
        "recovering",
        "serving",
        "failed",
        "none",
        "active",
        "standby",
        "joining",
        "online",
        "adding",
        "in_use",
        "retired",
        "lost",
    ] {
        assert!(page.contains(&format!("`{state}`")), "docs/STATUS.md does not speak of {state}");
    }
}

#[test]
fn what_is_written_is_read_and_new_fields_are_ignored() {
    let (status, statistics) = examples();
    let mut json = serde_json::to_value(&status).unwrap();
    json["hosts"][0]["vdisks"][0]["from_the_future"] = Value::from(1);
    assert_eq!(serde_json::from_value::<ClusterStatus>(json).unwrap(), status);
    let json = serde_json::to_string(&statistics).unwrap();
    assert_eq!(serde_json::from_str::<ClusterStatistics>(&json).unwrap(), statistics);
}

#[test]
fn the_pool_is_what_the_active_controller_has() {
    let (mut status, mut statistics) = examples();
    assert_eq!(PoolStatus::of(&status, &statistics), PoolStatus::default());
    let drive = |state, used| DriveStatus {
        state,
        space: Fill { used, capacity: 100 },
        ..DriveStatus::default()
    };
    status.hosts[0].shortage = Some("no slots are free".to_owned());
    status.controllers[0].role = Role::Active;
    status.controllers[0].process.name = "a".to_owned();
    status.controllers[0].drives = vec![
        drive(DriveState::Online, 7),
        drive(DriveState::Lost, 50),
        drive(DriveState::Online, 5),
    ];
    statistics.controllers[0].name = "a".to_owned();
    statistics.controllers[0].stripes_freed = 9;
    status.controllers[0].stripes = Some(StripeStatus { reserved: 4, ..StripeStatus::default() });
    statistics.hosts[0].destage.stripes_dead = 3;
    let pool = PoolStatus::of(&status, &statistics);
    assert_eq!(pool.space, Fill { used: 12, capacity: 200 });
    assert_eq!((pool.stripes_freed, pool.drives.len()), (9, 3));
    assert_eq!((pool.reserved, pool.stripes_dead), (4, 3));
    assert_eq!(pool.shortage.as_deref(), Some("no slots are free"));
    let page = include_str!("../../../../docs/STATUS.md");
    let mut names = BTreeSet::new();
    fields(&serde_json::to_value(&pool).unwrap(), &mut names);
    for name in &names {
        assert!(page.contains(&format!("`{name}`")), "docs/STATUS.md does not speak of {name}");
    }
}

#[test]
fn the_ratio_is_in_by_out() {
    assert_eq!(CodecStatistics::default().with_ratio().compression_ratio, 1.0);
    let codec = CodecStatistics { bytes_in: 300, bytes_out: 200, ..CodecStatistics::default() };
    assert_eq!(codec.with_ratio().compression_ratio, 1.5);
}
