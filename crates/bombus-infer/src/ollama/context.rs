//! How large a context a request asks for. A context of another size than the loaded one makes Ollama load the model anew, which takes
//! up to minutes; a prompt that is longer than it is cut.

/// The smallest context that any version of Ollama has had by default.
const DEFAULT_TOKENS_MIN: u32 = 2048;
/// The smallest context that is asked for, so that a conversation can grow a while.
const ASKED_TOKENS_MIN: u32 = 4096;
/// Tokens that are kept for an answer whose length is not limited.
const ANSWER_TOKENS: u32 = 1024;
/// Fewest bytes of text that a token is taken to have; ordinary text has four and more.
const BYTES_PER_TOKEN: usize = 3;

/// What a request needs, estimated without the model's vocabulary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Need {
    /// Tokens of the prompt, rather too many.
    pub(super) prompt_tokens: u32,
    /// Tokens that the prompt cannot exceed.
    pub(super) prompt_tokens_most: u32,
    /// Tokens of the answer.
    pub(super) answer_tokens: u32,
}

impl Need {
    /// Estimates for a prompt of so many bytes of text, with tokens that are known to be there besides.
    pub(super) fn of(text_bytes: usize, known_tokens: usize, max_tokens: Option<u32>) -> Self {
        let tokens = |bytes: usize| u32::try_from(bytes.saturating_add(known_tokens)).unwrap_or(u32::MAX);
        Self {
            prompt_tokens: tokens(text_bytes.div_ceil(BYTES_PER_TOKEN)),
            prompt_tokens_most: tokens(text_bytes),
            answer_tokens: max_tokens.unwrap_or(ANSWER_TOKENS),
        }
    }

    fn likely(self) -> u32 {
        self.prompt_tokens.saturating_add(self.answer_tokens)
    }

    fn most(self) -> u32 {
        self.prompt_tokens_most.saturating_add(self.answer_tokens)
    }
}

/// What is known about a model's context.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// What the client asked for.
    pub(super) asked: Option<u32>,
    /// What the model was made for.
    pub(super) model_max: Option<u32>,
    /// What its Modelfile sets.
    pub(super) modelfile: Option<u32>,
    /// What it is loaded with.
    pub(super) loaded: Option<u32>,
    /// What this backend last asked for when it used the model, if it did and asked for something.
    pub(super) last_sent: Option<u32>,
}

impl Known {
    /// Returns the `num_ctx` to send, or `None` where the server's own choice suffices.
    pub(super) fn num_ctx(&self, need: Need) -> Option<u32> {
        if self.asked.is_some() {
            return self.asked;
        }
        let max = self.model_max.unwrap_or(u32::MAX);
        let tokens = need.likely().min(max);
        if let Some(loaded) = self.loaded.filter(|loaded| *loaded >= tokens) {
            // Ollama compares what is asked for with what was asked for when it loaded the model, and shows only what it made of that. At
            // the model's limit it may have been more, most likely by its own default.
            return if loaded < max { Some(loaded) } else { self.last_sent.filter(|sent| *sent >= loaded) };
        }
        if self.modelfile.unwrap_or(DEFAULT_TOKENS_MIN) >= tokens {
            return None;
        }
        Some(power_of_two(tokens.max(ASKED_TOKENS_MIN)).min(max))
    }

    /// Returns a larger `num_ctx` for a prompt that turned out to be longer than the context that `sent` gave it.
    pub(super) fn larger(&self, sent: Option<u32>, need: Need) -> Option<u32> {
        if self.asked.is_some() {
            return None;
        }
        let max = self.model_max.unwrap_or(u32::MAX);
        let was = self.limit(sent);
        let most = power_of_two(need.most().max(ASKED_TOKENS_MIN));
        let larger = power_of_two(was.saturating_add(1).max(ASKED_TOKENS_MIN)).min(most).min(max);
        (larger > was).then_some(larger)
    }

    /// Returns the tokens that the context holds when `sent` was asked for, as far as that is known.
    pub(super) fn window(&self, sent: Option<u32>) -> Option<u32> {
        // Where nothing was sent, a context that was loaded smaller than the server's choice makes way for that.
        let own = self.modelfile.or(self.loaded.map(|_| DEFAULT_TOKENS_MIN));
        let window = sent.or(self.loaded.max(own))?;
        Some(self.model_max.map_or(window, |max| window.min(max)))
    }

    /// As [`Known::window`], with the least that it can be where it is not known.
    pub(super) fn limit(&self, sent: Option<u32>) -> u32 {
        self.window(sent).unwrap_or(DEFAULT_TOKENS_MIN).min(self.model_max.unwrap_or(u32::MAX))
    }
}

fn power_of_two(tokens: u32) -> u32 {
    tokens.checked_next_power_of_two().unwrap_or(u32::MAX)
}

/// Whether a server cut a prompt, by the number of tokens that it says it read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Cut {
    /// Nothing points to it.
    No,
    /// It read far fewer tokens than the prompt seems to have.
    Suspected,
    /// It read as many tokens as the context holds: the prompt fits by chance, or it was cut, where the server cuts.
    Filled,
}

/// Judges the count of an answer. Servers that do not tell it, or leave cached tokens out, give 0.
pub(super) fn judge(prompt_eval_count: u32, window: Option<u32>, need: Need) -> Cut {
    if prompt_eval_count == 0 {
        Cut::No
    } else if prompt_eval_count >= window.unwrap_or(DEFAULT_TOKENS_MIN) {
        Cut::Filled
    } else if prompt_eval_count < need.prompt_tokens / 4 {
        Cut::Suspected
    } else {
        Cut::No
    }
}

/// Returns whether a version of Ollama refuses prompts that are too long when it is told to; older ones cut them whatever they are told.
/// Builds without a version are taken for new ones.
pub(super) fn refuses_long_prompts(version: &str) -> bool {
    let mut parts = version.trim_start_matches('v').split(['.', '-', '+']).map_while(|part| part.parse::<u32>().ok());
    let version = [parts.next(), parts.next(), parts.next()].map(Option::unwrap_or_default);
    version == [0, 0, 0] || version >= [0, 12, 6]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn need(prompt_bytes: usize, max_tokens: u32) -> Need {
        Need::of(prompt_bytes, 0, Some(max_tokens))
    }

    #[test]
    fn the_context_follows_the_need_and_spares_a_reload() {
        let of = |max| Known { model_max: Some(max), ..Known::default() };
        let loaded = |tokens, max| Known { loaded: Some(tokens), ..of(max) };
        let cases = [
            ("small, not loaded: the server's default", of(32768), need(300, 100), None),
            ("what the Modelfile sets suffices", Known { modelfile: Some(8192), ..of(32768) }, need(9000, 100), None),
            ("not loaded: a power of two", of(32768), need(15_000, 100), Some(8192)),
            ("never below 4096", of(32768), need(6000, 100), Some(4096)),
            ("never above what the model was made for", of(6000), need(30_000, 100), Some(6000)),
            ("the loaded one suffices", loaded(16384, 32768), need(300, 100), Some(16384)),
            ("the loaded one exactly suffices", loaded(2100, 32768), need(6000, 100), Some(2100)),
            ("the loaded one is too small", loaded(4096, 32768), need(15_000, 100), Some(8192)),
            ("loaded at its limit by others", loaded(8192, 8192), need(300, 100), None),
            ("loaded at its limit, and the need is more", loaded(8192, 8192), need(90_000, 100), None),
            (
                "loaded at its limit by us",
                Known { last_sent: Some(8192), ..loaded(8192, 8192) },
                need(300, 1),
                Some(8192),
            ),
            ("loaded larger than we asked", Known { last_sent: Some(4096), ..loaded(8192, 8192) }, need(300, 1), None),
            ("the client decides", Known { asked: Some(1000), ..loaded(8192, 8192) }, need(90_000, 1), Some(1000)),
            ("nothing is known", Known::default(), need(30_000, 100), Some(16384)),
        ];
        for (what, known, need, expected) in cases {
            assert_eq!(known.num_ctx(need), expected, "{what}");
        }
    }

    #[test]
    fn an_answer_without_a_limit_has_room() {
        assert_eq!(Known::default().num_ctx(Need::of(3 * 4000, 0, None)), Some(8192));
    }

    proptest! {
        #[test]
        fn a_context_holds_the_need_or_is_the_models_limit(
            bytes in 0_usize..1_000_000,
            answer in 0_u32..100_000,
            max in proptest::option::of(512_u32..200_000),
            modelfile in proptest::option::of(512_u32..100_000),
            loaded in proptest::option::of(512_u32..200_000),
            last_sent in proptest::option::of(512_u32..200_000),
        ) {
            let loaded = loaded.map(|tokens| tokens.min(max.unwrap_or(u32::MAX)));
            let known = Known { asked: None, model_max: max, modelfile, loaded, last_sent };
            let need = need(bytes, answer);
            if let Some(tokens) = known.num_ctx(need) {
                prop_assert!(tokens >= need.likely().min(max.unwrap_or(u32::MAX)));
                prop_assert!(max.is_none_or(|max| tokens <= max) || Some(tokens) == last_sent);
                if loaded.is_some_and(|loaded| loaded >= need.likely()) && last_sent.is_none() {
                    prop_assert_eq!(Some(tokens), loaded);
                }
            }
        }

        #[test]
        fn growing_ends_at_what_any_prompt_can_need(
            bytes in 0_usize..1_000_000,
            max in proptest::option::of(512_u32..200_000),
            loaded in proptest::option::of(512_u32..200_000),
        ) {
            let known = Known { model_max: max, loaded, ..Known::default() };
            let need = need(bytes, 100);
            let mut sent = known.num_ctx(need);
            for _ in 0..32 {
                let Some(larger) = known.larger(sent, need) else { return Ok(()) };
                prop_assert!(larger > sent.unwrap_or(0) && larger <= max.unwrap_or(u32::MAX));
                sent = Some(larger);
            }
            prop_assert!(false, "it grows for ever");
        }
    }

    #[test]
    fn a_cut_is_seen_by_the_count() {
        let need = need(30_000, 100);
        assert_eq!(judge(4096, Some(4096), need), Cut::Filled);
        assert_eq!(judge(2048, None, need), Cut::Filled);
        assert_eq!(judge(1500, Some(16384), need), Cut::Suspected);
        assert_eq!(judge(7000, Some(16384), need), Cut::No);
        assert_eq!(judge(0, Some(16384), need), Cut::No);
    }

    #[test]
    fn versions_that_refuse_are_known() {
        for version in ["0.12.6", "0.24.0", "v1.0", "0.13.0-rc1", "0.0.0", "main"] {
            assert!(refuses_long_prompts(version), "{version}");
        }
        for version in ["0.12.5", "0.9.2", "0.1.32-rc2"] {
            assert!(!refuses_long_prompts(version), "{version}");
        }
    }
}
