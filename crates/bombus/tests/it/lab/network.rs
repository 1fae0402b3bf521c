use super::{Lan, Proxies, rights};

/// What is between nodes that can be parted.
pub(crate) enum Network {
    /// A switch with a machine for each node.
    Lan(Lan),
    /// Proxies between the nodes of this machine, where no others can be made.
    Proxies(Proxies),
}

impl Network {
    /// Makes machines for so many nodes, or else proxies; `None` where neither can be had (the test is skipped).
    pub(crate) async fn of(count: usize) -> Option<Self> {
        match rights().await {
            Ok(_) => Lan::of(count).await.map(Self::Lan),
            Err(_) => Proxies::of(count).await.map(Self::Proxies),
        }
    }

    /// Parts a node from all others: pulls its cable.
    pub(crate) async fn unplug(&self, index: usize) {
        match self {
            Self::Lan(lan) => lan.unplug(index).await,
            Self::Proxies(proxies) => proxies.unplug(index),
        }
    }

    /// Puts a node's cable in again.
    pub(crate) async fn plug_in(&self, index: usize) {
        match self {
            Self::Lan(lan) => lan.plug_in(index).await,
            Self::Proxies(proxies) => proxies.plug_in(index),
        }
    }

    /// Lets nothing pass between a node and some others, silently.
    pub(crate) async fn cut(&self, index: usize, others: &[usize]) {
        match self {
            Self::Lan(lan) => lan.cut(index, others).await,
            Self::Proxies(proxies) => proxies.cut(index, others),
        }
    }

    /// Takes all cuts back.
    pub(crate) async fn heal(&self) {
        match self {
            Self::Lan(lan) => lan.heal().await,
            Self::Proxies(proxies) => proxies.heal(),
        }
    }
}

impl From<Lan> for Network {
    fn from(lan: Lan) -> Self {
        Self::Lan(lan)
    }
}
