//! Large texts as blocks: byte strings of DAG-CBOR of at most 256 KiB each, and where one is not enough, a list of links to them above.

use orbitdb::cbor::Value;
use orbitdb::cid::Hash;

use crate::db::KEPT_BLOCK_BYTES_MAX;

/// Bytes of a text in one block: its head takes up to five.
pub(crate) const PART_BYTES: usize = KEPT_BLOCK_BYTES_MAX - 8;

/// What the block is that a text is known by.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Root {
    /// The text itself.
    Text(Vec<u8>),
    /// The names of its parts, in order.
    Parts(Vec<Hash>),
}

/// Makes the blocks of a text. The last one is that by which it is known.
pub(super) fn split(text: &[u8]) -> Vec<Vec<u8>> {
    let encode = |value: Value| value.encode().expect("bytes and lists of links have a form");
    if text.len() <= PART_BYTES {
        return vec![encode(Value::Bytes(text.to_vec()))];
    }
    let mut blocks: Vec<_> = text.chunks(PART_BYTES).map(|part| encode(Value::Bytes(part.to_vec()))).collect();
    let parts: Vec<Hash> = blocks.iter().map(|block| Hash::of(block)).collect();
    blocks.push(encode_parts(&parts));
    blocks
}

/// Makes the block that names the parts of a text.
pub(crate) fn encode_parts(parts: &[Hash]) -> Vec<u8> {
    let links = parts.iter().map(|part| Value::Link(part.to_cid().to_vec())).collect();
    Value::List(links).encode().expect("lists of links have a form")
}

/// Reads the block by which a text of at most so many bytes is known; none when it is no such block.
pub(crate) fn read_root(block: &[u8], bytes_max: usize) -> Option<Root> {
    match Value::decode(block).ok()? {
        Value::Bytes(text) if text.len() <= bytes_max => Some(Root::Text(text)),
        Value::List(links) if links.len() <= bytes_max.div_ceil(PART_BYTES) => {
            let hash = |link: &Value| match link {
                Value::Link(cid) => Hash::from_cid(cid),
                _ => None,
            };
            links.iter().map(hash).collect::<Option<_>>().map(Root::Parts)
        }
        _ => None,
    }
}

/// Reads a part of a text.
pub(crate) fn read_part(block: &[u8]) -> Option<Vec<u8>> {
    match Value::decode(block).ok()? {
        Value::Bytes(part) => Some(part),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_put_together_again_of_blocks_that_peers_exchange() {
        for length in [0, 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 7] {
            let text: Vec<u8> = (0..length).map(|number| u8::try_from(number % 251).unwrap()).collect();
            let blocks = split(&text);
            assert!(blocks.iter().all(|block| block.len() <= KEPT_BLOCK_BYTES_MAX));
            let (root, parts) = blocks.split_last().unwrap();
            let again = match read_root(root, length).unwrap() {
                Root::Text(text) => text,
                Root::Parts(hashes) => {
                    assert_eq!(hashes, parts.iter().map(|part| Hash::of(part)).collect::<Vec<_>>());
                    parts.iter().flat_map(|part| read_part(part).unwrap()).collect()
                }
            };
            assert!(again == text, "{length}");
        }
    }

    #[test]
    fn what_is_no_text_or_too_large_is_not_read() {
        let text = split(&vec![7; 2 * PART_BYTES]);
        assert_eq!(read_root(text.last().unwrap(), PART_BYTES), None);
        assert_eq!(read_root(&split(b"text")[0], 3), None);
        for value in
            [Value::Null, Value::from("text"), vec![Value::from(1_u64)].into(), vec![Value::Link(vec![1])].into()]
        {
            let block = value.encode().unwrap();
            assert_eq!((read_root(&block, 1 << 20), read_part(&block)), (None, None), "{value:?}");
        }
    }
}
