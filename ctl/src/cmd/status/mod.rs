//! `brindlectl status`: one screen about the cluster, or about one agent in full. `gather` asks, `judge` decides what
//! is wrong and what to type against it, `screen` shows it. Exit code 0: all is well; 1: something is degraded; 2: no
//! agent answers.

pub(crate) mod args;
mod gather;
mod judge;
mod one;
mod screen;

use std::{
    io::IsTerminal as _,
    time::{Duration, Instant},
};

use anyhow::Result;

use self::{args::StatusArgs, screen::Screen};
use crate::{
    Outcome,
    args::Format,
    cluster::{self, Cluster, ClusterArgs, Where},
    out::{self, put},
};

/// Interval between two looks while waiting.
const LOOK: Duration = Duration::from_millis(300);

/// Carries the command out.
pub(crate) fn run(args: &StatusArgs, format: Format) -> Result<Outcome> {
    if let Some(limit) = args.wait {
        return wait(args, format, limit);
    }
    let Some(every) = args.watch else { return look(args).map(|shown| shown.print(format)) };
    let clear = format == Format::Table && std::io::stdout().is_terminal();
    loop {
        // What cannot be asked now may be asked in a moment.
        match look(args) {
            Ok(shown) => {
                if clear {
                    put!("\x1b[H\x1b[2J");
                }
                shown.print(format);
                if !clear && format == Format::Table {
                    put!("\n");
                }
            }
            Err(e) => out::error(format, &e),
        }
        if !out::open() {
            return Ok(Outcome::Ok);
        }
        std::thread::sleep(every);
    }
}

/// Looks until all is well.
fn wait(args: &StatusArgs, format: Format, limit: Duration) -> Result<Outcome> {
    let deadline = Instant::now().checked_add(limit);
    loop {
        let shown = look(args);
        let over = deadline.is_some_and(|d| Instant::now() >= d);
        match shown {
            Ok(shown) if shown.outcome() == Outcome::Ok || over => return Ok(shown.print(format)),
            Err(e) if over => return Err(e),
            Ok(_) | Err(_) => std::thread::sleep(LOOK),
        }
    }
}

/// What was seen.
enum Shown {
    One(Box<brindle_config_core::status::NodeStatus>),
    All(Screen),
}

impl Shown {
    fn outcome(&self) -> Outcome {
        match self {
            Self::One(status) => one::outcome(status),
            Self::All(screen) => screen.outcome(),
        }
    }

    fn print(&self, format: Format) -> Outcome {
        match (self, format) {
            (Self::One(status), Format::Json) => out::json(status),
            (Self::One(status), Format::Table) => put!("{}", one::render(status, out::colours())),
            (Self::All(screen), Format::Json) => out::json(screen),
            (Self::All(screen), Format::Table) => put!("{}", screen.render(out::colours())),
        }
        self.outcome()
    }
}

fn look(args: &StatusArgs) -> Result<Shown> {
    if let Some(socket) = &args.admin_socket {
        return one::ask(&Where::Socket(socket.clone()), args.cluster.reach.timeout).map(Shown::One);
    }
    let cluster = cluster::find(&args.cluster)?;
    if let ([only], [_]) = (cluster.agents.as_slice(), args.cluster.node.as_slice()) {
        return one::ask(&only.place, args.cluster.reach.timeout).map(Shown::One);
    }
    screen(&cluster, &args.cluster).map(Shown::All)
}

fn screen(cluster: &Cluster, args: &ClusterArgs) -> Result<Screen> {
    let seen = gather::gather(cluster, args.reach.timeout)?;
    Ok(judge::judge(&seen, &cluster.source, env!("CARGO_PKG_VERSION")))
}
