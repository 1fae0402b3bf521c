//! The replicated databases: making, opening, granting, dropping. What changes who may write, or throws something away, needs a key on
//! loopback too: it cannot be taken back.

pub(crate) mod rows;
#[cfg(test)]
pub(crate) mod scripted;
#[cfg(test)]
mod tests;
pub(crate) mod transfer;
pub(crate) mod watch;

use std::sync::Arc;

use axum::Json;
use axum::extract::{FromRequestParts, Path, State};
use axum::http::request::Parts;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::mesh::KeyHolder;
use crate::app::{App, SharedApp};
use crate::body::JsonBody;
use crate::databases::{Capability, DatabaseEntry, DatabaseInfo, DatabaseType, Databases, DatabasesError, NewDatabase};
use crate::error::ApiError;

/// Longest name or address in bytes.
const NAME_BYTES_MAX: usize = 512;
/// Longest id of an identity in bytes.
const IDENTITY_BYTES_MAX: usize = 512;
/// Most writers that a database can be created with.
const WRITERS_MAX: usize = 1_024;

/// The database that a path names: by its name, or by its address with its slashes written as `%2F`.
pub(crate) struct Named(String);

impl FromRequestParts<SharedApp> for Named {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &SharedApp) -> Result<Self, ApiError> {
        let path = Path::<String>::from_request_parts(parts, app).await;
        let Path(name) = path.map_err(|rejection| ApiError::invalid_value("database", rejection.body_text()))?;
        checked("database", name).map(Self)
    }
}

/// What to create, or to open.
#[derive(Deserialize, ToSchema)]
pub(crate) struct OpenRequest {
    /// The name of a new database.
    name: Option<String>,
    /// What a new database is.
    #[serde(rename = "type")]
    r#type: Option<DatabaseType>,
    /// The ids of the identities that may write to a new database, for ever, or `*` for everybody; then the same request makes the same
    /// address at every node. Without it this node may write, and whom it grants it.
    write: Option<Vec<String>>,
    /// The address of a database of another node, or the name or address of one of this node's that was closed.
    address: Option<String>,
    /// The field of documents that holds their key. Every node chooses it for itself.
    #[schema(default = "_id")]
    index_by: Option<String>,
}

/// The databases of this node.
#[derive(Serialize, ToSchema)]
pub(crate) struct DatabaseList {
    /// The id of the identity as which this node writes: what other nodes grant.
    identity: String,
    databases: Vec<DatabaseEntry>,
}

/// Whose capability changes.
#[derive(Deserialize, ToSchema)]
pub(crate) struct GrantRequest {
    /// The id of an identity, as its node shows it in `identity`; `*` stands for everybody.
    identity: String,
    /// Which.
    #[serde(default)]
    capability: Capability,
}

/// Says that a database is no longer open, or no longer there.
#[derive(Serialize, ToSchema)]
pub(crate) struct DoneAnswer {
    /// Always true.
    done: bool,
}

/// Lists the databases that this node has.
#[utoipa::path(get, operation_id = "databases_list", path = "/db", tag = "databases",
    responses((status = 200, description = "The databases", body = DatabaseList)))]
pub(crate) async fn list(State(app): State<SharedApp>) -> Result<Json<DatabaseList>, ApiError> {
    let databases = databases_of(&app)?;
    // While they are being opened, the list waits for it.
    let list = databases.list().await?;
    Ok(Json(DatabaseList { identity: databases.identity()?, databases: list }))
}

/// Makes a database (`name` and `type`), or opens one (`address`). It stays open, and is opened again at every start of the node. A
/// database of another node is waited for, for a limited time.
#[utoipa::path(post, operation_id = "databases_open", path = "/db", tag = "databases", request_body = OpenRequest,
    responses(
        (status = 200, description = "It is open", body = DatabaseInfo),
        (status = 201, description = "It is made and open; `Location` says where it is read", body = DatabaseInfo),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "Another one has the name, several are called so, or too many are open", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 504, description = "No peer gave the database's description in time", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn open(
    State(app): State<SharedApp>,
    JsonBody { value: request, .. }: JsonBody<OpenRequest>,
) -> Result<Response, ApiError> {
    let databases = databases_of(&app)?;
    let index_by = request.index_by.map(|field| checked("index_by", field)).transpose()?;
    let Some(address) = request.address else {
        let new = NewDatabase {
            name: checked(
                "name",
                request.name.ok_or_else(|| ApiError::missing("name", "say a `name`, or an `address`"))?,
            )?,
            r#type: request.r#type.ok_or_else(|| {
                ApiError::missing("type", "a new database needs a `type`: documents, events or keyvalue")
            })?,
            write: request.write.map(writers).transpose()?,
            index_by,
        };
        let info = databases.create(new).await?;
        let location = HeaderValue::try_from(format!("/db/{}", info.address.replace('/', "%2F")));
        let location = location.map_err(|_| ApiError::internal())?;
        return Ok((StatusCode::CREATED, [(header::LOCATION, location)], Json(info)).into_response());
    };
    if request.name.is_some() || request.r#type.is_some() || request.write.is_some() {
        let message = "`address` opens a database that is there: `name`, `type` and `write` are those of a new one";
        return Err(ApiError::invalid_value("address", message));
    }
    let info = databases.open(&checked("address", address)?, index_by).await?;
    Ok(Json(info).into_response())
}

/// Tells what there is to see of a database: heads, entries, size, peers, and what does not count and why.
#[utoipa::path(get, operation_id = "databases_info", path = "/db/{database}", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "What there is to see", body = DatabaseInfo),
        (status = 400, description = "No database can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn info(State(app): State<SharedApp>, Named(database): Named) -> Result<Json<DatabaseInfo>, ApiError> {
    Ok(Json(databases_of(&app)?.info(&database).await?))
}

/// Closes a database until it is opened again. It stays on the disk.
#[utoipa::path(post, operation_id = "databases_close", path = "/db/{database}/close", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "It is closed", body = DoneAnswer),
        (status = 400, description = "No database can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn close(
    _: KeyHolder,
    State(app): State<SharedApp>,
    Named(database): Named,
) -> Result<Json<DoneAnswer>, ApiError> {
    databases_of(&app)?.close(&database).await?;
    Ok(Json(DoneAnswer { done: true }))
}

/// Removes a database from this node with all its entries. Other nodes keep theirs.
#[utoipa::path(delete, operation_id = "databases_drop", path = "/db/{database}", tag = "databases",
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "Nothing of it is left", body = DoneAnswer),
        (status = 400, description = "No database can be called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "It is closed, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn drop(
    _: KeyHolder,
    State(app): State<SharedApp>,
    Named(database): Named,
) -> Result<Json<DoneAnswer>, ApiError> {
    databases_of(&app)?.discard(&database).await?;
    Ok(Json(DoneAnswer { done: true }))
}

/// Lets an identity write to a database.
#[utoipa::path(post, operation_id = "databases_grant", path = "/db/{database}/grant", tag = "databases", request_body = GrantRequest,
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "It may write, once the other nodes have heard of it", body = DatabaseInfo),
        (status = 403, description = "This node is no admin of the database", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "The writers were fixed when it was created, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn grant(
    _: KeyHolder,
    State(app): State<SharedApp>,
    Named(database): Named,
    JsonBody { value: request, .. }: JsonBody<GrantRequest>,
) -> Result<Json<DatabaseInfo>, ApiError> {
    let databases = databases_of(&app)?;
    databases.grant(&database, request.capability, &identity(request.identity)?).await?;
    Ok(Json(databases.info(&database).await?))
}

/// Takes from an identity that it may write. Its entries do not count any more, older ones included.
#[utoipa::path(post, operation_id = "databases_revoke", path = "/db/{database}/revoke", tag = "databases", request_body = GrantRequest,
    params(("database" = String, Path, description = "Its name, or its address with each `/` written as `%2F`")),
    responses(
        (status = 200, description = "It may no longer write", body = DatabaseInfo),
        (status = 403, description = "This node is no admin of the database", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 404, description = "No database is called so", body = crate::error::Problem, content_type = "application/problem+json"),
        (status = 409, description = "The identity has not got the capability, the writers were fixed when it was created, or several are called so", body = crate::error::Problem, content_type = "application/problem+json"),
    ))]
pub(crate) async fn revoke(
    _: KeyHolder,
    State(app): State<SharedApp>,
    Named(database): Named,
    JsonBody { value: request, .. }: JsonBody<GrantRequest>,
) -> Result<Json<DatabaseInfo>, ApiError> {
    let databases = databases_of(&app)?;
    databases.revoke(&database, request.capability, &identity(request.identity)?).await?;
    Ok(Json(databases.info(&database).await?))
}

/// Returns the databases, which a node has unless its configuration says otherwise.
fn databases_of(app: &App) -> Result<&Arc<dyn Databases>, ApiError> {
    let none = || ApiError::databases_unavailable("this node has no databases: the setting db.enabled is false");
    app.services.databases.as_ref().ok_or_else(none)
}

fn checked(param: &'static str, text: String) -> Result<String, ApiError> {
    if text.is_empty() || text.len() > NAME_BYTES_MAX || text.chars().any(char::is_control) {
        let message = format!("'{param}' has to have 1 to {NAME_BYTES_MAX} bytes, and no control characters in them");
        return Err(ApiError::invalid_value(param, message));
    }
    Ok(text)
}

fn identity(id: String) -> Result<String, ApiError> {
    let plain =
        (1..=IDENTITY_BYTES_MAX).contains(&id.len()) && id.chars().all(|character| character.is_ascii_graphic());
    let message = "this is no id of an identity: a node shows its own in `identity`, and `*` stands for everybody";
    if plain { Ok(id) } else { Err(ApiError::invalid_value("identity", message)) }
}

fn writers(list: Vec<String>) -> Result<Vec<String>, ApiError> {
    if list.is_empty() || list.len() > WRITERS_MAX {
        let message = format!("'write' has to name 1 to {WRITERS_MAX} identities; without it this node may write");
        return Err(ApiError::invalid_value("write", message));
    }
    list.into_iter().map(|id| identity(id).map_err(|error| error.at("write"))).collect()
}

impl From<DatabasesError> for ApiError {
    fn from(error: DatabasesError) -> Self {
        let message = error.to_string();
        match error {
            DatabasesError::UnknownDatabase(_) => Self::database_not_found(message),
            DatabasesError::UnknownKey(_) => Self::key_not_found(message),
            DatabasesError::AmbiguousDatabase(_) => Self::conflict("ambiguous_database", message),
            DatabasesError::NameTaken(_) => Self::conflict("name_taken", message),
            DatabasesError::Closed(_) => Self::conflict("database_closed", message),
            DatabasesError::TooMany(_) => Self::conflict("too_many_databases", message),
            DatabasesError::WrongType(_) => Self::conflict("wrong_type", message),
            DatabasesError::FixedWriters(_) => Self::conflict("fixed_writers", message),
            DatabasesError::NotGranted(_) => Self::conflict("not_granted", message),
            DatabasesError::Invalid { param, .. } => Self::invalid_value(param, message),
            DatabasesError::NotAdmitted(_) => Self::forbidden("not_admitted", message),
            DatabasesError::Unreachable(_) => Self::database_unreachable(message),
            DatabasesError::Unavailable(_) => Self::databases_unavailable(message),
            DatabasesError::Failed(_) => Self::databases_failed(message),
        }
    }
}
