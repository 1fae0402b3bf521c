//! What the fuzz targets need of what is private here.

pub use crate::database::entries_fuzzing::{entries_of_segment, stored_again};
