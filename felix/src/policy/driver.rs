//! Carries layouts into the kernel: reads back, plans, writes, believes what was accepted. After anything refused or
//! unanswered the kernel is read again before the next write.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use brindle_felix_core::rules::{
    ir::{Family, Table},
    layout::Layout,
    model::{Changed, Model, TextCache},
    nft, nft_plan,
    sets::{self, ActualSet},
    table_plan::{self, Actual, Seen, Wanted},
};
use brindle_kernel::netfilter::{IpVersion, Netfilter, NfError, Variant};
use serde::Serialize;

/// What rules are written with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Iptables(Variant),
    Nft,
}

impl Mode {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Iptables(Variant::Legacy) => "iptables-legacy",
            Self::Iptables(Variant::Nft) => "iptables-nft",
            Self::Nft => "nftables",
        }
    }
}

/// What was done since the start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counters {
    /// Readings of tables and sets.
    pub reads: u64,
    /// Calls of iptables-restore.
    pub table_writes: u64,
    /// Calls of ipset restore.
    pub set_writes: u64,
    /// Transactions of nft.
    pub nft_writes: u64,
    /// Chains written or removed, hooks mended.
    pub chains: u64,
    /// Members added or removed.
    pub members: u64,
    /// Writes that were only needed because somebody else had changed something.
    pub repairs: u64,
    /// Calls that failed.
    pub errors: u64,
    /// Tracked flows that were cut.
    pub flows_cut: u64,
}

/// A failed step.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DriveError {
    #[error("{0}")]
    Netfilter(#[from] NfError),
    #[error("{0}")]
    Save(#[from] table_plan::SaveError),
    #[error("{0}")]
    List(#[from] nft_plan::ListError),
}

#[derive(Default)]
struct Half {
    tables: BTreeMap<Table, Actual>,
    seen: BTreeMap<Table, Seen>,
    sets: BTreeMap<String, ActualSet>,
    nft: nft_plan::Actual,
    cache: TextCache,
}

pub(crate) struct Driver {
    nf: Box<dyn Netfilter>,
    families: Vec<Family>,
    halves: BTreeMap<Family, Half>,
    mode: Option<Mode>,
    /// What is believed was not read, or something failed since.
    stale: bool,
    /// The other back ends have been looked at.
    alone: bool,
    pub(crate) max_set: usize,
    pub(crate) counters: Counters,
}

fn ip(family: Family) -> IpVersion {
    match family {
        Family::V4 => IpVersion::V4,
        Family::V6 => IpVersion::V6,
    }
}

impl Driver {
    pub(crate) fn new(nf: Box<dyn Netfilter>, families: Vec<Family>) -> Self {
        Self {
            nf,
            halves: families.iter().map(|f| (*f, Half::default())).collect(),
            families,
            mode: None,
            stale: true,
            alone: false,
            max_set: 1 << 20,
            counters: Counters::default(),
        }
    }

    pub(crate) fn netfilter(&mut self) -> &mut dyn Netfilter {
        &mut *self.nf
    }

    pub(crate) fn families(&self) -> &[Family] {
        &self.families
    }

    pub(crate) fn mode(&self) -> Option<Mode> {
        self.mode
    }

    /// Chooses the back end; a change makes everything be read and written anew.
    pub(crate) fn set_mode(&mut self, mode: Mode) {
        if self.mode != Some(mode) {
            if let Mode::Iptables(v) = mode {
                self.nf.set_variant(v);
            }
            for half in self.halves.values_mut() {
                *half = Half::default();
            }
            self.mode = Some(mode);
            self.stale = true;
            self.alone = false;
        }
    }

    /// Reads everything again before the next write.
    pub(crate) fn doubt(&mut self) {
        self.stale = true;
    }

    fn read(&mut self) -> Result<(), DriveError> {
        self.counters.reads += 1;
        match self.mode {
            Some(Mode::Iptables(_)) => {
                let all = self.nf.save_sets()?;
                for (family, half) in &mut self.halves {
                    half.tables = table_plan::parse(&self.nf.save(ip(*family))?)?;
                    half.sets = sets::parse(*family, &all);
                }
            }
            Some(Mode::Nft) => {
                for (family, half) in &mut self.halves {
                    half.nft = nft_plan::parse(self.nf.nft_list(ip(*family), nft::TABLE)?.as_deref())?;
                }
            }
            None => {}
        }
        self.stale = false;
        Ok(())
    }

    /// Brings the kernel to these layouts. `changed`: what differs from the last call, if that one succeeded.
    pub(crate) fn apply(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        changed: Option<&Changed>,
    ) -> Result<(), DriveError> {
        let result = self.try_apply(layouts, changed);
        if result.is_err() {
            self.stale = true;
            self.counters.errors += 1;
        }
        result
    }

    fn try_apply(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        changed: Option<&Changed>,
    ) -> Result<(), DriveError> {
        let whole = self.stale;
        // Nothing of ours is different, yet we look: what is found to differ is somebody else's doing.
        let checking = whole && changed.is_some_and(Changed::is_empty);
        if whole {
            self.read()?;
        }
        let wrote = match self.mode {
            Some(Mode::Iptables(_)) => self.apply_iptables(layouts, changed.filter(|_| !whole), whole)?,
            Some(Mode::Nft) => self.apply_nft(layouts)?,
            None => false,
        };
        self.counters.repairs += u64::from(checking && wrote);
        if !self.alone {
            self.clear_others()?;
            self.alone = true;
        }
        Ok(())
    }

    fn apply_iptables(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        changed: Option<&Changed>,
        remember: bool,
    ) -> Result<bool, DriveError> {
        let mut wrote = false;
        let mut after = String::new();
        let mut set_names: BTreeMap<Family, Option<BTreeSet<String>>> = BTreeMap::new();
        let mut before = String::new();
        let mut lines = 0;
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            // Members of sets that nobody touched need not be compared.
            let only = changed.map(|c| {
                let whole = c.whole.iter().chain(c.members.iter().map(|d| &d.id));
                let mut names: BTreeSet<String> =
                    whole.map(|id| brindle_felix_core::rules::names::set(*family, &id.0)).collect();
                names.extend(layout.sets.keys().filter(|n| !half.sets.contains_key(*n)).cloned());
                names.extend(half.sets.keys().filter(|n| !layout.sets.contains_key(*n)).cloned());
                names.extend(layout.own_sets.iter().cloned());
                names
            });
            let plan = sets::plan(*family, &layout.sets, &half.sets, self.max_set, only.as_ref());
            before.push_str(&plan.before);
            after.push_str(&plan.after);
            lines += plan.added + plan.deleted;
            set_names.insert(*family, only);
        }
        if !before.is_empty() {
            self.counters.set_writes += 1;
            self.counters.members += lines as u64;
            wrote = true;
            self.nf.restore_sets(&before)?;
        }
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            assume_sets(half, layout, set_names.get(family).and_then(Option::as_ref), self.max_set);
            let wanted = layout.iptables(*family, &mut half.cache);
            half.cache.keep(layout);
            let mut input = String::new();
            // The filter first: it is the one that protects.
            for table in [Table::Filter, Table::Raw, Table::Mangle, Table::Nat] {
                let none = (Wanted::default(), Actual::default(), Seen::new());
                let want = wanted.get(&table).unwrap_or(&none.0);
                let have = half.tables.get(&table).unwrap_or(&none.1);
                let seen = half.seen.entry(table).or_default();
                if remember {
                    table_plan::remember(want, have, seen);
                }
                let plan = table_plan::plan(table, want, have, seen, None);
                self.counters.chains += (plan.written + plan.removed + plan.mended) as u64;
                input.push_str(&plan.input);
            }
            if input.is_empty() {
                continue;
            }
            self.counters.table_writes += 1;
            wrote = true;
            self.nf.restore(ip(*family), &input)?;
            for (table, want) in &wanted {
                table_plan::assume(want, half.tables.entry(*table).or_default());
                // How the kernel prints what was just written is not known yet.
                if let Some(seen) = half.seen.get_mut(table) {
                    seen.retain(|name, (tags, _)| want.chains.get(name).is_some_and(|t| t.tags == *tags));
                }
            }
        }
        if !after.is_empty() {
            self.counters.set_writes += 1;
            wrote = true;
            self.nf.restore_sets(&after)?;
            for (family, layout) in layouts {
                if let Some(half) = self.halves.get_mut(family) {
                    half.sets.retain(|name, _| layout.sets.contains_key(name));
                }
            }
        }
        Ok(wrote)
    }

    fn apply_nft(&mut self, layouts: &BTreeMap<Family, Layout>) -> Result<bool, DriveError> {
        let mut input = String::new();
        let mut next = BTreeMap::new();
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            let wanted = layout.nft(*family, &mut half.cache);
            half.cache.keep(layout);
            let plan = nft_plan::plan(*family, &wanted, &layout.sets, &half.nft);
            self.counters.chains += (plan.written + plan.removed) as u64;
            self.counters.members += (plan.added + plan.deleted) as u64;
            input.push_str(&plan.input);
            next.insert(*family, nft_plan::assume(&wanted, &layout.sets));
        }
        if input.is_empty() {
            return Ok(false);
        }
        self.counters.nft_writes += 1;
        self.nf.nft(&input)?;
        for (family, actual) in next {
            if let Some(half) = self.halves.get_mut(&family) {
                half.nft = actual;
            }
        }
        Ok(true)
    }

    /// Changes members of sets and nothing else: one batch, whatever the number of sets. `false`: it needs `apply`.
    pub(crate) fn apply_members(&mut self, changed: &Changed) -> Result<bool, DriveError> {
        if self.stale || changed.rules || !changed.whole.is_empty() {
            return Ok(false);
        }
        let mut input = String::new();
        let mut count = 0;
        for family in self.families.clone() {
            let Some(half) = self.halves.get(&family) else { continue };
            for d in &changed.members {
                let (name, added, removed) = Model::delta(family, d);
                if added.is_empty() && removed.is_empty() {
                    continue;
                }
                count += added.len() + removed.len();
                match self.mode {
                    Some(Mode::Iptables(_)) => {
                        let Some(set) = half.sets.get(&name) else { return Ok(false) };
                        if set.members.len() + added.len() > set.max {
                            return Ok(false);
                        }
                        // Writing to a String cannot fail. Several changes of one set may repeat a member.
                        for m in &added {
                            let _ = writeln!(input, "add {name} {m} -exist");
                        }
                        for m in &removed {
                            let _ = writeln!(input, "del {name} {m} -exist");
                        }
                    }
                    Some(Mode::Nft) => {
                        let fam = nft::family(family);
                        for (verb, members) in [("delete", &removed), ("add", &added)] {
                            nft_plan::elements(
                                &mut input,
                                verb,
                                fam,
                                &name,
                                &members.iter().collect::<Vec<_>>(),
                            );
                        }
                    }
                    None => return Ok(false),
                }
            }
        }
        if input.is_empty() {
            return Ok(true);
        }
        self.counters.members += count as u64;
        let result = match self.mode {
            Some(Mode::Nft) => {
                self.counters.nft_writes += 1;
                self.nf.nft(&input)
            }
            _ => {
                self.counters.set_writes += 1;
                self.nf.restore_sets(&input)
            }
        };
        if let Err(e) = result {
            self.stale = true;
            self.counters.errors += 1;
            return Err(e.into());
        }
        for (family, half) in &mut self.halves {
            for d in &changed.members {
                let (name, added, removed) = Model::delta(*family, d);
                if let Some(set) = half.sets.get_mut(&name) {
                    set.members.retain(|m| !removed.contains(m));
                    set.members.extend(&added);
                }
                if let Some(Some((_, members))) = half.nft.sets.get_mut(&name) {
                    members.retain(|m| !removed.contains(m));
                    members.extend(&added);
                }
            }
        }
        Ok(true)
    }

    /// Removes what an earlier run wrote with another back end; ours is in force already.
    fn clear_others(&mut self) -> Result<(), DriveError> {
        let Some(mode) = self.mode else { return Ok(()) };
        for family in self.families.clone() {
            if mode != Mode::Nft && self.nf.nft_list(ip(family), nft::TABLE).ok().flatten().is_some() {
                self.counters.nft_writes += 1;
                self.nf.nft(&format!("delete table {} {}\n", nft::family(family), nft::TABLE))?;
                tracing::info!(family = nft::family(family), "rules of the former back end nftables removed");
            }
            for variant in [Variant::Legacy, Variant::Nft] {
                if mode == Mode::Iptables(variant) {
                    continue;
                }
                // A make that is not installed has left nothing.
                let Ok(Some(text)) = self.nf.probe(variant, ip(family)) else { continue };
                let mut input = String::new();
                for (table, have) in table_plan::parse(&text)? {
                    let plan = table_plan::plan(table, &Wanted::default(), &have, &Seen::new(), None);
                    input.push_str(&plan.input);
                }
                if !input.is_empty() {
                    self.nf.set_variant(variant);
                    let result = self.nf.restore(ip(family), &input);
                    if let Mode::Iptables(own) = mode {
                        self.nf.set_variant(own);
                    }
                    result?;
                    self.counters.table_writes += 1;
                    tracing::info!(back_end = %variant, "rules of the former back end removed");
                }
            }
            if mode == Mode::Nft
                && let Ok(text) = self.nf.save_sets()
            {
                let have = sets::parse(family, &text);
                let plan = sets::plan(family, &sets::WantedSets::new(), &have, self.max_set, None);
                if !plan.after.is_empty() {
                    self.nf.restore_sets(&plan.after)?;
                    self.counters.set_writes += 1;
                }
            }
        }
        Ok(())
    }
}

fn assume_sets(half: &mut Half, layout: &Layout, only: Option<&BTreeSet<String>>, max: usize) {
    for (name, want) in &layout.sets {
        if only.is_some_and(|o| !o.contains(name)) {
            continue;
        }
        let room = max.max(want.members.len().next_power_of_two());
        let kept = half.sets.get(name).filter(|h| h.kind == Some(want.kind) && h.max >= want.members.len());
        let max = kept.map_or(room, |h| h.max);
        half.sets
            .insert(name.clone(), ActualSet { kind: Some(want.kind), max, members: want.members.clone() });
    }
}
