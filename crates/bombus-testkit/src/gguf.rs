//! Builds small GGUF files, whole and damaged.

/// Boundary at which the tensor data begins.
const ALIGNMENT: usize = 32;

/// Number of weights in a tensor, and ggml's number for how they are stored, with the bytes that a block of weights takes.
#[derive(Debug, Clone, Copy)]
pub enum Storage {
    /// 32-bit floats.
    F32,
    /// Blocks of 32 weights in 20 bytes.
    Q4_1,
    /// Blocks of 256 weights in 144 bytes.
    Q4K,
    /// A type that no program knows.
    Unknown,
}

impl Storage {
    fn number(self) -> u32 {
        match self {
            Self::F32 => 0,
            Self::Q4_1 => 3,
            Self::Q4K => 12,
            Self::Unknown => 9_999,
        }
    }

    fn bytes(self, weights: u64) -> u64 {
        match self {
            Self::F32 => weights * 4,
            Self::Q4_1 => weights.div_ceil(32) * 20,
            Self::Q4K => weights.div_ceil(256) * 144,
            Self::Unknown => weights,
        }
    }
}

/// A GGUF file under construction.
#[derive(Debug, Clone)]
pub struct GgufBuilder {
    version: u32,
    entries: u64,
    metadata: Vec<u8>,
    tensors: Vec<(String, Vec<u64>, Storage)>,
    is_blank: bool,
}

impl GgufBuilder {
    /// Begins a file of version 3 with nothing in it.
    #[must_use]
    pub fn new() -> Self {
        Self { version: 3, entries: 0, metadata: Vec::new(), tensors: Vec::new(), is_blank: false }
    }

    /// Begins a file that describes a chat model of architecture `llama` with two layers and no tensors.
    #[must_use]
    pub fn llama(name: &str) -> Self {
        Self::new()
            .text("general.architecture", "llama")
            .text("general.name", name)
            .number("general.file_type", 15)
            .number("llama.block_count", 2)
            .number("llama.context_length", 2048)
            .number("llama.embedding_length", 64)
            .number("llama.attention.head_count", 4)
            .number("llama.attention.head_count_kv", 2)
            .text("tokenizer.ggml.model", "gpt2")
            .texts("tokenizer.ggml.tokens", &["a", "b", "<|im_end|>"])
            .text("tokenizer.chat_template", "{% for message in messages %}{{ message.content }}{% endfor %}")
    }

    /// Sets the version of the format.
    #[must_use]
    pub fn version(mut self, version: u32) -> Self {
        self.version = version;
        self
    }

    fn entry(mut self, key: &str, kind: u32, value: &[u8]) -> Self {
        put_text(&mut self.metadata, key);
        self.metadata.extend(kind.to_le_bytes());
        self.metadata.extend(value);
        self.entries += 1;
        self
    }

    /// Adds a text.
    #[must_use]
    pub fn text(self, key: &str, value: &str) -> Self {
        let mut bytes = Vec::new();
        put_text(&mut bytes, value);
        self.entry(key, 8, &bytes)
    }

    /// Adds a 32-bit unsigned number.
    #[must_use]
    pub fn number(self, key: &str, value: u32) -> Self {
        self.entry(key, 4, &value.to_le_bytes())
    }

    /// Adds a 32-bit float.
    #[must_use]
    pub fn float(self, key: &str, value: f32) -> Self {
        self.entry(key, 6, &value.to_le_bytes())
    }

    /// Adds an array of texts.
    #[must_use]
    pub fn texts(self, key: &str, values: &[&str]) -> Self {
        let mut bytes = 8_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        for value in values {
            put_text(&mut bytes, value);
        }
        self.entry(key, 9, &bytes)
    }

    /// Adds an array of 32-bit unsigned numbers.
    #[must_use]
    pub fn numbers(self, key: &str, values: &[u32]) -> Self {
        let mut bytes = 4_u32.to_le_bytes().to_vec();
        bytes.extend((values.len() as u64).to_le_bytes());
        bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
        self.entry(key, 9, &bytes)
    }

    /// Adds a tensor, whose data is a pattern that differs from byte to byte.
    #[must_use]
    pub fn tensor(mut self, name: &str, dimensions: &[u64], storage: Storage) -> Self {
        self.tensors.push((name.to_owned(), dimensions.to_vec(), storage));
        self
    }

    /// Makes zeros of the data of all tensors, so that an engine can compute with them.
    #[must_use]
    pub fn blank(mut self) -> Self {
        self.is_blank = true;
        self
    }

    /// Returns the file's bytes.
    #[must_use]
    pub fn build(&self) -> Vec<u8> {
        let mut file = b"GGUF".to_vec();
        file.extend(self.version.to_le_bytes());
        file.extend((self.tensors.len() as u64).to_le_bytes());
        file.extend(self.entries.to_le_bytes());
        file.extend(&self.metadata);
        let mut data_bytes = 0_u64;
        for (name, dimensions, storage) in &self.tensors {
            put_text(&mut file, name);
            file.extend((dimensions.len() as u32).to_le_bytes());
            file.extend(dimensions.iter().flat_map(|dimension| dimension.to_le_bytes()));
            file.extend(storage.number().to_le_bytes());
            file.extend(data_bytes.to_le_bytes());
            data_bytes = (data_bytes + storage.bytes(dimensions.iter().product())).next_multiple_of(ALIGNMENT as u64);
        }
        if !self.tensors.is_empty() {
            file.resize(file.len().next_multiple_of(ALIGNMENT), 0);
            let data_bytes = usize::try_from(data_bytes).expect("test models are small");
            file.extend((0..data_bytes).map(|index| if self.is_blank { 0 } else { pattern(index) }));
        }
        file
    }
}

impl Default for GgufBuilder {
    fn default() -> Self {
        Self::new()
    }
}

/// Returns a whole small model of about `data_bytes` bytes; another `name` gives other bytes.
#[must_use]
pub fn tiny_model(name: &str, data_bytes: u64) -> Vec<u8> {
    GgufBuilder::llama(name).tensor("token_embd.weight", &[data_bytes.div_ceil(4)], Storage::F32).build()
}

/// Returns the file with one bit of its last byte turned, so that its header stays whole and its hash does not.
#[must_use]
pub fn with_a_flipped_bit(mut file: Vec<u8>) -> Vec<u8> {
    if let Some(last) = file.last_mut() {
        *last ^= 1;
    }
    file
}

fn put_text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// Bytes that repeat nowhere, so that a part in the wrong place changes the whole, and that do not compress. Source: the finalizer
/// of MurmurHash3.
fn pattern(index: usize) -> u8 {
    let mut mixed = index as u32;
    mixed = (mixed ^ (mixed >> 16)).wrapping_mul(0x85eb_ca6b);
    mixed = (mixed ^ (mixed >> 13)).wrapping_mul(0xc2b2_ae35);
    (mixed ^ (mixed >> 16)) as u8
}
