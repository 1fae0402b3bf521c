//! Names of databases that each node has for itself. One address goes with each of them.

use orbitdb::cid::Hash;
use orbitdb::manifest::{Address, ControllerAddress, DatabaseType, Manifest, controller_block};

use crate::files::FILES;
use crate::store::{EVENTS, generation_of};

/// Says whether nodes keep durable tasks, or files, in databases of this name.
#[must_use]
pub fn is_reserved(name: &str) -> bool {
    generation_of(name).is_some() || name == FILES
}

/// Says whether a database has such a name, and is another one than nodes keep by it.
pub(crate) fn is_foreign(name: &str, address: &Address) -> bool {
    is_reserved(name) && address_of(name).as_ref() != Some(address)
}

fn address_of(name: &str) -> Option<Address> {
    let r#type = if name.starts_with(EVENTS) { DatabaseType::Events } else { DatabaseType::Documents };
    let controller = ControllerAddress::Ipfs(Hash::of(&controller_block(&["*".to_owned()])));
    let manifest = Manifest { name: name.to_owned(), r#type, controller, meta: None };
    Some(Address::new(Hash::of(&manifest.block().ok()?)))
}
