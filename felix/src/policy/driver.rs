//! Carries layouts into the kernel: reads back, plans, writes, believes what was accepted. After anything refused or
//! unanswered the kernel is read again before the next write.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use brindle_felix_core::rules::{
    calico,
    ir::{Family, Table},
    layout::Layout,
    model::{Changed, Model, TextCache},
    nft, nft_plan,
    sets::{self, ActualSet},
    table_plan::{self, Actual, Leftovers, Seen, TablePlan, Wanted},
    verify,
};
use brindle_kernel::netfilter::{IpVersion, Netfilter, NfError, Variant};
use serde::Serialize;

use super::{
    leftover::{self, Held},
    readback::{self, Reading},
};

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
    /// What is believed has just been read and not been compared yet.
    fresh: bool,
    /// How often the back end changed.
    switches: u64,
    /// The other back ends have been looked at.
    alone: bool,
    /// Sets nobody needs that somebody else's rules ask.
    held: Held,
    /// Rules nobody needs were left for later.
    pub(crate) untidy: bool,
    /// Something of a Calico's was seen and is not known to be gone.
    pub(crate) calico: bool,
    pub(crate) max_set: usize,
    pub(crate) counters: Counters,
}

pub(crate) fn ip(family: Family) -> IpVersion {
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
            fresh: false,
            switches: 0,
            alone: false,
            held: Held::default(),
            untidy: false,
            calico: false,
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
            self.fresh = false;
            self.switches += 1;
            self.alone = false;
            self.held = Held::default();
        }
    }

    /// Reads everything again before the next write.
    pub(crate) fn doubt(&mut self) {
        self.stale = true;
    }

    /// What is needed to read everything elsewhere: a hand on the same namespace and what to look for. `None`: nothing
    /// is known that could be compared.
    pub(crate) fn reader(&self) -> Option<(Box<dyn Netfilter>, Mode)> {
        if self.stale { None } else { Some((self.nf.again(), self.mode?)) }
    }

    /// Grows with everything that makes what was read before it worthless.
    pub(crate) fn writes(&self) -> u64 {
        let c = &self.counters;
        c.table_writes + c.set_writes + c.nft_writes + c.errors + self.switches
    }

    /// Believes what was read elsewhere since nothing was written; the next `apply` compares it. `false`: it came too late.
    pub(crate) fn adopt(&mut self, reading: Reading, since: u64) -> bool {
        if self.stale || self.writes() != since {
            return false;
        }
        self.believe(reading);
        true
    }

    fn believe(&mut self, reading: Reading) {
        self.counters.reads += 1;
        for (family, read) in reading {
            self.calico |= read.calico;
            if let Some(half) = self.halves.get_mut(&family) {
                (half.tables, half.sets, half.nft) = (read.tables, read.sets, read.nft);
            }
        }
        self.stale = false;
        self.fresh = true;
    }

    fn read(&mut self) -> Result<(), DriveError> {
        if let Some(mode) = self.mode {
            let reading = readback::read(&mut *self.nf, mode, &self.families)?;
            self.believe(reading);
        }
        Ok(())
    }

    /// Brings the kernel to these layouts. `changed`: what differs from the last call, if that one succeeded.
    /// `leftovers`: whether rules of workloads that have gone must go now. The kernel waits for a grace period (some 20
    /// ms) whenever rules go, so that what is only added does not take them along.
    pub(crate) fn apply(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        changed: Option<&Changed>,
        leftovers: Leftovers,
    ) -> Result<(), DriveError> {
        let result = self.try_apply(layouts, changed, leftovers);
        if result.is_err() {
            self.stale = true;
            self.counters.errors += 1;
        }
        result
    }

    /// Writes what holds until the resources are known, if there are no rules of ours of any make: those of the last run
    /// deny devices they do not know by themselves. Whether it did.
    pub(crate) fn guard(&mut self, waiting: &BTreeMap<Family, Layout>) -> Result<bool, DriveError> {
        let own = match self.mode {
            Some(Mode::Iptables(variant)) => Some(variant),
            Some(Mode::Nft) | None => None,
        };
        let any = |tables: &BTreeMap<Table, Actual>| tables.values().any(|t| !t.chains.is_empty());
        for family in self.families.clone() {
            if let Ok(Some(_)) = self.nf.nft_list(ip(family), nft::TABLE) {
                return Ok(false);
            }
            for variant in [Variant::Nft, Variant::Legacy].into_iter().filter(|v| Some(*v) != own) {
                if let Ok(Some(text)) = self.nf.probe(variant, ip(family))
                    && any(&table_plan::parse(&text)?)
                {
                    return Ok(false);
                }
            }
        }
        if own.is_some() {
            // What is written now is compared with this reading; what is written later is not.
            self.read_again()?;
            if self.halves.values().any(|half| any(&half.tables)) {
                self.doubt();
                return Ok(false);
            }
        }
        self.apply(waiting, None, Leftovers::Remove).map(|()| true)
    }

    /// Reads everything now, on this thread; the next `apply` compares it.
    pub(crate) fn read_again(&mut self) -> Result<(), DriveError> {
        // When it fails the next write reads first.
        self.stale = true;
        self.read()
    }

    /// What the kernel lacked of the rules and sets of each of these workloads, by device, when it was last read. Believes
    /// and writes nothing.
    pub(crate) fn lacking(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        devices: &[&str],
    ) -> Vec<Vec<String>> {
        let mut out = vec![Vec::new(); devices.len()];
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            match self.mode {
                Some(Mode::Iptables(_)) => {
                    let wanted = layout.iptables(*family, &mut half.cache);
                    for (device, out) in devices.iter().zip(&mut out) {
                        let (tables, seen) = (&half.tables, &half.seen);
                        out.extend(verify::iptables(device, &wanted, tables, seen, &layout.sets, &half.sets));
                    }
                }
                Some(Mode::Nft) => {
                    let wanted = layout.nft(*family, &mut half.cache);
                    for (device, out) in devices.iter().zip(&mut out) {
                        out.extend(verify::nftables(device, *family, &wanted, &layout.sets, &half.nft));
                    }
                }
                None => {}
            }
        }
        out
    }

    fn try_apply(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        changed: Option<&Changed>,
        leftovers: Leftovers,
    ) -> Result<(), DriveError> {
        let whole = self.stale || self.fresh;
        // Nothing of ours is different, yet we look: what is found to differ is somebody else's doing.
        let checking = whole && !self.untidy && changed.is_some_and(Changed::is_empty);
        let leftovers = if whole { Leftovers::Remove } else { leftovers };
        if self.stale {
            self.read()?;
        }
        let wrote = match self.mode {
            Some(Mode::Iptables(_)) => {
                self.apply_iptables(layouts, changed.filter(|_| !whole), whole, leftovers)?
            }
            Some(Mode::Nft) => self.apply_nft(layouts, changed.filter(|_| !whole), leftovers)?,
            None => false,
        };
        let mode_is_nft = self.mode == Some(Mode::Nft);
        self.fresh = false;
        self.counters.repairs += u64::from(checking && wrote);
        if mode_is_nft && self.held.any() && (whole || leftovers == Leftovers::Remove && self.held.soon()) {
            self.alone = false;
        }
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
        leftovers: Leftovers,
    ) -> Result<bool, DriveError> {
        let mut untidy = false;
        let mut wrote = false;
        let mut after = String::new();
        let mut set_names: BTreeMap<Family, Option<BTreeSet<String>>> = BTreeMap::new();
        let mut before = String::new();
        let mut lines = 0;
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            let only = changed.map(|c| touched(*family, layout, &half.sets, c));
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
            tracing::debug!(input = %before, "ipset restore");
            self.nf.restore_sets(&before)?;
        }
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            assume_sets(half, layout, set_names.get(family).and_then(Option::as_ref), self.max_set);
            let wanted = layout.iptables(*family, &mut half.cache);
            half.cache.keep(layout);
            if remember {
                for (table, want) in &wanted {
                    let have = half.tables.entry(*table).or_default();
                    table_plan::remember(want, have, half.seen.entry(*table).or_default());
                }
            }
            let mut plans = plan_tables(half, &wanted, leftovers);
            let both = |f: fn(&TablePlan) -> bool| plans.iter().any(|(_, p)| f(p));
            if both(|p| p.removes) && both(|p| p.left) {
                // The kernel waits anyhow.
                plans = plan_tables(half, &wanted, Leftovers::Remove);
            }
            untidy |= plans.iter().any(|(_, p)| p.left);
            let input: String = plans.iter().map(|(_, p)| p.input.as_str()).collect();
            if input.is_empty() {
                continue;
            }
            self.counters.chains +=
                plans.iter().map(|(_, p)| (p.written + p.removed + p.mended + p.choices) as u64).sum::<u64>();
            self.counters.table_writes += 1;
            wrote = true;
            tracing::debug!(%input, "iptables-restore");
            self.nf.restore(ip(*family), &input)?;
            for (table, plan) in plans {
                let none = Wanted::default();
                let want = wanted.get(&table).unwrap_or(&none);
                let (have, seen) =
                    (half.tables.entry(table).or_default(), half.seen.entry(table).or_default());
                table_plan::assume(plan, want, have, seen);
            }
        }
        if remember {
            self.held.look(&after);
        } else {
            after = self.held.due(&after);
        }
        // Chains that were left may still refer to sets, and so may those of another make until they have been removed.
        if (leftovers == Leftovers::Keep || !self.alone) && !after.is_empty() {
            untidy = true;
            after.clear();
        }
        self.untidy = untidy;
        if !after.is_empty() {
            wrote |= self.destroy(&after)?;
            for (family, layout) in layouts {
                if let Some(half) = self.halves.get_mut(family) {
                    let held = &self.held;
                    half.sets.retain(|name, _| layout.sets.contains_key(name) || held.has(name));
                }
            }
            self.untidy |= self.held.soon();
        }
        Ok(wrote)
    }

    fn apply_nft(
        &mut self,
        layouts: &BTreeMap<Family, Layout>,
        changed: Option<&Changed>,
        leftovers: Leftovers,
    ) -> Result<bool, DriveError> {
        let mut parts = Vec::new();
        for (family, layout) in layouts {
            let Some(half) = self.halves.get_mut(family) else { continue };
            let wanted = layout.nft(*family, &mut half.cache);
            half.cache.keep(layout);
            if changed.is_none() {
                nft_plan::recognise(&wanted, &mut half.nft);
            }
            let only = changed.map(|c| touched(*family, layout, &half.nft.sets, c));
            parts.push((*family, layout, wanted, only));
        }
        let plans = |halves: &BTreeMap<Family, Half>, leftovers| {
            let each = parts.iter().filter_map(|(family, layout, wanted, only)| {
                let have = &halves.get(family)?.nft;
                let plan = nft_plan::plan(*family, wanted, &layout.sets, have, leftovers, only.as_ref());
                Some((*family, plan))
            });
            each.collect::<Vec<_>>()
        };
        let mut planned = plans(&self.halves, leftovers);
        if planned.iter().any(|(_, p)| p.removes) && planned.iter().any(|(_, p)| p.left) {
            // The kernel waits anyhow.
            planned = plans(&self.halves, Leftovers::Remove);
        }
        self.untidy = planned.iter().any(|(_, p)| p.left);
        if planned.iter().all(|(_, p)| p.input.is_empty()) {
            return Ok(false);
        }
        for (_, plan) in &planned {
            self.counters.chains += (plan.written + plan.removed) as u64;
            self.counters.members += (plan.added + plan.deleted) as u64;
        }
        self.counters.nft_writes += 1;
        self.nft_each(planned.iter().map(|(_, p)| p.input.as_str()))?;
        self.nft_each(planned.iter().map(|(_, p)| p.late.as_str()))?;
        for (family, plan) in planned {
            if let Some(half) = self.halves.get_mut(&family) {
                plan.assume(&mut half.nft);
            }
        }
        Ok(true)
    }

    /// One transaction of members and one of everything else: whatever is in one with rules is nft's, and that is slow with
    /// members of large sets.
    fn nft_each<'a>(&mut self, inputs: impl Iterator<Item = &'a str>) -> Result<(), NfError> {
        let (members, rest): (Vec<&str>, Vec<&str>) = inputs.partition(|i| nft_plan::only_members(i));
        for input in [rest.concat(), members.concat()].iter().filter(|i| !i.is_empty()) {
            self.nf.nft(input)?;
        }
        Ok(())
    }

    /// Changes members of sets and nothing else: one batch, whatever the number of sets. `false`: it needs `apply`.
    pub(crate) fn apply_members(&mut self, changed: &Changed) -> Result<bool, DriveError> {
        if self.stale || self.fresh || changed.rules || !changed.whole.is_empty() {
            return Ok(false);
        }
        let mut input = String::new();
        let mut count = 0;
        let mut done = Vec::new();
        // What a set may hold meanwhile.
        let mut most: BTreeMap<(Family, String), usize> = BTreeMap::new();
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
                        // Several changes of one set follow each other.
                        let most = most.entry((family, name.clone())).or_insert(set.members.len());
                        *most += added.len();
                        if *most > set.max || sets::shrinks(set.members.len(), removed.len()) {
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
                done.push((family, name, added, removed));
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
        for (family, name, added, removed) in done {
            let Some(half) = self.halves.get_mut(&family) else { continue };
            let sets = half.sets.get_mut(&name).map(|s| &mut s.members);
            let nft = half.nft.sets.get_mut(&name).and_then(Option::as_mut).map(|(_, members)| members);
            for members in sets.into_iter().chain(nft) {
                for m in &removed {
                    members.remove(m);
                }
                members.extend(&added);
            }
        }
        Ok(true)
    }

    /// Removes what an earlier run wrote with another back end; ours is in force already.
    fn clear_others(&mut self) -> Result<(), DriveError> {
        let Some(mode) = self.mode else { return Ok(()) };
        let mut sets = String::new();
        for family in self.families.clone() {
            if mode != Mode::Nft
                && let Some(json) = self.nf.nft_list(ip(family), nft::TABLE).ok().flatten()
            {
                self.counters.nft_writes += 1;
                for input in nft_plan::removal(family, nft::TABLE, &json)?.iter().filter(|i| !i.is_empty()) {
                    self.nf.nft(input)?;
                }
                tracing::info!(family = nft::family(family), "rules of the former back end nftables removed");
            }
            self.calico |= matches!(self.nf.nft_list(ip(family), calico::TABLE), Ok(Some(_)));
            for variant in [Variant::Legacy, Variant::Nft] {
                if mode == Mode::Iptables(variant) {
                    continue;
                }
                // A make that is not installed has left nothing.
                let Ok(Some(text)) = self.nf.probe(variant, ip(family)) else { continue };
                self.calico |= calico::in_rules(&text);
                let input = table_plan::removal(&text)?.input;
                if !input.is_empty() {
                    self.restore_with(variant, family, &input)?;
                    tracing::info!(back_end = %variant, "rules of the former back end removed");
                }
            }
            if mode == Mode::Nft
                && let Ok(text) = self.nf.save_sets()
            {
                self.calico |= calico::in_sets(&text);
                let have = sets::parse(family, &text);
                let plan = sets::plan(family, &sets::WantedSets::new(), &have, self.max_set, None);
                sets.push_str(&plan.after);
            }
        }
        if mode == Mode::Nft {
            self.held.look(&sets);
        }
        if !sets.is_empty() {
            self.destroy(&sets)?;
            self.untidy |= self.held.soon();
        }
        Ok(())
    }

    /// Removes sets nobody needs; whether any went. What somebody else's rule asks stays, and is told of.
    fn destroy(&mut self, input: &str) -> Result<bool, NfError> {
        self.counters.set_writes += 1;
        let held = leftover::destroy(&mut *self.nf, input)?;
        let any = held.len() < input.lines().count();
        self.held.note(input, held);
        Ok(any)
    }

    /// Sets that stay though nobody needs them, a line each.
    pub(crate) fn held(&self) -> Vec<String> {
        self.held.lines()
    }

    /// Writes rules with either make.
    fn restore_with(&mut self, variant: Variant, family: Family, input: &str) -> Result<(), NfError> {
        self.nf.set_variant(variant);
        let result = self.nf.restore(ip(family), input);
        if let Some(Mode::Iptables(own)) = self.mode {
            self.nf.set_variant(own);
        }
        self.counters.table_writes += 1;
        result
    }

    /// Removes what a Calico has left, of every table, family and make; ours is in force. Gives what shows that one runs
    /// here, if anything is left and so stays. Adds to `removed` what has gone, whatever comes of the rest.
    pub(crate) fn clear_calico(
        &mut self,
        running: impl Fn() -> Option<String>,
        removed: &mut calico::Count,
    ) -> Result<Option<String>, DriveError> {
        let (mut rules, mut tables) = (Vec::new(), Vec::new());
        for family in self.families.clone() {
            for variant in [Variant::Legacy, Variant::Nft] {
                // Of a make that is not installed nothing was seen either.
                let Ok(Some(text)) = self.nf.probe(variant, ip(family)) else { continue };
                rules.push((variant, family, calico::rules(&text)));
            }
            if let Some(json) = self.nf.nft_list(ip(family), calico::TABLE).ok().flatten() {
                tables.push(nft_plan::removal(family, calico::TABLE, &json)?);
            }
        }
        rules.retain(|(_, _, removal)| !removal.input.is_empty());
        let sets = self.nf.save_sets().map(|text| calico::sets(&text)).unwrap_or_default();
        if rules.is_empty() && tables.is_empty() && sets.input.is_empty() {
            self.calico = false;
            return Ok(None);
        }
        if let Some(who) = running() {
            return Ok(Some(who));
        }
        for (variant, family, removal) in rules {
            self.restore_with(variant, family, &removal.input)?;
            *removed += removal.count;
        }
        for inputs in tables {
            for input in inputs.iter().filter(|i| !i.is_empty()) {
                self.counters.nft_writes += 1;
                self.nf.nft(input)?;
            }
            removed.tables += 1;
        }
        // Rules asked for them until now.
        if !sets.input.is_empty() {
            self.counters.set_writes += 1;
            let held = leftover::destroy(&mut *self.nf, &sets.input)?;
            *removed += calico::Count { sets: sets.count.sets.saturating_sub(held.len()), ..sets.count };
            if let Some((name, why)) = held.into_iter().next() {
                let culprit = Some(format!("destroy {name}"));
                return Err(NfError::Refused { tool: "ipset".into(), why, culprit }.into());
            }
        }
        self.calico = false;
        Ok(None)
    }
}

/// Names of sets that are to be compared: members of those nobody touched need not be.
fn touched<T>(
    family: Family,
    layout: &Layout,
    have: &BTreeMap<String, T>,
    changed: &Changed,
) -> BTreeSet<String> {
    let whole = changed.whole.iter().chain(changed.members.iter().map(|d| &d.id));
    let mut names: BTreeSet<String> =
        whole.map(|id| brindle_felix_core::rules::names::set(family, &id.0)).collect();
    names.extend(layout.sets.keys().filter(|n| !have.contains_key(*n)).cloned());
    names.extend(have.keys().filter(|n| !layout.sets.contains_key(*n)).cloned());
    names.extend(layout.own_sets.iter().cloned());
    names
}

/// The filter first: it is the one that protects.
fn plan_tables(
    half: &Half,
    wanted: &BTreeMap<Table, Wanted>,
    leftovers: Leftovers,
) -> Vec<(Table, TablePlan)> {
    let none = (Wanted::default(), Actual::default(), Seen::new());
    [Table::Filter, Table::Raw, Table::Mangle, Table::Nat]
        .into_iter()
        .map(|table| {
            let want = wanted.get(&table).unwrap_or(&none.0);
            let have = half.tables.get(&table).unwrap_or(&none.1);
            let seen = half.seen.get(&table).unwrap_or(&none.2);
            (table, table_plan::plan(table, want, have, seen, leftovers))
        })
        .collect()
}

fn assume_sets(half: &mut Half, layout: &Layout, only: Option<&BTreeSet<String>>, max: usize) {
    for (name, want) in &layout.sets {
        if only.is_some_and(|o| !o.contains(name)) {
            continue;
        }
        let max = sets::max_after(half.sets.get(name), want, max);
        half.sets
            .insert(name.clone(), ActualSet { kind: Some(want.kind), max, members: want.members.clone() });
    }
}
