//! Settings of the links, and what follows from them for TLS and QUIC.
//!
//! TLS 1.3 with certificates on both sides, no session tickets and no early data: every connection
//! proves both names. The class of a connection is its application protocol (ALPN), so a peer that
//! speaks something else is refused in the handshake.

use crate::error::{Error, Result};
use crate::identity::Identity;
use cleave_runtime::links::{Class, LANES, MESSAGE_LENGTH_MAX};
use quinn_proto::congestion::CubicConfig;
use quinn_proto::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use quinn_proto::{
    ClientConfig, EndpointConfig, IdleTimeout, RandomConnectionIdGenerator, ServerConfig,
    TransportConfig, VarInt,
};
use rustls::RootCertStore;
use rustls::client::Resumption;
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use std::fmt::Display;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// The classes with their protocol names, in the order in which they may send.
pub(super) const PROTOCOLS: [(Class, &[u8]); 3] = [
    (Class::Log, b"cleave-log/1"),
    (Class::Read, b"cleave-read/1"),
    (Class::Bulk, b"cleave-bulk/1"),
];

/// Settings of a core's links.
#[derive(Clone, Debug)]
pub struct QuicConfig {
    /// Where to listen, and from where to connect; port 0 lets the system choose.
    pub listen: SocketAddr,
    /// Who this engine is.
    pub identity: Identity,
    /// UDP payload of a packet, in bytes, which every path must carry: 1200 to 65000.
    pub mtu: u16,
    /// A connection from which nothing comes for this long is closed. A peer that is stopped for
    /// less stays connected.
    pub idle_timeout: Duration,
    /// A quiet connection says so this often; well below the idle timeout.
    pub keep_alive: Duration,
    /// Bytes that a peer may send ahead on a lane, and twice that on a connection.
    pub lane_window: u32,
    /// Bytes that a connection sends ahead of the peer's acknowledgement.
    pub send_window: u32,
    /// Size of the socket's buffers; the system's limits permitting.
    pub socket_buffer: usize,
    /// Connections beyond this number are refused.
    pub connections_max: usize,
}

impl QuicConfig {
    /// Settings for a data centre's network, or for one machine.
    pub fn new(listen: SocketAddr, identity: Identity) -> QuicConfig {
        QuicConfig {
            listen,
            identity,
            mtu: 1452,
            idle_timeout: Duration::from_secs(3),
            keep_alive: Duration::from_secs(1),
            lane_window: 16 << 20,
            send_window: 16 << 20,
            socket_buffer: 8 << 20,
            connections_max: 4096,
        }
    }

    fn check(&self) -> Result<()> {
        let bad = |name, reason: &str| Err(Error::Setting { name, reason: reason.to_owned() });
        if !(1200..=65_000).contains(&self.mtu) {
            return bad("mtu", "is not within 1200 to 65000");
        }
        if self.keep_alive.is_zero() || self.keep_alive * 2 > self.idle_timeout {
            return bad("keep_alive", "must be above zero and at most half of idle_timeout");
        }
        if (self.lane_window as usize) < MESSAGE_LENGTH_MAX || self.lane_window > 1 << 30 {
            return bad("lane_window", "must hold a whole message, and be at most 1 GiB");
        }
        if self.send_window < u32::from(self.mtu) {
            return bad("send_window", "must hold a packet");
        }
        Ok(())
    }
}

/// What the settings come to.
pub(super) struct Prepared {
    pub(super) endpoint: Arc<EndpointConfig>,
    pub(super) server: Arc<ServerConfig>,
    /// In the order of [`PROTOCOLS`].
    pub(super) clients: [ClientConfig; 3],
}

pub(super) fn prepare(config: &QuicConfig) -> Result<Prepared> {
    config.check()?;
    let transport = Arc::new(transport(config)?);
    let identity = &config.identity;
    let mut provider = rustls::crypto::ring::default_provider();
    provider
        .cipher_suites
        .retain(|suite| suite.suite() == rustls::CipherSuite::TLS13_AES_128_GCM_SHA256);
    let provider = Arc::new(provider);
    let mut roots = RootCertStore::empty();
    roots.add(identity.authority()?).map_err(unusable)?;
    let roots = Arc::new(roots);

    let tls = server_tls(identity, &provider, &roots)?;
    let crypto = QuicServerConfig::try_from(tls).map_err(unusable)?;
    let mut server = ServerConfig::with_crypto(Arc::new(crypto));
    server.transport_config(Arc::clone(&transport)).migration(false);

    let client = |protocol: &[u8]| -> Result<ClientConfig> {
        let tls = client_tls(identity, &provider, &roots, protocol)?;
        let crypto = QuicClientConfig::try_from(tls).map_err(unusable)?;
        let mut client = ClientConfig::new(Arc::new(crypto));
        client.transport_config(Arc::clone(&transport));
        Ok(client)
    };
    let [(_, first), (_, second), (_, third)] = PROTOCOLS;
    Ok(Prepared {
        endpoint: Arc::new(endpoint(config)?),
        server: Arc::new(server),
        clients: [client(first)?, client(second)?, client(third)?],
    })
}

fn server_tls(
    identity: &Identity,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
) -> Result<rustls::ServerConfig> {
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(roots), Arc::clone(provider))
            .build()
            .map_err(unusable)?;
    let mut tls = rustls::ServerConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain()?, identity.key()?)
        .map_err(unusable)?;
    tls.alpn_protocols = PROTOCOLS.iter().map(|(_, protocol)| protocol.to_vec()).collect();
    tls.send_tls13_tickets = 0;
    Ok(tls)
}

fn client_tls(
    identity: &Identity,
    provider: &Arc<CryptoProvider>,
    roots: &Arc<RootCertStore>,
    protocol: &[u8],
) -> Result<rustls::ClientConfig> {
    let mut tls = rustls::ClientConfig::builder_with_provider(Arc::clone(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(unusable)?
        .with_root_certificates(Arc::clone(roots))
        .with_client_auth_cert(identity.chain()?, identity.key()?)
        .map_err(unusable)?;
    tls.alpn_protocols = vec![protocol.to_vec()];
    tls.resumption = Resumption::disabled();
    Ok(tls)
}

fn transport(config: &QuicConfig) -> Result<TransportConfig> {
    let idle = IdleTimeout::try_from(config.idle_timeout)
        .map_err(|_| Error::Setting { name: "idle_timeout", reason: "is too long".to_owned() })?;
    let mut congestion = CubicConfig::default();
    // A data centre's path carries this at once; the default would take several round trips for
    // the first shard.
    congestion.initial_window(256 << 10);
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(idle))
        .keep_alive_interval(Some(config.keep_alive))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(u32::from(LANES)))
        .stream_receive_window(VarInt::from_u32(config.lane_window))
        .receive_window(VarInt::from_u32(config.lane_window.saturating_mul(2)))
        .send_window(u64::from(config.send_window))
        .datagram_receive_buffer_size(None)
        .initial_rtt(Duration::from_millis(20))
        .initial_mtu(config.mtu)
        .min_mtu(config.mtu)
        .mtu_discovery_config(None)
        .congestion_controller_factory(Arc::new(congestion));
    Ok(transport)
}

fn endpoint(config: &QuicConfig) -> Result<EndpointConfig> {
    // Derived from the engine's key, so that after a restart at the same address it can tell its
    // old peers at once that their connections are gone.
    let key = config.identity.key()?;
    let secret = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, key.secret_der());
    let reset = ring::hmac::sign(&secret, b"cleave stateless reset");
    let reset = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, reset.as_ref());
    let mut endpoint = EndpointConfig::new(Arc::new(reset));
    endpoint
        .cid_generator(|| Box::new(RandomConnectionIdGenerator::default()))
        .max_udp_payload_size(config.mtu.max(1472))
        .map_err(|error| Error::Setting { name: "mtu", reason: error.to_string() })?;
    Ok(endpoint)
}

fn unusable(error: impl Display) -> Error {
    Error::Identity(error.to_string())
}
