//! Real etcd servers, each with a loopback address and a folder of its own.

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long servers may take until they answer.
const READY: Duration = Duration::from_secs(60);

/// A certificate authority, a server's certificate for all addresses, a client's.
pub struct Secrets {
    folder: TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Secrets {
    /// New ones.
    pub fn new() -> Secrets {
        let folder = tempfile::tempdir().unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.path().join("authority.pem"), issuer.pem()).unwrap();
        let secrets = Secrets { folder, issuer };
        secrets.sign("client", "client");
        secrets
    }

    fn sign(&self, name: &str, subject: &str) -> (PathBuf, PathBuf) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![subject.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let path = |ending| self.folder.path().join(format!("{name}.{ending}"));
        fs::write(path("pem"), certificate.pem()).unwrap();
        fs::write(path("key"), key.serialize_pem()).unwrap();
        (path("pem"), path("key"))
    }

    /// The authority's certificate.
    pub fn authority(&self) -> PathBuf {
        self.folder.path().join("authority.pem")
    }

    /// A client's certificate and key.
    pub fn client(&self) -> (PathBuf, PathBuf) {
        (self.folder.path().join("client.pem"), self.folder.path().join("client.key"))
    }
}

struct Member {
    address: String,
    folder: TempDir,
    tls: Option<(PathBuf, PathBuf, PathBuf)>,
    process: Option<Child>,
}

/// An etcd cluster.
pub struct Cluster {
    members: RefCell<Vec<Member>>,
    scheme: &'static str,
}

impl Cluster {
    /// Starts so many members; with secrets their clients need certificates.
    pub fn start(members: usize, secrets: Option<&Secrets>) -> Cluster {
        static NEXT: AtomicU8 = AtomicU8::new(1);
        let process = std::process::id();
        let members = (0..members).map(|_| {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            // No other process has these: the whole of 127/8 is this machine's.
            let address = format!("127.{}.{}.{number}", 64 | (process >> 8 & 63), process & 255);
            let tls = secrets.map(|secrets| {
                let (certificate, key) = secrets.sign(&format!("server-{number}"), &address);
                (certificate, key, secrets.authority())
            });
            Member { address, folder: tempfile::tempdir().unwrap(), tls, process: None }
        });
        let members = RefCell::new(members.collect());
        let scheme = if secrets.is_some() { "https" } else { "http" };
        let cluster = Cluster { members, scheme };
        cluster.start_all();
        cluster
    }

    /// Where clients reach the members.
    pub fn endpoints(&self) -> Vec<String> {
        let endpoint = |member: &Member| format!("{}://{}:2379", self.scheme, member.address);
        self.members.borrow().iter().map(endpoint).collect()
    }

    /// Starts all that do not run.
    pub fn start_all(&self) {
        let count = self.members.borrow().len();
        (0..count).for_each(|number| self.start_one(number));
    }

    /// Starts a member that does not run.
    pub fn start_one(&self, number: usize) {
        let peers: Vec<String> = self
            .members
            .borrow()
            .iter()
            .enumerate()
            .map(|(number, member)| format!("m{number}=http://{}:2380", member.address))
            .collect();
        let member = &mut self.members.borrow_mut()[number];
        if member.process.is_some() {
            return;
        }
        let client = format!("{}://{}:2379", self.scheme, member.address);
        let peer = format!("http://{}:2380", member.address);
        let log = fs::File::create(member.folder.path().join("log")).unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &format!("m{number}"), "--data-dir"])
            .arg(member.folder.path().join("data"))
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--initial-cluster", &peers.join(",")])
            .args(["--heartbeat-interval", "20", "--election-timeout", "200"])
            // Debian refuses to run it elsewhere than on x86 without this.
            .env("ETCD_UNSUPPORTED_ARCH", std::env::consts::ARCH)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        if let Some((certificate, key, authority)) = &member.tls {
            command.arg("--cert-file").arg(certificate).arg("--key-file").arg(key);
            command.arg("--trusted-ca-file").arg(authority).arg("--client-cert-auth");
        }
        let process = command.spawn();
        member.process = Some(process.expect("etcd starts; install it (Debian: etcd-server)"));
    }

    /// SIGKILL to one member.
    pub fn kill(&self, number: usize) {
        if let Some(mut process) = self.members.borrow_mut()[number].process.take() {
            process.kill().unwrap();
            process.wait().unwrap();
        }
    }

    /// SIGKILL to all.
    pub fn kill_all(&self) {
        let count = self.members.borrow().len();
        (0..count).for_each(|number| self.kill(number));
    }

    /// A user for everything below a prefix, and nobody else but root.
    pub fn enable_authentication(&self, name: &str, password: &str, prefix: &str) {
        let folder = self.secrets();
        self.until_healthy();
        for line in [
            &["user", "add", "root:root"][..],
            &["user", "grant-role", "root", "root"],
            &["role", "add", "cleave"],
            &["role", "grant-permission", "cleave", "readwrite", prefix, "--prefix=true"],
            &["user", "add", &format!("{name}:{password}")],
            &["user", "grant-role", name, "cleave"],
            &["auth", "enable"],
        ] {
            assert!(self.control(&folder, line), "etcdctl {line:?} failed");
        }
    }

    /// Waits until the first member answers.
    pub fn until_healthy(&self) {
        let folder = self.secrets();
        let until = Instant::now() + READY;
        while !self.control(&folder, &["endpoint", "health"]) {
            assert!(Instant::now() < until, "etcd does not come up");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What a set-up leaves that was cut short in the middle.
    pub fn make_root(&self) {
        for line in [&["user", "add", "root:root"][..], &["role", "add", "cleave"]] {
            assert!(self.control(&self.secrets(), line), "etcdctl {line:?} failed");
        }
    }

    fn secrets(&self) -> PathBuf {
        self.members.borrow()[0].tls.as_ref().unwrap().2.parent().unwrap().to_owned()
    }

    fn control(&self, folder: &Path, line: &[&str]) -> bool {
        let mut command = Command::new("etcdctl");
        command.env("ETCDCTL_API", "3").arg("--endpoints").arg(&self.endpoints()[0]);
        command.arg("--cacert").arg(folder.join("authority.pem"));
        command.arg("--cert").arg(folder.join("client.pem"));
        command.arg("--key").arg(folder.join("client.key")).args(line);
        let output = command.output().expect("etcdctl starts (Debian: etcd-client)");
        output.status.success()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.kill_all();
    }
}
