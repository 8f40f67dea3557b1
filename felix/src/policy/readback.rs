//! What the kernel holds, read with the tools and understood, on whatever thread. Compares and writes nothing.

use std::{collections::BTreeMap, time::Duration};

use brindle_felix_core::rules::{
    calico,
    ir::{Family, Table},
    nft, nft_plan,
    sets::{self, ActualSet},
    table_plan,
};
use brindle_kernel::netfilter::Netfilter;
use tokio::sync::oneshot;

use super::driver::{DriveError, Mode, ip};

/// One family's rules and sets as read.
#[derive(Default)]
pub(crate) struct Half {
    pub(crate) tables: BTreeMap<Table, table_plan::Actual>,
    pub(crate) sets: BTreeMap<String, ActualSet>,
    pub(crate) nft: nft_plan::Actual,
    /// There is something of a Calico's.
    pub(crate) calico: bool,
}

/// Everything of ours in the kernel.
pub(crate) type Reading = BTreeMap<Family, Half>;

/// Reads everything.
pub(crate) fn read(nf: &mut dyn Netfilter, mode: Mode, families: &[Family]) -> Result<Reading, DriveError> {
    let mut out = Reading::new();
    let sets = match mode {
        Mode::Iptables(_) => nf.save_sets()?,
        Mode::Nft => String::new(),
    };
    for family in families {
        let half = match mode {
            Mode::Iptables(_) => {
                let rules = nf.save(ip(*family))?;
                Half {
                    tables: table_plan::parse(&rules)?,
                    sets: sets::parse(*family, &sets),
                    nft: nft_plan::Actual::default(),
                    calico: calico::in_rules(&rules) || calico::in_sets(&sets),
                }
            }
            Mode::Nft => Half {
                nft: nft_plan::parse(nf.nft_list(ip(*family), nft::TABLE)?.as_deref())?,
                ..Half::default()
            },
        };
        out.insert(*family, half);
    }
    Ok(out)
}

/// A reading under way on a thread of its own, so that nobody waits for it.
pub(crate) struct Look {
    answer: oneshot::Receiver<(Result<Reading, DriveError>, Duration)>,
    /// The driver's writes when it began: a reading that a write has overtaken says nothing.
    pub(crate) since: u64,
}

impl Look {
    /// Begins in the namespace of the calling thread. `None`: there is no thread to be had.
    pub(crate) fn begin(
        mut nf: Box<dyn Netfilter>,
        mode: Mode,
        families: Vec<Family>,
        since: u64,
    ) -> Option<Self> {
        let (tx, answer) = oneshot::channel();
        let work = move || {
            let begin = std::time::Instant::now();
            let result = read(&mut *nf, mode, &families);
            // Whoever asked may have ended.
            let _ = tx.send((result, begin.elapsed()));
        };
        std::thread::Builder::new().name("policy-look".into()).spawn(work).ok()?;
        Some(Self { answer, since })
    }

    /// What was read and how long it took; `None`: the thread has died.
    pub(crate) async fn answer(&mut self) -> Option<(Result<Reading, DriveError>, Duration)> {
        (&mut self.answer).await.ok()
    }
}
