//! The node: its parts, put together.

mod backends;

pub(crate) use backends::RunningBackends;
