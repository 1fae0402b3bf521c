"""Writes a tiny embedding model as GGUF: BERT's architecture with random weights that are the same every time.

What it says is meaningless, but everything around it is real: loading, tokenising, batching, pooling, the API. Pooling is the mean.
"""

import string

import gguf
import numpy as np

HIDDEN, LAYERS, HEADS, FEED_FORWARD, CONTEXT = 64, 2, 4, 128, 128
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = ["the", "bee", "bees", "hive", "honey", "fly", "flies", "flower", "a", "in", "and", "to", "is", "makes", "red", "blue"]


def vocabulary():
    """Words as llama.cpp stores WordPiece: U+2581 marks a beginning, its absence a continuation."""
    begin = [f"\u2581{piece}" for piece in WORDS + list(string.ascii_lowercase + string.digits + string.punctuation)]
    inside = list(string.ascii_lowercase + string.digits)
    return SPECIAL + sorted(set(begin), key=begin.index) + inside


def write(path):
    random = np.random.default_rng(7)
    tokens = vocabulary()
    writer = gguf.GGUFWriter(str(path), "bert")
    writer.add_name("Tiny BERT")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_tokenizer_model("bert")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL if token in SPECIAL else gguf.TokenType.NORMAL for token in tokens])
    writer.add_token_type_count(2)
    writer.add_bos_token_id(tokens.index("[CLS]"))
    writer.add_eos_token_id(tokens.index("[SEP]"))
    writer.add_sep_token_id(tokens.index("[SEP]"))
    writer.add_pad_token_id(tokens.index("[PAD]"))
    writer.add_unk_token_id(tokens.index("[UNK]"))
    writer.add_mask_token_id(tokens.index("[MASK]"))

    def weights(name, *shape):
        writer.add_tensor(f"{name}.weight", random.normal(0, 0.3, shape).astype(np.float32))

    def bias(name, size):
        writer.add_tensor(f"{name}.bias", np.zeros(size, dtype=np.float32))

    def norm(name):
        writer.add_tensor(f"{name}.weight", np.ones(HIDDEN, dtype=np.float32))
        bias(name, HIDDEN)

    weights("token_embd", len(tokens), HIDDEN)
    weights("position_embd", CONTEXT, HIDDEN)
    weights("token_types", 2, HIDDEN)
    norm("token_embd_norm")
    for layer in range(LAYERS):
        block = f"blk.{layer}"
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            weights(f"{block}.{name}", HIDDEN, HIDDEN)
            bias(f"{block}.{name}", HIDDEN)
        norm(f"{block}.attn_output_norm")
        weights(f"{block}.ffn_up", FEED_FORWARD, HIDDEN)
        bias(f"{block}.ffn_up", FEED_FORWARD)
        weights(f"{block}.ffn_down", HIDDEN, FEED_FORWARD)
        bias(f"{block}.ffn_down", HIDDEN)
        norm(f"{block}.layer_output_norm")

    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
