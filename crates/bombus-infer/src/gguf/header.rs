//! The parser: a cursor that knows the file's size, and the order of the header's parts.

use std::collections::HashMap;
use std::io::{BufReader, Read, Seek};

use super::tensor_type::{file_type_name, tensor_type};
use super::{GgufError, GgufInfo};

/// Most metadata entries and most tensors that a header may have; the largest known models have a tenth of it.
const ENTRIES_MAX: u64 = 1 << 17;
/// Longest key of interest; longer ones are skipped.
pub(super) const KEY_BYTES_MAX: u64 = 256;
/// Longest text that is kept; templates have some tens of kilobytes.
pub(super) const TEXT_BYTES_MAX: u64 = 1 << 20;
/// Most numbers of an array that is kept: one for each layer.
const NUMBERS_MAX: u64 = 4096;
/// A single string longer than this is damage, whatever the file's size.
const STRING_BYTES_MAX: u64 = 1 << 30;
/// ggml's limit.
const DIMENSIONS_MAX: u32 = 4;

/// Keys that are kept under their full name.
const KEYS: [&str; 7] = [
    "general.alignment",
    "general.architecture",
    "general.file_type",
    "general.name",
    "split.count",
    "tokenizer.chat_template",
    "tokenizer.ggml.model",
];

/// Keys that are kept whatever the architecture before them, since it may be named after them.
const ARCHITECTURE_KEYS: [&str; 8] = [
    ".attention.head_count",
    ".attention.head_count_kv",
    ".attention.key_length",
    ".attention.value_length",
    ".block_count",
    ".context_length",
    ".embedding_length",
    ".pooling_type",
];

/// The list of the vocabulary's tokens.
const TOKENS_KEY: &str = "tokenizer.ggml.tokens";

/// Names that vocabularies have for the tokens before the text before a gap, before the text behind it, and before what fills it. The
/// engine knows them by these names too.
const GAP_TOKENS: [[&str; 8]; 3] = [
    [
        "<|fim_prefix|>",
        "<fim-prefix>",
        "<fim_prefix>",
        "<｜fim▁begin｜>",
        "<PRE>",
        "▁<PRE>",
        "<|code_prefix|>",
        "<|prefix|>",
    ],
    [
        "<|fim_suffix|>",
        "<fim-suffix>",
        "<fim_suffix>",
        "<｜fim▁hole｜>",
        "<SUF>",
        "▁<SUF>",
        "<|code_suffix|>",
        "<|suffix|>",
    ],
    [
        "<|fim_middle|>",
        "<fim-middle>",
        "<fim_middle>",
        "<｜fim▁end｜>",
        "<MID>",
        "▁<MID>",
        "<|code_middle|>",
        "<|middle|>",
    ],
];
/// The longest of these, in bytes.
const GAP_TOKEN_BYTES_MAX: u64 = 24;

/// A metadata value of interest.
enum Value {
    Number(u64),
    Numbers(Vec<u64>),
    Text(String),
}

pub(super) fn read<R: Read + Seek>(source: BufReader<R>, file_bytes: u64) -> Result<GgufInfo, GgufError> {
    let mut cursor = Cursor::new(source, file_bytes);
    let version = read_version(&mut cursor)?;
    let tensor_count = cursor.entry_count("tensors")?;
    let key_count = cursor.entry_count("metadata entries")?;
    let mut metadata = Metadata::default();
    for _ in 0..key_count {
        metadata.read_entry(&mut cursor)?;
    }
    let alignment = metadata.alignment(cursor.offset)?;
    let tensors = Tensors::read(&mut cursor, tensor_count, alignment)?;
    Ok(metadata.describe(version, &tensors))
}

pub(super) fn read_version<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<u32, GgufError> {
    let mut magic = [0; 4];
    let mut found = 0;
    while found < magic.len() {
        match cursor.source.read(&mut magic[found..])? {
            0 => return Err(GgufError::NotGguf { found: magic[..found].to_vec() }),
            count => found += count,
        }
    }
    if &magic != b"GGUF" {
        return Err(GgufError::NotGguf { found: magic.to_vec() });
    }
    cursor.offset = 4;
    match cursor.u32()? {
        version @ (2 | 3) => Ok(version),
        version if matches!(version.swap_bytes(), 1..=3) => Err(GgufError::BigEndian),
        version => Err(GgufError::UnsupportedVersion { version }),
    }
}

/// What is known of all tensors together.
struct Tensors {
    count: u64,
    parameters: u64,
    expected_bytes: u64,
    commonest_type: Option<&'static str>,
}

impl Tensors {
    fn read<R: Read + Seek>(cursor: &mut Cursor<R>, count: u64, alignment: u64) -> Result<Self, GgufError> {
        let mut parameters = 0_u64;
        let mut data_bytes = 0_u64;
        let mut weights_by_type = HashMap::<&'static str, u64>::new();
        for _ in 0..count {
            let name_bytes = cursor.string_length()?;
            cursor.skip(name_bytes)?;
            let at = cursor.offset;
            let overflow = || GgufError::Corrupt { offset: at, reason: "a tensor's size overflows".into() };
            let dimensions = cursor.u32()?;
            if dimensions > DIMENSIONS_MAX {
                return cursor.corrupt(format!("a tensor has {dimensions} dimensions"));
            }
            let mut weights = 1_u64;
            for _ in 0..dimensions {
                weights = weights.checked_mul(cursor.u64()?).ok_or_else(overflow)?;
            }
            let stored_as = tensor_type(cursor.u32()?);
            let offset = cursor.u64()?;
            // A type that is newer than this table has an unknown size; the tensors after it still tell where it ends.
            let bytes = match &stored_as {
                Some(kind) => {
                    weights.div_ceil(kind.block_weights).checked_mul(kind.block_bytes).ok_or_else(overflow)?
                }
                None => 0,
            };
            parameters = parameters.checked_add(weights).ok_or_else(overflow)?;
            data_bytes = data_bytes.max(offset.checked_add(bytes).ok_or_else(overflow)?);
            if let Some(kind) = stored_as {
                *weights_by_type.entry(kind.name).or_default() += weights;
            }
        }
        let expected_bytes = if count == 0 {
            cursor.offset
        } else {
            let data_offset = cursor.offset.next_multiple_of(alignment);
            match data_offset.checked_add(data_bytes) {
                Some(bytes) => bytes,
                None => return cursor.corrupt("the size of all tensors overflows".into()),
            }
        };
        let commonest_type =
            weights_by_type.into_iter().max_by_key(|&(name, weights)| (weights, name)).map(|(name, _)| name);
        Ok(Self { count, parameters, expected_bytes, commonest_type })
    }
}

/// The metadata entries of interest.
#[derive(Default)]
struct Metadata {
    values: HashMap<String, Value>,
    /// Which kinds of [`GAP_TOKENS`] the vocabulary has.
    gap_tokens: [bool; 3],
}

impl Metadata {
    fn read_entry<R: Read + Seek>(&mut self, cursor: &mut Cursor<R>) -> Result<(), GgufError> {
        let key_bytes = cursor.string_length()?;
        let key = if key_bytes <= KEY_BYTES_MAX { Some(cursor.text(key_bytes)?) } else { None };
        if key.is_none() {
            cursor.skip(key_bytes)?;
        }
        if key.as_deref() == Some(TOKENS_KEY) {
            return self.read_tokens(cursor);
        }
        let wanted = key
            .filter(|key| KEYS.contains(&key.as_str()) || ARCHITECTURE_KEYS.iter().any(|suffix| key.ends_with(suffix)));
        let kind = cursor.u32()?;
        let value = read_value(cursor, kind, wanted.is_some())?;
        if let (Some(key), Some(value)) = (wanted, value)
            && let Some(_earlier) = self.values.insert(key, value)
        {
            return cursor.corrupt("a metadata key stands there twice".into());
        }
        Ok(())
    }

    /// Looks the vocabulary through for the tokens that surround a gap.
    fn read_tokens<R: Read + Seek>(&mut self, cursor: &mut Cursor<R>) -> Result<(), GgufError> {
        match cursor.u32()? {
            ARRAY => {}
            kind => return read_value(cursor, kind, false).map(drop),
        }
        match cursor.u32()? {
            STRING => {}
            kind => return skip_items(cursor, kind),
        }
        for _ in 0..cursor.u64()? {
            let bytes = cursor.string_length()?;
            if bytes > GAP_TOKEN_BYTES_MAX {
                cursor.skip(bytes)?;
                continue;
            }
            let token = cursor.text(bytes)?;
            for (names, known) in GAP_TOKENS.iter().zip(&mut self.gap_tokens) {
                *known |= names.contains(&token.as_str());
            }
        }
        Ok(())
    }

    /// Returns the boundary at which tensor data begins: 32 unless the file says otherwise.
    fn alignment(&self, offset: u64) -> Result<u64, GgufError> {
        match self.values.get("general.alignment") {
            None => Ok(32),
            Some(Value::Number(number)) if number.is_power_of_two() && *number <= 1 << 20 => Ok(*number),
            Some(_) => Err(GgufError::Corrupt { offset, reason: "the alignment is not a power of two".into() }),
        }
    }

    fn text(&self, key: &str) -> Option<String> {
        match self.values.get(key) {
            Some(Value::Text(text)) => Some(text.clone()),
            _ => None,
        }
    }

    fn numbers(&self, key: &str) -> Vec<u32> {
        match self.values.get(key) {
            Some(Value::Number(number)) => u32::try_from(*number).into_iter().collect(),
            Some(Value::Numbers(numbers)) => {
                numbers.iter().map(|&number| u32::try_from(number).unwrap_or(u32::MAX)).collect()
            }
            _ => Vec::new(),
        }
    }

    fn number(&self, key: &str) -> Option<u32> {
        match self.numbers(key).as_slice() {
            [number] => Some(*number),
            _ => None,
        }
    }

    fn describe(&self, version: u32, tensors: &Tensors) -> GgufInfo {
        let architecture = self.text("general.architecture");
        let of_architecture = |suffix: &str| format!("{}.{suffix}", architecture.as_deref().unwrap_or_default());
        let file_type = self.number("general.file_type");
        GgufInfo {
            version,
            name: self.text("general.name"),
            file_type,
            quantization: file_type.and_then(file_type_name).or(tensors.commonest_type).map(str::to_owned),
            context_length: self.number(&of_architecture("context_length")),
            block_count: self.number(&of_architecture("block_count")),
            embedding_length: self.number(&of_architecture("embedding_length")),
            attention_heads: self.numbers(&of_architecture("attention.head_count")),
            attention_kv_heads: self.numbers(&of_architecture("attention.head_count_kv")),
            key_length: self.number(&of_architecture("attention.key_length")),
            value_length: self.number(&of_architecture("attention.value_length")),
            pooling_type: self.number(&of_architecture("pooling_type")),
            tokenizer_model: self.text("tokenizer.ggml.model"),
            chat_template: self.text("tokenizer.chat_template"),
            split_count: self.number("split.count").filter(|&count| count > 1),
            fills_in: self.gap_tokens == [true; 3],
            tensor_count: tensors.count,
            parameters: tensors.parameters,
            expected_bytes: tensors.expected_bytes,
            architecture,
        }
    }
}

pub(super) const STRING: u32 = 8;
pub(super) const ARRAY: u32 = 9;

/// Reads a value and keeps it if it is wanted and of a kind that is kept; skips it otherwise.
fn read_value<R: Read + Seek>(cursor: &mut Cursor<R>, kind: u32, wanted: bool) -> Result<Option<Value>, GgufError> {
    match kind {
        STRING => {
            let bytes = cursor.string_length()?;
            if wanted && bytes <= TEXT_BYTES_MAX {
                return Ok(Some(Value::Text(cursor.text(bytes)?)));
            }
            cursor.skip(bytes)?;
            Ok(None)
        }
        ARRAY => read_array(cursor, wanted),
        kind => Ok(cursor.number(kind)?.filter(|_| wanted).map(Value::Number)),
    }
}

fn read_array<R: Read + Seek>(cursor: &mut Cursor<R>, wanted: bool) -> Result<Option<Value>, GgufError> {
    let kind = cursor.u32()?;
    if !wanted || kind == STRING {
        return skip_items(cursor, kind).map(|()| None);
    }
    let count = cursor.u64()?;
    if count > NUMBERS_MAX {
        return skip_numbers(cursor, kind, count).map(|()| None);
    }
    let mut numbers = Vec::new();
    for _ in 0..count {
        numbers.push(cursor.number(kind)?.unwrap_or_default());
    }
    Ok(Some(Value::Numbers(numbers)))
}

/// Skips an array, which begins with the kind of its items.
pub(super) fn skip_array<R: Read + Seek>(cursor: &mut Cursor<R>) -> Result<(), GgufError> {
    let kind = cursor.u32()?;
    skip_items(cursor, kind)
}

/// Skips the items of an array, before which their number stands.
fn skip_items<R: Read + Seek>(cursor: &mut Cursor<R>, kind: u32) -> Result<(), GgufError> {
    let count = cursor.u64()?;
    if kind != STRING {
        return skip_numbers(cursor, kind, count);
    }
    // Every string takes at least its length, so a false count ends at the end of the file.
    for _ in 0..count {
        let bytes = cursor.string_length()?;
        cursor.skip(bytes)?;
    }
    Ok(())
}

fn skip_numbers<R: Read + Seek>(cursor: &mut Cursor<R>, kind: u32, count: u64) -> Result<(), GgufError> {
    match number_bytes(kind).map(|bytes| bytes.checked_mul(count)) {
        Some(Some(bytes)) => cursor.skip(bytes),
        Some(None) => cursor.corrupt("an array's size overflows".into()),
        None => cursor.corrupt(format!("an array holds values of the unknown kind {kind}")),
    }
}

fn number_bytes(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// A reader that knows where it stands and where the file ends.
pub(super) struct Cursor<R> {
    source: BufReader<R>,
    offset: u64,
    file_bytes: u64,
}

impl<R: Read + Seek> Cursor<R> {
    pub(super) fn new(source: BufReader<R>, file_bytes: u64) -> Self {
        Self { source, offset: 0, file_bytes }
    }

    pub(super) fn corrupt<T>(&self, reason: String) -> Result<T, GgufError> {
        Err(GgufError::Corrupt { offset: self.offset, reason })
    }

    /// Checks that the file goes on for so many bytes, and moves past them.
    fn advance(&mut self, bytes: u64) -> Result<(), GgufError> {
        let end = self.offset.saturating_add(bytes);
        if end > self.file_bytes {
            return Err(GgufError::Truncated { file_bytes: self.file_bytes, expected_bytes: end, in_header: true });
        }
        self.offset = end;
        Ok(())
    }

    pub(super) fn skip(&mut self, bytes: u64) -> Result<(), GgufError> {
        self.advance(bytes)?;
        match i64::try_from(bytes) {
            Ok(bytes) => Ok(self.source.seek_relative(bytes)?),
            Err(_) => self.corrupt("a part is larger than any file".into()),
        }
    }

    pub(super) fn bytes<const N: usize>(&mut self) -> Result<[u8; N], GgufError> {
        self.advance(N as u64)?;
        let mut bytes = [0; N];
        self.source.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    pub(super) fn u32(&mut self) -> Result<u32, GgufError> {
        Ok(u32::from_le_bytes(self.bytes()?))
    }

    pub(super) fn u64(&mut self) -> Result<u64, GgufError> {
        Ok(u64::from_le_bytes(self.bytes()?))
    }

    pub(super) fn entry_count(&mut self, what: &str) -> Result<u64, GgufError> {
        match self.u64()? {
            count if count > ENTRIES_MAX => self.corrupt(format!("it claims {count} {what}")),
            count => Ok(count),
        }
    }

    pub(super) fn string_length(&mut self) -> Result<u64, GgufError> {
        match self.u64()? {
            bytes if bytes > STRING_BYTES_MAX => self.corrupt(format!("it claims a string of {bytes} bytes")),
            bytes => Ok(bytes),
        }
    }

    /// Reads a text whose length the caller has bounded.
    pub(super) fn text(&mut self, bytes: u64) -> Result<String, GgufError> {
        self.advance(bytes)?;
        let mut text = vec![0; usize::try_from(bytes).expect("the length was bounded by the caller")];
        self.source.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }

    /// Reads a number; `None` for one that is negative or has a fraction, which no key of interest may have.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, GgufError> {
        Ok(match kind {
            0 | 7 => Some(u64::from(u8::from_le_bytes(self.bytes()?))),
            1 => u64::try_from(i8::from_le_bytes(self.bytes()?)).ok(),
            2 => Some(u64::from(u16::from_le_bytes(self.bytes()?))),
            3 => u64::try_from(i16::from_le_bytes(self.bytes()?)).ok(),
            4 => Some(u64::from(self.u32()?)),
            5 => u64::try_from(i32::from_le_bytes(self.bytes()?)).ok(),
            6 => {
                self.skip(4)?;
                None
            }
            10 => Some(self.u64()?),
            11 => u64::try_from(i64::from_le_bytes(self.bytes()?)).ok(),
            12 => {
                self.skip(8)?;
                None
            }
            kind => return self.corrupt(format!("a value has the unknown kind {kind}")),
        })
    }
}
