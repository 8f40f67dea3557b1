//! `ipam show`: how full the pools are, in calicoctl's tables.

use anyhow::Result;
use brindle_ipam::usage::Count;
use serde_json::{Value, json};

use super::{args::ShowArgs, world::World};
use crate::{
    Outcome,
    args::Format,
    out::{self, Grid},
};

pub(super) fn show(world: &World, args: &ShowArgs, format: Format) -> Result<Outcome> {
    if let Some(ip) = args.ip {
        return one(world, ip, format);
    }
    if args.show_configuration {
        configuration(world, format);
        return Ok(Outcome::Ok);
    }
    if args.show_borrowed {
        borrowed(world, format);
        return Ok(Outcome::Ok);
    }
    let pools = world.blocks.by_pool(&world.view);
    let outside = world.blocks.outside(&world.view);
    if format == Format::Json {
        let block =
            |b: &brindle_ipam::usage::BlockUsage| merged(json!({"cidr": b.cidr, "owner": b.owner}), &b.count);
        let all: Vec<Value> = pools
            .iter()
            .map(|p| {
                let mut pool = merged(json!({"name": p.name, "cidr": p.cidr}), &p.count);
                if args.show_blocks
                    && let Some(map) = pool.as_object_mut()
                {
                    map.insert("blocks".into(), p.blocks.iter().map(block).collect());
                }
                pool
            })
            .collect();
        out::json(
            &json!({"pools": all, "blocksOutsidePools": outside.iter().map(block).collect::<Vec<_>>()}),
        );
        return Ok(Outcome::Ok);
    }
    let mut grid = Grid::new(&["GROUPING", "CIDR", "IPS TOTAL", "IPS IN USE", "IPS RESERVED", "IPS FREE"]);
    for pool in &pools {
        grid.row(line("IP Pool", pool.cidr.to_string(), &pool.count));
        if args.show_blocks {
            for block in &pool.blocks {
                grid.row(line("Block", block.cidr.to_string(), &block.count));
            }
        }
    }
    for block in &outside {
        grid.row(line("Block", format!("{} (no pool)", block.cidr), &block.count));
    }
    out::put!("{}", grid.render());
    Ok(Outcome::Ok)
}

fn merged(mut value: Value, count: &Count) -> Value {
    if let Some(map) = value.as_object_mut() {
        // Larger than a JSON number holds exactly only for IPv6 pools; then the text says it.
        let number = |n: u128| u64::try_from(n).map_or_else(|_| Value::from(n.to_string()), Value::from);
        map.insert("total".into(), number(count.total));
        map.insert("inUse".into(), number(count.in_use));
        map.insert("reserved".into(), number(count.reserved));
        map.insert("free".into(), number(count.free()));
    }
    value
}

fn line(what: &str, cidr: String, count: &Count) -> [String; 6] {
    let share = |n: u128| {
        #[expect(clippy::cast_precision_loss, reason = "a percentage for people")]
        let percent = if count.total == 0 { 0.0 } else { n as f64 / count.total as f64 * 100.0 };
        format!("{} ({percent:.0}%)", number(n))
    };
    [
        what.to_owned(),
        cidr,
        number(count.total),
        share(count.in_use),
        share(count.reserved),
        share(count.free()),
    ]
}

/// As calicoctl prints large counts: `1.8447e+19`.
fn number(n: u128) -> String {
    if n < 10_000_000 {
        return n.to_string();
    }
    #[expect(clippy::cast_precision_loss, reason = "five digits are shown")]
    let text = format!("{:.4e}", n as f64);
    match text.split_once('e') {
        Some((digits, exponent)) => format!("{digits}e+{exponent:0>2}"),
        None => text,
    }
}

fn one(world: &World, ip: std::net::IpAddr, format: Format) -> Result<Outcome> {
    let allocation = world.blocks.of(ip).and_then(|b| b.allocation(ip)).filter(|a| !a.cooling());
    match (format, allocation) {
        (Format::Json, a) => out::json(&json!({
            "ip": ip, "inUse": a.is_some(), "handle": a.as_ref().and_then(|a| a.handle()),
            "attributes": a.as_ref().map(|a| &a.attribute.secondary),
        })),
        (Format::Table, None) => out::say!("{ip} is not assigned"),
        (Format::Table, Some(a)) => {
            out::say!("IP {ip} is in use");
            if let Some(handle) = a.handle() {
                out::say!("Handle ID: {handle}");
            }
            out::say!("Active Owner Attributes:");
            for (key, value) in &a.attribute.secondary {
                out::say!("  {key}: {value}");
            }
        }
    }
    Ok(Outcome::Ok)
}

fn configuration(world: &World, format: Format) {
    let c = &world.view.config;
    let persistence =
        c.extra.get("kubeVirtVMAddressPersistence").and_then(Value::as_str).unwrap_or("Enabled").to_owned();
    if format == Format::Json {
        return out::json(
            &json!({"strictAffinity": c.strict_affinity, "autoAllocateBlocks": c.auto_allocate_blocks,
            "maxBlocksPerHost": c.max_blocks_per_host, "kubeVirtVMAddressPersistence": persistence,
            "ipCooldownSeconds": c.ip_cooldown_seconds.unwrap_or(0)}),
        );
    }
    let mut grid = Grid::new(&["PROPERTY", "VALUE"]);
    for (property, value) in [
        ("StrictAffinity", c.strict_affinity.to_string()),
        ("AutoAllocateBlocks", c.auto_allocate_blocks.to_string()),
        ("MaxBlocksPerHost", c.max_blocks_per_host.to_string()),
        ("KubeVirtVMAddressPersistence", persistence),
        ("IPCooldownSeconds", c.ip_cooldown_seconds.unwrap_or(0).to_string()),
    ] {
        grid.row([property.to_owned(), value]);
    }
    out::put!("{}", grid.render());
}

fn borrowed(world: &World, format: Format) {
    let all = world.blocks.borrowed();
    if format == Format::Json {
        return out::json(&json!({ "borrowed": all }));
    }
    let mut grid = Grid::new(&["IP", "BORROWING-NODE", "BLOCK", "BLOCK OWNER", "TYPE", "ALLOCATED-TO"]);
    for b in all {
        grid.row([b.ip.to_string(), b.node, b.block.to_string(), b.owner, b.kind, b.allocated_to]);
    }
    out::put!("{}", grid.render());
}

#[cfg(test)]
mod tests {
    use super::number;

    #[test]
    fn large_counts_are_short() {
        assert_eq!(number(65_536), "65536");
        assert_eq!(number(1 << 64), "1.8447e+19");
        assert_eq!(number(16_777_216), "1.6777e+07");
    }
}
