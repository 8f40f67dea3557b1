//! `brindlectl bgp`: what a speaker knows and why, in the manner of vtysh and birdc. Asks one agent, or every node of a
//! cluster in turn; a node that does not answer is a row of its own and makes the answer degraded.

mod args;
mod neighbor;
mod screen;
mod target;

use anyhow::{Result, bail};
use brindle_config_core::status::bgp::{
    BgpEvent, BgpPath, BgpRequest, ClearHow, Cleared, Direction, Finding, Neighbor, RouteTable, ServiceRoute,
    SpeakerFacts,
};
use ipnet::IpNet;
use serde_json::{Value, json};

pub(crate) use self::args::BgpArgs;
use self::{
    args::{BgpCommand, How, Way},
    target::{Target, targets},
};
use crate::{
    Outcome,
    args::Format,
    cluster::Silence,
    lab::progress::wrap,
    out::{self, WIDTH, put},
};

/// Rows shown at a time: columns are as wide as these want them.
const PIECE: usize = 1_000;

/// Carries out a `bgp` command.
pub(crate) fn run(args: &BgpArgs, format: Format) -> Result<Outcome> {
    let to = match &args.command {
        BgpCommand::Explain { to, .. } => match to.as_slice() {
            [] => None,
            [peer] if peer != "to" => Some(peer.clone()),
            [to, peer] if to == "to" => Some(peer.clone()),
            other => bail!("expected `to PEER` after the prefix, found {:?}", other.join(" ")),
        },
        _ => None,
    };
    let targets = targets(args)?;
    let many = args.everywhere();
    let mut outcome = Outcome::Ok;
    for (n, target) in targets.iter().enumerate() {
        let show = Show { target, format, many };
        if let (Some(node), Format::Table) = (&target.node, format) {
            put!("{}{node}\n", if n == 0 { "" } else { "\n" });
        }
        match show.command(&args.command, to.as_ref()) {
            Ok(Outcome::Ok) => {}
            Ok(other) => outcome = other,
            Err(silence) if many => {
                show.silent(&silence);
                outcome = Outcome::Degraded;
            }
            Err(silence @ Silence::Absent { .. }) if args.node.is_none() => {
                bail!("{silence}, --all asks every node of the cluster")
            }
            Err(silence) => return Err(silence.into()),
        }
    }
    Ok(outcome)
}

/// One target, and how its answer is shown.
struct Show<'a> {
    target: &'a Target,
    format: Format,
    many: bool,
}

impl Show<'_> {
    fn command(&self, command: &BgpCommand, to: Option<&String>) -> Result<Outcome, Silence> {
        match command {
            BgpCommand::Summary => self.summary(),
            BgpCommand::Neighbor { peer } => self.neighbor(peer),
            BgpCommand::Rib { prefix } => self.routes(RouteTable::Rib, None, *prefix),
            BgpCommand::Advertised { peer } => self.routes(RouteTable::Advertised, Some(peer), None),
            BgpCommand::Received { peer } => self.routes(RouteTable::Received, Some(peer), None),
            BgpCommand::Explain { prefix, .. } => self.explain(*prefix, to),
            BgpCommand::Services => self.services(),
            BgpCommand::Monitor => self.monitor(),
            BgpCommand::Clear { peer, how, direction } => self.clear(peer, *how, *direction),
        }
    }

    /// One JSON value; with its node where several are asked.
    fn json(&self, mut value: Value) {
        if let (Some(node), Some(object)) = (&self.target.node, value.as_object_mut()) {
            object.insert("node".into(), json!(node));
        }
        out::json(&value);
    }

    fn silent(&self, silence: &Silence) {
        match self.format {
            Format::Json => {
                let deadline = silence.deadline().map(|d| u64::try_from(d.as_millis()).unwrap_or(u64::MAX));
                self.json(json!({ "error": silence.to_string(), "deadlineMs": deadline }));
            }
            Format::Table => {
                put!("  {}\n", wrap(&format!("NO ANSWER: {silence}"), WIDTH - 4).join("\n    "));
            }
        }
    }

    fn summary(&self) -> Result<Outcome, Silence> {
        let speaker: SpeakerFacts = self.target.all(BgpRequest::Speaker)?.pop().unwrap_or_default();
        let peers: Vec<Neighbor> = self.target.all(BgpRequest::Neighbors { peer: None })?;
        match self.format {
            Format::Json => self.json(json!({ "speaker": speaker, "neighbors": peers })),
            Format::Table => {
                put!("{}", screen::speaker(&speaker));
                if !peers.is_empty() {
                    put!("\n{}", screen::summary(&peers, out::colours()));
                }
            }
        }
        let up = speaker.asn != 0 && peers.iter().all(|p| p.state == "Established");
        Ok(if up { Outcome::Ok } else { Outcome::Degraded })
    }

    fn neighbor(&self, peer: &str) -> Result<Outcome, Silence> {
        let found: Vec<Neighbor> = self.target.all(BgpRequest::Neighbors { peer: Some(peer.into()) })?;
        for n in &found {
            match self.format {
                Format::Json => self.json(json!(n)),
                Format::Table => put!("{}", neighbor::screen(n)),
            }
        }
        let up = found.iter().all(|p| p.state == "Established");
        Ok(if up { Outcome::Ok } else { Outcome::Degraded })
    }

    fn routes(
        &self,
        table: RouteTable,
        peer: Option<&String>,
        prefix: Option<IpNet>,
    ) -> Result<Outcome, Silence> {
        let request = BgpRequest::Routes { table, peer: peer.cloned(), prefix };
        if prefix.is_some() && self.format == Format::Table {
            let paths = self.target.all(request)?;
            put!("{}", screen::candidates(&paths));
            return Ok(if paths.is_empty() { Outcome::Degraded } else { Outcome::Ok });
        }
        let decided = table != RouteTable::Advertised;
        let mut piece: Vec<BgpPath> = Vec::new();
        let (mut prefixes, mut paths, mut last) = (0usize, 0usize, None);
        let show = |piece: &mut Vec<BgpPath>, first: bool| {
            if first && decided {
                put!("{}", screen::MARKS);
            }
            put!("{}", screen::routes(piece, first, decided));
            piece.clear();
        };
        let mut any = false;
        self.target.ask(request, false, |path: BgpPath| {
            any = true;
            if self.format == Format::Json {
                return self.json(json!(path));
            }
            prefixes += usize::from(last != Some(path.prefix));
            last = Some(path.prefix);
            paths += 1;
            piece.push(path);
            if piece.len() == PIECE {
                show(&mut piece, paths == PIECE);
            }
        })?;
        if self.format == Format::Table {
            if !piece.is_empty() {
                show(&mut piece, paths <= PIECE);
            }
            let (prefixes, paths) = (
                screen::count(prefixes, "prefix").replace("prefixs", "prefixes"),
                screen::count(paths, "path"),
            );
            put!("{prefixes}, {paths}\n");
        }
        // A table may be empty; what was asked for by name is missing.
        Ok(if any || prefix.is_none() { Outcome::Ok } else { Outcome::Degraded })
    }

    fn explain(&self, prefix: IpNet, to: Option<&String>) -> Result<Outcome, Silence> {
        let found: Vec<Finding> = self.target.all(BgpRequest::Explain { prefix, peer: to.cloned() })?;
        match self.format {
            Format::Json => self.json(json!({ "prefix": prefix, "findings": found })),
            Format::Table => put!("{}", screen::findings(&prefix.to_string(), &found)),
        }
        Ok(Outcome::Ok)
    }

    fn services(&self) -> Result<Outcome, Silence> {
        let all: Vec<ServiceRoute> = self.target.all(BgpRequest::Services)?;
        match self.format {
            Format::Json => all.iter().for_each(|s| self.json(json!(s))),
            Format::Table => {
                for (n, piece) in all.chunks(PIECE).enumerate() {
                    put!("{}", screen::services(piece, n == 0));
                }
                let announced = all.iter().filter(|s| s.announced).count();
                put!("{announced} of {} announced\n", all.len());
            }
        }
        Ok(Outcome::Ok)
    }

    fn monitor(&self) -> Result<Outcome, Silence> {
        if self.many {
            return Err(Silence::Refused("monitor watches one node: say --node".into()));
        }
        self.target.ask(BgpRequest::Monitor, true, |e: BgpEvent| match self.format {
            Format::Json => self.json(json!(e)),
            Format::Table => put!("{}", screen::event(&e)),
        })?;
        Ok(Outcome::Ok)
    }

    fn clear(&self, peer: &str, how: How, direction: Option<Way>) -> Result<Outcome, Silence> {
        let request = BgpRequest::Clear {
            peer: (peer != "all").then(|| peer.to_owned()),
            how: match how {
                How::Soft => ClearHow::Soft,
                How::Hard => ClearHow::Hard,
            },
            direction: direction.map(|d| match d {
                Way::In => Direction::In,
                Way::Out => Direction::Out,
            }),
        };
        let done: Vec<Cleared> = self.target.all(request)?;
        match self.format {
            Format::Json => self.json(json!({ "cleared": done })),
            Format::Table => put!("{}", screen::cleared(&done)),
        }
        Ok(if done.iter().all(|c| c.done) { Outcome::Ok } else { Outcome::Degraded })
    }
}
