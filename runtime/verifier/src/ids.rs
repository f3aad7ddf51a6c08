//! A map from one id to another that is emptied without touching its entries.
//!
//! States are compared all the time, and each comparison begins with no ids known.

/// From ids to ids or counts.
pub(crate) struct IdMap {
    /// Open addressing; their number is a power of two. An entry of an earlier round is an empty one.
    entries: Vec<Entry>,
    round: u32,
    used: usize,
}

#[derive(Clone, Copy, Default)]
struct Entry {
    round: u32,
    key: u32,
    value: u32,
}

impl IdMap {
    pub(crate) fn new() -> IdMap {
        IdMap { entries: vec![Entry::default(); 64], round: 1, used: 0 }
    }

    /// Forgets all ids.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
        self.round = self.round.wrapping_add(1);
        if self.round == 0 {
            self.entries.fill(Entry::default());
            self.round = 1;
        }
    }

    /// What `key` stands for.
    pub(crate) fn get(&self, key: u32) -> Option<u32> {
        let entry = self.entries[self.place(key)];
        (entry.round == self.round).then_some(entry.value)
    }

    /// From now on `key` stands for `value`.
    pub(crate) fn insert(&mut self, key: u32, value: u32) {
        let place = self.place(key);
        if self.entries[place].round != self.round {
            self.used += 1;
        }
        self.entries[place] = Entry { round: self.round, key, value };
        if self.used > self.entries.len() / 2 {
            self.grow();
        }
    }

    /// Where `key` is, or where it goes.
    fn place(&self, key: u32) -> usize {
        let mask = self.entries.len() - 1;
        // Ids are given out one after the other: the low bits are the best hash.
        let mut place = key as usize & mask;
        while self.entries[place].round == self.round && self.entries[place].key != key {
            place = (place + 1) & mask;
        }
        place
    }

    fn grow(&mut self) {
        let room = self.entries.len() * 2;
        let known = std::mem::replace(&mut self.entries, vec![Entry::default(); room]);
        self.used = 0;
        let round = self.round;
        for entry in known.into_iter().filter(|entry| entry.round == round) {
            self.insert(entry.key, entry.value);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_it_was_given_until_it_is_emptied() {
        let mut map = IdMap::new();
        for round in 0..3 {
            for key in 0..1000 {
                assert_eq!(map.get(key * 64), None);
                map.insert(key * 64, key + round);
            }
            for key in 0..1000 {
                assert_eq!(map.get(key * 64), Some(key + round));
                map.insert(key * 64, 0);
                assert_eq!((map.get(key * 64), map.get(key * 64 + 1)), (Some(0), None));
            }
            map.clear();
        }
    }

    #[test]
    fn old_rounds_do_not_come_back() {
        let mut map = IdMap::new();
        map.insert(7, 1);
        map.round = u32::MAX;
        map.clear();
        assert_eq!((map.get(7), map.get(0)), (None, None));
    }
}
