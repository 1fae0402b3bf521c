use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::time::timeout;

use crate::app::SharedApp;
use crate::error::ApiError;

/// A request body in JSON, whatever its content type says.
pub(crate) struct JsonBody<T>(pub(crate) T);

impl<T: DeserializeOwned> FromRequest<SharedApp> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &SharedApp) -> Result<Self, ApiError> {
        let limits = &app.config.limits;
        let (parts, body) = request.into_parts();
        let bytes = read(&parts.headers, body, limits.body_bytes_max, limits.body_time()).await?;
        parse(&bytes).map(Self)
    }
}

async fn read(headers: &HeaderMap, body: Body, bytes_max: usize, time_max: Duration) -> Result<Bytes, ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        if !headers.contains_key(header::EXPECT) {
            discard(body, bytes_max).await;
        }
        return Err(ApiError::body_too_large(bytes_max));
    }
    match timeout(time_max, Limited::new(body, bytes_max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(ApiError::body_too_large(bytes_max)),
        Ok(Err(error)) => Err(ApiError::body_unreadable(error)),
        Err(_) => Err(ApiError::body_too_slow(time_max)),
    }
}

/// Takes in and forgets part of a body that is refused. A client that still writes when the connection closes never sees the answer
/// that says why.
async fn discard(mut body: Body, bytes_max: usize) {
    let mut bytes = 0;
    let all = async {
        while bytes < bytes_max.saturating_mul(2) {
            match body.frame().await {
                Some(Ok(frame)) => bytes += frame.data_ref().map_or(0, Bytes::len),
                _ => break,
            }
        }
    };
    // Whether all of it came in time makes no difference: the answer is the same.
    let _ = timeout(Duration::from_secs(5), all).await;
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => locate::<T>(bytes).unwrap_or_else(|| ApiError::invalid_json(error.to_string())),
        _ if bytes.is_empty() => ApiError::invalid_json("the request has no body; it has to be a JSON object"),
        _ => ApiError::invalid_json(format!("the request body is not valid JSON: {error}")),
    })
}

/// Reads once more, slower, to learn which field is at fault.
fn locate<T: DeserializeOwned>(bytes: &[u8]) -> Option<ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let error = serde_path_to_error::deserialize::<_, T>(&mut deserializer).err()?;
    let path = error.path().to_string();
    let message = error.into_inner().to_string();
    if let Some(field) = message.strip_prefix("missing field `").and_then(|rest| rest.split('`').next()) {
        let param = if path == "." { field.to_owned() } else { format!("{path}.{field}") };
        return Some(ApiError::missing(param.clone(), format!("'{param}' is missing")));
    }
    if path == "." {
        return Some(ApiError::invalid_json(format!("the request body has to be a JSON object: {message}")));
    }
    Some(ApiError::invalid_value(path.clone(), format!("'{path}' has the wrong form: {message}")))
}
