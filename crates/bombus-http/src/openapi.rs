//! The API document, made of the handlers' own types. `router` collects the routes; what all of them share is added here.

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, Type};
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, OpenApi as Document, Ref, RefOr, Required, ResponseBuilder};
use utoipa::{Modify, OpenApi};

use crate::app::SharedApp;
use crate::error::{Dialect, OllamaError, OpenAiError, Problem};
use crate::inference;
use crate::native::tasks::stream::TaskEvent;
use crate::openai::request::ContentPart;
use crate::openai::response::{ChatCompletionChunk, Completion};

/// Returns this document.
#[utoipa::path(get, operation_id = "openapi", path = "/openapi.json", tag = "native",
    responses((status = 200, description = "OpenAPI 3.1", body = Object, content_type = "application/json")))]
pub(crate) async fn document(State(app): State<SharedApp>) -> Response {
    ([(header::CONTENT_TYPE, "application/json")], app.openapi.clone()).into_response()
}

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Bombus",
        description = "One API for every model that your machines run. Whichever node you ask, you ask the swarm.",
        license(name = "MIT OR Apache-2.0")
    ),
    tags(
        (name = "openai", description = "OpenAI's dialect"),
        (name = "ollama", description = "Ollama's dialect, at the level of its version 0.24"),
        (name = "native", description = "The node itself"),
        (name = "tasks", description = "Durable tasks: work that outlives the node that it was given to"),
        (name = "databases", description = "Replicated databases, which peers of OrbitDB can join")
    ),
    components(schemas(OpenAiError, OllamaError, Problem, ContentPart, ChatCompletionChunk, Completion, TaskEvent)),
    modifiers(&Keys)
)]
struct Frame;

struct Keys;

impl Modify for Keys {
    fn modify(&self, document: &mut Document) {
        let components = document.components.get_or_insert_default();
        let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
        components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
        components.add_security_scheme("header", SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::new("x-api-key"))));
    }
}

/// Returns the document without routes.
pub(crate) fn frame() -> Document {
    Frame::openapi()
}

const ANY: &[(u16, &str)] = &[
    (403, "Refused: the Host or the Origin is not one that a loopback listener accepts"),
    (431, "The request's head is too large"),
    (500, "The node failed at this request"),
    (503, "The API keys cannot be checked, or the node is shutting down"),
    (508, "The request has come back to this node, since a backend leads here again, or through too many nodes"),
];
const NEEDS_KEY: &[(u16, &str)] =
    &[(401, "No API key, or one that is not known; on loopback only where `api.require_key` is set")];
const NEEDS_KEY_EVERYWHERE: &[(u16, &str)] =
    &[(401, "No API key, or one that is not known; this route needs one on loopback too")];
const HAS_BODY: &[(u16, &str)] = &[
    (
        400,
        "The request is at fault: not JSON, a wrong type, a value out of range, a prompt over the context, something unsupported",
    ),
    (404, "No backend has this model, or no node is called as x-bombus-scope says"),
    (408, "The request's body did not arrive in time"),
    (413, "The request's body is too large"),
    (429, "Too many requests are waiting; Retry-After says when to try again"),
    (500, "The node failed at this request, or the model's file cannot be used (code `model_unusable`)"),
    (502, "The backend refuses this node"),
    (
        503,
        "The backend does not work, is out of memory or broke off; the API keys cannot be checked; the node is shutting down",
    ),
    (504, "No token came in time"),
];

/// The errors of a body that never reaches a backend.
const HAS_NATIVE_BODY: &[(u16, &str)] = &[
    (400, "The request is at fault: not JSON, a wrong type, a value out of range"),
    (408, "The request's body did not arrive in time"),
    (413, "The request's body is too large"),
];

/// The routes whose requests go to a model, wherever in the swarm it is.
const INFERENCE: &[&str] = &[
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/embeddings",
    "/api/chat",
    "/api/generate",
    "/api/embed",
    "/api/embeddings",
];

/// The requests to databases that cannot be taken back.
const DATABASE_CHANGES: &[&str] = &["/db/{database}/close", "/db/{database}/grant", "/db/{database}/revoke"];

/// Describes the header that says where a request may be answered.
fn scope_header() -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String).pattern(Some("^(local|remote|node=.+)$"));
    ParameterBuilder::new()
        .name(inference::SCOPE_HEADER.as_str())
        .parameter_in(ParameterIn::Header)
        .required(Required::False)
        .description(Some(
            "Where the request may be answered: `local`, `remote`, or `node=` and a node's name, its id, or a beginning of either",
        ))
        .schema(Some(text))
        .build()
}

/// Adds what requests to any handler of a kind have in common: headers, and the errors that they can meet on their way.
pub(crate) fn complete(document: &mut Document) {
    for (path, item) in &mut document.paths.paths {
        let dialect = Dialect::of(path);
        let (schema, content_type) = match dialect {
            Dialect::OpenAi => ("OpenAiError", "application/json"),
            Dialect::Ollama => ("OllamaError", "application/json"),
            Dialect::Native => ("Problem", "application/problem+json"),
        };
        if let Some(operation) = item.post.as_mut().filter(|_| INFERENCE.contains(&path.as_str())) {
            operation.parameters.get_or_insert_default().push(RefOr::T(scope_header()));
        }
        for operation in [&mut item.get, &mut item.post, &mut item.delete].into_iter().flatten() {
            add_errors(operation, ANY, schema, content_type);
            if path != "/health" {
                add_errors(operation, NEEDS_KEY, schema, content_type);
                operation.security = Some(keys());
            }
            if dialect == Dialect::Native && operation.request_body.is_some() {
                add_errors(operation, HAS_NATIVE_BODY, schema, content_type);
            } else if operation.request_body.is_some() {
                add_errors(operation, HAS_BODY, schema, content_type);
                if dialect == Dialect::Ollama {
                    operation.responses.responses.remove("429");
                }
            }
        }
        // These change who is a member, tell a secret of it, or take the machine from others: they need a key on loopback too.
        let needs_key = path.starts_with("/mesh/") || path.starts_with("/node/");
        let needs_key = needs_key || DATABASE_CHANGES.contains(&path.as_str());
        let of_database = item.delete.as_mut().filter(|_| path == "/db/{database}");
        for operation in item.post.as_mut().filter(|_| needs_key).into_iter().chain(of_database) {
            operation.security = Some(keys().split_off(1));
            add_errors(operation, NEEDS_KEY_EVERYWHERE, schema, content_type);
        }
        // Answers to HEAD have no bodies.
        if let Some(operation) = &mut item.head {
            operation.security = Some(keys());
            for (status, description) in ANY.iter().chain(NEEDS_KEY) {
                let response = ResponseBuilder::new().description(*description).build();
                operation.responses.responses.insert(status.to_string(), RefOr::T(response));
            }
        }
    }
}

/// Names the ways to show a key, none among them: on loopback none is asked for.
fn keys() -> Vec<SecurityRequirement> {
    vec![
        SecurityRequirement::default(),
        SecurityRequirement::new::<_, [&str; 0], &str>("bearer", []),
        SecurityRequirement::new::<_, [&str; 0], &str>("header", []),
    ]
}

fn add_errors(operation: &mut Operation, errors: &[(u16, &str)], schema: &str, content_type: &str) {
    for (status, description) in errors {
        let body = Content::new(Some(RefOr::Ref(Ref::from_schema_name(schema))));
        let mut response = ResponseBuilder::new().description(*description);
        // The head of such a request is not parsed far enough to know its route, and the answer to it is empty.
        if *status != 431 {
            response = response.content(content_type, body);
        }
        operation.responses.responses.insert(status.to_string(), RefOr::T(response.build()));
    }
}
