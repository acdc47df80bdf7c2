//! The suite of every store over real etcd servers; TLS, authentication, a member that is lost.
//!
//! Needs the program `etcd` (Debian: etcd-server), each test starts servers of its own on loopback addresses of its own.

mod server;

use cleave_coordinator::conformance::world::{Backend, Bell, World, real_now};
use cleave_coordinator::{Outcome, Store, StoreError, Transaction};
use cleave_coordinator_etcd::{EtcdConfig, EtcdStore, set_up};
use cleave_runtime::time::Moment;
use server::{Cluster, Secrets};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

/// A cluster, and how its clients are let in.
struct Etcd {
    cluster: Cluster,
    config: EtcdConfig,
    bell: Arc<Bell>,
}

impl Etcd {
    fn new(members: usize) -> Rc<Etcd> {
        Etcd::with(Cluster::start(members, None), |_| {})
    }

    fn with(cluster: Cluster, change: impl FnOnce(&mut EtcdConfig)) -> Rc<Etcd> {
        let mut config = EtcdConfig {
            endpoints: cluster.endpoints(),
            prefix: "/cleave/test/".to_owned(),
            ..EtcdConfig::default()
        };
        change(&mut config);
        Rc::new(Etcd { cluster, config, bell: Arc::default() })
    }
}

impl Backend for Etcd {
    fn store(&self) -> Rc<dyn Store> {
        let bell: Arc<Bell> = Arc::clone(&self.bell);
        Rc::new(EtcdStore::new(&self.config, bell).unwrap())
    }
    fn stop(&self) {
        self.cluster.kill_all();
    }
    fn start(&self) {
        self.cluster.start_all();
    }
    fn wait(&self) {
        self.bell.wait();
    }
    fn now(&self) -> Moment {
        real_now()
    }
}

mod one_member {
    cleave_coordinator::store_conformance!(super::Etcd::new(1));
}

fn put(key: &str, value: &str) -> Transaction {
    Transaction::new().put(key, value.as_bytes().to_vec())
}

/// Two of three are enough, whichever is lost; with one nothing is answered until another is back.
#[test]
fn a_lost_member_is_survived() {
    let etcd = Etcd::new(3);
    let backend: Rc<dyn Backend> = Rc::clone(&etcd) as Rc<dyn Backend>;
    let world = World::new(backend);
    let client = world.client();
    let store = Rc::clone(&etcd);
    world.run(async move {
        let mut revision = 0;
        for lost in 0..3 {
            store.cluster.kill(lost);
            // Unknown is an honest answer while a connection breaks; the condition settles it.
            loop {
                match client.transact(put("a", "1").require("a", revision)).await {
                    Ok(Outcome::Committed(at)) => break revision = at,
                    Ok(Outcome::Conflict) => {
                        break revision = client.get("a").await.unwrap().unwrap().revision;
                    }
                    Err(error) => assert_eq!(error, StoreError::Unknown),
                }
            }
            store.cluster.start_one(lost);
        }
        assert!(revision >= 3);
    });
}

/// A fresh etcd is set up once; a set-up that was cut short goes on; nobody else gets in; a restart of the server, which
/// forgets who had proved himself, is survived.
#[test]
fn a_fresh_server_is_set_up_and_survives_a_restart() {
    let secrets = Secrets::new();
    let cluster = Cluster::start(1, Some(&secrets));
    let etcd = Etcd::with(cluster, |config| {
        config.authority = Some(secrets.authority());
        config.identity = Some(secrets.client());
        config.user = Some(("cleave".to_owned(), "secret".to_owned()));
    });
    let patience = Duration::from_secs(60);
    etcd.cluster.until_healthy();
    etcd.cluster.make_root();
    set_up(&etcd.config, "root", patience).unwrap();
    set_up(&etcd.config, "root", patience).unwrap();
    let backend: Rc<dyn Backend> = Rc::clone(&etcd) as Rc<dyn Backend>;
    let world = World::new(backend);
    let client = world.client();
    let server = Rc::clone(&etcd);
    world.run(async move {
        assert_eq!(client.transact(put("a", "1").require("a", 0)).await, Ok(Outcome::Committed(1)));
        server.stop();
        server.start();
        assert_eq!(client.get("a").await.unwrap().unwrap().value, b"1");
        let lease = client.grant(Duration::from_secs(600)).await.unwrap();
        let leased = Transaction::new().put_leased("b", vec![1], lease.id);
        assert!(client.transact(leased).await.is_ok());
        assert_eq!(client.renew(lease.id).await, Ok(true));
        assert_eq!(client.revoke(lease.id).await, Ok(()));
        assert_eq!(client.get("b").await, Ok(None));
    });
    let mut stranger = etcd.config.clone();
    stranger.user = None;
    let store = EtcdStore::new(&stranger, Arc::clone(&etcd.bell) as Arc<_>).unwrap();
    let mut events = Vec::new();
    let began = std::time::Instant::now();
    while began.elapsed() < Duration::from_secs(2) {
        store.poll(&mut events);
    }
    assert_eq!(events, [], "a stranger was let in");
    let mut wrong = etcd.config.clone();
    wrong.user = Some(("cleave".to_owned(), "guess".to_owned()));
    assert!(set_up(&wrong, "root", Duration::from_secs(1)).is_err());
}

/// Nobody without the authority's certificate and a password gets in; with both everything works.
#[test]
fn tls_and_authentication_are_used() {
    let secrets = Secrets::new();
    let cluster = Cluster::start(1, Some(&secrets));
    cluster.enable_authentication("cleave", "secret", "/cleave/test/");
    let etcd = Etcd::with(cluster, |config| {
        config.authority = Some(secrets.authority());
        config.identity = Some(secrets.client());
        config.user = Some(("cleave".to_owned(), "secret".to_owned()));
    });
    let backend: Rc<dyn Backend> = Rc::clone(&etcd) as Rc<dyn Backend>;
    let world = World::new(backend);
    let client = world.client();
    world.run(async move {
        let watch = client.watch("", 1);
        assert!(client.transact(put("a", "1").require("a", 0)).await.is_ok());
        assert!(matches!(watch.next().await, cleave_coordinator::WatchEvent::Changed(_)));
        assert_eq!(client.get("a").await.unwrap().unwrap().value, b"1");
    });
    // Another prefix is another cluster's: the role does not reach it.
    let mut foreign = etcd.config.clone();
    foreign.prefix = "/cleave/other/".to_owned();
    let mut wrong = etcd.config.clone();
    wrong.user = Some(("cleave".to_owned(), "guess".to_owned()));
    let mut strange = etcd.config.clone();
    let strangers = Secrets::new();
    strange.authority = Some(strangers.authority());
    for config in [foreign, wrong, strange] {
        let store = EtcdStore::new(&config, Arc::clone(&etcd.bell) as Arc<_>).unwrap();
        let mut events = Vec::new();
        let began = std::time::Instant::now();
        while began.elapsed() < std::time::Duration::from_secs(2) {
            store.poll(&mut events);
        }
        assert_eq!(events, [], "{config:?} was let in");
    }
}
