//! `bombus db`: replicated databases, by the running node.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Args, Subcommand, ValueEnum};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::{Global, mesh, output};
use crate::failure::{Exit, Failure};
use crate::node_client::{NodeClient, encoded};
use crate::printable::{self, one_line};

mod show;
mod transfer;
mod value;
mod watch;

use show::{Info, List, Row};

/// `bombus db`.
#[derive(Debug, Subcommand)]
pub(crate) enum DbCommand {
    /// Make a database; it stays open, also after a restart
    Create(CreateArgs),
    /// Open a database of another node by its address; it stays open, also after a restart
    Open(OpenArgs),
    /// List the databases of this node
    List(ListArgs),
    /// Show what there is to see of a database: heads, entries, size, writers, peers, what is refused and why
    Info(OneArgs),
    /// Put a value under a key, or a document
    Put(PutArgs),
    /// Show what is under a key; of events, what has a hash
    Get(KeyArgs),
    /// Take a key away
    Del(KeyArgs),
    /// Add an event
    Add(AddArgs),
    /// Show all rows, oldest first
    All(AllArgs),
    /// Show the rows whose values have these fields
    Query(QueryArgs),
    /// Show what happens from now on: one JSON object a line, of update, join, leave and more
    Watch(OneArgs),
    /// Let an identity write
    Grant(GrantArgs),
    /// Take from an identity that it may write; its entries no longer count
    Revoke(GrantArgs),
    /// Write all rows to a file or to stdout, one JSON object a line
    Export(transfer::ExportArgs),
    /// Put the rows of an export into a database
    Import(transfer::ImportArgs),
    /// Close a database until it is opened again; it stays on the disk
    Close(OneArgs),
    /// Remove a database from this node with all that is in it; other nodes keep theirs
    Drop(OneArgs),
}

/// How a database is read.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Type {
    /// JSON objects, each under the value of one of its fields
    Documents,
    /// A list that only grows
    Events,
    /// Values under keys
    Keyvalue,
}

/// Arguments of `bombus db create`.
#[derive(Debug, Args)]
pub(crate) struct CreateArgs {
    /// Its name
    #[arg(value_name = "NAME")]
    name: String,
    /// How it is read
    #[arg(long = "type", value_name = "TYPE")]
    kind: Type,
    /// The field of documents that holds their key [default: _id]
    #[arg(long, value_name = "FIELD")]
    index_by: Option<String>,
    /// Who may write, for ever: the id of an identity, or * for everybody; may be given several times. Without it this node may, and
    /// whom it grants it
    #[arg(long, value_name = "ID")]
    write: Vec<String>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db open`.
#[derive(Debug, Args)]
pub(crate) struct OpenArgs {
    /// Its address, /orbitdb/zdpu..., or the name of a database of this node that was closed
    #[arg(value_name = "ADDRESS")]
    address: String,
    /// The field of documents that holds their key [default: _id]
    #[arg(long, value_name = "FIELD")]
    index_by: Option<String>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db list`.
#[derive(Debug, Args)]
pub(crate) struct ListArgs {
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of commands on a whole database.
#[derive(Debug, Args)]
pub(crate) struct OneArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db put`.
#[derive(Debug, Args)]
pub(crate) struct PutArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// The key, which documents have in a field, and the value: JSON, or a text; - reads it from a pipe
    #[arg(value_name = "[KEY] VALUE", num_args = 1..=2, required = true, allow_hyphen_values = true)]
    words: Vec<String>,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db get` and `del`.
#[derive(Debug, Args)]
pub(crate) struct KeyArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// The key
    #[arg(value_name = "KEY", allow_hyphen_values = true)]
    key: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db add`.
#[derive(Debug, Args)]
pub(crate) struct AddArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// The event: JSON, or a text; - reads it from a pipe
    #[arg(value_name = "VALUE", allow_hyphen_values = true)]
    value: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db all`.
#[derive(Debug, Args)]
pub(crate) struct AllArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// At most so many rows
    #[arg(long, short = 'n', value_name = "N")]
    amount: Option<u64>,
    /// Newest first
    #[arg(long)]
    newest: bool,
    /// As one JSON object a line, with the hashes
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db query`.
#[derive(Debug, Args)]
pub(crate) struct QueryArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// A field that has this value: JSON, or a text. A name with dots leads into nested objects
    #[arg(value_name = "FIELD=VALUE", required = true)]
    fields: Vec<String>,
    /// At most so many rows
    #[arg(long, short = 'n', value_name = "N")]
    amount: Option<u64>,
    /// As one JSON object a line, with the hashes
    #[arg(long)]
    json: bool,
}

/// Arguments of `bombus db grant` and `revoke`.
#[derive(Debug, Args)]
pub(crate) struct GrantArgs {
    /// Its name or its address
    #[arg(value_name = "DATABASE")]
    database: String,
    /// The id of the identity, as `bombus db list` shows it on its node; * for everybody
    #[arg(value_name = "ID")]
    identity: String,
    /// As one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn run(global: &Global, command: &DbCommand) -> Result<ExitCode> {
    let settings = global.settings(&[])?;
    let _telemetry = global.begin_quiet_logs(&settings)?;
    super::block_on(async {
        let node = mesh::need_node(&global.data_dir()?).await?;
        match command {
            DbCommand::Create(args) => create(global, &node, args).await,
            DbCommand::Open(args) => open(global, &node, args).await,
            DbCommand::List(args) => list(&node, args).await,
            DbCommand::Info(args) => info(&node, args).await,
            DbCommand::Put(args) => put(&node, args).await,
            DbCommand::Get(args) => get(&node, args).await,
            DbCommand::Del(args) => written(&node, &args.database, "del", &json!({ "key": args.key }), args.json).await,
            DbCommand::Add(args) => {
                let event = json!({ "value": value::of_argument(&args.value)? });
                written(&node, &args.database, "add", &event, args.json).await
            }
            DbCommand::All(args) => all(&node, args).await,
            DbCommand::Query(args) => query(&node, args).await,
            DbCommand::Watch(args) => watch::run(global, &node, &args.database).await,
            DbCommand::Grant(args) => change_writers(global, &node, args, "grant").await,
            DbCommand::Revoke(args) => change_writers(global, &node, args, "revoke").await,
            DbCommand::Export(args) => transfer::export(global, &node, args).await,
            DbCommand::Import(args) => transfer::import(&node, args).await,
            DbCommand::Close(args) => {
                node.post::<Value>(&path(&args.database, "/close"), &json!({})).await?;
                done(global, args, "is closed")
            }
            DbCommand::Drop(args) => {
                node.send(Method::DELETE, &path(&args.database, ""), None).await?;
                done(global, args, "is gone from this node")
            }
        }
    })?;
    Ok(ExitCode::SUCCESS)
}

/// Returns the path of a database, and of what is asked of it.
fn path(database: &str, what: &str) -> String {
    format!("/db/{}{what}", encoded(database))
}

async fn create(global: &Global, node: &NodeClient, args: &CreateArgs) -> Result<()> {
    let kind = match args.kind {
        Type::Documents => "documents",
        Type::Events => "events",
        Type::Keyvalue => "keyvalue",
    };
    let mut request = json!({ "name": args.name, "type": kind });
    if let Some(field) = &args.index_by {
        request["index_by"] = json!(field);
    }
    if !args.write.is_empty() {
        request["write"] = json!(args.write);
    }
    let answer: Value = node.post("/db", &request).await?;
    opened(global, &answer, args.json)?;
    if !args.json {
        global.notice("other nodes of the swarm open it by this address: bombus db open ADDRESS");
    }
    Ok(())
}

async fn open(global: &Global, node: &NodeClient, args: &OpenArgs) -> Result<()> {
    let mut request = json!({ "address": args.address });
    if let Some(field) = &args.index_by {
        request["index_by"] = json!(field);
    }
    let answer: Value = node.post("/db", &request).await?;
    opened(global, &answer, args.json)
}

/// Prints the address of a database that is open now; whether this node may write is said beside it.
fn opened(global: &Global, answer: &Value, as_json: bool) -> Result<()> {
    if as_json {
        return output::print_json(answer);
    }
    let info = Info::read(answer)?;
    output::print(&format!("{}\n", one_line(&info.address)))?;
    if let Some(limit) = info.read_only() {
        global.notice(&limit);
    }
    Ok(())
}

async fn list(node: &NodeClient, args: &ListArgs) -> Result<()> {
    let answer: Value = node.get("/db").await?;
    if args.json { output::print_json(&answer) } else { output::print(&List::read(&answer)?.text()) }
}

async fn info(node: &NodeClient, args: &OneArgs) -> Result<()> {
    let answer: Value = node.get(&path(&args.database, "")).await?;
    if args.json { output::print_json(&answer) } else { output::print(&Info::read(&answer)?.text(output::width())) }
}

async fn put(node: &NodeClient, args: &PutArgs) -> Result<()> {
    let row = match args.words.as_slice() {
        [key, text] => json!({ "key": key, "value": value::of_argument(text)? }),
        words => json!({ "value": value::of_argument(&words.concat())? }),
    };
    written(node, &args.database, "put", &row, args.json).await
}

/// Asks for a change, and prints the hash of its entry.
async fn written(node: &NodeClient, database: &str, what: &str, body: &Value, as_json: bool) -> Result<()> {
    let answer: Value = node.post(&path(database, &format!("/{what}")), body).await?;
    if as_json {
        return output::print_json(&answer);
    }
    output::print(&format!("{}\n", answer["hash"].as_str().unwrap_or_default()))
}

async fn get(node: &NodeClient, args: &KeyArgs) -> Result<()> {
    let row: Value = node.get(&path(&args.database, &format!("/get?key={}", encoded(&args.key)))).await?;
    if args.json {
        return output::print_json(&row);
    }
    // A text is shown as it is, without what could control a terminal.
    match &row["value"] {
        Value::String(text) => output::print(&format!("{}\n", printable::lines(text))),
        value => output::print_json(value),
    }
}

async fn all(node: &NodeClient, args: &AllArgs) -> Result<()> {
    let amount = args.amount.map(|amount| format!("&amount={amount}")).unwrap_or_default();
    let what = format!("/all?newest={}{amount}", args.newest);
    let response = node.send(Method::GET, &path(&args.database, &what), None).await?;
    print_rows(response, args.json).await
}

async fn query(node: &NodeClient, args: &QueryArgs) -> Result<()> {
    let mut request = json!({ "where": conditions(&args.fields)? });
    if let Some(amount) = args.amount {
        request["amount"] = json!(amount);
    }
    let response = node.send(Method::POST, &path(&args.database, "/query"), Some(&request)).await?;
    print_rows(response, args.json).await
}

/// Reads the conditions of a query, of which there is one to a field.
fn conditions(fields: &[String]) -> Result<Map<String, Value>> {
    let mut conditions = Map::new();
    for field in fields {
        let (name, text) = field.split_once('=').ok_or_else(|| {
            Failure::new(Exit::Usage, format!("{field:?} is no condition"))
                .hint("write FIELD=VALUE, for example city=Bern")
        })?;
        if conditions.insert(name.to_owned(), value::of_text(text)?).is_some() {
            let failure = Failure::new(Exit::Usage, format!("the field {name:?} is given twice"));
            return Err(failure.hint("all conditions have to hold: ask for one value after the other").into());
        }
    }
    Ok(conditions)
}

/// Prints rows as they come.
async fn print_rows(response: reqwest::Response, as_json: bool) -> Result<()> {
    let mut lines = transfer::Lines::of(response);
    while let Some(line) = lines.next().await? {
        let text = if as_json { line + "\n" } else { Row::read(&line)?.text() };
        if !output::print_piece(&text)? {
            break;
        }
    }
    Ok(())
}

async fn change_writers(global: &Global, node: &NodeClient, args: &GrantArgs, what: &str) -> Result<()> {
    let request = json!({ "identity": args.identity });
    let answer: Value = node.post(&path(&args.database, &format!("/{what}")), &request).await?;
    if args.json {
        return output::print_json(&answer);
    }
    let info = Info::read(&answer)?;
    output::print(&info.access.text(output::width()))?;
    global.notice("the other nodes follow when they hear of it");
    Ok(())
}

fn done(global: &Global, args: &OneArgs, what: &str) -> Result<()> {
    if args.json {
        return output::print_json(&json!({ "database": args.database, "done": true }));
    }
    global.notice(&format!("{} {what}", args.database));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_has_one_condition_to_a_field() {
        let read = |fields: &[&str]| conditions(&fields.iter().map(|field| (*field).to_owned()).collect::<Vec<_>>());
        assert_eq!(
            read(&["city=Bern", "a=b=c", "n=1"]).unwrap(),
            *json!({ "city": "Bern", "a": "b=c", "n": 1 }).as_object().unwrap()
        );
        let twice = read(&["city=Bern", "n=1", "city=Basel"]).unwrap_err();
        assert!(twice.to_string().contains("\"city\" is given twice"), "{twice}");
        assert!(read(&["city"]).is_err());
    }
}
