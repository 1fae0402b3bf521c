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
mod attacks;
mod bulk;
mod coming_and_going;
mod exchange;
mod options;
mod tasks;
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

/// Waits until all sides have the same heads, and so the same entries, and show the same rows in the same order, so many of them. Returns
/// the rows.
async fn agree(what: &str, rows: usize, sides: &[Side<'_>]) -> Vec<Row> {
    let (mut heads, mut shown) = (Vec::new(), Vec::new());
    let same = async {
        loop {
            (heads, shown) = (Vec::new(), Vec::new());
            for side in sides {
                heads.push(side.heads().await);
                shown.push(side.all().await);
            }
            let one_log = heads.iter().all(|one| *one == heads[0] && !one.is_empty());
            if one_log && shown.iter().all(|one| *one == shown[0] && one.len() == rows) {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    if timeout(LIMIT, same).await.is_ok() {
        return shown.swap_remove(0);
    }
    let mut told = String::new();
    for (index, side) in sides.iter().enumerate() {
        let (heads, shown) = (heads.get(index), shown.get(index).map(Vec::len));
        told += &format!("\n{shown:?} rows on heads {heads:?}");
        if let Side::Js(peer, _) = side {
            told += &format!("\n{}", peer.complaints());
        }
    }
    panic!("{what}: not the same {rows} rows on all sides: {told}");
}

/// A node in an open swarm, and a peer that has dialled it.
async fn pair(installed: Installed) -> (Swarm, JsHome, JsPeer) {
    let swarm = Plan::of(1).open().start().await;
    let home = JsHome::new(installed);
    let peer = home.start().await;
    peer.dial(&swarm.member(0).address()).await;
    (swarm, home, peer)
}
