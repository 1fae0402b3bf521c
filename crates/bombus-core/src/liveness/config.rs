//! The numbers of a failure detector.

/// Times in milliseconds, and counts. With the defaults, who is silent is suspect after 1.4 s and gone 6.5 s later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DetectorConfig {
    /// How often a node pings the next one on the ring, and those that are watched. Kept to within a tenth.
    pub period_ms: u64,
    /// How long one of them may be silent before others are asked.
    pub doubt_ms: u64,
    /// How long it then has before it is suspect.
    pub verify_ms: u64,
    /// How long a peer whose connection was lost has before others are told that it is suspect: half to one and a half times this,
    /// since all who lost it would tell at once.
    pub lost_verify_ms: u64,
    /// How long a suspect has before it is gone.
    pub suspect_ms: u64,
    /// How long a suspect has before it is gone where others say that it is gone.
    pub confirm_ms: u64,
    /// Who was heard within this time is not made suspect by what others say.
    pub fresh_ms: u64,
    /// When a node that no connection leads to is looked for, where nobody else may do so.
    pub orphan_ms: u64,
    /// How long the gone are remembered.
    pub forget_ms: u64,
    /// How many others are asked about a silent peer.
    pub helpers: usize,
    /// To how many others news is passed on at once.
    pub fanout: usize,
    /// Members remembered. Beyond, new ones are not taken up.
    pub members_max: usize,
}

impl Default for DetectorConfig {
    fn default() -> Self {
        Self {
            period_ms: 400,
            doubt_ms: 900,
            verify_ms: 500,
            lost_verify_ms: 700,
            suspect_ms: 6_500,
            confirm_ms: 2_500,
            fresh_ms: 1_000,
            orphan_ms: 5_000,
            forget_ms: 600_000,
            helpers: 3,
            fanout: 3,
            members_max: 1_024,
        }
    }
}
