//! Settings of the embedded engine.

use serde::{Deserialize, Serialize};

/// Most runs that one engine process computes together.
pub const SLOTS_MAX: u32 = 256;

/// Most requests to one model that may wait.
const QUEUE_MAX: u32 = 1_000_000;
/// Least context that a prompt and an answer fit into, in tokens.
const CONTEXT_TOKENS_MIN: u32 = 64;

/// Settings of an [`crate::EmbeddedBackend`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct EmbeddedConfig {
    /// Requests to one model that are computed together, 1 to 256.
    pub slots: u32,
    /// Tokens that prompt and answer may have together, at least 64. 0: as many as the model was trained for.
    pub context_tokens: u32,
    /// Tokens that the KV cache of a model holds for all slots together. 0: twice `context_tokens`.
    pub kv_tokens: u32,
    /// Memory for the caches of conversations that no request uses at the moment, in MB (2^20 bytes) for each model; never more than its
    /// KV cache takes. 0: they stay in the KV cache, where they slow others down a little.
    pub idle_cache_mb: u64,
    /// Tokens computed in one step, 32 to 2048. Smaller steps answer a cancel sooner, larger ones read prompts faster.
    pub batch_tokens: u32,
    /// Threads of each engine process. 0: one for each physical core.
    pub threads: u32,
    /// Layers of a model that go to the GPU, where the build has support for one.
    pub gpu_layers: u32,
    /// Memory for all loaded models in MB (2^20 bytes). 0: four fifths of the machine's.
    pub memory_mb: u64,
    /// Time after which an unused model leaves memory, in seconds. 0: never.
    pub idle_unload_s: u64,
    /// Requests to one model that may wait for a slot, at most 1,000,000; more are refused.
    pub queue: u32,
    /// Longest time that loading a model may take, and that a request may wait for memory that other models have, in seconds from 1.
    pub load_timeout_s: u64,
}

impl Default for EmbeddedConfig {
    fn default() -> Self {
        Self {
            slots: 8,
            context_tokens: 8_192,
            kv_tokens: 0,
            idle_cache_mb: 256,
            batch_tokens: 512,
            threads: 0,
            gpu_layers: 999,
            memory_mb: 0,
            idle_unload_s: 300,
            queue: 1_024,
            load_timeout_s: 300,
        }
    }
}

impl EmbeddedConfig {
    /// Checks the ranges.
    ///
    /// # Errors
    ///
    /// Names the value that is out of range, and the range.
    pub fn check(&self) -> Result<(), String> {
        let in_range = |name: &str, value: u32, least: u32, most: u32| {
            if (least..=most).contains(&value) {
                Ok(())
            } else {
                Err(format!("{name} is {value}, but has to be from {least} to {most}"))
            }
        };
        in_range("slots", self.slots, 1, SLOTS_MAX)?;
        in_range("batch_tokens", self.batch_tokens, 32, 2_048)?;
        in_range("threads", self.threads, 0, 512)?;
        in_range("queue", self.queue, 0, QUEUE_MAX)?;
        if self.context_tokens > 0 {
            in_range("context_tokens", self.context_tokens, CONTEXT_TOKENS_MIN, u32::MAX)?;
        }
        if self.load_timeout_s == 0 {
            return Err("load_timeout_s is 0, but has to be at least 1".into());
        }
        if self.slots > self.batch_tokens {
            return Err(format!("slots is {}, more than batch_tokens ({})", self.slots, self.batch_tokens));
        }
        if self.kv_tokens > 0 && self.kv_tokens < self.context_tokens {
            return Err(format!("kv_tokens is {}, less than context_tokens ({})", self.kv_tokens, self.context_tokens));
        }
        Ok(())
    }

    /// Returns how many requests one model may have, running and waiting together.
    pub(crate) fn requests_max(&self) -> usize {
        self.slots.saturating_add(self.queue) as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_out_of_range_are_named() {
        assert_eq!(EmbeddedConfig::default().check(), Ok(()));
        let none = EmbeddedConfig { slots: 0, ..EmbeddedConfig::default() };
        assert!(none.check().unwrap_err().contains("slots is 0"));
        let small = EmbeddedConfig { kv_tokens: 100, ..EmbeddedConfig::default() };
        assert!(small.check().unwrap_err().contains("kv_tokens"));
        let endless = EmbeddedConfig { queue: u32::MAX, ..EmbeddedConfig::default() };
        assert!(endless.check().unwrap_err().contains("queue is 4294967295"));
        let hasty = EmbeddedConfig { load_timeout_s: 0, ..EmbeddedConfig::default() };
        assert!(hasty.check().unwrap_err().contains("load_timeout_s is 0"));
        let cramped = EmbeddedConfig { context_tokens: 63, ..EmbeddedConfig::default() };
        assert!(cramped.check().unwrap_err().contains("context_tokens is 63"));
    }
}
