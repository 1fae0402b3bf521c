//! Nodes and real peers of OrbitDB in JavaScript, of releases 3 and 4, with databases in common.
//!
//! Each test names the release that it is run with; `of_each_release` makes one test of it for each.

use std::time::Duration;

use tokio::time::{sleep, timeout};

use crate::harness::LIMIT;
use crate::swarm::{Plan, Swarm};

mod database;
mod peer;

mod access;
mod bulk;
mod coming_and_going;
mod exchange;
mod values;
mod writers;

use database::{Ours, Row};
use peer::{Installed, JsHome, JsPeer, Release};

/// Makes a test for each release of a function that takes one.
macro_rules! of_each_release {
    ($($test:ident),+ $(,)?) => {
        mod of_release_3 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(installed) = super::super::Release::Three.installed().await else { return };
                super::$test(installed).await;
            })+
        }
        mod of_release_4 {
            $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $test() {
                let Some(installed) = super::super::Release::Four.installed().await else { return };
                super::$test(installed).await;
            })+
        }
    };
}
pub(crate) use of_each_release;

/// Anything that has a database open.
enum Side<'a> {
    Ours(&'a Ours<'a>),
    Js(&'a JsPeer, &'a str),
}

impl Side<'_> {
    async fn all(&self) -> Vec<Row> {
        match self {
            Self::Ours(ours) => ours.all().await,
            Self::Js(peer, address) => peer.all(address).await,
        }
    }

    async fn heads(&self) -> Vec<String> {
        match self {
            Self::Ours(ours) => ours.heads().await,
            Self::Js(peer, address) => peer.heads(address).await,
        }
    }
}

/// Waits until all sides have the same heads, and so the same entries, and so many rows at the first; then they have to show the same rows
/// in the same order. Returns the rows.
async fn agree(what: &str, rows: usize, sides: &[Side<'_>]) -> Vec<Row> {
    let mut seen = Vec::new();
    let same = async {
        loop {
            seen.clear();
            for side in sides {
                seen.push(side.heads().await);
            }
            let one = seen.iter().all(|heads| *heads == seen[0] && !heads.is_empty());
            if one && sides[0].all().await.len() == rows {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(LIMIT, same).await.is_err() {
        let mut told = String::new();
        for side in sides {
            told += &format!("\n{} rows on heads {:?}", side.all().await.len(), side.heads().await);
            if let Side::Js(peer, _) = side {
                told += &peer.complaints();
            }
        }
        panic!("{what}: not the same on all sides: {told}");
    }
    let shown = sides[0].all().await;
    for side in &sides[1..] {
        assert_eq!(side.all().await, shown, "{what}: the same entries in the same order");
    }
    shown
}

/// A node in an open swarm, and a peer that has dialled it.
async fn pair(installed: Installed) -> (Swarm, JsHome, JsPeer) {
    let swarm = Plan::of(1).open().start().await;
    let home = JsHome::new(installed);
    let peer = home.start().await;
    peer.dial(&swarm.member(0).address()).await;
    (swarm, home, peer)
}
