//! Answers that would never end, as small models give them when a context moves on and nothing else ends them.

/// Most tokens of an answer that may outgrow its context, by the context's own.
const CONTEXTS_MAX: usize = 10;
/// Most tokens in a row that are the same but for blanks.
const REPEATS_MAX: u32 = 30;

/// Ends answers that go round in circles, by the two rules of Ollama.
#[derive(Debug, Default)]
pub(crate) struct EndlessGuard {
    last: Vec<u8>,
    repeats: u32,
}

impl EndlessGuard {
    /// Returns how many tokens an answer may have whose context moves on, of how many were asked for.
    pub(crate) fn tokens_max(wanted: usize, context_tokens: usize) -> usize {
        wanted.min(context_tokens.saturating_mul(CONTEXTS_MAX))
    }

    /// Takes note of a token's bytes. Returns whether the answer should end.
    pub(crate) fn is_stuck(&mut self, bytes: &[u8]) -> bool {
        let trimmed = bytes.trim_ascii();
        if trimmed == self.last {
            self.repeats += 1;
        } else {
            self.last = trimmed.to_vec();
            self.repeats = 0;
        }
        self.repeats >= REPEATS_MAX
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blanks_without_end_are_noticed_and_text_is_not() {
        let mut guard = EndlessGuard::default();
        assert!((0..29).all(|_| !guard.is_stuck(b"\n")));
        assert!(guard.is_stuck(b"  "));
        assert!(!guard.is_stuck(b"a"));
        assert!((0..200).all(|number| !guard.is_stuck(format!(" {}", number % 3).as_bytes())));
    }

    #[test]
    fn an_answer_may_be_ten_contexts_long() {
        assert_eq!(EndlessGuard::tokens_max(usize::MAX, 512), 5_120);
        assert_eq!(EndlessGuard::tokens_max(7, 512), 7);
    }
}
