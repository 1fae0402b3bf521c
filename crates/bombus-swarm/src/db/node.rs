//! Databases with a mesh of their own: for programs that want to share databases, and nothing else of a node.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bombus_core::identity::{NodeId, NodeKey};
use bombus_net::membership::{Generation, MembershipHandle, MembershipState, Privacy, SwarmId, SwarmKey};
use bombus_net::{ListenOn, NetConfig, NetError, NetHandle, NetIdentity, NetService, net};
use orbitdb::manifest::DatabaseType;
use orbitdb::{Database, OpenOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::records::replace;
use super::{DbConfig, DbError, DbHandle, DbService, db};

/// How long a node waits for its listening addresses at the start.
const LISTEN_LIMIT: Duration = Duration::from_secs(10);
/// How long the databases, and then the mesh, may take to end.
const STOP_LIMIT: Duration = Duration::from_secs(15);

/// Why a node could not be started, or did not run to its end.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The databases cannot be used.
    #[error(transparent)]
    Db(#[from] DbError),
    /// The mesh cannot run.
    #[error(transparent)]
    Net(#[from] NetError),
    /// The node's key cannot be read or made.
    #[error("{} cannot be used: {error}", .path.display())]
    Key {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// An address cannot be listened on.
    #[error("{0:?} is no address to listen on: one looks like /ip4/0.0.0.0/tcp/0 or /ip6/::/tcp/7891")]
    Listen(String),
    /// It does not listen in time.
    #[error("nothing is listened on within {LISTEN_LIMIT:?}")]
    NotListening,
    /// A part of it failed.
    #[error("the node failed: {0}")]
    Failed(String),
}

/// Describes a [`Node`].
#[derive(Debug, Clone)]
pub struct NodeBuilder {
    directory: PathBuf,
    listen: Vec<String>,
    bootstrap: Vec<String>,
    swarm_key: Option<SwarmKey>,
    mdns: bool,
    config: DbConfig,
}

impl Default for NodeBuilder {
    fn default() -> Self {
        Self {
            directory: PathBuf::from("./orbitdb"),
            listen: vec!["/ip4/0.0.0.0/tcp/0".to_owned()],
            bootstrap: Vec::new(),
            swarm_key: None,
            mdns: false,
            config: DbConfig::default(),
        }
    }
}

impl NodeBuilder {
    /// Keeps everything in a directory. Default `./orbitdb`.
    #[must_use]
    pub fn directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.directory = directory.into();
        self
    }

    /// Listens on these multiaddrs, of TCP. Default `/ip4/0.0.0.0/tcp/0`; port 0 takes a free one. With none it only dials.
    #[must_use]
    pub fn listen<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.listen = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Connects to the peers at these multiaddrs, and again whenever there is no connection.
    #[must_use]
    pub fn bootstrap<A: Into<String>>(mut self, addresses: impl IntoIterator<Item = A>) -> Self {
        self.bootstrap = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Lets in only who has this key. Without one, everybody who reaches the port can take part.
    #[must_use]
    pub fn swarm_key(mut self, key: SwarmKey) -> Self {
        self.swarm_key = Some(key);
        self
    }

    /// Looks for peers on the local network by multicast DNS. Default: no.
    #[must_use]
    pub fn mdns(mut self, mdns: bool) -> Self {
        self.mdns = mdns;
        self
    }

    /// Sets limits.
    #[must_use]
    pub fn config(mut self, config: DbConfig) -> Self {
        self.config = config;
        self
    }

    /// Starts the node; what was open in the directory before is open again when this returns.
    ///
    /// # Errors
    ///
    /// [`NodeError`] when an address, the directory or the key in it cannot be used.
    pub async fn start(self) -> Result<Node, NodeError> {
        let listen = self.listen.iter().map(|text| read_address(text)).collect::<Result<Vec<_>, _>>()?;
        let does_listen = !listen.is_empty();
        let key = read_key(&self.directory)?;
        let config = NetConfig { listen, seeds: self.bootstrap, mdns: self.mdns, ..NetConfig::default() };
        let state = MembershipState {
            swarm_id: SwarmId::open(),
            privacy: self.swarm_key.map_or(Privacy::Open, Privacy::Closed),
            generation: Generation(0),
            removed: Arc::new(BTreeSet::new()),
        };
        let (membership, following) = watch::channel(state);
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let identity = NetIdentity { key, name: "orbitdb".to_owned(), version };
        let (net, net_service) = net(config, identity, MembershipHandle::following(following));
        let (db, db_service) = db(self.config, net.clone(), &self.directory)?;
        let node = Node::run(net, net_service, db, db_service, membership);
        if does_listen && let Err(error) = node.listening().await {
            // Why the mesh ended says more than that it did not listen.
            return Err(node.stop().await.err().unwrap_or(error));
        }
        node.db.ready().await?;
        Ok(node)
    }
}

/// A node that shares databases; it stops when it is dropped, and in order by [`Node::stop`].
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use bombus_swarm::db::Node;
///
/// let node = Node::builder().directory("./tasks").bootstrap(["/ip4/192.0.2.7/tcp/7891"]).start().await?;
/// let tasks = node.open_documents("tasks", "_id").await?;
/// println!("{} of {}", node.address(&tasks), node.peer_id());
/// node.stop().await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Node {
    net: NetHandle,
    db: DbHandle,
    /// Stops the databases, and the mesh after them.
    stop: CancellationToken,
    running: Option<JoinHandle<Result<(), NodeError>>>,
    /// Nobody changes it, and the mesh follows it as long as it is there.
    _membership: watch::Sender<MembershipState>,
}

impl Node {
    /// Begins to describe a node.
    #[must_use]
    pub fn builder() -> NodeBuilder {
        NodeBuilder::default()
    }

    fn run(
        net: NetHandle,
        net_service: NetService,
        db: DbHandle,
        db_service: DbService,
        membership: watch::Sender<MembershipState>,
    ) -> Self {
        let stop = CancellationToken::new();
        // What fails ends the node: whoever uses it hears so of every call, and why from `stop`.
        let running = tokio::spawn(run_parts(net_service, db_service, stop.clone()));
        Self { net, db, stop, running: Some(running), _membership: membership }
    }

    async fn listening(&self) -> Result<(), NodeError> {
        let mut addresses = self.net.listen_addrs();
        let listening = addresses.wait_for(|addresses| !addresses.is_empty());
        let waited = timeout(LISTEN_LIMIT, self.stop.run_until_cancelled(listening)).await;
        match waited {
            Ok(Some(Ok(_))) => Ok(()),
            _ => Err(NodeError::NotListening),
        }
    }

    /// Returns this node's id, the libp2p peer id of its key.
    #[must_use]
    pub fn peer_id(&self) -> &NodeId {
        self.net.node_id()
    }

    /// Returns the multiaddrs that others reach this node at, with its id at their end.
    #[must_use]
    pub fn listen_addresses(&self) -> Vec<String> {
        self.net.listen_addrs().borrow().clone()
    }

    /// Opens documents whose keys stand in the field `index_by`, by a name, under which they are created if they are not there, or by an
    /// address. Only this node may write to those that it creates so; [`Node::open`] takes other options.
    ///
    /// # Errors
    ///
    /// [`DbError`] when they cannot be opened, or no peer tells what the address stands for.
    pub async fn open_documents(&self, name_or_address: &str, index_by: &str) -> Result<Database, DbError> {
        self.open(name_or_address, OpenOptions::of(DatabaseType::Documents).index_by(index_by)).await
    }

    /// Opens events, as [`Node::open_documents`] does documents.
    ///
    /// # Errors
    ///
    /// As [`Node::open_documents`].
    pub async fn open_events(&self, name_or_address: &str) -> Result<Database, DbError> {
        self.open(name_or_address, OpenOptions::of(DatabaseType::Events)).await
    }

    /// Opens values under keys, as [`Node::open_documents`] does documents.
    ///
    /// # Errors
    ///
    /// As [`Node::open_documents`].
    pub async fn open_key_value(&self, name_or_address: &str) -> Result<Database, DbError> {
        self.open(name_or_address, OpenOptions::of(DatabaseType::KeyValue)).await
    }

    /// Opens a database by its name or address with options; by a name that is not there it is created.
    ///
    /// # Errors
    ///
    /// As [`Node::open_documents`].
    pub async fn open(&self, name_or_address: &str, options: OpenOptions) -> Result<Database, DbError> {
        match self.db.open_with(name_or_address, options.clone()).await {
            Err(DbError::NotFound(_)) => self.db.create(name_or_address, options).await,
            opened => opened,
        }
    }

    /// Returns the address of a database, by which other peers open it.
    #[must_use]
    pub fn address(&self, database: &Database) -> String {
        database.address().to_string()
    }

    /// Returns the databases, for everything else that can be done with them.
    #[must_use]
    pub fn databases(&self) -> &DbHandle {
        &self.db
    }

    /// Returns the mesh.
    #[must_use]
    pub fn net(&self) -> &NetHandle {
        &self.net
    }

    /// Closes all databases, with everything in them safe, and then the connections. It takes half a minute at most.
    ///
    /// # Errors
    ///
    /// [`NodeError`] when a part of the node had failed before.
    pub async fn stop(mut self) -> Result<(), NodeError> {
        self.stop.cancel();
        match self.running.take() {
            Some(running) => running.await.unwrap_or_else(|error| Err(NodeError::Failed(error.to_string()))),
            None => Ok(()),
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Runs both parts until `stop` or until one ends; the databases end first.
async fn run_parts(net: NetService, db: DbService, stop: CancellationToken) -> Result<(), NodeError> {
    let (stop_net, ended) = (CancellationToken::new(), stop.clone().drop_guard());
    let mut net = tokio::spawn(net.run(stop_net.clone()));
    let mut db = tokio::spawn(db.run(stop.clone()));
    let failed = tokio::select! {
        biased;
        () = stop.cancelled() => None,
        ended = &mut net => Some(match ended {
            Ok(Ok(())) => NodeError::Failed("the mesh ended by itself".to_owned()),
            Ok(Err(error)) => error.into(),
            Err(error) => NodeError::Failed(error.to_string()),
        }),
        ended = &mut db => Some(NodeError::Failed(match ended {
            Ok(()) => "the databases ended by themselves".to_owned(),
            Err(error) => error.to_string(),
        })),
    };
    drop(ended);
    let mut late = None;
    if !db.is_finished() && timeout(STOP_LIMIT, &mut db).await.is_err() {
        db.abort();
        late = Some("the databases took too long to close");
    }
    stop_net.cancel();
    if !net.is_finished() && timeout(STOP_LIMIT, &mut net).await.is_err() {
        net.abort();
        late = late.or(Some("the mesh took too long to end"));
    }
    match (failed, late) {
        (Some(error), _) => Err(error),
        (None, Some(late)) => Err(NodeError::Failed(late.to_owned())),
        (None, None) => Ok(()),
    }
}

/// Reads `/ip4/0.0.0.0/tcp/0` and the like.
fn read_address(text: &str) -> Result<ListenOn, NodeError> {
    let parts: Vec<&str> = text.split('/').collect();
    let read = match parts.as_slice() {
        ["", kind @ ("ip4" | "ip6"), ip, "tcp", port] => {
            let ip: Option<IpAddr> = ip.parse().ok().filter(|ip: &IpAddr| ip.is_ipv4() == (*kind == "ip4"));
            ip.zip(port.parse().ok()).map(|(ip, port)| ListenOn::fixed(ip, port))
        }
        _ => None,
    };
    read.ok_or_else(|| NodeError::Listen(text.to_owned()))
}

/// Reads the node's key, and makes one where there is none.
fn read_key(directory: &Path) -> Result<NodeKey, NodeError> {
    let path = directory.join("node.key");
    let read = || -> io::Result<NodeKey> {
        let mut secret = [0; 32];
        match fs::read(&path) {
            Ok(bytes) => {
                let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "it has 32 bytes");
                secret = bytes.try_into().map_err(wrong)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                fs::create_dir_all(directory)?;
                getrandom::fill(&mut secret).map_err(io::Error::other)?;
                replace(&path, &secret)?;
            }
            Err(error) => return Err(error),
        }
        Ok(NodeKey::from_secret(&secret))
    };
    read().map_err(|error| NodeError::Key { path: path.clone(), error })
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn addresses_to_listen_on_are_read() {
        let read = |text| read_address(text).ok().map(|on| (on.ip.to_string(), on.port));
        assert_eq!(read("/ip4/127.0.0.1/tcp/0"), Some(("127.0.0.1".to_owned(), 0)));
        assert_eq!(read("/ip6/::/tcp/7891"), Some(("::".to_owned(), 7_891)));
        for text in ["", "127.0.0.1:1", "/ip4/::/tcp/1", "/ip4/127.0.0.1/udp/1", "/ip4/127.0.0.1/tcp/70000"] {
            assert!(read_address(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_node_keeps_its_key() {
        let directory = TempDir::new().unwrap();
        let first = read_key(directory.path()).unwrap().node_id();
        assert_eq!(read_key(directory.path()).unwrap().node_id(), first);
        fs::write(directory.path().join("node.key"), "short").unwrap();
        assert!(matches!(read_key(directory.path()), Err(NodeError::Key { .. })));
    }
}
