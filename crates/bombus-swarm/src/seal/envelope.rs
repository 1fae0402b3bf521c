//! Sealing and opening.

use aes_gcm::aead::{Aead, KeyInit, Payload};
use aes_gcm::{Aes256Gcm, Nonce};
use bombus_core::identity::NodeId;
use data_encoding::BASE64;
use hpke::{Deserializable, OpModeR, OpModeS, Serializable, single_shot_open, single_shot_seal};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use super::key::decoded;
use super::{Kdf, Kem, PublicSealKey, Purpose, SealKey, WrapAead};

/// The version of the format that is written, and the only one that is read.
const VERSION: u32 = 1;
/// Bytes of a content key, of a nonce, of an authentication tag, and of what HPKE encapsulates.
const KEY: usize = 32;
const NONCE: usize = 12;
const TAG: usize = 16;
const ENCAPSULATED: usize = 32;

/// Most recipients of a text.
pub const RECIPIENTS_MAX: usize = 16;
/// Most bytes of a text, in bytes: 32 MiB, as of any request.
pub const SEALED_BYTES_MAX: usize = 32 << 20;

/// A sealed text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sealed {
    /// Who can open it.
    pub header: SealHeader,
    /// The nonce and the encrypted text, in base64.
    pub text: String,
}

/// The content key of a sealed text, wrapped for each of those who can open it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealHeader {
    /// The version of the format.
    v: u32,
    keys: Vec<WrappedKey>,
}

/// The content key, wrapped for one node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct WrappedKey {
    node: NodeId,
    /// What HPKE encapsulates, in base64.
    enc: String,
    /// The content key by it, in base64.
    key: String,
}

impl SealHeader {
    /// Returns those who can open the text.
    pub fn recipients(&self) -> impl Iterator<Item = &NodeId> {
        self.keys.iter().map(|wrapped| &wrapped.node)
    }

    /// Says whether a node can open the text.
    #[must_use]
    pub fn is_for(&self, node: &NodeId) -> bool {
        self.recipients().any(|recipient| recipient == node)
    }
}

/// Why a text was not sealed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SealError {
    /// There is nobody to seal it to, or there are too many.
    #[error("a text is sealed to 1 to {RECIPIENTS_MAX} nodes, and here are {0}")]
    Recipients(usize),
    /// It is too large.
    #[error("a sealed text has at most {SEALED_BYTES_MAX} bytes, and this one has {0}")]
    TooLarge(usize),
    /// A recipient's key is of the few that everybody could open.
    #[error("the key of a recipient is none that keeps anything secret")]
    WeakKey,
    /// It cannot be written as JSON.
    #[error("the text has no form in JSON")]
    Form,
    /// The system gives no random bytes.
    #[error("the system gives no random bytes to seal with")]
    NoRandom,
}

/// Why a sealed text was not opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Another version sealed it, in a way that this one does not know.
    #[error("this version of bombus does not know seals of version {0}; update it")]
    Version(u32),
    /// It is not for this node.
    #[error("the text is sealed to other nodes")]
    NotForUs,
    /// It is not of the form that sealed texts have.
    #[error("the sealed text is damaged: {0}")]
    Form(&'static str),
    /// It was changed, was sealed for another purpose, or to a key that this node has no more.
    #[error(
        "the sealed text does not open: it was changed, belongs to another task, or is for a key that this node no longer has"
    )]
    Refused,
}

/// Seals a text to some nodes, each of which can open it alone. Who seals it cannot, unless it is among them.
///
/// Two seals of the same text have nothing in common. The length of the text can be told from what is sealed.
///
/// # Errors
///
/// When there are no recipients or too many, when the text is too large, or when the system gives no random bytes.
pub fn seal(purpose: &Purpose<'_>, plain: &[u8], recipients: &[(NodeId, PublicSealKey)]) -> Result<Sealed, SealError> {
    if recipients.is_empty() || recipients.len() > RECIPIENTS_MAX {
        return Err(SealError::Recipients(recipients.len()));
    }
    if plain.len() > SEALED_BYTES_MAX {
        return Err(SealError::TooLarge(plain.len()));
    }
    let (mut key, mut nonce) = (Zeroizing::new([0; KEY]), [0; NONCE]);
    getrandom::fill(key.as_mut()).and_then(|()| getrandom::fill(&mut nonce)).map_err(|_| SealError::NoRandom)?;
    let bound = purpose.bytes();
    let cipher = Aes256Gcm::new(&(*key).into());
    let payload = Payload { msg: plain, aad: &bound };
    let sealed = cipher.encrypt(&Nonce::from(nonce), payload).map_err(|_| SealError::TooLarge(plain.len()))?;
    let wrapped = recipients.iter().map(|(node, public)| {
        let (enc, key) = wrap(*public, &bound, key.as_ref(), node.as_str().as_bytes())?;
        Ok(WrappedKey { node: node.clone(), enc: BASE64.encode(&enc), key: BASE64.encode(&key) })
    });
    let keys = wrapped.collect::<Result<_, _>>()?;
    Ok(Sealed { header: SealHeader { v: VERSION, keys }, text: BASE64.encode(&[&nonce[..], &sealed].concat()) })
}

/// Opens a text that was sealed to the node `own`, whose key is `key`. The text is overwritten in memory when it is dropped.
///
/// # Errors
///
/// When it is not for this node, was changed, or was sealed for another purpose.
pub fn open(
    purpose: &Purpose<'_>,
    header: &SealHeader,
    text: &str,
    own: &NodeId,
    key: &SealKey,
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    if header.v != VERSION {
        return Err(OpenError::Version(header.v));
    }
    if header.keys.len() > RECIPIENTS_MAX {
        return Err(OpenError::Form("it has too many recipients"));
    }
    if text.len() > BASE64.encode_len(NONCE + SEALED_BYTES_MAX + TAG) {
        return Err(OpenError::Form("it is too large"));
    }
    let wrapped = header.keys.iter().find(|wrapped| wrapped.node == *own).ok_or(OpenError::NotForUs)?;
    let enc = decoded::<ENCAPSULATED>(&wrapped.enc).ok_or(OpenError::Form("its encapsulated key is none"))?;
    let content_key = decoded::<{ KEY + TAG }>(&wrapped.key).ok_or(OpenError::Form("its wrapped key is none"))?;
    let bound = purpose.bytes();
    let content_key = unwrap(key, &enc, &bound, &content_key, own.as_str().as_bytes())?;
    let cipher = Aes256Gcm::new_from_slice(&content_key).map_err(|_| OpenError::Refused)?;
    let sealed = BASE64.decode(text.as_bytes()).map_err(|_| OpenError::Form("it is not in base64"))?;
    let (nonce, sealed) = sealed.split_first_chunk::<NONCE>().ok_or(OpenError::Form("it is too short"))?;
    let payload = Payload { msg: sealed, aad: &bound };
    cipher.decrypt(&Nonce::from(*nonce), payload).map(Zeroizing::new).map_err(|_| OpenError::Refused)
}

/// `SealBase` of RFC 9180, section 6.1: returns what is encapsulated, and the ciphertext.
fn wrap(
    recipient: PublicSealKey,
    info: &[u8],
    plain: &[u8],
    associated: &[u8],
) -> Result<([u8; ENCAPSULATED], Vec<u8>), SealError> {
    let sealed = single_shot_seal::<WrapAead, Kdf, Kem>(&OpModeS::Base, &recipient.to_hpke(), info, plain, associated);
    let (enc, sealed) = sealed.map_err(|_| SealError::WeakKey)?;
    Ok((enc.to_bytes().into(), sealed))
}

/// `OpenBase` of RFC 9180, section 6.1.
pub(super) fn unwrap(
    key: &SealKey,
    enc: &[u8; ENCAPSULATED],
    info: &[u8],
    sealed: &[u8],
    associated: &[u8],
) -> Result<Zeroizing<Vec<u8>>, OpenError> {
    let enc = <Kem as hpke::Kem>::EncappedKey::from_bytes(enc).map_err(|_| OpenError::Refused)?;
    let opened = single_shot_open::<WrapAead, Kdf, Kem>(&OpModeR::Base, key.secret(), &enc, info, sealed, associated);
    opened.map(Zeroizing::new).map_err(|_| OpenError::Refused)
}
