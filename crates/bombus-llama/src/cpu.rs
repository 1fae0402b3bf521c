//! What the engine needs of the processor.

#[cfg(all(test, unix))]
use std::sync::atomic::{AtomicBool, Ordering};

/// Whether this process takes its processor for one without AVX2.
#[cfg(all(test, unix))]
static LACKS_AVX2: AtomicBool = AtomicBool::new(false);

/// Has this process take its processor for one without AVX2.
#[cfg(all(test, unix))]
pub(crate) fn lack_avx2() {
    LACKS_AVX2.store(true, Ordering::Relaxed);
}

/// Says whether the engine can run on this processor. Without the check the engine process would die of an illegal instruction.
///
/// # Errors
///
/// Names the instruction sets that are missing, and says what to do instead.
pub fn check() -> Result<(), String> {
    without(&missing_features())
}

/// Says whether the engine can run on a processor that lacks these instruction sets.
fn without(missing: &[&str]) -> Result<(), String> {
    if missing.is_empty() {
        return Ok(());
    }
    Err(format!(
        "this processor lacks {}, which the embedded engine needs (Intel's Core and Xeon have them since 2013, most of AMD's since \
         2015); use another backend on this machine",
        missing.join(", ")
    ))
}

/// Returns the instruction sets that this build of llama.cpp uses and this processor lacks.
fn missing_features() -> Vec<&'static str> {
    #[cfg(all(test, unix))]
    if LACKS_AVX2.load(Ordering::Relaxed) {
        return vec!["AVX2"];
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_and_nothing_missing_is_fine() {
        let refused = without(&["AVX2", "FMA"]).unwrap_err();
        assert!(refused.contains("lacks AVX2, FMA,") && refused.contains("use another backend"), "{refused}");
        assert_eq!(without(&[]), Ok(()));
    }
}
