//! Embedding vectors.

use bombus_core::chat::{EmbedInput, EmbedRequest, EmbedResponse};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Provider;
use super::chunk::ChunkUsage;
use crate::BackendError;
use crate::upstream::{UpstreamClient, UpstreamError};

/// Largest answer: 2,048 vectors of 4,096 dimensions, 20 bytes for each number.
const ANSWER_BYTES_MAX: usize = 160 << 20;

#[derive(Deserialize)]
struct Answer {
    data: Vec<Vector>,
    #[serde(default)]
    usage: Option<ChunkUsage>,
}

#[derive(Deserialize)]
struct Vector {
    #[serde(default)]
    index: Option<usize>,
    embedding: Vec<f32>,
}

pub(super) async fn embed(
    client: &UpstreamClient,
    request: &EmbedRequest,
    id: &str,
    provider: Provider,
) -> Result<EmbedResponse, BackendError> {
    let failed = |error: UpstreamError| match error.is_missing_path() {
        true => {
            let message = format!("backend '{}' makes no embedding vectors: {error}", client.name());
            BackendError::Unsupported { param: "model", message }
        }
        false => error.into_backend(client.name(), &request.model, false),
    };
    if request.inputs.is_empty() {
        return Ok(EmbedResponse::new(Vec::new(), 0));
    }
    let body = body(request, id, provider);
    let answer: Answer = client.post_json("embeddings", Some(id), &body, ANSWER_BYTES_MAX).await.map_err(failed)?;
    let prompt_tokens = answer.usage.map_or(0, |usage| usage.usage().prompt_tokens);
    let vectors = in_order(answer.data, request.inputs.len());
    let vectors = vectors.map_err(|reason| failed(UpstreamError::Garbage { reason: reason.to_owned() }))?;
    let vectors = vectors.into_iter().map(|vector| unit(vector, request.dimensions));
    Ok(EmbedResponse::new(vectors.collect::<Result<_, _>>()?, prompt_tokens))
}

/// Builds the request. Vectors are cut to length here: servers know `dimensions` for few models and refuse it for the others.
fn body(request: &EmbedRequest, id: &str, provider: Provider) -> Map<String, Value> {
    let input = request.inputs.iter().map(|input| match input {
        EmbedInput::Text(text) => json!(text),
        EmbedInput::Tokens(tokens) => json!(tokens),
    });
    let mut body = Map::new();
    body.insert("model".to_owned(), json!(id));
    body.insert("input".to_owned(), input.collect());
    body.insert("encoding_format".to_owned(), json!("float"));
    if request.truncate && provider == Provider::Vllm {
        body.insert("truncate_prompt_tokens".to_owned(), json!(-1));
    }
    body
}

/// Puts the vectors into the order of the inputs.
fn in_order(data: Vec<Vector>, count: usize) -> Result<Vec<Vec<f32>>, &'static str> {
    let mut vectors = vec![Vec::new(); count];
    if data.len() != count {
        return Err("it answers another number of vectors than it was asked for");
    }
    for (at, vector) in data.into_iter().enumerate() {
        let place = vectors.get_mut(vector.index.unwrap_or(at)).ok_or("it numbers a vector past the last input")?;
        *place = vector.embedding;
    }
    if vectors.iter().any(|vector| vector.is_empty() || vector.iter().any(|value| !value.is_finite())) {
        return Err("it answers a vector that is empty or no vector of numbers");
    }
    Ok(vectors)
}

fn unit(mut vector: Vec<f32>, dimensions: Option<u32>) -> Result<Vec<f32>, BackendError> {
    if let Some(wanted) = dimensions {
        if wanted as usize > vector.len() {
            let message = format!("the vectors of this model have {} dimensions, not {wanted}", vector.len());
            return Err(BackendError::Unsupported { param: "dimensions", message });
        }
        vector.truncate(wanted as usize);
    }
    let length = vector.iter().map(|value| f64::from(*value).powi(2)).sum::<f64>().sqrt() as f32;
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    Ok(vector)
}
