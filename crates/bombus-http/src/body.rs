use std::io;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bombus_infer::ByteStream;
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use http_body_util::{BodyExt, LengthLimitError, Limited};
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::app::SharedApp;
use crate::error::ApiError;

/// A request body in JSON, whatever its content type says.
pub(crate) struct JsonBody<T> {
    pub(crate) value: T,
    /// How many bytes it was read of.
    pub(crate) bytes: usize,
}

impl<T: DeserializeOwned> FromRequest<SharedApp> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, app: &SharedApp) -> Result<Self, ApiError> {
        let limits = &app.config.limits;
        let (parts, body) = request.into_parts();
        let reading = read(&parts.headers, body, limits.body_bytes_max, &app.body_room);
        let read = timeout(limits.body_time(), reading).await;
        let (bytes, _room) = read.unwrap_or_else(|_| Err(ApiError::body_too_slow(limits.body_time())))?;
        Ok(Self { value: parse(&bytes)?, bytes: bytes.len() })
    }
}

/// Memory for the bodies that are being read and parsed. Small ones need none of it, so that large ones never keep them waiting.
pub(crate) struct BodyRoom {
    kibibytes: Arc<Semaphore>,
    kibibytes_max: u32,
}

/// Bodies up to this size are not counted: connections are bounded, and so is the sum of these.
const SMALL_BYTES: usize = 64 << 10;

impl BodyRoom {
    pub(crate) fn new(bytes_max: usize) -> Self {
        let kibibytes_max = u32::try_from(bytes_max >> 10).unwrap_or(u32::MAX).clamp(1, 1 << 28);
        Self { kibibytes: Arc::new(Semaphore::new(kibibytes_max as usize)), kibibytes_max }
    }

    /// Waits until there is room for a body; one that is larger than all of it waits for all of it.
    async fn take(&self, bytes: usize) -> OwnedSemaphorePermit {
        let kibibytes = u32::try_from(bytes.div_ceil(1 << 10)).unwrap_or(u32::MAX).min(self.kibibytes_max);
        self.kibibytes.clone().acquire_many_owned(kibibytes).await.expect("the semaphore is never closed")
    }
}

/// Hands a large body on piece by piece, as long as it is not too large, not too slow, and the node not at its end; else `trouble` says what
/// was wrong with it.
pub(crate) fn pieces(
    app: &SharedApp,
    body: Body,
    bytes_max: u64,
    too_large: ApiError,
    trouble: Arc<OnceLock<ApiError>>,
) -> ByteStream {
    let (wait_max, cut) = (app.config.limits.body_time(), app.cut.clone());
    let mut data = body.into_data_stream();
    async_stream::stream! {
        let mut bytes = 0_u64;
        let error = loop {
            let piece = tokio::select! {
                biased;
                () = cut.cancelled() => break ApiError::shutting_down(),
                piece = timeout(wait_max, data.next()) => piece,
            };
            let piece = match piece {
                Ok(None) => return,
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => break ApiError::body_unreadable(error),
                Err(_) => break ApiError::body_too_slow(wait_max),
            };
            bytes = bytes.saturating_add(piece.len() as u64);
            if bytes > bytes_max {
                break too_large;
            }
            yield Ok(piece);
        };
        let told = io::Error::other(error.message.clone());
        // It is set once: the stream ends here.
        let _ = trouble.set(error);
        yield Err(told);
    }
    .boxed()
}

async fn read(
    headers: &HeaderMap,
    body: Body,
    bytes_max: usize,
    memory: &BodyRoom,
) -> Result<(BytesMut, Option<OwnedSemaphorePermit>), ApiError> {
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        if !headers.contains_key(header::EXPECT) {
            discard(body, bytes_max).await;
        }
        return Err(ApiError::body_too_large(bytes_max));
    }
    let (mut room, mut bytes) = (None, BytesMut::new());
    let mut body = Limited::new(body, bytes_max);
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| match error.is::<LengthLimitError>() {
            true => ApiError::body_too_large(bytes_max),
            false => ApiError::body_unreadable(error),
        })?;
        let Ok(data) = frame.into_data() else { continue };
        if room.is_none() && bytes.len() + data.len() > SMALL_BYTES {
            // Room is taken for the whole body at once: bodies that each had a part of what they need would wait for each other.
            room = Some(memory.take(announced.unwrap_or(bytes_max)).await);
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, room))
}

/// Takes in and forgets part of a body that is refused. A client that still writes when the connection closes never sees the answer
/// that says why.
pub(crate) async fn discard(mut body: Body, bytes_max: usize) {
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

/// Reads a body, and says which field is at fault where it cannot be read.
pub(crate) fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(bytes).map_err(|error| match error.classify() {
        Category::Data => locate::<T>(bytes).unwrap_or_else(|| ApiError::invalid_json(error.to_string())),
        _ if bytes.is_empty() => ApiError::missing_body(),
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
