//! A list of numbers, threaded through two arrays: any of them is taken out, or put at either end, without a search.

/// Some of the numbers `0 .. total`, in the order in which they will be taken.
#[derive(Debug)]
pub(super) struct Order {
    /// The neighbour that is taken later. Entry `total` is the list's head: the number that is taken next.
    later: Vec<u32>,
    /// The neighbour that is taken sooner. Entry `total` is the list's tail: the number that is taken last.
    sooner: Vec<u32>,
    len: u32,
}

impl Order {
    /// None of `total` numbers.
    pub(super) fn new(total: u32) -> Self {
        let ends = || vec![total; total as usize + 1];
        Self { later: ends(), sooner: ends(), len: 0 }
    }

    /// How many are in the list.
    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// The number that is taken next.
    pub(super) fn first(&self) -> Option<u32> {
        let first = self.later[self.end() as usize];
        (first != self.end()).then_some(first)
    }

    /// Puts a number that is not in the list where it is taken next.
    pub(super) fn push_first(&mut self, number: u32) {
        self.insert(self.end(), number, self.later[self.end() as usize]);
    }

    /// Puts a number that is not in the list where it is taken last.
    pub(super) fn push_last(&mut self, number: u32) {
        self.insert(self.sooner[self.end() as usize], number, self.end());
    }

    /// Takes a number out that is in the list.
    pub(super) fn remove(&mut self, number: u32) {
        let (before, after) = (self.sooner[number as usize], self.later[number as usize]);
        (self.later[before as usize], self.sooner[after as usize]) = (after, before);
        self.len -= 1;
    }

    /// The entry that is no number but both ends of the list.
    fn end(&self) -> u32 {
        self.later.len() as u32 - 1
    }

    fn insert(&mut self, before: u32, number: u32, after: u32) {
        (self.later[before as usize], self.sooner[number as usize]) = (number, before);
        (self.later[number as usize], self.sooner[after as usize]) = (after, number);
        self.len += 1;
    }
}

#[cfg(test)]
impl Order {
    /// All of the list, which is sound: as long as it says, and the same in both directions.
    pub(super) fn numbers(&self) -> Vec<u32> {
        let (mut numbers, mut before) = (Vec::new(), self.end());
        loop {
            let at = self.later[before as usize];
            assert_eq!(self.sooner[at as usize], before, "both directions agree");
            if at == self.end() {
                break;
            }
            assert!(numbers.len() < self.end() as usize, "the list is a ring through its end");
            numbers.push(at);
            before = at;
        }
        assert_eq!(numbers.len() as u32, self.len, "the list is as long as it says");
        numbers
    }

    /// Room that it takes, in entries.
    pub(super) fn footprint(&self) -> usize {
        self.later.capacity() + self.sooner.capacity()
    }
}
