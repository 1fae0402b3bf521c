//! Reading, strictly.

use super::{DEPTH_MAX, DecodeError, Map, Value, integral, map};

/// The kind of an item: the three high bits of its first byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Major {
    Unsigned,
    Negative,
    Bytes,
    Text,
    List,
    Map,
    Tag,
    Simple,
}

/// A cursor over bytes that reads items in their one right form.
#[derive(Clone, Debug)]
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    position: usize,
}

const LINK_TAG: u64 = 42;
const FLOAT_64: u8 = 0xfb;

impl<'a> Reader<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, position: 0 }
    }

    pub(crate) const fn position(&self) -> usize {
        self.position
    }

    /// Demands that nothing is left.
    pub(crate) const fn end(&self) -> Result<(), DecodeError> {
        if self.position == self.bytes.len() { Ok(()) } else { Err(DecodeError::Trailing) }
    }

    const fn left(&self) -> usize {
        self.bytes.len() - self.position
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let bytes = self.bytes[self.position..].get(..count).ok_or(DecodeError::End)?;
        self.position += count;
        Ok(bytes)
    }

    /// Reads the beginning of an item: its kind, and its number or length.
    fn head(&mut self) -> Result<(Major, u64), DecodeError> {
        let start = self.position;
        let (major, argument) = self.loose_head()?;
        let first = self.bytes[start];
        if major == Major::Simple && first & 0x1f > 23 && first != FLOAT_64 {
            return Err(DecodeError::Form);
        }
        let least = match first & 0x1f {
            24 => 24,
            25 => 1 << 8,
            26 => 1 << 16,
            27 => 1 << 32,
            _ => 0,
        };
        // The bits of a float are no number that could be shorter.
        if argument < least && first != FLOAT_64 {
            return Err(DecodeError::NotShortest);
        }
        Ok((major, argument))
    }

    /// Reads the beginning of an item in any form that has a length.
    fn loose_head(&mut self) -> Result<(Major, u64), DecodeError> {
        let first = self.take(1)?[0];
        let major = match first >> 5 {
            0 => Major::Unsigned,
            1 => Major::Negative,
            2 => Major::Bytes,
            3 => Major::Text,
            4 => Major::List,
            5 => Major::Map,
            6 => Major::Tag,
            _ => Major::Simple,
        };
        let argument = match first & 0x1f {
            info @ 0..=23 => info.into(),
            24 => self.big_endian(1)?,
            25 => self.big_endian(2)?,
            26 => self.big_endian(4)?,
            27 => self.big_endian(8)?,
            _ => return Err(DecodeError::Form),
        };
        Ok((major, argument))
    }

    fn big_endian(&mut self, count: usize) -> Result<u64, DecodeError> {
        Ok(self.take(count)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)))
    }

    /// Reads the beginning of an item of one kind and returns its number or length, which fits what is left where it counts items.
    fn head_of(&mut self, expected: Major) -> Result<u64, DecodeError> {
        let (major, argument) = self.head()?;
        if major == expected { Ok(argument) } else { Err(DecodeError::Kind) }
    }

    /// Returns a number of items or bytes that can be there: each takes `least` bytes or more.
    fn count(&self, argument: u64, least: usize) -> Result<usize, DecodeError> {
        let count = usize::try_from(argument).map_err(|_| DecodeError::End)?;
        if count.checked_mul(least).is_some_and(|bytes| bytes <= self.left()) {
            Ok(count)
        } else {
            Err(DecodeError::End)
        }
    }

    pub(crate) fn unsigned(&mut self) -> Result<u64, DecodeError> {
        self.head_of(Major::Unsigned)
    }

    pub(crate) fn list_len(&mut self) -> Result<usize, DecodeError> {
        let argument = self.head_of(Major::List)?;
        self.count(argument, 1)
    }

    pub(crate) fn map_len(&mut self) -> Result<usize, DecodeError> {
        let argument = self.head_of(Major::Map)?;
        self.count(argument, 2)
    }

    pub(crate) fn text(&mut self) -> Result<&'a str, DecodeError> {
        let argument = self.head_of(Major::Text)?;
        let count = self.count(argument, 1)?;
        std::str::from_utf8(self.take(count)?).map_err(|_| DecodeError::Utf8)
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let argument = self.head_of(Major::Bytes)?;
        let count = self.count(argument, 1)?;
        self.take(count)
    }

    /// Reads a key that must come next.
    pub(crate) fn key(&mut self, expected: &str) -> Result<(), DecodeError> {
        if self.text()? == expected { Ok(()) } else { Err(DecodeError::Keys) }
    }

    /// Reads a value with at most [`DEPTH_MAX`] levels.
    pub(crate) fn value(&mut self) -> Result<Value, DecodeError> {
        self.value_within(DEPTH_MAX)
    }

    fn value_within(&mut self, depth: usize) -> Result<Value, DecodeError> {
        let start = self.position;
        let (major, argument) = self.head()?;
        let inner = || depth.checked_sub(1).ok_or(DecodeError::TooDeep);
        match major {
            Major::Unsigned => Ok(Value::Unsigned(argument)),
            Major::Negative => Ok(Value::Negative(argument)),
            Major::Bytes => {
                let count = self.count(argument, 1)?;
                Ok(Value::Bytes(self.take(count)?.to_vec()))
            }
            Major::Text => {
                self.position = start;
                Ok(Value::Text(self.text()?.to_owned()))
            }
            Major::List => {
                let (count, depth) = (self.count(argument, 1)?, inner()?);
                (0..count).map(|_| self.value_within(depth)).collect::<Result<_, _>>().map(Value::List)
            }
            Major::Map => {
                let (count, depth) = (self.count(argument, 2)?, inner()?);
                self.pairs(count, depth).map(Value::Map)
            }
            Major::Tag => self.link(argument),
            Major::Simple if self.bytes[start] == FLOAT_64 => {
                let number = f64::from_bits(argument);
                let kept = number.is_finite() && integral(number).is_none();
                if kept { Ok(Value::Float(number)) } else { Err(DecodeError::Number) }
            }
            Major::Simple => match argument {
                20 => Ok(Value::Bool(false)),
                21 => Ok(Value::Bool(true)),
                22 => Ok(Value::Null),
                _ => Err(DecodeError::Form),
            },
        }
    }

    fn pairs(&mut self, count: usize, depth: usize) -> Result<Map, DecodeError> {
        let mut pairs: Vec<(String, Value)> = Vec::with_capacity(count.min(64));
        for _ in 0..count {
            let key =
                self.text().map_err(|error| if error == DecodeError::Kind { DecodeError::Keys } else { error })?;
            if pairs.last().is_some_and(|(last, _)| map::order(last, key).is_ge()) {
                return Err(DecodeError::Keys);
            }
            let key = key.to_owned();
            pairs.push((key, self.value_within(depth)?));
        }
        Ok(Map::sorted(pairs))
    }

    fn link(&mut self, tag: u64) -> Result<Value, DecodeError> {
        if tag != LINK_TAG {
            return Err(DecodeError::Form);
        }
        match self.bytes()? {
            [0, cid @ ..] if !cid.is_empty() => Ok(Value::Link(cid.to_vec())),
            _ => Err(DecodeError::Form),
        }
    }

    /// Passes over an item of any depth and in any form that has a length, without recursion.
    pub(crate) fn skip(&mut self) -> Result<(), DecodeError> {
        let mut items: usize = 1;
        while items > 0 {
            items -= 1;
            let (major, argument) = self.loose_head()?;
            // Each item counted here takes a byte of what is left, so that the sum cannot overflow.
            items += match major {
                Major::Bytes | Major::Text => {
                    let count = self.count(argument, 1)?;
                    self.take(count)?;
                    0
                }
                Major::List => self.count(argument, 1)?,
                Major::Map => 2 * self.count(argument, 2)?,
                Major::Tag => 1,
                Major::Unsigned | Major::Negative | Major::Simple => 0,
            };
            if items > self.left() {
                return Err(DecodeError::End);
            }
        }
        Ok(())
    }
}
