//! Whose messages are next: what readers have reported and the speaker has not taken yet. Each connection's reports keep
//! their order; connections take turns, so that what one peer's messages cost is not what the others wait.

use std::{
    collections::{HashMap, VecDeque},
    vec::IntoIter,
};

use brindle_bgpd_core::speaker::Input;

use crate::conn::Token;

/// Reports by connection. Whoever takes one gives it back unfinished, or says that it is done.
#[derive(Default)]
pub(super) struct Ready {
    /// Connections with a report, the next one first.
    turns: VecDeque<Token>,
    reports: HashMap<Token, VecDeque<IntoIter<Input>>>,
    len: usize,
}

impl Ready {
    pub(super) const fn len(&self) -> usize {
        self.len
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.len == 0
    }

    pub(super) fn push(&mut self, token: Token, inputs: Vec<Input>) {
        let own = self.reports.entry(token).or_default();
        if own.is_empty() {
            self.turns.push_back(token);
        }
        own.push_back(inputs.into_iter());
        self.len += 1;
    }

    /// The first report of the connection whose turn it is.
    pub(super) fn take(&mut self) -> Option<(Token, IntoIter<Input>)> {
        let token = self.turns.pop_front()?;
        let inputs = self.reports.get_mut(&token)?.pop_front()?;
        self.len -= 1;
        Some((token, inputs))
    }

    /// What is left of a report goes on when all others have had their turn.
    pub(super) fn give_back(&mut self, token: Token, rest: IntoIter<Input>) {
        self.reports.entry(token).or_default().push_front(rest);
        self.len += 1;
        self.turns.push_back(token);
    }

    /// A report was taken to its end.
    pub(super) fn done(&mut self, token: Token) {
        if self.reports.get(&token).is_some_and(|own| !own.is_empty()) {
            self.turns.push_back(token);
        } else {
            self.reports.remove(&token);
        }
    }
}

#[cfg(test)]
mod tests {
    use brindle_bgpd_core::speaker::ConnId;

    use super::*;

    fn heard(ids: &[u64]) -> Vec<Input> {
        ids.iter().map(|n| Input::Heard { conn: ConnId(*n) }).collect()
    }

    /// Takes the messages of all reports, `slice` at a time.
    fn served(ready: &mut Ready, slice: usize) -> Vec<Input> {
        let mut all = Vec::new();
        while let Some((token, mut inputs)) = ready.take() {
            all.extend(inputs.by_ref().take(slice));
            if inputs.len() == 0 {
                ready.done(token);
            } else {
                ready.give_back(token, inputs);
            }
        }
        all
    }

    #[test]
    fn connections_take_turns_and_each_keeps_its_order() {
        let mut ready = Ready::default();
        let (flood, other) = (Token(1), Token(2));
        ready.push(flood, heard(&[10, 11, 12]));
        ready.push(flood, heard(&[13]));
        ready.push(other, heard(&[20]));
        ready.push(other, heard(&[21]));
        assert_eq!(ready.len(), 4);
        assert_eq!(served(&mut ready, 1), heard(&[10, 20, 11, 21, 12, 13]));
        assert!(ready.is_empty() && ready.reports.is_empty());
    }

    #[test]
    fn what_comes_in_meanwhile_is_behind_what_was_there() {
        let mut ready = Ready::default();
        ready.push(Token(1), heard(&[10, 11]));
        let (token, mut inputs) = ready.take().unwrap();
        assert_eq!(inputs.next(), heard(&[10]).pop());
        ready.give_back(token, inputs);
        ready.push(Token(1), heard(&[12]));
        assert_eq!(served(&mut ready, 9), heard(&[11, 12]));
    }
}
