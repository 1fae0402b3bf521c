use anyhow::Result;
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_infer::models::{LocalModel, ModelStore};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::ListArgs;
use crate::cli::answerer::running_node;
use crate::cli::backends::State;
use crate::cli::{Global, output};
use crate::config::{BackendKind, Settings};
use crate::data_dir::DataDir;
use crate::failure::{Exit, Failure};
use crate::node::{RunningBackends, open_models};
use crate::node_client::{NodeClient, encoded};
use crate::printable::one_line;

/// How many nodes are named for a model.
const NODES_SHOWN: usize = 3;

/// A model of some backend.
pub(super) struct Row {
    pub(super) info: ModelInfo,
    /// The backend; none for a model in the store that no configured backend runs.
    pub(super) backend: Option<String>,
    /// What the store of this machine knows about it.
    pub(super) local: Option<LocalModel>,
    /// Where it is, where a node was asked; the node's own backends first.
    pub(super) places: Vec<Place>,
}

/// A backend, of this node or another, that has a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Place {
    node_id: String,
    /// What people call the node.
    name: String,
    /// Whether it is the node that was asked.
    here: bool,
    backend: String,
    #[serde(default)]
    kind: String,
    #[serde(default)]
    alias_of: Option<String>,
    warm: bool,
    #[serde(default)]
    size: Option<u64>,
    #[serde(default)]
    quantization: Option<String>,
    #[serde(default)]
    context: Option<u32>,
    #[serde(default)]
    sha256: Option<String>,
}

/// What `/models` says.
#[derive(Deserialize)]
struct ToldPlaces {
    models: Vec<ToldModel>,
}

#[derive(Deserialize)]
struct ToldModel {
    name: String,
    #[serde(default)]
    capabilities: Vec<ModelCapability>,
    nodes: Vec<Place>,
}

/// What `/v1/models` says about a model.
#[derive(Deserialize)]
struct Told {
    id: String,
    #[serde(default)]
    created: u64,
    owned_by: String,
    meta: Meta,
}

#[derive(Deserialize)]
struct Meta {
    capabilities: Vec<ModelCapability>,
    context_tokens: Option<u32>,
    family: Option<String>,
    parameters: Option<u64>,
    quantization: Option<String>,
    size_bytes: Option<u64>,
    warm: bool,
}

#[derive(Deserialize)]
struct ToldModels {
    data: Vec<Told>,
}

#[derive(Deserialize)]
struct ToldBackends {
    backends: Vec<State>,
}

impl Row {
    /// Describes a model of this machine's store.
    pub(super) fn of_store(model: LocalModel, backend: Option<String>) -> Self {
        Self { info: model.to_model_info(), backend, local: Some(model), places: Vec::new() }
    }

    /// Returns whether it is this model, and a backend of the node that was asked has it.
    fn is_here(&self, name: &ModelName) -> bool {
        self.info.name == *name && self.places.iter().any(|place| place.here)
    }

    fn of_node(told: Told, store: &ModelStore, embedded: &[String]) -> Option<Self> {
        let name = ModelName::parse(&told.id).ok()?;
        let local = embedded.contains(&told.owned_by).then(|| store.get(&name).ok().flatten()).flatten();
        let info = ModelInfo {
            size_bytes: told.meta.size_bytes,
            sha256: local.as_ref().map(|model| model.sha256.clone()),
            modified_unix_s: told.created,
            family: told.meta.family,
            parameters: told.meta.parameters,
            quantization: told.meta.quantization,
            context_tokens: told.meta.context_tokens,
            capabilities: told.meta.capabilities,
            warm: told.meta.warm,
            ..ModelInfo::named(name)
        };
        Some(Self { info, backend: Some(told.owned_by), local, places: Vec::new() })
    }

    /// Describes a model as these places have it, at least one.
    fn at_places(
        name: &str,
        capabilities: Vec<ModelCapability>,
        places: Vec<Place>,
        told: Option<Self>,
        store: &ModelStore,
    ) -> Option<Self> {
        let name = ModelName::parse(name).ok()?;
        let first = places.first()?;
        let (info, told_backend) = match told {
            Some(told) => (told.info, told.backend),
            None => (ModelInfo { capabilities, ..ModelInfo::named(name.clone()) }, None),
        };
        let here = places.iter().find(|place| place.here);
        let local = here.filter(|place| place.kind == "embedded").and_then(|_| store.get(&name).ok().flatten());
        let info = ModelInfo {
            size_bytes: first.size.or(info.size_bytes),
            sha256: first.sha256.clone().or(info.sha256),
            quantization: first.quantization.clone().or(info.quantization),
            context_tokens: first.context.or(info.context_tokens),
            warm: places.iter().any(|place| place.warm),
            ..info
        };
        let backend = here.map(|place| place.backend.clone());
        let backend = backend.or_else(|| told_backend.filter(|_| first.here)).or_else(|| Some(first.kind.clone()));
        Some(Self { info, backend, local, places })
    }

    pub(super) fn as_json(&self) -> Value {
        let mut object = json!(self.info);
        object["backend"] = json!(self.backend);
        object["path"] = json!(self.local.as_ref().map(|model| &model.path));
        object["source"] = json!(self.local.as_ref().map(|model| &model.source));
        object["nodes"] = json!(self.places);
        object
    }

    /// Names the nodes that have it.
    pub(super) fn nodes(&self) -> String {
        let mut names: Vec<&str> = Vec::new();
        for place in &self.places {
            if !names.contains(&place.name.as_str()) {
                names.push(&place.name);
            }
        }
        match names.split_at_checked(NODES_SHOWN) {
            _ if names.is_empty() => "-".to_owned(),
            Some((shown, more)) if !more.is_empty() => format!("{} and {} more", shown.join(", "), more.len()),
            _ => names.join(", "),
        }
    }

    fn cells(self, with_nodes: bool) -> [String; 8] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let nodes = with_nodes.then(|| self.nodes());
        let info = self.info;
        let since = || if info.modified_unix_s > 0 { output::date(info.modified_unix_s) } else { "-".to_owned() };
        let last = nodes.unwrap_or_else(since);
        [
            info.name.to_string(),
            or_dash(info.size_bytes.map(output::size)),
            or_dash(info.family),
            or_dash(info.quantization),
            or_dash(info.context_tokens.map(|tokens| tokens.to_string())),
            if info.warm { "yes" } else { "no" }.to_owned(),
            or_dash(self.backend),
            last,
        ]
    }
}

/// Lists the models of the swarm as the running node sees it, or else those of this machine and of the other configured backends.
pub(super) async fn list(global: &Global, settings: &Settings, args: &ListArgs) -> Result<()> {
    let data_dir = global.data_dir()?;
    let store = open_models(&data_dir)?;
    for problem in store.problems()? {
        global.notice(&format!("note: {problem}"));
    }
    let node = running_node(&data_dir).await?;
    let has_node = node.is_some();
    let rows = match node {
        Some(node) => of_swarm(&node, &store, args).await?,
        None if args.node.is_some() => {
            let failure = Failure::new(Exit::Unavailable, "no node runs here, and only a node knows the others");
            return Err(failure
                .hint("bombus up starts one; without --node the models of this machine are listed")
                .into());
        }
        None => of_this_machine(global, settings, &data_dir, &store).await?,
    };
    if args.json {
        return output::print_json(&rows.iter().map(Row::as_json).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        global.notice("no models here; bombus models catalogue shows what can be pulled");
    }
    let last = if has_node { "NODES" } else { "SINCE" };
    let head = ["NAME", "SIZE", "FAMILY", "QUANT", "CONTEXT", "WARM", "BACKEND", last];
    output::print(&output::table(head, rows.into_iter().map(|row| row.cells(has_node))))
}

async fn of_swarm(node: &NodeClient, store: &ModelStore, args: &ListArgs) -> Result<Vec<Row>> {
    let told: ToldPlaces = node.get("/models").await?;
    let described: ToldModels = node.get("/v1/models").await?;
    let embedded = embedded_of(node).await?;
    let mut described: Vec<Row> =
        described.data.into_iter().filter_map(|told| Row::of_node(told, store, &embedded)).collect();
    let wanted = match &args.node {
        Some(wanted) => Some(choose(wanted, &known_nodes(node, &told.models).await?)?),
        None => None,
    };
    let is_wanted =
        |place: &Place| (!args.local || place.here) && wanted.as_ref().is_none_or(|node_id| place.node_id == *node_id);
    let rows = told.models.into_iter().filter_map(|ToldModel { name, capabilities, mut nodes }| {
        nodes.retain(is_wanted);
        let told = described.iter().position(|row| row.info.name.as_str() == name).map(|at| described.swap_remove(at));
        Row::at_places(&name, capabilities, nodes, told, store)
    });
    let mut rows: Vec<Row> = rows.collect();
    let is_own = wanted.is_none_or(|node_id| node_id == node.record().node_id.as_str());
    if is_own && embedded.is_empty() {
        // The node lists what its backends have, and none of them runs what is in the store.
        let stored = store.list()?.into_iter().filter(|model| !rows.iter().any(|row| row.is_here(&model.name)));
        let stored: Vec<Row> = stored.map(|model| Row::of_store(model, None)).collect();
        rows.extend(stored);
    }
    Ok(rows)
}

/// Lists the nodes that can be named, by id and name: those with models, and those that are seen.
async fn known_nodes(node: &NodeClient, models: &[ToldModel]) -> Result<Vec<(String, String)>> {
    let own = node.record();
    let peers: Vec<ToldPeer> = node.get("/peers").await?;
    let mut known: Vec<(String, String)> = vec![(own.node_id.to_string(), own.name.clone())];
    known.extend(peers.into_iter().map(|peer| (peer.node_id, peer.hostname)));
    known.extend(models.iter().flat_map(|model| &model.nodes).map(|place| (place.node_id.clone(), place.name.clone())));
    known.sort();
    known.dedup_by(|a, b| a.0 == b.0);
    Ok(known)
}

#[derive(Deserialize)]
struct ToldPeer {
    node_id: String,
    hostname: String,
}

fn choose(wanted: &str, known: &[(String, String)]) -> Result<String> {
    let known = known.iter().map(|(node_id, name)| (node_id.as_str(), name.as_str()));
    bombus_http::mesh::choose(wanted, known).map(str::to_owned).map_err(|error| {
        let hint = "bombus peers lists the nodes, and bombus models where each model is";
        Failure::new(Exit::NotFound, error.to_string()).hint(hint).into()
    })
}

/// Names the backends of a node that run the models of the store.
async fn embedded_of(node: &NodeClient) -> Result<Vec<String>> {
    let told: ToldBackends = node.get("/backends").await?;
    Ok(told.backends.into_iter().filter(|backend| backend.kind == "embedded").map(|backend| backend.name).collect())
}

/// Finds one model at the node.
pub(super) async fn find_at_node(node: &NodeClient, store: &ModelStore, name: &ModelName) -> Result<Option<Row>> {
    let told: Told = node.get(&format!("/v1/models/{}", encoded(name.as_str()))).await?;
    let places: ToldPlaces = node.get("/models").await?;
    let of_name = places.models.into_iter().find(|model| model.name == name.as_str());
    let row = Row::of_node(told, store, &embedded_of(node).await?);
    Ok(row.map(|row| Row { places: of_name.map(|model| model.nodes).unwrap_or_default(), ..row }))
}

async fn of_this_machine(
    global: &Global,
    settings: &Settings,
    data_dir: &DataDir,
    store: &ModelStore,
) -> Result<Vec<Row>> {
    let backends = &settings.config.backends;
    let is_embedded = |kind: &BackendKind| matches!(kind, BackendKind::Embedded(_));
    let embedded = backends.iter().find(|backend| is_embedded(&backend.kind)).map(|backend| backend.name.clone());
    let mut rows: Vec<Row> = store.list()?.into_iter().map(|model| Row::of_store(model, embedded.clone())).collect();
    if backends.iter().all(|backend| is_embedded(&backend.kind)) {
        return Ok(rows);
    }
    let running = RunningBackends::start(&settings.config, data_dir)?;
    let listed = running.backends().models().await;
    for state in running.backends().states() {
        if let Some(error) = state.error {
            global.notice(&one_line(&format!("note: the models of {} are not known: {error}", state.name)));
        }
    }
    let others = listed.into_iter().filter(|listed| listed.backend.kind != "embedded").map(|listed| Row {
        backend: Some(listed.backend.name.clone()),
        info: listed.info,
        local: None,
        places: Vec::new(),
    });
    rows.extend(others);
    running.stop().await;
    Ok(rows)
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    fn place(node: &str, here: bool, warm: bool) -> Place {
        Place {
            node_id: format!("id-of-{node}"),
            name: node.to_owned(),
            here,
            backend: if here { "near".to_owned() } else { format!("id-of-{node}") },
            kind: if here { "fake" } else { "peer" }.to_owned(),
            alias_of: None,
            warm,
            size: Some(5),
            quantization: None,
            context: Some(2_048),
            sha256: None,
        }
    }

    fn row(places: Vec<Place>) -> Row {
        let directory = TempDir::new().unwrap();
        let store = ModelStore::open(directory.path()).unwrap();
        Row::at_places("m", Vec::new(), places, None, &store).unwrap()
    }

    #[test]
    fn a_model_tells_where_it_is() {
        let both = row(vec![place("bee", true, false), place("hive", false, true)]);
        assert_eq!(both.as_json()["nodes"][1]["name"], "hive");
        let cells = both.cells(true);
        assert_eq!([&cells[5], &cells[6], &cells[7]], ["yes", "near", "bee, hive"]);
        assert_eq!(row(vec![place("hive", false, false)]).cells(true)[6..], ["peer", "hive"]);
        let many = row((0..7).map(|number| place(&format!("n{number}"), false, false)).collect());
        assert_eq!(many.cells(true)[7], "n0, n1, n2 and 4 more");
        let two_backends = row(vec![place("bee", true, false), place("bee", true, false)]);
        assert_eq!(two_backends.nodes(), "bee");
    }

    #[test]
    fn a_node_is_chosen_by_its_name_or_id() {
        let known = [("id-1".to_owned(), "bee".to_owned()), ("id-2".to_owned(), "hive".to_owned())];
        assert_eq!(choose("hi", &known).unwrap(), "id-2");
        assert_eq!(choose("id-1", &known).unwrap(), "id-1");
        assert!(choose("wasp", &known).is_err());
    }
}
