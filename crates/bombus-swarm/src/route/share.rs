//! Who may use what of this node (pure).

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;
use bombus_infer::Listed;

use super::config::ShareConfig;
use super::state::ShareState;
use super::wire::Reason;

/// Says why a peer gets nothing now, if so.
pub(super) fn refusal(share: &ShareConfig, state: ShareState, peer: &NodeId, name: &str) -> Option<Reason> {
    if share.serve && !share.is_for(peer, name) { Some(Reason::NotAllowed) } else { refusal_of_all(share, state) }
}

/// Says why nobody gets anything now, if so.
pub(super) fn refusal_of_all(share: &ShareConfig, state: ShareState) -> Option<Reason> {
    match () {
        () if !share.serve => Some(Reason::NotServing),
        () if state.draining => Some(Reason::Draining),
        () if state.paused => Some(Reason::Paused),
        () => None,
    }
}

/// Says whether a peer is told of models at all, be they usable now or not.
pub(super) fn is_told(share: &ShareConfig, peer: &NodeId, name: &str) -> bool {
    share.serve && share.is_for(peer, name)
}

/// Names the models that others may use, by the names that they are offered by or have at their backends; `None`: all.
pub(super) fn models(share: &ShareConfig) -> Option<Vec<ModelName>> {
    let names = || share.models.iter().filter_map(|name| ModelName::parse(name).ok()).collect();
    (!share.models.is_empty()).then(names)
}

/// Says whether others may use a model by the name that it is offered by.
pub(super) fn shares(share: &ShareConfig, listed: &Listed) -> bool {
    models(share).is_none_or(|shared| shared.contains(&listed.info.name) || shared.contains(&listed.name_there()))
}

/// Says whether others may use what this name stands for, as far as that is known. What answers in the end is held to [`models`] again.
pub(super) fn shares_name(share: &ShareConfig, name: &ModelName, known: &[Listed]) -> bool {
    if share.models.is_empty() {
        return true;
    }
    let mut listed = known.iter().filter(|listed| listed.info.name == *name).peekable();
    match listed.peek() {
        Some(_) => listed.any(|listed| shares(share, listed)),
        // What came since the lists were read may be asked for by its own name.
        None => models(share).is_none_or(|shared| shared.contains(name)),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use bombus_core::identity::NodeKey;
    use bombus_core::model::ModelInfo;
    use bombus_infer::NamedBackend;
    use bombus_infer::fake::{FakeBackend, FakeConfig};

    use super::*;

    fn named(name: &str) -> ModelName {
        ModelName::parse(name).unwrap()
    }

    fn listed(name: &str, alias_of: Option<&str>) -> Listed {
        let backend = NamedBackend::new("fake", "fake", Arc::new(FakeBackend::new(FakeConfig::default())));
        let info = ModelInfo::named(named(name));
        Listed { backend, info, alias_of: alias_of.map(str::to_owned), first: true, node: None, node_name: None }
    }

    #[test]
    fn the_owner_decides_who_may_ask() {
        let peer = NodeKey::from_secret(&[1; 32]).node_id();
        let open = ShareConfig::default();
        let only = |peers: &[&str]| ShareConfig {
            peers: peers.iter().map(|name| (*name).to_owned()).collect(),
            ..ShareConfig::default()
        };
        let idle = ShareState::default();
        assert_eq!(refusal(&open, idle, &peer, "bee"), None);
        assert_eq!(refusal(&only(&["bee"]), idle, &peer, "bee"), None);
        assert_eq!(refusal(&only(&[peer.as_str()]), idle, &peer, "wasp"), None);
        assert_eq!(refusal(&only(&["bee"]), idle, &peer, "wasp"), Some(Reason::NotAllowed));
        assert_eq!(refusal(&ShareConfig { serve: false, ..open.clone() }, idle, &peer, ""), Some(Reason::NotServing));
        let paused = ShareState { paused: true, ..idle };
        assert_eq!(refusal(&open, paused, &peer, ""), Some(Reason::Paused));
        assert_eq!(refusal(&open, ShareState { draining: true, ..paused }, &peer, ""), Some(Reason::Draining));
    }

    #[test]
    fn a_shared_model_is_shared_by_all_its_names_and_an_alias_alone() {
        let share = |models: &[&str]| ShareConfig {
            models: models.iter().map(|name| (*name).to_owned()).collect(),
            ..ShareConfig::default()
        };
        let known = [listed("qwen3", None), listed("best", Some("qwen3")), listed("other", None)];
        let shared = |models: &[&str]| {
            let share = share(models);
            ["qwen3", "best", "other", "new"].map(|name| shares_name(&share, &named(name), &known))
        };
        assert_eq!(shared(&[]), [true; 4]);
        assert_eq!(shared(&["qwen3:latest"]), [true, true, false, false]);
        assert_eq!(shared(&["best"]), [false, true, false, false]);
        assert_eq!(shared(&["new"]), [false, false, false, true]);
        assert_eq!(shared(&["a b"]), [false; 4], "what is no name allows nothing");
    }
}
