//! Which nodes a request came through, as the header `Via` tells it (RFC 9110, section 7.6.3): nodes that are backends of each other, or of
//! themselves, would hand a request round without end.

use std::sync::{Arc, LazyLock};

use reqwest::header::HeaderValue;
use uuid::Uuid;

/// What the pseudonyms of nodes begin with.
const NODE: &str = "bombus-";
/// Most bytes of what comes behind that.
const ID_BYTES_MAX: usize = 32;
/// Most nodes that a request may come through; told with the longest pseudonyms they take less than 1 KiB.
const NODES_MAX: usize = 16;

/// This node's pseudonym. It is drawn anew by each process, so that no two have the same one and servers learn nothing by it.
static OWN: LazyLock<String> = LazyLock::new(|| format!("{NODE}{}", Uuid::new_v4().simple()));

tokio::task_local! {
    /// How the request came that the task answers. As its span, it is kept beside the request: nothing between what takes the request and
    /// what asks a server for it has to know of it.
    static CAME: Via;
}

/// The nodes that a request came through, the first one first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Via(Arc<str>);

/// Says why a request is not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LoopDetected {
    /// It came through this node before.
    #[error(
        "this request has come back to this node: one of the backends that it went through leads here again; take that one out of [[backends]]"
    )]
    OwnNode,
    /// It came through more nodes than requests may.
    #[error("this request has come through more than 16 nodes, each of them a backend of the one before")]
    TooManyNodes,
}

impl Via {
    /// Reads what the values of the header tell of nodes; `None` where it came through none. Other proxies are left out, since what is told
    /// here is told to the servers that are asked, too.
    ///
    /// # Errors
    ///
    /// [`LoopDetected`].
    pub fn read<'a>(values: impl IntoIterator<Item = &'a str>) -> Result<Option<Self>, LoopDetected> {
        let entries = values.into_iter().flat_map(|value| value.split(','));
        let nodes: Vec<&str> = entries.filter_map(node_of).take(NODES_MAX + 1).collect();
        if nodes.contains(&OWN.as_str()) {
            return Err(LoopDetected::OwnNode);
        }
        if nodes.len() > NODES_MAX {
            return Err(LoopDetected::TooManyNodes);
        }
        let told: Vec<String> = nodes.into_iter().map(entry_of).collect();
        Ok((!told.is_empty()).then(|| Self(told.join(", ").into())))
    }

    /// Does what answers a request that came so: all that servers are asked meanwhile tells them.
    pub fn scope<F: Future>(self, answering: F) -> impl Future<Output = F::Output> {
        CAME.scope(self, answering)
    }

    /// Does the same with a step of it.
    pub fn sync_scope<T>(&self, step: impl FnOnce() -> T) -> T {
        CAME.sync_scope(self.clone(), step)
    }
}

/// Returns what a server is told with each request: the nodes that what it is asked for came through, then this one.
pub(crate) fn header() -> HeaderValue {
    let own = entry_of(&OWN);
    let told = CAME.try_with(|via| format!("{}, {own}", via.0)).unwrap_or(own);
    HeaderValue::try_from(told).expect("pseudonyms are made of letters, digits and hyphens")
}

/// Finds a node in an entry: the version of the protocol, who received it, and perhaps a comment.
fn node_of(entry: &str) -> Option<&str> {
    let name = entry.split_whitespace().nth(1)?;
    let id = name.strip_prefix(NODE)?;
    let is_one = (1..=ID_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_alphanumeric());
    is_one.then_some(name)
}

fn entry_of(node: &str) -> String {
    format!("1.1 {node}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Result<Option<String>, LoopDetected> {
        Ok(Via::read([value])?.map(|via| via.0.to_string()))
    }

    #[test]
    fn nodes_are_found_among_other_proxies() {
        for (value, nodes) in [
            ("", None),
            ("1.1 proxy.example (squid), HTTP/2 cdn", None),
            ("1.1 bombus-", None),
            ("1.1 bombus-a/b", None),
            ("bombus-a", None),
            ("1.1 bombus-a", Some("1.1 bombus-a")),
            ("1.0 fred,HTTP/1.1  bombus-a (home) ,\t1.1 bombus-b", Some("1.1 bombus-a, 1.1 bombus-b")),
        ] {
            assert_eq!(read(value), Ok(nodes.map(str::to_owned)), "{value:?}");
        }
        let lines = Via::read(["1.1 bombus-a", "1.1 bombus-b"]).unwrap().unwrap();
        assert_eq!(&*lines.0, "1.1 bombus-a, 1.1 bombus-b");
        assert_eq!(read(&format!("1.1 bombus-{}", "a".repeat(ID_BYTES_MAX + 1))), Ok(None));
    }

    #[test]
    fn a_request_comes_to_no_node_twice_and_through_no_more_than_so_many() {
        let own = header().to_str().unwrap().to_owned();
        assert_eq!(read(&format!("1.1 proxy, 1.1 bombus-a, {own}, 1.1 bombus-b")), Err(LoopDetected::OwnNode));
        let others = |count: usize| vec!["1.1 bombus-a"; count].join(", ");
        assert_eq!(read(&others(NODES_MAX)), Ok(Some(others(NODES_MAX))));
        assert_eq!(read(&others(NODES_MAX + 1)), Err(LoopDetected::TooManyNodes));
        assert!(LoopDetected::TooManyNodes.to_string().contains(&format!("more than {NODES_MAX} nodes")));
    }

    #[tokio::test]
    async fn servers_are_told_how_the_request_came_that_is_answered() {
        let own = header();
        let via = Via::read(["1.1 bombus-a"]).unwrap().unwrap();
        let told = format!("1.1 bombus-a, {}", own.to_str().unwrap());
        assert_eq!(via.sync_scope(header), told);
        assert_eq!(via.scope(async { header() }).await, told);
        assert_eq!(header(), own);
    }
}
