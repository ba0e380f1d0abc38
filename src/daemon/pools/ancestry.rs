//! Which volume is a parent of which, across pools: as their metadata says, attached or not.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{Pools, Refusal};
use crate::lvol::{EXTERNAL_CHAIN_LIMIT, ExternalName, ReadOnlyReason};
use crate::volume::{Key, PoolOwner};

/// Every volume, by what names it as an external parent.
pub(super) struct Ancestry(HashMap<ExternalName, Ancestor>);

/// What a volume is as a parent.
pub(super) struct Ancestor {
    key: Key,
    path: String,
    /// What shows through it from outside of its pool.
    shows: Option<ExternalName>,
    /// Nobody can write it any more.
    pub(super) read_only: bool,
    pub(super) degraded: bool,
}

impl Pools {
    pub(super) fn ancestry(&self) -> Ancestry {
        let mut all = HashMap::new();
        for pool in self.directory.pools() {
            let volumes = |owner: Rc<PoolOwner>| async move { owner.store().volumes() };
            // An error: its reactor has ended.
            let infos = pool.owner().call_blocking(volumes).unwrap_or_default();
            for entry in self.directory.volumes(pool.key()) {
                let Some(info) = infos.iter().find(|info| info.id == entry.blob()) else {
                    continue;
                };
                let ancestor = Ancestor {
                    key: entry.key(),
                    path: entry.path(),
                    shows: info.shows.clone(),
                    read_only: info.read_only == Some(ReadOnlyReason::Marked),
                    degraded: info.degraded,
                };
                all.insert(entry.external_name(), ancestor);
            }
        }
        Ancestry(all)
    }
}

impl Ancestry {
    /// The volume that is called `name`, what shows through it, what shows through that, and so on.
    /// A name that `is_device` knows ends it.
    pub(super) fn chain(
        &self,
        name: &ExternalName,
        is_device: impl Fn(&ExternalName) -> bool,
    ) -> Result<Vec<&Ancestor>, Refusal> {
        let mut chain: Vec<&Ancestor> = Vec::new();
        let mut next = Some(Arc::clone(name));
        while let Some(volume) =
            next.filter(|name| !is_device(name)).and_then(|name| self.0.get(&name))
        {
            if let Some(first) = chain.iter().position(|known| known.key == volume.key) {
                return Err(cycle(&chain[first..]));
            }
            chain.push(volume);
            if chain.len() > usize::from(EXTERNAL_CHAIN_LIMIT) {
                return Err(Refusal::TooDeep { volume: chain[0].path.clone() });
            }
            next = volume.shows.clone();
        }
        Ok(chain)
    }

    /// Whether a volume can get the first of the chain as its parent.
    pub(super) fn check_apart(chain: &[&Ancestor], volume: Key) -> Result<(), Refusal> {
        match chain.iter().position(|ancestor| ancestor.key == volume) {
            Some(last) => Err(cycle(&chain[..=last])),
            None => Ok(()),
        }
    }
}

/// Each is a clone of the next, and the last one of the first.
fn cycle(volumes: &[&Ancestor]) -> Refusal {
    let names = volumes.iter().chain(volumes.first()).map(|volume| &*volume.path);
    Refusal::Cycle { volumes: names.collect::<Vec<_>>().join(" -> ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u8) -> ExternalName {
        [number].into()
    }

    fn key(number: u8) -> Key {
        Key::from_number(number.into())
    }

    /// Volumes by number, each with what shows through it.
    fn ancestry(volumes: impl IntoIterator<Item = (u8, Option<u8>)>) -> Ancestry {
        let ancestor = |(number, shows): (u8, Option<u8>)| {
            let (key, path) = (key(number), format!("p/{number}"));
            let shows = shows.map(name);
            (name(number), Ancestor { key, path, shows, read_only: true, degraded: false })
        };
        Ancestry(volumes.into_iter().map(ancestor).collect())
    }

    fn chain(ancestry: &Ancestry, from: u8, device: Option<u8>) -> Result<Vec<Key>, String> {
        let chain = ancestry.chain(&name(from), |known| device.map(name).as_ref() == Some(known));
        chain
            .map(|chain| chain.iter().map(|ancestor| ancestor.key).collect())
            .map_err(|refusal| refusal.to_string())
    }

    #[test]
    fn chains_end_at_devices_and_at_what_is_not_there() {
        let volumes = ancestry([(1, Some(2)), (2, Some(3)), (3, Some(9)), (4, None)]);
        assert_eq!(chain(&volumes, 1, None), Ok(vec![key(1), key(2), key(3)]));
        assert_eq!(chain(&volumes, 1, Some(3)), Ok(vec![key(1), key(2)]));
        assert_eq!(chain(&volumes, 4, None), Ok(vec![key(4)]));
        assert_eq!(chain(&volumes, 9, None), Ok(Vec::new()));
        let found = volumes.chain(&name(1), |_| false).unwrap();
        assert!(Ancestry::check_apart(&found, key(4)).is_ok());
        let circle = Ancestry::check_apart(&found, key(2)).unwrap_err().to_string();
        assert!(circle.ends_with("p/1 -> p/2 -> p/1"), "{circle}");
    }

    #[test]
    fn a_circle_is_named_and_what_leads_into_it_is_not() {
        let volumes = ancestry([(1, Some(2)), (2, Some(3)), (3, Some(2)), (4, Some(4))]);
        let circle = chain(&volumes, 1, None).unwrap_err();
        assert!(circle.ends_with(": p/2 -> p/3 -> p/2"), "{circle}");
        assert!(chain(&volumes, 4, None).unwrap_err().ends_with(": p/4 -> p/4"));
    }

    #[test]
    fn a_chain_has_a_limit() {
        let limit = EXTERNAL_CHAIN_LIMIT;
        let volumes = ancestry((0..=limit).map(|number| (number, Some(number + 1))));
        assert!(chain(&volumes, 0, None).unwrap_err().contains("p/0 has more than"));
        assert_eq!(chain(&volumes, 1, None).unwrap().len(), usize::from(limit));
    }
}
