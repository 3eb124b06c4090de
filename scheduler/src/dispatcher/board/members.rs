//! A set of small numbers from which one can be taken at random: a list, and where each stands in it.

use std::collections::HashMap;

/// The set. Its order follows from what was added and removed, so the same events give the same picks.
#[derive(Clone, Debug, Default)]
pub(super) struct Members {
    list: Vec<u32>,
    places: HashMap<u32, u32>,
}

impl Members {
    pub(super) fn list(&self) -> &[u32] {
        &self.list
    }

    pub(super) fn has(&self, member: u32) -> bool {
        self.places.contains_key(&member)
    }

    /// False if it was there already.
    pub(super) fn add(&mut self, member: u32) -> bool {
        if self.has(member) {
            return false;
        }
        self.places.insert(member, self.list.len() as u32);
        self.list.push(member);
        true
    }

    /// The last takes its place.
    pub(super) fn remove(&mut self, member: u32) -> bool {
        let Some(at) = self.places.remove(&member) else { return false };
        self.list.swap_remove(at as usize);
        if let Some(moved) = self.list.get(at as usize) {
            self.places.insert(*moved, at);
        }
        true
    }
}

impl FromIterator<u32> for Members {
    fn from_iter<I: IntoIterator<Item = u32>>(members: I) -> Self {
        let mut set = Self::default();
        members.into_iter().for_each(|member| _ = set.add(member));
        set
    }
}
