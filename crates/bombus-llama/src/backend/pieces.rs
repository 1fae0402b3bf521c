//! Requests for vectors, in pieces.

use bombus_core::chat::EmbedInput;

/// Most inputs in a piece.
const INPUTS_MAX: usize = 256;
/// Most bytes of the inputs in a piece, but for one that is larger alone.
const BYTES_MAX: usize = 64 << 10;

/// Cuts the inputs of a request into pieces. Where there are none, that is one piece.
pub(super) fn pieces(inputs: Vec<EmbedInput>) -> Vec<Vec<EmbedInput>> {
    let bytes_of = |input: &EmbedInput| match input {
        EmbedInput::Text(text) => text.len(),
        EmbedInput::Tokens(ids) => ids.len().saturating_mul(4),
    };
    let (mut pieces, mut bytes) = (vec![Vec::new()], 0);
    for input in inputs {
        bytes += bytes_of(&input);
        match pieces.last_mut() {
            Some(piece) if piece.is_empty() || (piece.len() < INPUTS_MAX && bytes <= BYTES_MAX) => piece.push(input),
            _ => {
                bytes = bytes_of(&input);
                pieces.push(vec![input]);
            }
        }
    }
    pieces
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_have_their_bounds() {
        let texts = |bytes: usize, count: usize| vec![EmbedInput::Text("x".repeat(bytes)); count];
        let sizes = |inputs: Vec<EmbedInput>| -> Vec<usize> { pieces(inputs).iter().map(Vec::len).collect() };
        assert_eq!(sizes(Vec::new()), [0]);
        assert_eq!(sizes(texts(1, INPUTS_MAX + 1)), [INPUTS_MAX, 1]);
        assert_eq!(sizes(texts(BYTES_MAX / 2, 3)), [2, 1]);
        assert_eq!(sizes(texts(BYTES_MAX + 1, 2)), [1, 1]);
    }
}
