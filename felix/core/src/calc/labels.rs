//! Selectors × labelled items, kept matched. A change costs what it touches: an item is tried only against selectors
//! that are anchored at one of its labels (and the few that have no anchor), a new selector only against items that
//! carry its anchor.
//!
//! Items inherit labels from named parents (profiles, in order; own labels win). A parent that is not known has no
//! labels.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet},
    hash::Hash,
    sync::Arc,
};

use brindle_config_core::{Selector, selector::Anchor};

/// Labels.
pub(crate) type Labels = Arc<LabelList>;

/// Labels in order of their names. There are as many lists as endpoints in the cluster, and few different words in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct LabelList(Box<[(Arc<str>, Arc<str>)]>);

impl LabelList {
    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let at = self.0.binary_search_by(|(n, _)| (**n).cmp(name)).ok()?;
        self.0.get(at).map(|(_, value)| &**value)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(name, value)| (&**name, &**value))
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Of shared words.
    pub(crate) fn of(map: BTreeMap<&str, &str>, words: &mut Words) -> Self {
        Self(map.into_iter().map(|(name, value)| (words.of(name), words.of(value))).collect())
    }

    /// The same, of shared words.
    pub(crate) fn share(&mut self, words: &mut Words) {
        for (name, value) in &mut self.0 {
            words.share(name);
            words.share(value);
        }
    }
}

impl From<BTreeMap<String, String>> for LabelList {
    fn from(map: BTreeMap<String, String>) -> Self {
        Self(map.into_iter().map(|(name, value)| (name.into(), value.into())).collect())
    }
}

/// Words that occur many times, kept once.
#[derive(Debug, Default)]
pub(crate) struct Words {
    all: HashSet<Arc<str>>,
    /// So many were in use when those that are not were last dropped.
    used: usize,
}

impl Words {
    /// Room for words that are not in use any more, beside as many as are.
    const SPARE: usize = 1024;

    pub(crate) fn of(&mut self, word: &str) -> Arc<str> {
        if let Some(known) = self.all.get(word) {
            return Arc::clone(known);
        }
        let mut new = Arc::from(word);
        self.share(&mut new);
        new
    }

    pub(crate) fn share(&mut self, word: &mut Arc<str>) {
        if let Some(known) = self.all.get(word) {
            *word = Arc::clone(known);
            return;
        }
        if self.all.len() > 2 * self.used + Self::SPARE {
            self.all.retain(|w| Arc::strong_count(w) > 1);
            self.used = self.all.len();
        }
        self.all.insert(Arc::clone(word));
    }
}

/// A match that began or ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Change<S, I> {
    pub(crate) selector: S,
    pub(crate) item: I,
    pub(crate) matches: bool,
}

#[derive(Debug)]
struct Item<S> {
    labels: Labels,
    parents: Arc<[String]>,
    /// Sorted. Most items are matched by a few selectors.
    matched: Vec<S>,
}

#[derive(Debug)]
struct Entry<I> {
    selector: Selector,
    matched: BTreeSet<I>,
}

#[derive(Debug)]
struct Parent<I> {
    labels: Labels,
    children: BTreeSet<I>,
}

fn put<T: Ord>(sorted: &mut Vec<T>, t: T) {
    if let Err(at) = sorted.binary_search(&t) {
        if sorted.is_empty() {
            sorted.reserve_exact(1);
        }
        sorted.insert(at, t);
    }
}

fn take<T: Ord>(sorted: &mut Vec<T>, t: &T) {
    if let Ok(at) = sorted.binary_search(t) {
        sorted.remove(at);
    }
}

impl<I> Default for Parent<I> {
    fn default() -> Self {
        Self { labels: Labels::default(), children: BTreeSet::new() }
    }
}

/// label → value → members. Of labels there are few, of values hundreds.
#[derive(Debug)]
struct ByLabel<T>(BTreeMap<String, HashMap<String, BTreeSet<T>>>);

impl<T: Ord + Clone> ByLabel<T> {
    fn add(&mut self, label: &str, value: &str, t: &T) {
        let values = match self.0.get_mut(label) {
            Some(v) => v,
            None => self.0.entry(label.to_owned()).or_default(),
        };
        match values.get_mut(value) {
            Some(set) => set.insert(t.clone()),
            None => values.entry(value.to_owned()).or_default().insert(t.clone()),
        };
    }

    fn remove(&mut self, label: &str, value: &str, t: &T) {
        let Some(values) = self.0.get_mut(label) else { return };
        if let Some(set) = values.get_mut(value) {
            set.remove(t);
            if set.is_empty() {
                values.remove(value);
            }
        }
        if values.is_empty() {
            self.0.remove(label);
        }
    }

    fn with(&self, label: &str, value: &str) -> impl Iterator<Item = &T> {
        self.0.get(label).and_then(|v| v.get(value)).into_iter().flatten()
    }

    fn having(&self, label: &str) -> impl Iterator<Item = &T> {
        self.0.get(label).into_iter().flat_map(HashMap::values).flatten()
    }

    fn anchored(&self, anchor: &Anchor) -> Vec<T> {
        match anchor {
            Anchor::Present(l) => self.having(l).cloned().collect(),
            Anchor::Values(l, values) => values.iter().flat_map(|v| self.with(l, v)).cloned().collect(),
        }
    }
}

/// The index. `S` names selectors, `I` items.
#[derive(Debug)]
pub(crate) struct LabelIndex<S, I> {
    items: HashMap<I, Item<S>>,
    selectors: BTreeMap<S, Entry<I>>,
    parents: BTreeMap<String, Parent<I>>,
    items_by_label: ByLabel<I>,
    parents_by_label: ByLabel<String>,
    /// Selectors that need one value of a label.
    by_value: ByLabel<S>,
    /// Selectors that need a label.
    by_presence: BTreeMap<String, BTreeSet<S>>,
    unanchored: BTreeSet<S>,
    /// Selectors evaluated so far; a measure of work.
    pub(crate) evaluations: u64,
}

impl<S, I> Default for LabelIndex<S, I> {
    fn default() -> Self {
        Self {
            items: HashMap::new(),
            selectors: BTreeMap::new(),
            parents: BTreeMap::new(),
            items_by_label: ByLabel(BTreeMap::new()),
            parents_by_label: ByLabel(BTreeMap::new()),
            by_value: ByLabel(BTreeMap::new()),
            by_presence: BTreeMap::new(),
            unanchored: BTreeSet::new(),
            evaluations: 0,
        }
    }
}

impl<S: Ord + Clone, I: Ord + Clone + Hash> LabelIndex<S, I> {
    /// Items a selector matches.
    pub(crate) fn items(&self, s: &S) -> impl Iterator<Item = &I> {
        self.selectors.get(s).into_iter().flat_map(|e| &e.matched)
    }

    /// Selectors that match an item.
    pub(crate) fn selectors(&self, i: &I) -> impl Iterator<Item = &S> {
        self.items.get(i).into_iter().flat_map(|i| &i.matched)
    }

    pub(crate) fn matches_any(&self, s: &S) -> bool {
        self.selectors.get(s).is_some_and(|e| !e.matched.is_empty())
    }

    /// Adds or replaces an item.
    pub(crate) fn put_item(&mut self, id: &I, labels: Labels, parents: Arc<[String]>) -> Vec<Change<S, I>> {
        if let Some(old) = self.items.get(id) {
            if old.labels == labels && old.parents == parents {
                return Vec::new();
            }
            let (old_labels, old_parents) = (old.labels.clone(), old.parents.clone());
            self.unlink(id, &old_labels, &old_parents);
        }
        for (k, v) in labels.iter() {
            self.items_by_label.add(k, v, id);
        }
        for p in &*parents {
            let parent = match self.parents.get_mut(p) {
                Some(known) => known,
                None => self.parents.entry(p.clone()).or_default(),
            };
            parent.children.insert(id.clone());
        }
        match self.items.get_mut(id) {
            Some(item) => (item.labels, item.parents) = (labels, parents),
            None => {
                self.items.insert(id.clone(), Item { labels, parents, matched: Vec::new() });
            }
        }
        self.rematch(id)
    }

    /// Removes an item; its matches end.
    pub(crate) fn remove_item(&mut self, id: &I) -> Vec<Change<S, I>> {
        let Some(item) = self.items.remove(id) else { return Vec::new() };
        self.unlink(id, &item.labels, &item.parents);
        let ended = item.matched.into_iter().map(|selector| {
            if let Some(e) = self.selectors.get_mut(&selector) {
                e.matched.remove(id);
            }
            Change { selector, item: id.clone(), matches: false }
        });
        ended.collect()
    }

    fn unlink(&mut self, id: &I, labels: &Labels, parents: &[String]) {
        for (k, v) in labels.iter() {
            self.items_by_label.remove(k, v, id);
        }
        for p in parents {
            if let Some(parent) = self.parents.get_mut(p) {
                parent.children.remove(id);
                if parent.children.is_empty() && parent.labels.is_empty() {
                    self.parents.remove(p);
                }
            }
        }
    }

    /// Sets the labels of a parent; empty ones are those of a parent that does not exist.
    pub(crate) fn put_parent(&mut self, name: &str, labels: Labels) -> Vec<Change<S, I>> {
        let parent = self.parents.entry(name.to_owned()).or_default();
        if parent.labels == labels {
            if parent.labels.is_empty() && parent.children.is_empty() {
                self.parents.remove(name);
            }
            return Vec::new();
        }
        let old = std::mem::replace(&mut parent.labels, labels.clone());
        let children: Vec<I> = parent.children.iter().cloned().collect();
        if labels.is_empty() && children.is_empty() {
            self.parents.remove(name);
        }
        let name = name.to_owned();
        for (k, v) in old.iter() {
            self.parents_by_label.remove(k, v, &name);
        }
        for (k, v) in labels.iter() {
            self.parents_by_label.add(k, v, &name);
        }
        children.iter().flat_map(|id| self.rematch(id)).collect()
    }

    /// Adds or replaces a selector.
    pub(crate) fn put_selector(&mut self, id: &S, selector: Selector) -> Vec<Change<S, I>> {
        let old = match self.selectors.get(id) {
            Some(e) if e.selector == selector => return Vec::new(),
            Some(_) => self.take_selector(id),
            None => BTreeSet::new(),
        };
        let anchor = selector.anchor();
        match &anchor {
            None => drop(self.unanchored.insert(id.clone())),
            Some(Anchor::Present(l)) => {
                self.by_presence.entry(l.clone()).or_default().insert(id.clone());
            }
            Some(Anchor::Values(l, values)) => values.iter().for_each(|v| self.by_value.add(l, v, id)),
        }
        let candidates: BTreeSet<I> = match &anchor {
            None => self.items.keys().cloned().collect(),
            Some(a) => {
                let parents = self.parents_by_label.anchored(a);
                let heirs = parents.iter().filter_map(|p| self.parents.get(p)).flat_map(|p| &p.children);
                self.items_by_label.anchored(a).into_iter().chain(heirs.cloned()).collect()
            }
        };
        self.evaluations += candidates.len() as u64;
        let matched: BTreeSet<I> = candidates.into_iter().filter(|i| self.test(&selector, i)).collect();
        let change = |item: &I, matches| Change { selector: id.clone(), item: item.clone(), matches };
        let ended: Vec<_> = old.difference(&matched).map(|i| change(i, false)).collect();
        let begun: Vec<_> = matched.difference(&old).map(|i| change(i, true)).collect();
        for i in &ended {
            if let Some(item) = self.items.get_mut(&i.item) {
                take(&mut item.matched, id);
            }
        }
        for i in &begun {
            if let Some(item) = self.items.get_mut(&i.item) {
                put(&mut item.matched, id.clone());
            }
        }
        self.selectors.insert(id.clone(), Entry { selector, matched });
        ended.into_iter().chain(begun).collect()
    }

    /// Removes a selector; its matches end.
    pub(crate) fn remove_selector(&mut self, id: &S) -> Vec<Change<S, I>> {
        let matched = self.take_selector(id);
        let ended = matched.into_iter().map(|item| {
            if let Some(i) = self.items.get_mut(&item) {
                take(&mut i.matched, id);
            }
            Change { selector: id.clone(), item, matches: false }
        });
        ended.collect()
    }

    /// Takes a selector out of the index, leaving the items as they are.
    fn take_selector(&mut self, id: &S) -> BTreeSet<I> {
        let Some(e) = self.selectors.remove(id) else { return BTreeSet::new() };
        match e.selector.anchor() {
            None => drop(self.unanchored.remove(id)),
            Some(Anchor::Present(l)) => {
                if let Some(set) = self.by_presence.get_mut(&l) {
                    set.remove(id);
                    if set.is_empty() {
                        self.by_presence.remove(&l);
                    }
                }
            }
            Some(Anchor::Values(l, values)) => values.iter().for_each(|v| self.by_value.remove(&l, v, id)),
        }
        e.matched
    }

    fn test(&self, selector: &Selector, id: &I) -> bool {
        let Some(item) = self.items.get(id) else { return false };
        selector.matches_with(|key| {
            item.labels.get(key).or_else(|| {
                let parents = item.parents.iter().filter_map(|p| self.parents.get(p));
                parents.filter_map(|p| p.labels.get(key)).next()
            })
        })
    }

    /// Tries an item against every selector that may match it.
    fn rematch(&mut self, id: &I) -> Vec<Change<S, I>> {
        let Some(item) = self.items.get(id) else { return Vec::new() };
        let inherited = item.parents.iter().filter_map(|p| self.parents.get(p)).flat_map(|p| p.labels.iter());
        let mut candidates: BTreeSet<&S> = self.unanchored.iter().collect();
        // A shadowed label leads to selectors that do not match: they are tried in vain, never missed.
        for (k, v) in item.labels.iter().chain(inherited) {
            candidates.extend(self.by_value.with(k, v));
            candidates.extend(self.by_presence.get(k).into_iter().flatten());
        }
        let tried = candidates.len() as u64;
        // In order, as the candidates are.
        let matched: Vec<S> = candidates
            .into_iter()
            .filter(|s| self.selectors.get(s).is_some_and(|e| self.test(&e.selector, id)))
            .cloned()
            .collect();
        self.evaluations += tried;
        let change = |s: &S, matches| Change { selector: s.clone(), item: id.clone(), matches };
        let lacks = |sorted: &[S], s: &S| sorted.binary_search(s).is_err();
        let ended = item.matched.iter().filter(|s| lacks(&matched, s)).map(|s| change(s, false));
        let begun = matched.iter().filter(|s| lacks(&item.matched, s)).map(|s| change(s, true));
        let out: Vec<_> = ended.chain(begun).collect();
        for c in &out {
            if let Some(e) = self.selectors.get_mut(&c.selector) {
                if c.matches {
                    e.matched.insert(id.clone())
                } else {
                    e.matched.remove(id)
                };
            }
        }
        if let Some(item) = self.items.get_mut(id) {
            item.matched = matched;
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SELECTORS: [&str; 12] = [
        "a == 'x'",
        "a in {'x','y'}",
        "has(b)",
        "!has(b)",
        "a != 'x'",
        "all()",
        "a == 'x' || b == 'y'",
        "a == 'x' && b == 'y'",
        "has(c) && a != 'z'",
        "b starts with 'y'",
        "a not in {'x'}",
        "a == 'x' || has(a)",
    ];

    #[derive(Clone, Debug)]
    enum Step {
        Item(u8, BTreeMap<String, String>, Vec<String>),
        Drop(u8),
        Parent(String, BTreeMap<String, String>),
        Selector(u8, usize),
        Forget(u8),
    }

    fn labels() -> impl Strategy<Value = BTreeMap<String, String>> {
        proptest::collection::btree_map("[abc]", "[xyz]", 0..3)
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0u8..5, labels(), proptest::collection::vec("[pq]", 0..3))
                .prop_map(|(i, l, p)| Step::Item(i, l, p)),
            (0u8..5).prop_map(Step::Drop),
            ("[pq]", labels()).prop_map(|(p, l)| Step::Parent(p, l)),
            (0u8..6, 0..SELECTORS.len()).prop_map(|(i, s)| Step::Selector(i, s)),
            (0u8..6).prop_map(Step::Forget),
        ]
    }

    #[test]
    fn words_are_kept_once_and_not_for_ever() {
        let mut words = Words::default();
        let list = |words: &mut Words, value: &str| {
            let mut l = LabelList::from(BTreeMap::from([("app".to_owned(), value.to_owned())]));
            l.share(words);
            l
        };
        let (a, b) = (list(&mut words, "web"), list(&mut words, "web"));
        assert!(Arc::ptr_eq(&a.0[0].0, &b.0[0].0) && Arc::ptr_eq(&a.0[0].1, &b.0[0].1));
        for i in 0..10 * Words::SPARE {
            list(&mut words, &format!("gone-{i}"));
        }
        assert!(words.all.len() <= Words::SPARE + 4, "{}", words.all.len());
        assert_eq!((a.get("app"), a.get("b")), (Some("web"), None));
    }

    proptest! {
        #[test]
        fn the_index_agrees_with_trying_everything(steps in proptest::collection::vec(step(), 1..40)) {
            let mut index: LabelIndex<u8, u8> = LabelIndex::default();
            let mut items: BTreeMap<u8, (BTreeMap<String, String>, Vec<String>)> = BTreeMap::new();
            let mut parents: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
            let mut selectors: BTreeMap<u8, Selector> = BTreeMap::new();
            let mut live: BTreeSet<(u8, u8)> = BTreeSet::new();
            for step in steps {
                let changes = match step {
                    Step::Item(i, l, p) => {
                        items.insert(i, (l.clone(), p.clone()));
                        index.put_item(&i, Arc::new(l.into()), p.into())
                    }
                    Step::Drop(i) => { items.remove(&i); index.remove_item(&i) }
                    Step::Parent(p, l) => { parents.insert(p.clone(), l.clone()); index.put_parent(&p, Arc::new(l.into())) }
                    Step::Selector(s, text) => {
                        let parsed = Selector::parse(SELECTORS[text]).expect("parses");
                        selectors.insert(s, parsed.clone());
                        index.put_selector(&s, parsed)
                    }
                    Step::Forget(s) => { selectors.remove(&s); index.remove_selector(&s) }
                };
                for c in changes {
                    let pair = (c.selector, c.item);
                    prop_assert!(if c.matches { live.insert(pair) } else { live.remove(&pair) }, "told twice");
                }
                let mut want = BTreeSet::new();
                for (i, (own, from)) in &items {
                    let mut all = BTreeMap::new();
                    for p in from.iter().rev() {
                        all.extend(parents.get(p).cloned().unwrap_or_default());
                    }
                    all.extend(own.clone());
                    want.extend(selectors.iter().filter(|(_, s)| s.matches(&all)).map(|(s, _)| (*s, *i)));
                }
                prop_assert_eq!(&live, &want);
                for s in selectors.keys() {
                    let of: BTreeSet<u8> = index.items(s).copied().collect();
                    prop_assert_eq!(of, want.iter().filter(|w| w.0 == *s).map(|w| w.1).collect::<BTreeSet<u8>>());
                }
            }
        }
    }
}
