//! Takes a file out of a form, piece by piece.

use std::io;
use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::header;
use bombus_core::batches::{FILE_BYTES_MAX, FileInfo, PURPOSE};
use bytes::Bytes;
use futures::StreamExt;
use tokio::time::timeout;

use super::purpose_error;
use crate::app::SharedApp;
use crate::body::discard;
use crate::error::ApiError;
use crate::files::{FileUpload, Files};

/// What a form may have beside the file, in bytes: names, the purpose, the lines between its parts.
const FORM_BYTES_MAX: u64 = 64 << 10;
/// Longest purpose that is read, in bytes.
const PURPOSE_BYTES_MAX: usize = 64;

/// What has come of a form.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    file: Option<(Box<dyn FileUpload>, String)>,
}

/// Takes the file of a request.
pub(super) async fn take(app: &SharedApp, files: &dyn Files, request: Request) -> Result<FileInfo, ApiError> {
    let bytes_max = usize::try_from(FILE_BYTES_MAX + FORM_BYTES_MAX).unwrap_or(usize::MAX);
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let (parts, body) = request.into_parts();
    if announced.is_some_and(|bytes| bytes > bytes_max) {
        if !parts.headers.contains_key(header::EXPECT) {
            discard(body, bytes_max).await;
        }
        return Err(too_large());
    }
    let trouble = Arc::new(OnceLock::new());
    let mut request = Request::from_parts(parts, watched(app, body, bytes_max, trouble.clone()));
    // The body is bounded where it is watched.
    DefaultBodyLimit::disable().apply(&mut request);
    let form = Multipart::from_request(request, app).await;
    let mut form = form.map_err(|rejection| ApiError::invalid_form(rejection.body_text()))?;
    let taken = read(files, &mut form).await;
    if taken.is_err() {
        // A client that is still sending takes an early answer for a broken connection.
        while let Ok(Some(_)) = form.next_field().await {}
    }
    // What was wrong with the body is told before what that led to.
    let taken = taken.map_err(|error| trouble.get().cloned().unwrap_or(error))?;
    match taken.purpose.as_deref() {
        Some(PURPOSE) => {}
        Some(_) => return Err(purpose_error()),
        None => return Err(ApiError { message: "'purpose' is missing".into(), ..purpose_error() }),
    }
    let (upload, filename) = taken.file.ok_or_else(|| ApiError::missing("file", "'file' is missing"))?;
    Ok(upload.finish(&filename).await?)
}

async fn read(files: &dyn Files, form: &mut Multipart) -> Result<Form, ApiError> {
    let mut taken = Form::default();
    while let Some(mut field) = form.next_field().await.map_err(unreadable)? {
        match field.name() {
            Some("purpose") => {
                let purpose = text(&mut field).await?;
                if purpose != PURPOSE {
                    return Err(purpose_error());
                }
                taken.purpose = Some(purpose);
            }
            Some("file") if taken.file.is_some() => {
                return Err(ApiError::invalid_value("file", "'file' is there twice; send each file by itself"));
            }
            Some("file") => {
                let Some(filename) = field.file_name().map(str::to_owned) else {
                    return Err(ApiError::invalid_value("file", "'file' has to be a file with a name"));
                };
                let mut upload = files.upload().await?;
                while let Some(piece) = field.chunk().await.map_err(unreadable)? {
                    upload.write(piece).await?;
                }
                taken.file = Some((upload, filename));
            }
            // Other fields have no effect.
            _ => while field.chunk().await.map_err(unreadable)?.is_some() {},
        }
    }
    Ok(taken)
}

async fn text(field: &mut Field<'_>) -> Result<String, ApiError> {
    let mut bytes = Vec::new();
    while let Some(piece) = field.chunk().await.map_err(unreadable)? {
        if bytes.len() + piece.len() > PURPOSE_BYTES_MAX {
            return Err(purpose_error());
        }
        bytes.extend_from_slice(&piece);
    }
    String::from_utf8(bytes).map_err(|_| purpose_error())
}

#[expect(clippy::needless_pass_by_value, reason = "it maps an error by value")]
fn unreadable(error: MultipartError) -> ApiError {
    ApiError::invalid_form(error.body_text())
}

fn too_large() -> ApiError {
    ApiError::body_too_large(usize::try_from(FILE_BYTES_MAX).unwrap_or(usize::MAX))
}

/// Hands a body on as long as it is not too large, not too slow, and the node not at its end; else says what was wrong with it.
fn watched(app: &SharedApp, body: Body, bytes_max: usize, trouble: Arc<OnceLock<ApiError>>) -> Body {
    let (wait_max, cut) = (app.config.limits.body_time(), app.cut.clone());
    let mut data = body.into_data_stream();
    Body::from_stream(async_stream::stream! {
        let mut bytes = 0;
        loop {
            let piece: Result<Bytes, ApiError> = tokio::select! {
                biased;
                () = cut.cancelled() => Err(ApiError::shutting_down()),
                piece = timeout(wait_max, data.next()) => match piece {
                    Ok(None) => return,
                    Ok(Some(Ok(piece))) => Ok(piece),
                    Ok(Some(Err(error))) => Err(ApiError::body_unreadable(error)),
                    Err(_) => Err(ApiError::body_too_slow(wait_max)),
                },
            };
            let piece = piece.and_then(|piece| {
                bytes += piece.len();
                if bytes > bytes_max { Err(too_large()) } else { Ok(piece) }
            });
            match piece {
                Ok(piece) => yield Ok(piece),
                Err(error) => {
                    let told = io::Error::other(error.message.clone());
                    // It is set once: the stream ends here.
                    let _ = trouble.set(error);
                    yield Err(told);
                    return;
                }
            }
        }
    })
}
