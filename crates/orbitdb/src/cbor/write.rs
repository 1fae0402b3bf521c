//! Writing.

use super::{EncodeError, Value, integral, read::Major};

/// Writes the beginning of an item in its shortest form.
pub(crate) fn head(bytes: &mut Vec<u8>, major: Major, argument: u64) {
    let major = (major as u8) << 5;
    let big_endian = argument.to_be_bytes();
    match argument {
        0..=23 => bytes.push(major | big_endian[7]),
        24..=0xff => bytes.extend([major | 24, big_endian[7]]),
        0x100..=0xffff => {
            bytes.push(major | 25);
            bytes.extend(&big_endian[6..]);
        }
        0x1_0000..=0xffff_ffff => {
            bytes.push(major | 26);
            bytes.extend(&big_endian[4..]);
        }
        _ => {
            bytes.push(major | 27);
            bytes.extend(big_endian);
        }
    }
}

/// Writes text.
pub(crate) fn text(bytes: &mut Vec<u8>, text: &str) {
    head(bytes, Major::Text, text.len() as u64);
    bytes.extend(text.as_bytes());
}

/// Writes a byte string.
pub(crate) fn byte_string(bytes: &mut Vec<u8>, string: &[u8]) {
    head(bytes, Major::Bytes, string.len() as u64);
    bytes.extend(string);
}

/// Writes a value with at most `depth` levels.
pub(crate) fn value(bytes: &mut Vec<u8>, value: &Value, depth: usize) -> Result<(), EncodeError> {
    let inner = || depth.checked_sub(1).ok_or(EncodeError::TooDeep);
    match value {
        Value::Null => bytes.push(0xf6),
        Value::Bool(is) => bytes.push(0xf4 + u8::from(*is)),
        Value::Unsigned(number) => head(bytes, Major::Unsigned, *number),
        Value::Negative(number) => head(bytes, Major::Negative, *number),
        Value::Float(number) => float(bytes, *number)?,
        Value::Text(string) => text(bytes, string),
        Value::Bytes(string) => byte_string(bytes, string),
        Value::List(list) => {
            let depth = inner()?;
            head(bytes, Major::List, list.len() as u64);
            for item in list {
                self::value(bytes, item, depth)?;
            }
        }
        Value::Map(map) => {
            let depth = inner()?;
            head(bytes, Major::Map, map.len() as u64);
            for (key, item) in map.iter() {
                text(bytes, key);
                self::value(bytes, item, depth)?;
            }
        }
        Value::Link(cid) => {
            head(bytes, Major::Tag, 42);
            head(bytes, Major::Bytes, cid.len() as u64 + 1);
            bytes.push(0);
            bytes.extend(cid);
        }
    }
    Ok(())
}

fn float(bytes: &mut Vec<u8>, number: f64) -> Result<(), EncodeError> {
    if !number.is_finite() {
        return Err(EncodeError::NotFinite);
    }
    if let Some(integer) = integral(number) {
        return value(bytes, &integer, 0);
    }
    bytes.push(0xfb);
    bytes.extend(number.to_bits().to_be_bytes());
    Ok(())
}
