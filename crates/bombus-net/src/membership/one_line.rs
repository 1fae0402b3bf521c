//! Secrets as one line of text that is copied by hand: `<kind><version><base32 of length, content and checksum>`.

use data_encoding::BASE32_NOPAD;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

/// Bytes of the checksum: a mistyped line passes once in 4 billion times.
const CHECKSUM_BYTES: usize = 4;
/// Bytes that say how long the content is.
const LENGTH_BYTES: usize = 2;
/// The longest line that is looked at, in characters.
pub(super) const LINE_CHARACTERS_MAX: usize = 1_024;

/// A kind of line: what it begins with, before the number of its version.
pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) version: u32,
    /// What people call it.
    pub(super) called: &'static str,
}

/// All kinds, so that one that is given for another is told by its name.
pub(super) const TICKET: Kind = Kind { name: "bombus", version: 1, called: "ticket" };
pub(super) const OWNER_KEY: Kind = Kind { name: "bombusowner", version: 1, called: "owner key" };

/// Says what is wrong with a line. It never holds a part of the line beyond one character.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseLineError {
    /// It is something else.
    #[error("this is no {wanted}: a {wanted} begins with \"{begins}\"")]
    Foreign {
        /// What was asked for.
        wanted: &'static str,
        /// How it begins.
        begins: String,
    },
    /// It is another kind of secret.
    #[error("this is an {found}, and a {wanted} is needed")]
    OtherKind {
        /// What was asked for.
        wanted: &'static str,
        /// What was given.
        found: &'static str,
    },
    /// A later version of Bombus wrote it.
    #[error(
        "this {wanted} has version {found}, and this version of bombus reads version {known}: update bombus on this machine"
    )]
    Newer {
        /// What was asked for.
        wanted: &'static str,
        /// The version of the line.
        found: u32,
        /// The version that is read.
        known: u32,
    },
    /// Its end is missing.
    #[error("the {wanted} is cut off: {missing} more characters should follow")]
    CutOff {
        /// What was asked for.
        wanted: &'static str,
        /// How many characters are missing.
        missing: usize,
    },
    /// A character is none of those that a line has.
    #[error("the {wanted} has a mistyped character: {character:?} at place {place}")]
    Character {
        /// What was asked for.
        wanted: &'static str,
        /// The character.
        character: char,
        /// Its place in the line, from 1.
        place: usize,
    },
    /// The checksum does not fit.
    #[error("the {wanted} has a mistyped character, or characters are missing in its middle: copy it again")]
    Checksum {
        /// What was asked for.
        wanted: &'static str,
    },
    /// Something follows it.
    #[error("the {wanted} goes on after its end, by {by} characters: copy it again")]
    TooLong {
        /// What was asked for.
        wanted: &'static str,
        /// How many characters are too many.
        by: usize,
    },
    /// The checksum fits and the content makes no sense: whoever wrote it did it wrong.
    #[error("the {wanted} is not valid: {reason}")]
    Content {
        /// What was asked for.
        wanted: &'static str,
        /// What is wrong.
        reason: String,
    },
}

/// Returns how many characters a line of so much content has.
pub(super) fn characters(kind: &Kind, content_bytes: usize) -> usize {
    kind.name.len() + 1 + BASE32_NOPAD.encode_len(LENGTH_BYTES + content_bytes + CHECKSUM_BYTES)
}

/// Writes content as a line. The content has at most 65,535 bytes.
pub(super) fn encode(kind: &Kind, content: &[u8]) -> Zeroizing<String> {
    let length = u16::try_from(content.len()).expect("the content of a line is short");
    let mut bytes = Zeroizing::new(Vec::with_capacity(LENGTH_BYTES + content.len() + CHECKSUM_BYTES));
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(content);
    let checksum = checksum(kind, &bytes);
    bytes.extend_from_slice(&checksum);
    let mut line = Zeroizing::new(format!("{}{}", kind.name, kind.version));
    let mut digits = Zeroizing::new(BASE32_NOPAD.encode(&bytes));
    digits.make_ascii_lowercase();
    line.push_str(&digits);
    line
}

/// Reads a line, with space around it and in capitals, too.
pub(super) fn decode(kind: &Kind, text: &str) -> Result<Zeroizing<Vec<u8>>, ParseLineError> {
    let wanted = kind.called;
    let text = text.trim();
    let (start, version) = split_head(kind, text)?;
    if version != kind.version {
        return Err(ParseLineError::Newer { wanted, found: version, known: kind.version });
    }
    let digits = Zeroizing::new(text[start..].to_ascii_uppercase());
    if digits.len() > LINE_CHARACTERS_MAX {
        return Err(ParseLineError::TooLong { wanted, by: digits.len() - LINE_CHARACTERS_MAX });
    }
    if let Some((at, character)) = text[start..].char_indices().find(|(_, character)| !is_digit(*character)) {
        let place = text[..start].chars().count() + text[start..start + at].chars().count() + 1;
        return Err(ParseLineError::Character { wanted, character, place });
    }
    let missing = |whole: usize| ParseLineError::CutOff { wanted, missing: whole.saturating_sub(digits.len()).max(1) };
    let least = BASE32_NOPAD.encode_len(LENGTH_BYTES + CHECKSUM_BYTES);
    if digits.len() < least {
        return Err(missing(least));
    }
    let length = decode_digits(kind, &digits[..8])?;
    let content = usize::from(u16::from_be_bytes([length[0], length[1]]));
    let whole = BASE32_NOPAD.encode_len(LENGTH_BYTES + content + CHECKSUM_BYTES);
    if whole > LINE_CHARACTERS_MAX {
        // No line is as long as this one says it were, so what is wrong is the length itself.
        return Err(ParseLineError::Checksum { wanted });
    }
    if digits.len() < whole {
        return Err(missing(whole));
    }
    if digits.len() > whole {
        return Err(ParseLineError::TooLong { wanted, by: digits.len() - whole });
    }
    let bytes = decode_digits(kind, &digits)?;
    let (framed, found) = bytes.split_at(LENGTH_BYTES + content);
    if found != checksum(kind, framed) {
        return Err(ParseLineError::Checksum { wanted });
    }
    Ok(Zeroizing::new(framed[LENGTH_BYTES..].to_vec()))
}

/// Finds where the digits begin, and which version the line has: one character, so that it is told apart from the digits.
fn split_head(kind: &Kind, text: &str) -> Result<(usize, u32), ParseLineError> {
    let wanted = kind.called;
    let foreign = || ParseLineError::Foreign { wanted, begins: format!("{}{}", kind.name, kind.version) };
    let version_after = |name: &str| {
        let head = text.get(..name.len())?;
        let version = text[name.len()..].chars().next()?.to_digit(10)?;
        (head.eq_ignore_ascii_case(name) && version > 0).then_some(version)
    };
    if let Some(version) = version_after(kind.name) {
        return Ok((kind.name.len() + 1, version));
    }
    for other in [&TICKET, &OWNER_KEY] {
        if other.name != kind.name && version_after(other.name).is_some() {
            return Err(ParseLineError::OtherKind { wanted, found: other.called });
        }
    }
    Err(foreign())
}

fn is_digit(character: char) -> bool {
    matches!(character.to_ascii_lowercase(), 'a'..='z' | '2'..='7')
}

fn decode_digits(kind: &Kind, digits: &str) -> Result<Zeroizing<Vec<u8>>, ParseLineError> {
    // All digits are of the alphabet: what is left is a wrong number of them, or bits after the last byte.
    let wrong = |_| ParseLineError::Checksum { wanted: kind.called };
    BASE32_NOPAD.decode(digits.as_bytes()).map(Zeroizing::new).map_err(wrong)
}

fn checksum(kind: &Kind, bytes: &[u8]) -> [u8; CHECKSUM_BYTES] {
    let hash = Sha256::new().chain_update(kind.name).chain_update([0]).chain_update(bytes).finalize();
    std::array::from_fn(|i| hash[i])
}
