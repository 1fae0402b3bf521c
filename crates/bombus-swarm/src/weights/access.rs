use std::fmt;

use bombus_core::identity::NodeId;
use bombus_core::model::ModelName;

use crate::SwarmHandle;
use crate::route::{RouteHandle, ShareConfig};

/// Who may have what of this node's models: the owner of the machine decides.
pub trait Access: Send + Sync + 'static {
    /// Says whether a peer may have the weights of a model.
    ///
    /// # Errors
    ///
    /// Why not, for the person at the other end.
    fn may_fetch(&self, peer: &NodeId, model: &ModelName) -> Result<(), String>;

    /// Says whether a peer may have this node fetch and remove models.
    ///
    /// # Errors
    ///
    /// Why not, for the person at the other end.
    fn may_manage(&self, peer: &NodeId) -> Result<(), String>;
}

/// Decides by the section `[share]` of the configuration, and lets nobody have weights while the node is paused or about to go.
pub struct ByShare {
    route: RouteHandle,
    swarm: SwarmHandle,
}

impl ByShare {
    /// Takes the settings of the route, and the names of peers of the swarm.
    #[must_use]
    pub fn new(route: RouteHandle, swarm: SwarmHandle) -> Self {
        Self { route, swarm }
    }

    fn name_of(&self, peer: &NodeId) -> String {
        self.swarm.peer(peer).map(|peer| peer.name).unwrap_or_default()
    }
}

impl fmt::Debug for ByShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ByShare").field("route", &self.route).finish_non_exhaustive()
    }
}

impl Access for ByShare {
    fn may_fetch(&self, peer: &NodeId, model: &ModelName) -> Result<(), String> {
        let state = *self.route.state().borrow();
        if state.paused || state.draining {
            return Err("it does nothing for others now".to_owned());
        }
        may_fetch(self.route.share(), peer, &self.name_of(peer), model)
    }

    fn may_manage(&self, peer: &NodeId) -> Result<(), String> {
        may_manage(self.route.share(), peer, &self.name_of(peer))
    }
}

fn may_fetch(share: &ShareConfig, peer: &NodeId, name: &str, model: &ModelName) -> Result<(), String> {
    if !share.serve {
        return Err("its owner set `share.serve` to false".to_owned());
    }
    if !share.is_for(peer, name) {
        return Err("its owner does not name this node in `share.peers`".to_owned());
    }
    let is_model = |shared: &String| ModelName::parse(shared).as_ref() == Ok(model);
    if !share.models.is_empty() && !share.models.iter().any(is_model) {
        return Err("its owner does not name the model in `share.models`".to_owned());
    }
    Ok(())
}

fn may_manage(share: &ShareConfig, peer: &NodeId, name: &str) -> Result<(), String> {
    if share.manage.allows(peer, name) {
        return Ok(());
    }
    Err("its owner has to allow that with `share.manage`".to_owned())
}

#[cfg(test)]
mod tests {
    use bombus_core::identity::NodeKey;

    use super::*;
    use crate::route::Manage;

    #[test]
    fn the_owner_decides_who_has_what() {
        let peer = NodeKey::from_secret(&[1; 32]).node_id();
        let model = ModelName::parse("qwen3:8b").unwrap();
        let fetches = |share: &ShareConfig| may_fetch(share, &peer, "bee", &model).is_ok();
        let open = ShareConfig::default();
        assert!(fetches(&open));
        assert!(!fetches(&ShareConfig { serve: false, ..open.clone() }));
        for (models, allowed) in [(vec!["qwen3:8b"], true), (vec!["qwen3"], false), (vec!["other", "qwen3:8b"], true)] {
            let models = models.into_iter().map(str::to_owned).collect();
            assert_eq!(fetches(&ShareConfig { models, ..open.clone() }), allowed);
        }
        for (peers, allowed) in [(vec!["BEE"], true), (vec![peer.as_str()], true), (vec!["wasp"], false)] {
            let peers = peers.into_iter().map(str::to_owned).collect();
            assert_eq!(fetches(&ShareConfig { peers, ..open.clone() }), allowed);
        }
        let manages = |manage: Manage| may_manage(&ShareConfig { manage, ..open.clone() }, &peer, "bee").is_ok();
        assert!(!manages(Manage::default()), "nobody, until the owner says otherwise");
        assert!(manages(Manage::Everybody(true)));
        assert!(manages(Manage::These(vec!["bee".to_owned()])) && !manages(Manage::These(vec!["wasp".to_owned()])));
    }
}
