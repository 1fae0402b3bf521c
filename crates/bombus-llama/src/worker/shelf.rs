//! The caches of sequences that no run uses, put away outside of the KV cache.
//!
//! Attention looks at every cell of the KV cache up to the last one in use, also at those of other sequences. Sequences that wait for
//! their conversation to go on would make every round slower, so they leave the cache while others are computed.

use llama_cpp_2::token::LlamaToken;

/// Caches with the tokens that they were computed of, up to a total size; the longest unused leave first.
pub(crate) struct Shelf<S> {
    /// The longest unused first.
    caches: Vec<Shelved<S>>,
    bytes: usize,
    bytes_max: usize,
}

struct Shelved<S> {
    tokens: Vec<LlamaToken>,
    state: S,
    bytes: usize,
}

impl<S: Clone> Shelf<S> {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { caches: Vec::new(), bytes: 0, bytes_max }
    }

    /// Returns whether a cache of this size could be put here.
    pub(crate) fn takes(&self, bytes: usize) -> bool {
        bytes <= self.bytes_max
    }

    /// Puts a cache away. Those that hold no more than its beginning are of no use any more.
    pub(crate) fn put(&mut self, tokens: Vec<LlamaToken>, state: S, bytes: usize) {
        self.remove_where(|kept| tokens.starts_with(&kept.tokens));
        while self.bytes + bytes > self.bytes_max && !self.caches.is_empty() {
            self.remove(0);
        }
        if self.takes(bytes) {
            self.bytes += bytes;
            self.caches.push(Shelved { tokens, state, bytes });
        }
    }

    /// Returns how many of these tokens, from the first on, the best cache holds.
    pub(crate) fn longest_prefix(&self, tokens: &[LlamaToken]) -> usize {
        self.best(tokens).map_or(0, |(_, shared)| shared)
    }

    /// Hands out the cache that holds the longest prefix of these tokens. It stays here, too, where most of it is about other tokens:
    /// another conversation may go on from there.
    pub(crate) fn take(&mut self, tokens: &[LlamaToken]) -> Option<(Vec<LlamaToken>, S)> {
        let (index, shared) = self.best(tokens)?;
        let cache = self.remove(index);
        let taken = (cache.tokens.clone(), cache.state.clone());
        if shared * 2 <= cache.tokens.len() {
            self.bytes += cache.bytes;
            self.caches.push(cache);
        }
        Some(taken)
    }

    fn best(&self, tokens: &[LlamaToken]) -> Option<(usize, usize)> {
        let shared = self.caches.iter().map(|cache| common_prefix(&cache.tokens, tokens)).enumerate();
        shared.filter(|(_, shared)| *shared > 0).max_by_key(|(_, shared)| *shared)
    }

    fn remove_where(&mut self, is_useless: impl Fn(&Shelved<S>) -> bool) {
        self.caches.retain(|cache| !is_useless(cache));
        self.bytes = self.caches.iter().map(|cache| cache.bytes).sum();
    }

    fn remove(&mut self, index: usize) -> Shelved<S> {
        let removed = self.caches.remove(index);
        self.bytes -= removed.bytes;
        removed
    }
}

/// Returns how many tokens two sequences have in common from the first on.
pub(crate) fn common_prefix(a: &[LlamaToken], b: &[LlamaToken]) -> usize {
    a.iter().zip(b).take_while(|(x, y)| x == y).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tokens(ids: &[i32]) -> Vec<LlamaToken> {
        ids.iter().copied().map(LlamaToken).collect()
    }

    #[test]
    fn a_conversation_that_goes_on_gets_its_cache_back_and_leaves_no_copy() {
        let mut shelf = Shelf::new(100);
        shelf.put(tokens(&[1, 2, 3]), "a", 10);
        shelf.put(tokens(&[1, 9]), "b", 10);
        let longer = tokens(&[1, 2, 3, 4]);
        assert_eq!(shelf.longest_prefix(&longer), 3);
        assert_eq!(shelf.take(&longer), Some((tokens(&[1, 2, 3]), "a")));
        assert_eq!(shelf.longest_prefix(&longer), 1);
    }

    #[test]
    fn a_cache_that_is_mostly_about_something_else_stays() {
        let mut shelf = Shelf::new(100);
        shelf.put(tokens(&[1, 2, 3, 4]), "a", 10);
        let other = tokens(&[1, 2, 8, 9]);
        assert_eq!(shelf.take(&other).map(|(_, state)| state), Some("a"));
        assert_eq!(shelf.longest_prefix(&tokens(&[1, 2, 3, 4, 5])), 4);
    }

    #[test]
    fn the_longest_unused_make_room_and_what_is_too_large_is_not_taken() {
        let mut shelf = Shelf::new(20);
        shelf.put(tokens(&[1]), "a", 10);
        shelf.put(tokens(&[2]), "b", 10);
        shelf.put(tokens(&[3]), "c", 15);
        assert_eq!([1, 2, 3].map(|id| shelf.longest_prefix(&tokens(&[id]))), [0, 0, 1]);
        assert!(!shelf.takes(21));
    }

    #[test]
    fn a_longer_cache_takes_the_place_of_its_own_beginning() {
        let mut shelf = Shelf::new(20);
        shelf.put(tokens(&[1, 2]), "short", 10);
        shelf.put(tokens(&[7]), "other", 5);
        shelf.put(tokens(&[1, 2, 3]), "long", 15);
        assert_eq!(shelf.take(&tokens(&[1, 2])).map(|(_, state)| state), Some("long"));
        assert_eq!(shelf.longest_prefix(&tokens(&[7])), 1);
    }
}
