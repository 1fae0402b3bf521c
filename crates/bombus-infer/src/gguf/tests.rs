use std::io::{BufReader, Cursor};

use bombus_core::model::ModelCapability;
use bombus_testkit::gguf::{GgufBuilder, Storage, tiny_model};
use proptest::prelude::*;

use super::{GgufError, GgufInfo};

fn parse(file: &[u8]) -> Result<GgufInfo, GgufError> {
    GgufInfo::read_from(BufReader::new(Cursor::new(file)), file.len() as u64)
}

#[test]
fn a_header_tells_what_the_model_is() {
    let file = GgufBuilder::llama("Tiny")
        .float("general.weight", 0.5)
        .numbers("tokenizer.ggml.token_type", &[1; 5_000])
        .tensor("a", &[256, 3], Storage::Q4K)
        .tensor("b", &[33], Storage::Q4_1)
        .tensor("c", &[7], Storage::F32)
        .build();
    let info = parse(&file).unwrap();
    assert_eq!(info.architecture.as_deref(), Some("llama"));
    assert_eq!(info.name.as_deref(), Some("Tiny"));
    assert_eq!(info.quantization.as_deref(), Some("Q4_K_M"));
    assert_eq!((info.context_length, info.block_count, info.embedding_length), (Some(2048), Some(2), Some(64)));
    assert_eq!(info.tokenizer_model.as_deref(), Some("gpt2"));
    assert!(info.chat_template.as_deref().unwrap().contains("message.content"));
    assert_eq!((info.tensor_count, info.parameters), (3, 256 * 3 + 33 + 7));
    // The last tensor is not padded in the sum, but the builder pads it to 32 bytes.
    assert_eq!(info.expected_bytes, file.len() as u64 - 4);
}

#[test]
fn version_2_reads_like_version_3() {
    let file = GgufBuilder::llama("Old").version(2).tensor("a", &[8], Storage::F32).build();
    assert_eq!(parse(&file).unwrap().version, 2);
}

#[test]
fn the_memory_of_a_token_follows_the_attention() {
    let base = || GgufBuilder::new().text("general.architecture", "x").number("x.block_count", 3);
    let grouped = base()
        .number("x.embedding_length", 64)
        .number("x.attention.head_count", 4)
        .number("x.attention.head_count_kv", 2);
    assert_eq!(parse(&grouped.build()).unwrap().kv_bytes_per_token(), Some(3 * 2 * (16 + 16) * 2));
    let widths = grouped.number("x.attention.key_length", 256).number("x.attention.value_length", 128);
    assert_eq!(parse(&widths.build()).unwrap().kv_bytes_per_token(), Some(3 * 2 * (256 + 128) * 2));
    let layered = base()
        .number("x.embedding_length", 64)
        .number("x.attention.head_count", 4)
        .numbers("x.attention.head_count_kv", &[4, 0, 2]);
    assert_eq!(parse(&layered.build()).unwrap().kv_bytes_per_token(), Some(6 * 32 * 2));
    assert_eq!(parse(&base().build()).unwrap().kv_bytes_per_token(), None);
}

#[test]
fn capabilities_follow_pooling_architecture_and_template() {
    let of = |builder: GgufBuilder| parse(&builder.build()).unwrap().capabilities();
    let arch = |name| GgufBuilder::new().text("general.architecture", name);
    assert_eq!(of(arch("nomic-bert")), [ModelCapability::Embedding]);
    assert_eq!(of(arch("qwen3").number("qwen3.pooling_type", 3)), [ModelCapability::Embedding]);
    assert_eq!(of(arch("qwen3").number("qwen3.pooling_type", 4)), []);
    assert_eq!(of(arch("qwen3").number("qwen3.pooling_type", 0)), [ModelCapability::Completion]);
    let template = |text| arch("qwen3").text("tokenizer.chat_template", text);
    assert_eq!(of(template("{% if tools %}{{ tools | tojson }}{% endif %}")), [ModelCapability::Completion]);
    let all = template("{% if tools %}<tool_call>{% endif %}{{ '<think>' }}")
        .texts("tokenizer.ggml.tokens", &["a", "<|fim_prefix|>", "<|fim_suffix|>", "<|fim_middle|>"]);
    let expected =
        [ModelCapability::Completion, ModelCapability::Tools, ModelCapability::Thinking, ModelCapability::Insert];
    assert_eq!(of(all), expected);
}

#[test]
fn a_file_without_a_file_type_is_named_after_most_of_its_weights() {
    let builder = GgufBuilder::new().tensor("a", &[8], Storage::F32).tensor("b", &[512], Storage::Q4K);
    assert_eq!(parse(&builder.build()).unwrap().quantization.as_deref(), Some("Q4_K"));
}

#[test]
fn what_is_not_gguf_says_so() {
    assert!(matches!(parse(b"PK\x03\x04zip"), Err(GgufError::NotGguf { found }) if found == b"PK\x03\x04"));
    assert!(matches!(parse(b"GG"), Err(GgufError::NotGguf { .. })));
    assert!(matches!(parse(b""), Err(GgufError::NotGguf { .. })));
}

#[test]
fn versions_that_cannot_be_read_are_named() {
    let with_version = |version| parse(&GgufBuilder::new().version(version).build());
    assert!(matches!(with_version(1), Err(GgufError::UnsupportedVersion { version: 1 })));
    assert!(matches!(with_version(4), Err(GgufError::UnsupportedVersion { version: 4 })));
    assert!(matches!(with_version(3_u32.swap_bytes()), Err(GgufError::BigEndian)));
}

#[test]
fn a_truncated_file_is_told_with_both_sizes() {
    let file = tiny_model("t", 1_000_000);
    let Err(error @ GgufError::Truncated { in_header: false, .. }) = parse(&file[..file.len() / 2]) else {
        panic!("half a file was accepted");
    };
    let message = error.to_string();
    assert!(message.contains(&(file.len() / 2).to_string()) && message.contains(&file.len().to_string()), "{message}");
    assert!(matches!(parse(&file[..60]), Err(GgufError::Truncated { in_header: true, file_bytes: 60, .. })));
}

#[test]
fn contradictions_are_corruption() {
    let twice = GgufBuilder::new().text("general.name", "a").text("general.name", "b").build();
    assert!(matches!(parse(&twice), Err(GgufError::Corrupt { .. })));
    let alignment = GgufBuilder::new().number("general.alignment", 24).build();
    assert!(matches!(parse(&alignment), Err(GgufError::Corrupt { .. })));
    let mut header = GgufBuilder::new().build();
    header[8..16].copy_from_slice(&u64::MAX.to_le_bytes());
    assert!(matches!(parse(&header), Err(GgufError::Corrupt { offset: 16, .. })));
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000)) {
        let _ = parse(&bytes);
    }

    #[test]
    fn a_damaged_header_never_panics(
        damage in prop::collection::vec((0_usize..700, any::<u8>()), 1..8),
        keep in 0_usize..4_000,
    ) {
        let mut file = GgufBuilder::llama("Tiny")
            .numbers("llama.attention.head_count_kv", &[1, 2])
            .tensor("a", &[256, 3], Storage::Q4K)
            .tensor("b", &[33], Storage::Unknown)
            .build();
        for (at, byte) in damage {
            let at = at % file.len();
            file[at] = byte;
        }
        file.truncate(keep);
        if let Ok(info) = parse(&file) {
            let _ = (info.kv_bytes_per_token(), info.capabilities());
        }
    }

    #[test]
    fn every_cut_is_noticed(cut in 0_usize..3_000) {
        let file = tiny_model("t", 1_024);
        let cut = cut % file.len();
        prop_assert!(parse(&file[..cut]).is_err());
    }
}
