//! Which names ([`cuckoo_wire::BlockHash::short`]) came into a cache and left it since that was last told: what routes prompts
//! to where they are known.

use std::collections::{HashMap, VecDeque};

/// Changes that are not told yet. A name that came and left again meanwhile is no news.
#[derive(Debug, Default)]
pub(in crate::device) struct News {
    /// Names that changed, oldest first; those that changed back are not in `is_here` any more.
    changed: VecDeque<u64>,
    is_here: HashMap<u64, bool>,
}

impl News {
    pub(in crate::device) fn came(&mut self, name: u64) {
        self.note(name, true);
    }

    pub(in crate::device) fn left(&mut self, name: u64) {
        self.note(name, false);
    }

    fn note(&mut self, name: u64, is_here: bool) {
        if self.is_here.remove(&name).is_none() {
            self.is_here.insert(name, is_here);
            self.changed.push_back(name);
        }
    }

    /// Changes that are not told yet.
    pub(in crate::device) fn len(&self) -> usize {
        self.is_here.len()
    }

    /// At most `most` names that came, and as many that left, oldest changes first. What is left is told next time.
    pub(in crate::device) fn take(&mut self, most: usize) -> (Vec<u64>, Vec<u64>) {
        let (mut came, mut left) = (Vec::new(), Vec::new());
        while came.len() < most && left.len() < most {
            let Some(name) = self.changed.pop_front() else { break };
            match self.is_here.remove(&name) {
                Some(true) => came.push(name),
                Some(false) => left.push(name),
                None => {}
            }
        }
        (came, left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_and_left_is_no_news() {
        let mut news = News::default();
        news.came(1);
        news.came(2);
        news.left(1);
        news.left(3);
        assert_eq!(news.take(10), (vec![2], vec![3]));
        assert_eq!(news.take(10), (vec![], vec![]));
        news.left(2);
        news.came(2);
        assert_eq!(news.take(10), (vec![], vec![]), "it is told as there, and is there");
        news.came(1);
        news.left(1);
        news.came(1);
        assert_eq!(news.take(10), (vec![1], vec![]));
    }

    #[test]
    fn much_is_told_in_parts() {
        let mut news = News::default();
        (1..=5).for_each(|n| news.came(n));
        assert_eq!(news.take(2).0, [1, 2]);
        assert_eq!(news.take(2).0, [3, 4]);
        assert_eq!(news.take(2).0, [5]);
    }
}
