//! Tests of the real program: each starts `bombus` as its users do and looks at what comes out.

#![expect(clippy::unwrap_used, reason = "a test that panics says where")]

mod harness;
mod lab;
mod model;
mod terminal;

mod ask;
mod back_pressure;
mod backends;
mod bench;
mod chat;
mod completions;
mod config;
mod crate_graph;
mod databases;
mod derived;
mod detect;
mod doctor;
mod engine;
mod faults;
mod keys;
mod logs;
mod models;
mod orbitdb_js;
#[cfg(feature = "embedded")]
mod resume;
mod route;
mod service;
mod sharing;
mod signals;
mod swarm;
mod tasks;
mod up;
