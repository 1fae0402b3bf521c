//! Schemas of fields that take more forms than a type can say.

use utoipa::openapi::schema::{ArrayBuilder, ObjectBuilder, OneOfBuilder, SchemaType, Type};
use utoipa::openapi::{RefOr, Schema};

use super::request::THINK_LEVELS;

fn text() -> ObjectBuilder {
    of(Type::String)
}

fn of(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(kind)
}

fn or_null(kind: Type) -> ObjectBuilder {
    ObjectBuilder::new().schema_type(SchemaType::Array(vec![kind, Type::Null]))
}

fn number() -> ObjectBuilder {
    or_null(Type::Number)
}

pub(super) fn role() -> RefOr<Schema> {
    text().enum_values(Some(["system", "developer", "user", "assistant", "tool"])).into()
}

pub(super) fn format() -> RefOr<Schema> {
    let word = text().enum_values(Some(["json", ""]));
    OneOfBuilder::new().item(word).item(of(Type::Object)).item(of(Type::Null)).into()
}

pub(super) fn think() -> RefOr<Schema> {
    let level = text().enum_values(Some(THINK_LEVELS));
    OneOfBuilder::new().item(of(Type::Boolean)).item(level).item(of(Type::Null)).into()
}

pub(super) fn keep_alive() -> RefOr<Schema> {
    let duration = text().examples(["5m", "1h30m", "0", "-1"]);
    OneOfBuilder::new().item(of(Type::Number)).item(duration).item(of(Type::Null)).into()
}

pub(super) fn arguments() -> RefOr<Schema> {
    OneOfBuilder::new().item(of(Type::Object)).item(text()).item(of(Type::Null)).into()
}

pub(super) fn texts() -> RefOr<Schema> {
    let list = ArrayBuilder::new().items(text()).max_items(Some(2_048));
    OneOfBuilder::new().item(text()).item(list).item(of(Type::Null)).into()
}

pub(super) fn licenses() -> RefOr<Schema> {
    let list = ArrayBuilder::new().items(text());
    OneOfBuilder::new().item(text()).item(list).item(of(Type::Null)).into()
}

/// Files by name, with their digests.
pub(super) fn files() -> RefOr<Schema> {
    let digest = text().pattern(Some("^sha256[:-][0-9a-fA-F]{64}$"));
    or_null(Type::Object).additional_properties(Some(digest)).into()
}

/// Facts about a model.
pub(super) fn info() -> RefOr<Schema> {
    let fact = || or_null(Type::String).max_length(Some(128));
    let capabilities = ArrayBuilder::new()
        .items(text().max_length(Some(128)))
        .schema_type(SchemaType::Array(vec![Type::Array, Type::Null]))
        .max_items(Some(64));
    or_null(Type::Object)
        .property("base_name", fact())
        .property("model_family", fact())
        .property("parameter_size", fact())
        .property("quantization_level", fact())
        .property("context_length", number())
        .property("embedding_length", number())
        .property("capabilities", capabilities)
        .into()
}

pub(super) fn options() -> RefOr<Schema> {
    let whole = |description: &str| number().description(Some(description));
    let stop = ArrayBuilder::new()
        .items(text().max_length(Some(1_024)))
        .schema_type(SchemaType::Array(vec![Type::Array, Type::Null]))
        .max_items(Some(64))
        .description(Some("Texts at which the answer ends"));
    or_null(Type::Object)
        .property("temperature", whole("0 always takes the likeliest token"))
        .property("top_k", whole("Keeps only this many likeliest tokens; 0 and below keep all"))
        .property("top_p", whole("Keeps the smallest set of tokens with this total probability"))
        .property("min_p", whole("Keeps tokens at least this probable relative to the likeliest"))
        .property("seed", whole("Makes the answer repeatable; the lower 32 bits count, and -1 stands for a random one"))
        .property(
            "repeat_penalty",
            whole("Divides the logits of recent tokens; brought into 0.1 to 10, and 0 and below stand for 1"),
        )
        .property("repeat_last_n", whole("How many recent tokens the penalties look at; -1: as many as they can"))
        .property(
            "presence_penalty",
            whole("Subtracted from the logit of every token that has occurred; brought into -2 to 2"),
        )
        .property(
            "frequency_penalty",
            whole("Subtracted from a token's logit for each time it has occurred; brought into -2 to 2"),
        )
        .property("stop", stop)
        .property("num_predict", whole("Most tokens to generate; 0 and below: until the model ends"))
        .property("num_ctx", whole("Tokens that prompt and answer need together"))
        .property("num_keep", whole("Tokens at the beginning that stay when the context is full"))
        .property("typical_p", whole("Keeps tokens that are about as surprising as expected; for servers that know it"))
        .property("num_batch", whole("For Ollama servers; others decide it themselves"))
        .property("num_gpu", whole("For Ollama servers; others decide it themselves"))
        .property("main_gpu", whole("For Ollama servers; others decide it themselves"))
        .property("num_thread", whole("For Ollama servers; others decide it themselves"))
        .property(
            "use_mmap",
            or_null(Type::Boolean).description(Some("For Ollama servers; others decide it themselves")),
        )
        .into()
}
