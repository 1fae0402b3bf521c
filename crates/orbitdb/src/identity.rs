//! Who writes: identities of two keys, as the provider `publickey` of OrbitDB makes them.
//!
//! The *outer* key is the name that write lists hold; the *inner* key signs entries. Each signs the other into one block.

use crate::{
    cbor::{DecodeError, Value, read::Reader, write},
    cid::Hash,
    key::{PublicKey, SecretKey, SignatureError},
};

/// The only type of identities that is known.
const TYPE: &str = "publickey";

/// Greatest size of an identity's block in bytes. A real one takes about 530.
pub const BLOCK_BYTES_MAX: usize = 4096;

/// An identity whose signatures were checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    hash: Hash,
    id: String,
    key: PublicKey,
}

/// Why a block is no valid identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// The block is too large.
    #[error("the block of an identity is larger than {BLOCK_BYTES_MAX} bytes")]
    Size,
    /// The block is not of the form of an identity.
    #[error("the block of an identity is not of its form: {0}")]
    Form(#[from] DecodeError),
    /// The identity is of another type.
    #[error("the identity is not of the type \"{TYPE}\"")]
    Type,
    /// One of its keys is none.
    #[error("a key of the identity is none")]
    Key,
    /// One of its signatures does not hold.
    #[error("a signature of the identity does not hold: {0}")]
    Signature(#[from] SignatureError),
}

impl Identity {
    /// Reads and checks an identity.
    ///
    /// # Errors
    ///
    /// [`IdentityError`] when the block is none, or a signature does not hold.
    pub fn read(block: &[u8]) -> Result<Self, IdentityError> {
        if block.len() > BLOCK_BYTES_MAX {
            return Err(IdentityError::Size);
        }
        let parts = Parts::read(block)?;
        if parts.r#type != TYPE {
            return Err(IdentityError::Type);
        }
        let key = PublicKey::from_hex(parts.public_key).map_err(|_| IdentityError::Key)?;
        let outer = PublicKey::from_hex(parts.id).map_err(|_| IdentityError::Key)?;
        key.verify(parts.id.as_bytes(), parts.signature_id)?;
        outer
            .verify_parts(&[parts.public_key.as_bytes(), parts.signature_id.as_bytes()], parts.signature_public_key)?;
        Ok(Self { hash: Hash::of(block), id: parts.id.to_owned(), key })
    }

    /// Returns the name of its block, which entries give.
    #[must_use]
    pub const fn hash(&self) -> Hash {
        self.hash
    }

    /// Returns the name that write lists hold: the outer public key in hex.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.id
    }

    /// Returns the key that signs its entries: the inner public key.
    #[must_use]
    pub const fn key(&self) -> &PublicKey {
        &self.key
    }
}

/// The fields of an identity's block.
struct Parts<'a> {
    id: &'a str,
    r#type: &'a str,
    public_key: &'a str,
    signature_id: &'a str,
    signature_public_key: &'a str,
}

impl<'a> Parts<'a> {
    fn read(block: &'a [u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(block);
        let shape = |count, expected| if count == expected { Ok(()) } else { Err(DecodeError::Kind) };
        shape(reader.map_len()?, 4)?;
        reader.key("id")?;
        let id = reader.text()?;
        reader.key("type")?;
        let r#type = reader.text()?;
        reader.key("publicKey")?;
        let public_key = reader.text()?;
        reader.key("signatures")?;
        shape(reader.map_len()?, 2)?;
        reader.key("id")?;
        let signature_id = reader.text()?;
        reader.key("publicKey")?;
        let signature_public_key = reader.text()?;
        reader.end()?;
        Ok(Self { id, r#type, public_key, signature_id, signature_public_key })
    }
}

/// An identity with the key that signs for it.
#[derive(Clone, Debug)]
pub struct Signer {
    identity: Identity,
    block: Vec<u8>,
    key: SecretKey,
}

impl Signer {
    /// Joins an outer and an inner key to an identity.
    #[must_use]
    pub fn new(outer: &SecretKey, inner: &SecretKey) -> Self {
        Self::signed(outer, inner, |id| inner.sign(id.as_bytes()))
    }

    /// Joins them as one may that wants another identity of the same keys for each number.
    #[cfg(test)]
    pub(crate) fn once_more(outer: &SecretKey, inner: &SecretKey, number: u8) -> Self {
        Self::signed(outer, inner, |id| inner.sign_once_more(id.as_bytes(), number))
    }

    fn signed(outer: &SecretKey, inner: &SecretKey, sign: impl FnOnce(&str) -> String) -> Self {
        let id = outer.public_key().to_string();
        let public_key = inner.public_key().to_string();
        let signature_id = sign(&id);
        let signature_public_key = outer.sign_parts(&[public_key.as_bytes(), signature_id.as_bytes()]);
        let signatures = Value::map([("id", signature_id), ("publicKey", signature_public_key)]);
        let value = Value::map([
            ("id", Value::from(id.as_str())),
            ("type", TYPE.into()),
            ("publicKey", public_key.into()),
            ("signatures", signatures),
        ]);
        let mut block = Vec::with_capacity(544);
        write::value(&mut block, &value, 2).expect("text in two levels has a form");
        let identity = Identity { hash: Hash::of(&block), id, key: inner.public_key() };
        Self { identity, block, key: inner.clone() }
    }

    /// Returns the identity.
    #[must_use]
    pub const fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Returns the block of the identity, which peers ask for.
    #[must_use]
    pub fn block(&self) -> &[u8] {
        &self.block
    }

    /// Returns the key that signs entries.
    pub(crate) const fn key(&self) -> &SecretKey {
        &self.key
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn signer(seed: u8) -> Signer {
        Signer::new(&SecretKey::from_bytes(&[seed; 32]).unwrap(), &SecretKey::from_bytes(&[seed + 1; 32]).unwrap())
    }

    #[test]
    fn an_identity_that_was_made_is_read() {
        let signer = signer(1);
        assert_eq!(Identity::read(signer.block()).unwrap(), *signer.identity());
    }

    #[test]
    fn an_identity_that_takes_anothers_name_is_refused() {
        let (alice, mallory) = (signer(1), signer(3));
        let mut value = Value::decode(mallory.block()).unwrap();
        let Value::Map(map) = &mut value else { unreachable!() };
        map.insert("id", alice.identity().id());
        assert!(matches!(Identity::read(&value.encode().unwrap()), Err(IdentityError::Signature(_))));

        // With the first signature made anew by the own inner key, the second one still misses.
        let forged = SecretKey::from_bytes(&[4; 32]).unwrap().sign(alice.identity().id().as_bytes());
        let Value::Map(map) = &mut value else { unreachable!() };
        let old = map.get("signatures").unwrap().get("publicKey").unwrap().clone();
        map.insert("signatures", Value::map([("id", Value::from(forged)), ("publicKey", old)]));
        assert!(matches!(Identity::read(&value.encode().unwrap()), Err(IdentityError::Signature(_))));
    }

    #[test]
    fn an_identity_that_claims_anothers_key_is_refused() {
        // All that Mallory can sign is right; that the inner key is Alice's only Alice could have signed.
        let alice = signer(1);
        let (outer, inner) = (SecretKey::from_bytes(&[3; 32]).unwrap(), SecretKey::from_bytes(&[4; 32]).unwrap());
        let id = outer.public_key().to_string();
        let public_key = alice.identity().key().to_string();
        let signature_id = inner.sign(id.as_bytes());
        let signature_public_key = outer.sign(format!("{public_key}{signature_id}").as_bytes());
        let signatures = Value::map([("id", signature_id), ("publicKey", signature_public_key)]);
        let value = Value::map([
            ("id", Value::from(id)),
            ("type", TYPE.into()),
            ("publicKey", public_key.into()),
            ("signatures", signatures),
        ]);
        let refused = Identity::read(&value.encode().unwrap());
        assert_eq!(refused, Err(IdentityError::Signature(SignatureError::Wrong)));
    }

    #[test]
    fn other_blocks_are_no_identities() {
        let good = signer(1);
        let mut value = Value::decode(good.block()).unwrap();
        let Value::Map(map) = &mut value else { unreachable!() };
        map.insert("type", "ed25519");
        assert_eq!(Identity::read(&value.encode().unwrap()), Err(IdentityError::Type));
        assert_eq!(Identity::read(&[0; BLOCK_BYTES_MAX + 1]), Err(IdentityError::Size));
        assert!(matches!(Identity::read(&[0xa0]), Err(IdentityError::Form(_))));
        assert!(matches!(
            Identity::read(&[good.block(), &[0]].concat()),
            Err(IdentityError::Form(DecodeError::Trailing))
        ));
    }
}
