//! Names of blocks: the SHA-256 of their bytes, written as a CID.
//!
//! OrbitDB knows one form only: version 1, codec dag-cbor, SHA-256, as text in base58btc. In bytes that is `01 71 12 20` and the digest.
//! Source: <https://github.com/multiformats/cid>.

use std::{fmt, str::FromStr};

use sha2::{Digest as _, Sha256};

/// What stands before the digest in the binary form: version 1, dag-cbor, SHA-256, 32 bytes.
pub const PREFIX: [u8; 4] = [0x01, 0x71, 0x12, 0x20];

/// Characters of the text form.
pub const TEXT_LEN: usize = 49;

const ALPHABET: &[u8; 58] = b"123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const NO_DIGIT: u8 = 0xff;
const DIGITS: [u8; 128] = digits();
/// 58^5: the greatest power of 58 below 2^32.
const FIVE_DIGITS: u64 = 656_356_768;

/// The name of a block. Shown as text: `zdpu...`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Hash([u8; 32]);

/// The text is no hash of a dag-cbor block in base58btc.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("this is no hash of a block: it has {TEXT_LEN} characters and begins with \"zdpu\"")]
pub struct HashError;

const fn digits() -> [u8; 128] {
    let mut digits = [NO_DIGIT; 128];
    let mut digit: u8 = 0;
    while digit < 58 {
        digits[ALPHABET[digit as usize] as usize] = digit;
        digit += 1;
    }
    digits
}

impl Hash {
    /// Returns the name of a block.
    #[must_use]
    pub fn of(block: &[u8]) -> Self {
        Self(Sha256::digest(block).into())
    }

    /// Takes a digest.
    #[must_use]
    pub const fn from_digest(digest: [u8; 32]) -> Self {
        Self(digest)
    }

    /// Returns the digest.
    #[must_use]
    pub const fn digest(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the binary CID.
    #[must_use]
    pub fn to_cid(&self) -> [u8; 36] {
        let mut cid = [0; 36];
        cid[..4].copy_from_slice(&PREFIX);
        cid[4..].copy_from_slice(&self.0);
        cid
    }

    /// Takes a binary CID; none when it is of another kind.
    #[must_use]
    pub fn from_cid(cid: &[u8]) -> Option<Self> {
        cid.strip_prefix(&PREFIX)?.try_into().ok().map(Self)
    }

    /// Writes the text form.
    ///
    /// The length is fixed, so that whole words can be divided: an entry names up to 17 others, and a conversion byte by byte takes as long
    /// for them as checking the signature.
    pub(crate) fn to_text(self) -> [u8; TEXT_LEN] {
        let mut words = [0_u64; 9];
        for (word, bytes) in words.iter_mut().zip(self.to_cid().chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u64::from(*byte));
        }
        let mut text = [b'z'; TEXT_LEN];
        let mut end = TEXT_LEN;
        while end > 1 {
            let mut rest = 0;
            for word in &mut words {
                let value = rest << 32 | *word;
                *word = value / FIVE_DIGITS;
                rest = value % FIVE_DIGITS;
            }
            for _ in 0..5.min(end - 1) {
                end -= 1;
                text[end] = ALPHABET[usize::try_from(rest % 58).unwrap_or_default()];
                rest /= 58;
            }
        }
        text
    }
}

impl FromStr for Hash {
    type Err = HashError;

    fn from_str(text: &str) -> Result<Self, HashError> {
        let digits =
            text.as_bytes().strip_prefix(b"z").filter(|digits| digits.len() == TEXT_LEN - 1).ok_or(HashError)?;
        // Words of 32 bits, the least first, with room above for one carry.
        let mut words = [0_u64; 9];
        for part in digits.chunks(5) {
            let (mut carry, mut scale) = (0, 1);
            for digit in part {
                let value = DIGITS.get(usize::from(*digit)).filter(|value| **value != NO_DIGIT).ok_or(HashError)?;
                carry = carry * 58 + u64::from(*value);
                scale *= 58;
            }
            for word in &mut words {
                let product = *word * scale + carry;
                *word = product & 0xffff_ffff;
                carry = product >> 32;
            }
            if carry != 0 {
                return Err(HashError);
            }
        }
        let mut cid = [0; 36];
        for (bytes, word) in cid.chunks_exact_mut(4).zip(words.iter().rev()) {
            bytes.copy_from_slice(&word.to_be_bytes()[4..]);
        }
        Self::from_cid(&cid).ok_or(HashError)
    }
}

impl fmt::Display for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(str::from_utf8(&self.to_text()).expect("base58 is ASCII"))
    }
}

impl fmt::Debug for Hash {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn text_is_base58_of_the_cid(digest in any::<[u8; 32]>()) {
            let hash = Hash::from_digest(digest);
            let text = hash.to_string();
            prop_assert_eq!(&text, &format!("z{}", bs58::encode(hash.to_cid()).into_string()));
            prop_assert_eq!(text.parse(), Ok(hash));
            prop_assert_eq!(Hash::from_cid(&hash.to_cid()), Some(hash));
        }

        #[test]
        fn only_texts_of_hashes_are_read(text in "z[1-9A-Za-z]{48}") {
            if let Ok(hash) = text.parse::<Hash>() {
                prop_assert_eq!(hash.to_string(), text);
            }
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let good = Hash::of(b"block").to_string();
        for text in ["", "z", &good[1..], &format!("{good}1"), &good.replace("zdpu", "zdpx"), &good.to_lowercase(), "ä"]
        {
            assert_eq!(text.parse::<Hash>(), Err(HashError), "{text}");
        }
        // Another codec: a raw block.
        let raw = format!("z{}", bs58::encode([&[0x01, 0x55, 0x12, 0x20][..], &[7; 32]].concat()).into_string());
        assert_eq!(raw.parse::<Hash>(), Err(HashError));
    }
}
