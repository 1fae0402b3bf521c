//! What the engine needs of the processor.

/// Returns the instruction sets that this build of llama.cpp uses and this processor lacks. Without the check the engine process
/// would die of an illegal instruction.
#[must_use]
pub fn missing_features() -> Vec<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let needed = [
            ("AVX2", std::arch::is_x86_feature_detected!("avx2")),
            ("FMA", std::arch::is_x86_feature_detected!("fma")),
            ("F16C", std::arch::is_x86_feature_detected!("f16c")),
            ("BMI2", std::arch::is_x86_feature_detected!("bmi2")),
        ];
        needed.into_iter().filter_map(|(name, there)| (!there).then_some(name)).collect()
    }
    #[cfg(not(target_arch = "x86_64"))]
    Vec::new()
}

/// Says what missing instruction sets mean for the user.
#[must_use]
pub fn explain(missing: &[&str]) -> String {
    format!(
        "this processor lacks {}, which the embedded engine needs (Intel has them since 2013, AMD since 2015); \
         use another backend on this machine",
        missing.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_explanation_names_what_is_missing() {
        assert!(explain(&["AVX2", "FMA"]).contains("lacks AVX2, FMA"));
    }
}
