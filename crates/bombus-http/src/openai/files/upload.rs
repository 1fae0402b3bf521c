//! Takes a file out of a form, piece by piece.

use std::sync::{Arc, OnceLock};

use axum::body::Body;
use axum::extract::multipart::{Field, Multipart, MultipartError};
use axum::extract::{DefaultBodyLimit, FromRequest, Request};
use axum::http::header;
use bombus_core::batches::{FILE_BYTES_MAX, FileInfo, PURPOSE};

use super::purpose_error;
use crate::app::SharedApp;
use crate::body::{discard, pieces};
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
    let body = Body::from_stream(pieces(app, body, FILE_BYTES_MAX + FORM_BYTES_MAX, too_large(), trouble.clone()));
    let mut request = Request::from_parts(parts, body);
    // The body is bounded where it is taken to pieces.
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
