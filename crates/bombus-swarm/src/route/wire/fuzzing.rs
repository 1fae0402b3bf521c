//! What the fuzz targets need of the messages.

use bombus_core::chat::{ChatRequest, EmbedRequest};
use serde::Deserialize;

use super::{ASK_BYTES_MAX, Ask, Heard, MODELS_MAX, Messages, OFFER_BYTES_MAX, REPLY_BYTES_MAX, Told, push};

/// Most bytes of a request that is read.
const REQUEST_BYTES_MAX: usize = 64 * 1024;

/// Reads a message as another one of the same stream, and expects that it was written as it is read.
pub(crate) fn is_written_as_read<T>(message: &T, max: usize)
where
    T: serde::Serialize + for<'de> Deserialize<'de> + PartialEq + std::fmt::Debug,
{
    let mut bytes = Vec::new();
    push(&mut bytes, message).expect("memory takes all that is written");
    // What was read from few bytes may take more than a message has, as numbers in a longer form do the other way round.
    if bytes.len() <= max {
        assert_eq!(read_all::<T>(&bytes, max).first(), Some(message), "it reads what it writes");
    }
}

/// Reads messages of at most so many bytes until the bytes end or are none.
pub(crate) fn read_all<T: for<'de> Deserialize<'de>>(bytes: &[u8], max: usize) -> Vec<T> {
    let mut messages = messages_in(bytes, max);
    std::iter::from_fn(|| messages.next().ok().flatten()).collect()
}

fn messages_in(bytes: &[u8], max: usize) -> Messages {
    let mut messages = Messages::up_to(max);
    messages.bytes.extend_from_slice(bytes);
    messages
}

/// Reads requests as a worker does: what announces each, and then the request itself.
///
/// # Panics
///
/// When something does not hold of them, as those that follow.
pub fn route_requests(bytes: &[u8]) {
    let mut messages = messages_in(bytes, ASK_BYTES_MAX);
    while let Ok(Some(ask)) = messages.next::<Ask>() {
        is_written_as_read(&ask, ASK_BYTES_MAX);
        messages.set_max(usize::try_from(ask.bytes).unwrap_or(usize::MAX).min(REQUEST_BYTES_MAX));
        let is_read = match ask.kind.as_str() {
            "chat" => messages.next::<ChatRequest>().is_ok_and(|request| request.is_some()),
            "embed" => messages.next::<EmbedRequest>().is_ok_and(|request| request.is_some()),
            _ => true,
        };
        if !is_read {
            return;
        }
        messages.set_max(ASK_BYTES_MAX);
    }
}

/// Reads what workers say.
pub fn route_replies(bytes: &[u8]) {
    for heard in read_all::<Heard>(bytes, REPLY_BYTES_MAX) {
        if let Heard::Loaded(models) = heard {
            assert!(models.len() <= MODELS_MAX, "{} models", models.len());
        }
    }
}

/// Reads what nodes tell of what they offer.
pub fn route_offers(bytes: &[u8]) {
    for mut told in read_all::<Told>(bytes, OFFER_BYTES_MAX) {
        let models = told.models().unwrap_or_default();
        assert!(models.len() <= MODELS_MAX, "{} models", models.len());
        assert!(models.iter().all(|model| model.capabilities.len() <= 16), "{models:?}");
        assert!(told.by_text().len() <= MODELS_MAX);
    }
}
