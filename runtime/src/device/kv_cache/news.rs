//! Which names came into a cache and left it since that was last told: what routes prompts to where they are known.

use std::collections::{HashMap, VecDeque};

use super::BlockHash;

/// Changes that are not told yet. A name that came and left again meanwhile is no news.
#[derive(Debug, Default)]
pub(super) struct News {
    /// Names that changed, oldest first; those that changed back are not in `is_here` any more.
    changed: VecDeque<BlockHash>,
    is_here: HashMap<BlockHash, bool>,
}

impl News {
    pub(super) fn came(&mut self, name: BlockHash) {
        self.note(name, true);
    }

    pub(super) fn left(&mut self, name: BlockHash) {
        self.note(name, false);
    }

    fn note(&mut self, name: BlockHash, is_here: bool) {
        if self.is_here.remove(&name).is_none() {
            self.is_here.insert(name, is_here);
            self.changed.push_back(name);
        }
    }

    /// At most `most` names that came, and as many that left, oldest changes first. What is left is told next time.
    pub(super) fn take(&mut self, most: usize) -> (Vec<u64>, Vec<u64>) {
        let (mut came, mut left) = (Vec::new(), Vec::new());
        while came.len() < most && left.len() < most {
            let Some(name) = self.changed.pop_front() else { break };
            match self.is_here.remove(&name) {
                Some(true) => came.push(name.short()),
                Some(false) => left.push(name.short()),
                None => {}
            }
        }
        (came, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u128) -> BlockHash {
        BlockHash::of(number)
    }

    #[test]
    fn what_came_and_left_is_no_news() {
        let mut news = News::default();
        news.came(name(1));
        news.came(name(2));
        news.left(name(1));
        news.left(name(3));
        assert_eq!(news.take(10), (vec![2], vec![3]));
        assert_eq!(news.take(10), (vec![], vec![]));
        news.left(name(2));
        news.came(name(2));
        assert_eq!(news.take(10), (vec![], vec![]), "it is told as there, and is there");
        news.came(name(1));
        news.left(name(1));
        news.came(name(1));
        assert_eq!(news.take(10), (vec![1], vec![]));
    }

    #[test]
    fn much_is_told_in_parts() {
        let mut news = News::default();
        (1..=5).for_each(|n| news.came(name(n)));
        assert_eq!(news.take(2).0, [1, 2]);
        assert_eq!(news.take(2).0, [3, 4]);
        assert_eq!(news.take(2).0, [5]);
    }
}
