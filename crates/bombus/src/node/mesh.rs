//! The node's part of the swarm: the mesh, the membership, the swarm's own service, the replicated databases with the durable tasks in them,
//! the exchange of models and answers for others, started in this order and stopped in reverse.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Error, Result};
use bombus_core::identity::NodeKey;
use bombus_http::databases::Databases;
use bombus_http::files::Files;
use bombus_http::tasks::Tasks;
use bombus_http::{NodeSample, Sample, SampleKind, mesh};
use bombus_infer::Backends;
use bombus_infer::models::ModelStore;
use bombus_net::membership::{Membership, MembershipHandle, MembershipService, MembershipTiming};
use bombus_net::{ListenOn, NetConfig, NetHandle, NetIdentity, NetService};
use bombus_swarm::route::{RouteHandle, RouteService, RunConfig};
use bombus_swarm::weights::{ByShare, WeightsConfig, WeightsHandle, WeightsService};
use bombus_swarm::{OwnFacts, SwarmConfig, SwarmHandle, SwarmService};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use super::databases::{DatabasesService, SwarmDatabases, databases};
use super::facts::{FactsSource, slots};
use super::files::{SwarmFiles, files};
use super::supervised::{Essential, Supervised};
use super::tasks::{SwarmTasks, TasksParts, tasks};
use crate::config::{Config, P2pConfig, Settings};
use crate::data_dir::DataDir;

mod models;
mod report;
mod sharing;
mod surface;

use models::SwarmModels;
pub(crate) use report::missed_members;
use sharing::OwnersSwitch;
use surface::Surface;

/// Longest wait for the addresses that are listened on, before the node says where it is.
const LISTEN_LIMIT: Duration = Duration::from_secs(2);
/// Least time between two looks at the names of peers.
const NAMES_EVERY: Duration = Duration::from_secs(1);
/// How long each part may take to end: to say goodbye, to write down what is known, to close connections.
const STOP_LIMIT: Duration = Duration::from_secs(3);
/// How long the databases may take to write what is waiting, and to close.
const DATABASES_STOP_LIMIT: Duration = Duration::from_secs(12);

/// The parts, ready to be started.
pub(super) struct Mesh {
    net: NetHandle,
    membership: MembershipHandle,
    surface: Arc<Surface>,
    swarm: SwarmHandle,
    facts: FactsSource,
    listens_here: bool,
    route: RouteHandle,
    weights: WeightsHandle,
    switch: OwnersSwitch,
    /// None where the configuration says so.
    databases: Option<(SwarmDatabases, DatabasesService)>,
    /// None where the configuration says so.
    tasks: Option<SwarmTasks>,
    /// None where there are no tasks.
    files: Option<SwarmFiles>,
    services: (NetService, MembershipService, SwarmService, WeightsService, RouteService),
}

/// The running parts.
pub(super) struct RunningMesh {
    net: NetHandle,
    route: RouteHandle,
    weights: WeightsHandle,
    switch: OwnersSwitch,
    /// Whether an address of this machine itself will be listened on.
    listens_here: bool,
    telling: Supervised,
    naming: Supervised,
    net_task: Essential,
    membership_task: Essential,
    swarm_task: Essential,
    databases_task: Option<Essential>,
    tasks: Option<SwarmTasks>,
    weights_task: Essential,
    route_task: Essential,
}

impl Mesh {
    /// Reads whom the node belongs to, and makes the parts. Nothing runs yet.
    pub(super) fn open(
        settings: &Settings,
        data_dir: &DataDir,
        key: NodeKey,
        backends: &Backends,
        store: ModelStore,
        sample: watch::Receiver<NodeSample>,
    ) -> Result<Self> {
        let config = &settings.config;
        let version = env!("CARGO_PKG_VERSION").to_owned();
        let membership = match config.p2p.open {
            true => Membership::open_without_key(data_dir.root())?,
            false => Membership::open(data_dir.root())?,
        };
        let (membership, membership_service) = membership.serve(MembershipTiming::default())?;
        let seal_key = data_dir.seal_key(&key.node_id())?;
        let seal_claim = seal_key.public().claimed_by(&key);
        let identity = NetIdentity { key, name: config.name.clone(), version: version.clone() };
        let (net, net_service) =
            bombus_net::net(net_config(&config.p2p, settings.is_set("p2p.listen")), identity, membership.clone());
        let seal_claim = Some(seal_claim);
        let own = OwnFacts { name: config.name.clone(), version, seal_key: seal_claim, ..OwnFacts::default() };
        let (facts, told) = watch::channel(own);
        let (swarm, swarm_service) = bombus_swarm::swarm(SwarmConfig::default(), net.clone(), told);
        let (route, route_service) =
            bombus_swarm::route::route(run_config(config), net.clone(), swarm.clone(), backends.clone());
        let switch = OwnersSwitch::new(route.clone(), data_dir.pause(), facts.clone());
        let (weights, weights_service) = bombus_swarm::weights::weights(
            WeightsConfig::default(),
            net.clone(),
            swarm.clone(),
            store,
            backends.clone(),
            Arc::new(ByShare::new(route.clone(), swarm.clone())),
        );
        weights.feed(backends);
        let (tasks, files, tasks_service) = match config.db.enabled && config.tasks.enabled {
            true => {
                let (files, files_service) = files(config.default_model.to_string(), membership.clone());
                let (tasks, service) = tasks(TasksParts {
                    config: config.tasks.clone(),
                    net: net.clone(),
                    membership: membership.clone(),
                    swarm: swarm.clone(),
                    backends: backends.clone(),
                    route: route.clone(),
                    key: Arc::new(data_dir.node_key()?),
                    seal_key,
                    name: config.name.clone(),
                    files: files_service,
                });
                (Some(tasks), Some(files), Some(service))
            }
            false => (None, None, None),
        };
        let databases = config.db.enabled.then(|| {
            let (net, membership, swarm) = (net.clone(), membership.clone(), swarm.clone());
            databases(config.db.clone(), net, membership, swarm, data_dir.swarms(), tasks_service)
        });
        Ok(Self {
            surface: Arc::new(Surface::new(
                net.clone(),
                membership.clone(),
                swarm.clone(),
                config.p2p.external.clone(),
                switch.clone(),
                SwarmModels::new(weights.clone()),
            )),
            membership,
            facts: FactsSource {
                backends: backends.clone(),
                route: route.clone(),
                slots: slots(&config.backends),
                sample,
                facts,
            },
            route,
            weights,
            switch,
            listens_here: config
                .p2p
                .listen
                .iter()
                .any(|address| address.ip().is_unspecified() || address.ip().is_loopback()),
            databases,
            tasks,
            files,
            services: (net_service, membership_service, swarm_service, weights_service, route_service),
            net,
            swarm,
        })
    }

    /// Returns what the HTTP API needs of it.
    pub(super) fn surface(&self) -> Arc<dyn mesh::Mesh> {
        self.surface.clone()
    }

    /// Returns the replicated databases, where there are any.
    pub(super) fn databases(&self) -> Option<Arc<dyn Databases>> {
        self.databases.as_ref().map(|(databases, _)| Arc::new(databases.clone()) as Arc<dyn Databases>)
    }

    /// Returns the durable tasks, where there are any.
    pub(super) fn tasks(&self) -> Option<Arc<dyn Tasks>> {
        self.tasks.as_ref().map(|tasks| Arc::new(tasks.clone()) as Arc<dyn Tasks>)
    }

    /// Returns the files of requests and batches, where there are any.
    pub(super) fn files(&self) -> Option<Arc<dyn Files>> {
        self.files.as_ref().map(|files| Arc::new(files.clone()) as Arc<dyn Files>)
    }

    /// Returns what the mesh has to say to `/metrics`.
    pub(super) fn samples(&self) -> impl Fn() -> Vec<Sample> + Send + Sync + 'static {
        let swarm = self.swarm.clone();
        let databases = self.databases.as_ref().map(|(databases, _)| databases.samples());
        move || {
            let peers = swarm.peers();
            let count = |wanted: mesh::PeerState| {
                peers.iter().filter(|peer| surface::state_of(peer.state) == wanted).count() as f64
            };
            let states = [
                ("alive", mesh::PeerState::Alive),
                ("suspect", mesh::PeerState::Suspect),
                ("gone", mesh::PeerState::Gone),
            ];
            let sample = |(word, state): (&'static str, mesh::PeerState)| Sample {
                name: "peers",
                kind: SampleKind::Gauge,
                help: "Other nodes of the swarm, by how alive they are",
                labels: vec![("state", word.to_owned())],
                value: count(state),
            };
            let databases = databases.as_ref().map(|samples| samples()).unwrap_or_default();
            states.map(sample).into_iter().chain(databases).collect()
        }
    }

    /// Starts the parts. `api_port` is where this node's API is.
    pub(super) fn start(self, api_port: u16) -> RunningMesh {
        let (net_service, membership_service, swarm_service, weights_service, route_service) = self.services;
        let net = self.net.clone();
        let facts = self.facts.facts.clone();
        facts.send_modify(|facts| facts.api_port = api_port);
        RunningMesh {
            telling: Supervised::start("facts about this node", self.facts.keep()),
            naming: Supervised::start("names of peers", move || {
                remember_names(self.swarm.clone(), self.membership.clone())
            }),
            net_task: Essential::start("mesh", |stop| async move { Ok(net_service.run(stop).await?) }),
            membership_task: Essential::start("membership of the swarm", |stop| async move {
                Ok(membership_service.run(net, stop).await?)
            }),
            swarm_task: Essential::start("swarm", |stop| async move {
                swarm_service.run(stop).await;
                Ok(())
            }),
            tasks: self.tasks,
            databases_task: self.databases.map(|(_, service)| Essential::start("databases", |stop| service.run(stop))),
            weights_task: Essential::start("exchange of models", |stop| async move {
                weights_service.run(stop).await;
                Ok(())
            }),
            route_task: Essential::start("answers for other nodes", |stop| async move {
                route_service.run(stop).await;
                Ok(())
            }),
            net: self.net,
            route: self.route,
            weights: self.weights,
            switch: self.switch,
            listens_here: self.listens_here,
        }
    }
}

/// Waits until a part ends by itself; one that is not there never does.
async fn ended_if_any(part: Option<&mut Essential>) -> Error {
    match part {
        Some(part) => part.ended().await,
        None => std::future::pending().await,
    }
}

/// Keeps what people call the peers, for when one that is away has to be spoken of.
async fn remember_names(swarm: SwarmHandle, membership: MembershipHandle) {
    let mut changes = swarm.changes();
    while changes.changed().await.is_ok() {
        for peer in swarm.peers().into_iter().filter(|peer| peer.complete) {
            membership.named(&peer.node_id, &peer.name);
        }
        sleep(NAMES_EVERY).await;
    }
}

/// Puts together what this node does for others.
fn run_config(config: &Config) -> RunConfig {
    let defaults = RunConfig::default();
    let backend_slots = slots(&config.backends).iter().filter_map(|(_, slots)| *slots).fold(0, u32::saturating_add);
    // Signs of life come at times of the other node's choosing, so no shorter time says anything.
    let stall_limit = Duration::from_millis(config.route.stall_ms).max(defaults.stall_limit);
    RunConfig { share: config.share.clone(), backend_slots, stall_limit, ..defaults }
}

/// Translates the configuration. A port that nobody chose may be another one if it is taken.
fn net_config(config: &P2pConfig, chosen: bool) -> NetConfig {
    let listen = config.listen.iter().map(|address| ListenOn {
        ip: address.ip(),
        port: address.port(),
        port_is_fixed: chosen && address.port() != 0,
    });
    NetConfig {
        listen: listen.collect(),
        seeds: config.seeds.clone(),
        mdns: config.mdns,
        external: config.external.clone(),
        relay: config.relay,
        relay_bytes_per_s: config.relay_kib_per_s.saturating_mul(1024),
        ..NetConfig::default()
    }
}

impl RunningMesh {
    /// Waits until it is listened for other nodes, for a moment; they are not waited for.
    ///
    /// # Errors
    ///
    /// Why that cannot be, for example since the port is taken.
    pub(super) async fn listening(&mut self) -> Result<()> {
        if !self.listens_here {
            // The address may be one that this machine gets later, for example of a VPN.
            return Ok(());
        }
        let mut addresses = self.net.listen_addrs();
        let on_this_machine = |addresses: &Vec<String>| {
            addresses.iter().any(|address| address.starts_with("/ip4/127.") || address.starts_with("/ip6/::1/"))
        };
        tokio::select! {
            biased;
            error = self.ended() => Err(error),
            listened = timeout(LISTEN_LIMIT, addresses.wait_for(on_this_machine)) => {
                if listened.is_err() {
                    tracing::warn!(limit_s = LISTEN_LIMIT.as_secs(), "other nodes are not listened for yet");
                }
                Ok(())
            }
        }
    }

    /// Returns where other nodes reach this one, and what becomes of it.
    pub(super) fn listen_addrs(&self) -> watch::Receiver<Vec<String>> {
        self.net.listen_addrs()
    }

    /// Waits until a part ends though nobody stopped it, and says why. Safe to cancel.
    pub(super) async fn ended(&mut self) -> Error {
        tokio::select! {
            error = self.net_task.ended() => error,
            error = self.membership_task.ended() => error,
            error = self.swarm_task.ended() => error,
            error = ended_if_any(self.databases_task.as_mut()) => error,
            error = self.weights_task.ended() => error,
            error = self.route_task.ended() => error,
        }
    }

    /// Tells the others that this node takes nothing new, and waits until what runs for them and is on its way to them has ended, or the
    /// grace time is over.
    pub(super) async fn drain(&self, grace: Duration) {
        self.switch.set_draining(true);
        let idle = async { tokio::join!(self.route.idle(), self.weights.idle()) };
        let tasks = async {
            if let Some(tasks) = &self.tasks {
                tasks.drain(grace).await;
            }
        };
        let (idle, ()) = tokio::join!(timeout(grace, idle), tasks);
        if idle.is_err() {
            let running = self.route.state().borrow().running;
            tracing::warn!(
                running,
                grace_ms = grace.as_millis() as u64,
                "what other nodes asked for is cut off: the grace time is over"
            );
        }
    }

    /// Says goodbye, and ends the parts.
    pub(super) async fn stop(self) {
        self.telling.stop().await;
        self.naming.stop().await;
        self.route_task.stop(STOP_LIMIT).await;
        self.weights_task.stop(STOP_LIMIT).await;
        if let Some(databases) = self.databases_task {
            databases.stop(DATABASES_STOP_LIMIT).await;
        }
        self.swarm_task.stop(STOP_LIMIT).await;
        self.membership_task.stop(STOP_LIMIT).await;
        self.net_task.stop(STOP_LIMIT).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_port_that_somebody_chose_is_fixed() {
        let config = P2pConfig { listen: vec!["0.0.0.0:7891".parse().unwrap()], mdns: false, ..P2pConfig::default() };
        assert!(!net_config(&config, false).listen[0].port_is_fixed);
        let chosen = net_config(&config, true);
        assert!(chosen.listen[0].port_is_fixed && !chosen.mdns && chosen.relay);
        let free = P2pConfig { listen: vec!["0.0.0.0:0".parse().unwrap()], ..config };
        assert!(!net_config(&free, true).listen[0].port_is_fixed);
    }
}
