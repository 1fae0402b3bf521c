//! Entries as they stand on the disk, together in one value, and a log that is loaded of them. Blocks of peers are in it, and a disk may give
//! back other bytes than it took.
#![no_main]

use libfuzzer_sys::fuzz_target;
use orbitdb::{
    crypt::Encryption,
    entry::{Codec, Limits},
    fuzzing::{entries_of_segment, stored_again},
    log::Admission,
    replica::Loader,
    sync::SyncConfig,
};

/// The seeds are entries of this log.
const LOG: &str = "/orbitdb/zdpuAuCfZvikpA82uwuwAnj7gU5BY5gKonfjyjCX6B1myLUZZ";

fuzz_target!(|data: &[u8]| {
    let (kept, ranges) = entries_of_segment(data);
    assert_eq!(kept.len(), ranges.len());
    let mut end = 0;
    for ((block, _), range) in kept.iter().zip(ranges) {
        assert!(range.start >= end, "blocks stand behind one another");
        end = range.end;
        assert_eq!(&data[range], block, "a block is found again where it stands");
    }
    assert_eq!(stored_again(&kept), kept, "what is read is written as the same");
    let mut loader = Loader::new(Codec::new(LOG, Encryption::default(), Limits::default()), Admission::Everyone);
    let shown = loader.entries(&kept).len();
    assert!(shown <= kept.len());
    assert!(loader.finish(SyncConfig::default()).log().len() <= kept.len());
});
