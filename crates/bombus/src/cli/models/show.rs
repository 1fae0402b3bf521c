use anyhow::{Context, Result};
use bombus_core::chat::{Message, Role};
use bombus_core::model::{ModelDetails, ModelName};
use bombus_infer::BackendError;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::list::{Row, find_at_node};
use crate::cli::answerer::running_node;
use crate::cli::{Global, output};
use crate::config::Settings;
use crate::data_dir::DataDir;
use crate::node::{RunningBackends, open_models};
use crate::node_client::{NodeClient, Refusal};

/// How much of a long text is shown in the overview, in lines.
const LINES_MAX: usize = 12;

/// What `/api/show` says about a model, as far as `/v1/models` does not.
#[derive(Deserialize)]
struct Told {
    #[serde(default)]
    license: String,
    #[serde(default)]
    template: String,
    #[serde(default)]
    system: String,
    /// A line for each: name, spaces, value.
    #[serde(default)]
    parameters: String,
    #[serde(default)]
    details: ToldDetails,
    #[serde(default)]
    messages: Vec<ToldMessage>,
    #[serde(default)]
    model_info: Map<String, Value>,
    #[serde(default)]
    renderer: String,
    #[serde(default)]
    parser: String,
    #[serde(default)]
    requires: String,
    #[serde(default)]
    projector_info: Map<String, Value>,
}

#[derive(Deserialize)]
struct ToldMessage {
    role: Role,
    #[serde(default)]
    content: String,
}

#[derive(Default, Deserialize)]
struct ToldDetails {
    #[serde(default)]
    parent_model: String,
}

impl From<Told> for ModelDetails {
    fn from(told: Told) -> Self {
        Self {
            parent: ModelName::parse(&told.details.parent_model).ok(),
            licenses: (!told.license.is_empty()).then_some(told.license).into_iter().collect(),
            template: told.template,
            system: told.system,
            parameters: read_parameters(&told.parameters),
            messages: told.messages.into_iter().map(|told| Message::text(told.role, told.content)).collect(),
            metadata: told.model_info,
            renderer: told.renderer,
            parser: told.parser,
            requires: told.requires,
            projector: told.projector_info,
        }
    }
}

/// Reads `name value` lines; a name that comes again makes a list.
fn read_parameters(text: &str) -> Map<String, Value> {
    let mut parameters: Map<String, Value> = Map::new();
    for (name, value) in text.lines().filter_map(|line| line.trim().split_once(char::is_whitespace)) {
        let value = value.trim();
        let value = serde_json::from_str(value).unwrap_or_else(|_| Value::from(value));
        match parameters.get_mut(name) {
            None => {
                parameters.insert(name.to_owned(), value);
            }
            Some(Value::Array(values)) => values.push(value),
            Some(single) => *single = json!([single.take(), value]),
        }
    }
    parameters
}

/// Shows everything about one model.
pub(super) async fn show(global: &Global, settings: &Settings, name: &ModelName, as_json: bool) -> Result<()> {
    let data_dir = global.data_dir()?;
    let found = match running_node(&data_dir).await? {
        Some(node) => of_node(&node, &data_dir, name).await,
        None => of_this_machine(settings, &data_dir, name).await,
    };
    let (row, details) = match found {
        // The store may have it, and no backend.
        Err(error) if is_missing(&error) => of_store(&data_dir, name)?.ok_or(error)?,
        found => found?,
    };
    if as_json {
        let mut object = row.as_json();
        object["details"] = json!(details);
        return output::print_json(&object);
    }
    output::print(&text(&row, &details))
}

/// Returns whether an error says that no backend has the model. Any other one may be that of a backend which has it.
fn is_missing(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref::<BackendError>(), Some(BackendError::ModelNotFound { .. }))
        || error.downcast_ref::<Refusal>().is_some_and(|refusal| refusal.status == 404)
}

async fn of_node(node: &NodeClient, data_dir: &DataDir, name: &ModelName) -> Result<(Row, ModelDetails)> {
    let row = find_at_node(node, &open_models(data_dir)?, name).await?;
    let row = row.ok_or_else(|| BackendError::model_not_found(name))?;
    let told: Told = node.post("/api/show", &json!({ "model": name })).await?;
    Ok((row, told.into()))
}

async fn of_this_machine(settings: &Settings, data_dir: &DataDir, name: &ModelName) -> Result<(Row, ModelDetails)> {
    let store = open_models(data_dir)?;
    let running = RunningBackends::start(&settings.config, data_dir)?;
    let found = async {
        let listed = running.backends().find(name.as_str()).await?;
        let details = listed.backend.backend.details(&listed.name_there()).await?.unwrap_or_default();
        let local = (listed.backend.kind == "embedded").then(|| store.get(&listed.info.name).ok().flatten()).flatten();
        let backend = Some(listed.backend.name.clone());
        Ok((Row { backend, info: listed.info, local, places: Vec::new() }, details))
    };
    let shown = found.await;
    running.stop().await;
    shown
}

/// Describes a model of the store that no backend runs; `None` where the store does not have it.
fn of_store(data_dir: &DataDir, name: &ModelName) -> Result<Option<(Row, ModelDetails)>> {
    let Some(model) = open_models(data_dir)?.get(name)? else { return Ok(None) };
    let details = model.details().with_context(|| format!("{} cannot be read", model.path.display()))?;
    Ok(Some((Row::of_store(model, None), details)))
}

fn text(row: &Row, details: &ModelDetails) -> String {
    let info = &row.info;
    let known = |value: Option<String>| value.filter(|value| !value.is_empty());
    let capabilities = info.capabilities.iter().map(|capability| json!(capability));
    let capabilities: Vec<String> =
        capabilities.map(|capability| capability.as_str().unwrap_or_default().to_owned()).collect();
    let lines = [
        ("name", Some(info.name.to_string())),
        ("backend", row.backend.clone()),
        ("nodes", (!row.places.is_empty()).then(|| row.nodes())),
        ("size", info.size_bytes.map(output::size)),
        ("family", info.family.clone()),
        ("parameters", info.parameters.map(|count| format!("{:.2} B", count as f64 / 1e9))),
        ("quantization", info.quantization.clone()),
        ("context", info.context_tokens.map(|tokens| format!("{tokens} tokens"))),
        ("can", known(Some(capabilities.join(", ")))),
        ("warm", Some(if info.warm { "yes" } else { "no" }.to_owned())),
        ("made of", details.parent.as_ref().map(ToString::to_string)),
        ("sha256", info.sha256.clone()),
        ("file", row.local.as_ref().map(|model| model.path.display().to_string())),
        ("from", row.local.as_ref().map(|model| model.source.to_string())),
    ];
    let mut text = String::new();
    for (name, value) in lines.into_iter().filter_map(|(name, value)| Some((name, value?))) {
        text.push_str(&format!("{name:12}  {value}\n"));
    }
    for (name, value) in &details.parameters {
        text.push_str(&format!("{:12}  {name} {value}\n", "default"));
    }
    let licenses = details.licenses.join("\n\n");
    for (title, body) in [("system", &details.system), ("template", &details.template), ("licence", &licenses)] {
        text.push_str(&section(title, body));
    }
    text
}

/// Shows the beginning of a long text.
fn section(title: &str, body: &str) -> String {
    if body.trim().is_empty() {
        return String::new();
    }
    let count = body.lines().count();
    let lines: String = body.lines().take(LINES_MAX).map(|line| format!("  {line}\n")).collect();
    let rest =
        if count > LINES_MAX { format!("  ({} more lines: --json)\n", count - LINES_MAX) } else { String::new() };
    format!("\n{title}\n{lines}{rest}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_come_again_make_a_list() {
        let read = read_parameters("stop     \"<|im_end|>\"\nstop \"x y\"\ntemperature   0.7\nnum_ctx 4096\n");
        assert_eq!(json!(read), json!({ "stop": ["<|im_end|>", "x y"], "temperature": 0.7, "num_ctx": 4096 }));
    }

    #[test]
    fn long_texts_are_shown_by_their_beginning() {
        let long = section("licence", &"word\n".repeat(20));
        assert!(long.contains("8 more lines") && long.lines().count() == LINES_MAX + 3, "{long}");
        assert_eq!(section("system", " \n"), "");
    }
}
