//! All metadata of a GGUF file, for people to look at.

use std::io::{BufReader, Read, Seek};

use serde_json::{Map, Number, Value};

use super::GgufError;
use super::header::{ARRAY, Cursor, KEY_BYTES_MAX, STRING, TEXT_BYTES_MAX, read_version, skip_array};

/// Texts of all keys together; what comes after that many bytes is left out.
const TEXTS_BYTES_MAX: u64 = 16 << 20;

/// Reads every entry: numbers, truth values and texts as they are, arrays and overlong texts as `null`.
pub(super) fn read<R: Read + Seek>(source: BufReader<R>, file_bytes: u64) -> Result<Map<String, Value>, GgufError> {
    let mut cursor = Cursor::new(source, file_bytes);
    read_version(&mut cursor)?;
    let _tensors = cursor.u64()?;
    let key_count = cursor.entry_count("metadata entries")?;
    let mut metadata = Map::new();
    let mut texts_bytes = 0;
    for _ in 0..key_count {
        let key_bytes = cursor.string_length()?;
        let key = if key_bytes <= KEY_BYTES_MAX {
            Some(cursor.text(key_bytes)?)
        } else {
            cursor.skip(key_bytes)?;
            None
        };
        let value = read_value(&mut cursor, &mut texts_bytes)?;
        if let Some(key) = key {
            metadata.insert(key, value);
        }
    }
    Ok(metadata)
}

fn read_value<R: Read + Seek>(cursor: &mut Cursor<R>, texts_bytes: &mut u64) -> Result<Value, GgufError> {
    Ok(match cursor.u32()? {
        STRING => {
            let bytes = cursor.string_length()?;
            if bytes > TEXT_BYTES_MAX || *texts_bytes + bytes > TEXTS_BYTES_MAX {
                cursor.skip(bytes)?;
                return Ok(Value::Null);
            }
            *texts_bytes += bytes;
            cursor.text(bytes)?.into()
        }
        ARRAY => {
            skip_array(cursor)?;
            Value::Null
        }
        0 => u8::from_le_bytes(cursor.bytes()?).into(),
        1 => i8::from_le_bytes(cursor.bytes()?).into(),
        2 => u16::from_le_bytes(cursor.bytes()?).into(),
        3 => i16::from_le_bytes(cursor.bytes()?).into(),
        4 => cursor.u32()?.into(),
        5 => i32::from_le_bytes(cursor.bytes()?).into(),
        6 => shortest(f32::from_le_bytes(cursor.bytes()?)),
        7 => (u8::from_le_bytes(cursor.bytes()?) != 0).into(),
        10 => cursor.u64()?.into(),
        11 => i64::from_le_bytes(cursor.bytes()?).into(),
        12 => f64::from_le_bytes(cursor.bytes()?).into(),
        kind => return cursor.corrupt(format!("a value has the unknown kind {kind}")),
    })
}

/// Returns the number with the fewest digits that is this one in 32 bits: 0.00001 and not 0.000009999999747378752.
fn shortest(number: f32) -> Value {
    let shortest = number.to_string().parse().ok().and_then(Number::from_f64);
    shortest.map_or(Value::Null, Value::Number)
}
