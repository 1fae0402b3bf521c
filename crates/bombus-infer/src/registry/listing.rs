use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bombus_core::model::{ModelInfo, ModelName};
use bombus_core::placement::Offer;

use super::BackendOptions;
use crate::BackendError;

/// Most models that are kept of a backend's list.
const MODELS_MAX: usize = 10_000;
/// So many times in a row a list may be missing before what it said last is forgotten: one that is late once is not gone.
const FAILURES_KEPT: u32 = 1;

/// What a backend is known to have.
#[derive(Clone, Default)]
pub(super) struct Listing {
    /// By the names that they are offered by.
    offers: BTreeMap<ModelName, Offered>,
    /// What the configuration does not offer.
    hidden: HashSet<ModelName>,
    /// Why the last attempt to get the list failed.
    pub(super) error: Option<BackendError>,
    failures: u32,
    /// When the first of these failures was, in milliseconds by the registry's clock.
    pub(super) failing_since_ms: Option<u64>,
    /// What was offered before them.
    offered_before: Arc<HashSet<ModelName>>,
    /// When the last attempt ended, in milliseconds by the registry's clock.
    pub(super) asked_ms: Option<u64>,
    /// Number of the last attempt.
    pub(super) attempt: u64,
}

/// How closely the name of a model has to be as it was asked for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Spelling {
    /// As it was written.
    Exact,
    /// As Ollama compares names, see [`ModelName::is_like`].
    Alike,
}

/// A model by one of its names.
#[derive(Clone)]
pub(super) struct Offered {
    pub(super) info: Arc<ModelInfo>,
    /// The name that it has there, where this one is an alias.
    pub(super) alias_of: Option<Arc<str>>,
}

/// Which models of a backend are offered, and by which names.
pub(super) struct Names {
    /// The models that are offered, by their names there; `None`: all.
    only: Option<HashSet<ModelName>>,
    /// Aliases, by the names of the models there.
    aliases: HashMap<ModelName, Vec<(ModelName, Arc<str>)>>,
}

impl Names {
    /// Reads the options. Names that are none are logged and left out.
    pub(super) fn of(backend: &str, options: &BackendOptions) -> Self {
        let parse = |text: &str| {
            let name = ModelName::parse(text);
            if let Err(error) = &name {
                tracing::warn!(backend.name = backend, %error, "a name in the backend's settings is left out");
            }
            name.ok()
        };
        let only: HashSet<_> = options.models.iter().filter_map(|name| parse(name)).collect();
        let mut aliases: HashMap<ModelName, Vec<_>> = HashMap::new();
        for (alias, there) in &options.aliases {
            if let (Some(alias), Some(name)) = (parse(alias), parse(there)) {
                aliases.entry(name).or_default().push((alias, there.as_str().into()));
            }
        }
        Self { only: (!options.models.is_empty()).then_some(only), aliases }
    }

    /// Returns the name there of what is asked for by a name.
    pub(super) fn there<'a>(&'a self, name: &'a ModelName) -> &'a ModelName {
        let alias = self.aliases.iter().find(|(_, aliases)| aliases.iter().any(|(alias, _)| alias == name));
        alias.map_or(name, |(there, _)| there)
    }

    /// Returns whether the options speak of a model that is offered by this name.
    pub(super) fn mention(&self, name: &ModelName) -> bool {
        let is_it = |one: &ModelName| one.is_like(name);
        let is_offered = match &self.only {
            Some(only) => only.iter().any(is_it),
            None => self.aliases.keys().any(is_it),
        };
        is_offered || self.aliases.values().flatten().any(|(alias, _)| is_it(alias))
    }
}

impl Listing {
    /// Takes a list as the backend gave it.
    pub(super) fn of(names: &Names, models: Vec<ModelInfo>) -> Self {
        let mut listing = Self::default();
        for info in models.into_iter().take(MODELS_MAX) {
            listing.add(names, info);
        }
        listing
    }

    /// Returns the same models after one more attempt that failed, or none after too many.
    pub(super) fn failed(&self, error: BackendError, now_ms: u64) -> Self {
        let failures = self.failures.saturating_add(1);
        let offered_before = match self.failures {
            0 => Arc::new(self.offers.keys().cloned().collect()),
            _ => self.offered_before.clone(),
        };
        let failing_since_ms = self.failing_since_ms.or(Some(now_ms));
        let mut listing = Self { error: Some(error), failures, failing_since_ms, offered_before, ..Self::default() };
        if failures <= FAILURES_KEPT {
            (listing.offers, listing.hidden) = (self.offers.clone(), self.hidden.clone());
        }
        listing
    }

    /// Returns the same models and one more.
    pub(super) fn with(&self, names: &Names, info: ModelInfo) -> Self {
        let mut listing = self.clone();
        listing.add(names, info);
        listing
    }

    /// Returns the same models with this one in memory, by all of its names; `None` where it is so already, or there is no such model.
    pub(super) fn warmed(&self, name: &ModelName) -> Option<Self> {
        self.offers.get(name).filter(|offered| !offered.info.warm)?;
        let there = |name: &ModelName, offered: &Offered| match offered.alias_of.as_deref().map(ModelName::parse) {
            Some(Ok(there)) => there,
            Some(Err(_)) | None => name.clone(),
        };
        let mut listing = self.clone();
        let which = there(name, listing.offers.get(name)?);
        for (name, offered) in &mut listing.offers {
            if there(name, offered) == which {
                Arc::make_mut(&mut offered.info).warm = true;
            }
        }
        Some(listing)
    }

    fn add(&mut self, names: &Names, info: ModelInfo) {
        let name = info.name.clone();
        for (alias, there) in names.aliases.get(&name).into_iter().flatten() {
            let info = Arc::new(ModelInfo { name: alias.clone(), ..info.clone() });
            self.offers.insert(alias.clone(), Offered { info, alias_of: Some(there.clone()) });
        }
        if names.only.as_ref().is_some_and(|only| !only.contains(&name)) {
            self.hidden.insert(name);
            return;
        }
        // A name that is an alias of another model stands for that one.
        let taken = self.offers.get(&name).is_some_and(|offered| offered.alias_of.is_some());
        if !taken {
            self.offers.insert(name, Offered { info: Arc::new(info), alias_of: None });
        }
    }

    /// Returns whether a model was offered before the list could not be had any more.
    pub(super) fn offered_before(&self, name: &ModelName) -> bool {
        self.offered_before.iter().any(|offered| offered.is_like(name))
    }

    /// Returns the models in the order of their names.
    pub(super) fn offers(&self) -> impl ExactSizeIterator<Item = &Offered> {
        self.offers.values()
    }

    /// Returns whether a model is offered by this name, as it is written.
    pub(super) fn has(&self, name: &ModelName) -> bool {
        self.offers.contains_key(name)
    }

    /// Returns what there is by a name, or, where the way that it is written does not matter, by one that is like it.
    pub(super) fn offer(&self, name: &ModelName, spelling: Spelling) -> Offer {
        match self.offers.get(name).or_else(|| self.alike(name, spelling)) {
            Some(Offered { info, alias_of }) => Offer::Has { info: info.clone(), alias_of: alias_of.clone() },
            None if self.hidden.contains(name) => Offer::Hidden,
            None => match &self.error {
                Some(error) => Offer::Unknown(error.to_string().into()),
                None if self.asked_ms.is_none() => Offer::Unknown("it has not been asked for its models yet".into()),
                None => Offer::Missing,
            },
        }
    }

    fn alike(&self, name: &ModelName, spelling: Spelling) -> Option<&Offered> {
        if spelling == Spelling::Exact || self.hidden.contains(name) {
            return None;
        }
        self.offers.iter().find(|(offered, _)| offered.is_like(name)).map(|(_, offered)| offered)
    }
}
