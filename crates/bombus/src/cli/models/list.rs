use anyhow::Result;
use bombus_core::model::{ModelCapability, ModelInfo, ModelName};
use bombus_infer::models::{LocalModel, ModelStore};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::cli::answerer::running_node;
use crate::cli::backends::State;
use crate::cli::{Global, output};
use crate::config::{BackendKind, Settings};
use crate::data_dir::DataDir;
use crate::node::{RunningBackends, open_models};
use crate::node_client::{NodeClient, encoded};

/// A model of some backend.
pub(super) struct Row {
    pub(super) info: ModelInfo,
    /// The backend; none for a model in the store that no configured backend runs.
    pub(super) backend: Option<String>,
    /// What the store of this machine knows about it.
    pub(super) local: Option<LocalModel>,
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
        Some(Self { info, backend: Some(told.owned_by), local })
    }

    pub(super) fn as_json(&self) -> Value {
        let mut object = json!(self.info);
        object["backend"] = json!(self.backend);
        object["path"] = json!(self.local.as_ref().map(|model| &model.path));
        object["source"] = json!(self.local.as_ref().map(|model| &model.source));
        object
    }

    fn cells(self) -> [String; 8] {
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let info = self.info;
        [
            info.name.to_string(),
            or_dash(info.size_bytes.map(output::size)),
            or_dash(info.family),
            or_dash(info.quantization),
            or_dash(info.context_tokens.map(|tokens| tokens.to_string())),
            if info.warm { "yes" } else { "no" }.to_owned(),
            or_dash(self.backend),
            if info.modified_unix_s > 0 { output::date(info.modified_unix_s) } else { "-".to_owned() },
        ]
    }
}

/// Lists the models of all backends: the running node's, or else those of this machine and of the other configured backends.
pub(super) async fn list(global: &Global, settings: &Settings, as_json: bool) -> Result<()> {
    let data_dir = global.data_dir()?;
    let store = open_models(&data_dir)?;
    for problem in store.problems()? {
        global.notice(&format!("note: {problem}"));
    }
    let rows = match running_node(&data_dir).await? {
        Some(node) => of_node(&node, &store).await?,
        None => of_this_machine(settings, &data_dir, &store).await?,
    };
    if as_json {
        return output::print_json(&rows.iter().map(Row::as_json).collect::<Vec<_>>());
    }
    if rows.is_empty() {
        global.notice("no models here; bombus models catalogue shows what can be pulled");
    }
    let head = ["NAME", "SIZE", "FAMILY", "QUANT", "CONTEXT", "WARM", "BACKEND", "SINCE"];
    output::print(&output::table(head, rows.into_iter().map(Row::cells)))
}

async fn of_node(node: &NodeClient, store: &ModelStore) -> Result<Vec<Row>> {
    let models: ToldModels = node.get("/v1/models").await?;
    let embedded = embedded_of(node).await?;
    Ok(models.data.into_iter().filter_map(|told| Row::of_node(told, store, &embedded)).collect())
}

/// Names the backends of a node that run the models of the store.
async fn embedded_of(node: &NodeClient) -> Result<Vec<String>> {
    let told: ToldBackends = node.get("/backends").await?;
    Ok(told.backends.into_iter().filter(|backend| backend.kind == "embedded").map(|backend| backend.name).collect())
}

/// Finds one model at the node.
pub(super) async fn find_at_node(node: &NodeClient, store: &ModelStore, name: &ModelName) -> Result<Option<Row>> {
    let told: Told = node.get(&format!("/v1/models/{}", encoded(name.as_str()))).await?;
    Ok(Row::of_node(told, store, &embedded_of(node).await?))
}

async fn of_this_machine(settings: &Settings, data_dir: &DataDir, store: &ModelStore) -> Result<Vec<Row>> {
    let backends = &settings.config.backends;
    let is_embedded = |kind: &BackendKind| matches!(kind, BackendKind::Embedded(_));
    let embedded = backends.iter().find(|backend| is_embedded(&backend.kind)).map(|backend| backend.name.clone());
    let own = store.list()?.into_iter().map(|model| Row {
        info: model.to_model_info(),
        backend: embedded.clone(),
        local: Some(model),
    });
    let mut rows: Vec<Row> = own.collect();
    if backends.iter().all(|backend| is_embedded(&backend.kind)) {
        return Ok(rows);
    }
    let running = RunningBackends::start(&settings.config, data_dir)?;
    let listed = running.backends().models().await;
    let others = listed.into_iter().filter(|listed| listed.backend.kind != "embedded").map(|listed| Row {
        backend: Some(listed.backend.name.clone()),
        info: listed.info,
        local: None,
    });
    rows.extend(others);
    running.stop().await;
    Ok(rows)
}
