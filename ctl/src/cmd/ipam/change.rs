//! `ipam release`, `configure`, `split`, `reserve`: each refuses before it writes anything.

use std::{collections::BTreeSet, net::IpAddr, path::PathBuf, sync::Arc};

use anyhow::{Context as _, Result, bail, ensure};
use brindle_config_core::{
    Key, Kind, ObjectMeta, Resource,
    ipam::IpamConfigSpec,
    pool::{IpPoolSpec, IpReservationSpec},
    store::{Expect, Revision, Store, StoreError, StoreExt as _},
    validate::names::subdomain,
};
use brindle_ipam::{Allocator as _, BlockAllocator, NoPause, Release};
use ipnet::IpNet;
use serde_json::{Value, json};

use super::{
    args::{ConfigureArgs, Persistence, ReleaseArgs, ReserveArgs, SplitArgs},
    world::{World, now, workload},
};
use crate::{Outcome, args::Format, out};

/// Parts of a pool that are still pools somebody means to have.
const MANY_PARTS: u32 = 4096;
/// Whom the allocator takes this command for; it claims nothing.
const NOBODY: &str = "brindlectl";

pub(super) async fn release(store: Arc<dyn Store>, args: &ReleaseArgs, format: Format) -> Result<Outcome> {
    let world = World::read(&*store).await?;
    let mut allocator = BlockAllocator::new(Arc::clone(&store), NOBODY, Arc::new(NoPause));
    if let Some(ip) = args.ip {
        if !args.force {
            unused(&world, ip)?;
        }
        let report = allocator.release_ips(&[Release::of(ip)], &world.view, now()?).await?;
        let done = !report.released.is_empty();
        match format {
            Format::Json => {
                out::json(&json!({ "released": report.released, "unallocated": report.unallocated }))
            }
            Format::Table if done => out::say!("Successfully released IP address {ip}"),
            Format::Table => out::say!("{ip} is not assigned"),
        }
        return Ok(Outcome::Ok);
    }
    let (releases, handles) = from_reports(&world, &args.from_report, args.force)?;
    if format == Format::Table {
        out::say!("Releasing {} old IPs...", releases.len());
    }
    let mut released: Vec<IpAddr> = Vec::new();
    let mut failed = Vec::new();
    for r in releases {
        // One by one: an address that was given anew meanwhile is no reason to keep the others.
        match allocator.release_ips(std::slice::from_ref(&r), &world.view, now()?).await {
            Ok(report) => released.extend(report.released),
            Err(e) => failed.push(format!("{}: {e}", r.ip)),
        }
    }
    let mut gone = Vec::new();
    for (name, revision) in handles {
        let key = Key::new(Kind::IpamHandle, None, &name);
        let done = match store.delete(&key, Expect::Revision(revision)).await {
            Ok(_) => true,
            Err(StoreError::NotFound(_) | StoreError::Conflict(_)) => false,
            Err(e) => return Err(e.into()),
        };
        if format == Format::Table {
            out::put!("{}", if done { "." } else { "x" });
        }
        gone.extend(done.then_some(name));
    }
    match format {
        Format::Json => out::json(&json!({"released": released, "handles": gone, "failed": failed})),
        Format::Table => {
            if !gone.is_empty() {
                out::say!("");
            }
            out::say!("Released {} IPs successfully", released.len());
            failed.iter().for_each(|f| out::say!("  {f}"));
        }
    }
    Ok(if failed.is_empty() { Outcome::Ok } else { Outcome::Degraded })
}

/// Refuses to release what something uses, or may use.
fn unused(world: &World, ip: IpAddr) -> Result<()> {
    if let Some(by) = world.workloads().remove(&ip) {
        bail!("{ip} is in use by {}; delete the pod, or use --force", by.join(", "));
    }
    if let Some(by) = world.users().remove(&ip) {
        bail!("{ip} is in use by {}; use --force to give it back all the same", by.join(", "));
    }
    if let Some(whose) = world.foreign(ip) {
        bail!(
            "{ip} was given to {whose} for another plugin's interface; no record tells whether that is still there: \
             use --force if it is gone"
        );
    }
    Ok(())
}

/// Records of handles without addresses, as the report saw them.
type IdleHandles = Vec<(String, Revision)>;

/// What every report names as unused, and handles without addresses.
fn from_reports(world: &World, files: &[PathBuf], force: bool) -> Result<(Vec<Release>, IdleHandles)> {
    world.must_be_locked(force)?;
    let mut common: Option<BTreeSet<(IpAddr, String, u64)>> = None;
    let mut handles: Option<BTreeSet<(String, u64)>> = None;
    let mut fresh = false;
    for file in files {
        let shown = file.display();
        let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {shown}"))?;
        let report: Value = serde_json::from_str(&text).with_context(|| format!("{shown}: not a report"))?;
        let field = |name: &str| report.get(name).and_then(Value::as_str).unwrap_or_default().to_owned();
        ensure!(
            field("clusterGUID") == world.cluster.cluster_guid,
            "{shown}: the report is of cluster {:?}, this is {:?}",
            field("clusterGUID"),
            world.cluster.cluster_guid
        );
        let version = env!("CARGO_PKG_VERSION");
        ensure!(
            field("version") == version,
            "{shown}: made by version {:?}, this is {version}; check again",
            field("version")
        );
        fresh |= field("clusterInformationRevision") == world.cluster_revision.0.to_string();
        let lists =
            report.get("allocations").and_then(Value::as_object).map(|m| m.values().collect::<Vec<_>>());
        let unused: BTreeSet<(IpAddr, String, u64)> = lists
            .with_context(|| format!("{shown}: allocations: is missing"))?
            .into_iter()
            .filter_map(Value::as_array)
            .flatten()
            .filter(|a| a["inUse"] == json!(false) && a["coolingDown"] != json!(true))
            .filter_map(|a| {
                let handle = a["handle"].as_str()?.to_owned();
                Some((a["ip"].as_str()?.parse().ok()?, handle, a["sequenceNumber"].as_u64()?))
            })
            .collect();
        let idle: BTreeSet<(String, u64)> = report["leakedHandles"]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|h| Some((h["ID"].as_str()?.to_owned(), h["Revision"].as_str()?.parse().ok()?)))
            .collect();
        common = Some(match common {
            None => unused,
            Some(before) => before.intersection(&unused).cloned().collect(),
        });
        handles = Some(match handles {
            None => idle,
            Some(before) => before.intersection(&idle).cloned().collect(),
        });
    }
    ensure!(
        fresh || force,
        "no report was made since the datastore was locked (or ClusterInformation written): check again"
    );
    let releases = common
        .unwrap_or_default()
        .into_iter()
        .map(|(ip, handle, sequence)| Release {
            ip,
            handle: Some(handle).filter(|h| !h.is_empty()),
            sequence: Some(sequence),
        })
        .collect();
    Ok((releases, handles.unwrap_or_default().into_iter().map(|(h, r)| (h, Revision(r))).collect()))
}

pub(super) async fn configure(
    store: Arc<dyn Store>,
    args: &ConfigureArgs,
    format: Format,
) -> Result<Outcome> {
    let (mut resource, expect) = match store.get_as::<IpamConfigSpec>(None, "default").await {
        Ok(found) => (found.resource, Expect::Revision(found.revision)),
        Err(StoreError::NotFound(_)) => {
            (Resource::new(ObjectMeta::named("default"), IpamConfigSpec::default()), Expect::Absent)
        }
        Err(e) => return Err(e.into()),
    };
    let spec = &mut resource.spec;
    let mut done: Vec<(&str, String)> = Vec::new();
    if let Some(strict) = args.strictaffinity {
        spec.strict_affinity = strict;
        done.push(("StrictAffinity", strict.to_string()));
    }
    if let Some(n) = args.max_blocks_per_host {
        spec.max_blocks_per_host = n;
        done.push(("MaxBlocksPerHost", n.to_string()));
    }
    if let Some(auto) = args.auto_allocate_blocks {
        spec.auto_allocate_blocks = auto;
        done.push(("AutoAllocateBlocks", auto.to_string()));
    }
    if let Some(keep) = args.kubevirt_ip_persistence {
        let text = if keep == Persistence::Enabled { "Enabled" } else { "Disabled" };
        spec.extra.insert("kubeVirtVMAddressPersistence".into(), text.into());
        done.push(("KubeVirtVMAddressPersistence", text.to_owned()));
    }
    if let Some(n) = args.ip_cooldown_seconds {
        spec.ip_cooldown_seconds = Some(n);
        done.push(("IPCooldownSeconds", n.to_string()));
    }
    // Who asks for its end is told what else has to end.
    let off = args.strictaffinity == Some(false);
    let n = spec.max_blocks_per_host;
    ensure!(
        n == 0 || spec.strict_affinity,
        "MaxBlocksPerHost requires StrictAffinity to be enabled: {}",
        if off {
            format!("it is {n}; add --max-blocks-per-host=0")
        } else {
            "add --strictaffinity=true".into()
        }
    );
    ensure!(
        spec.auto_allocate_blocks || spec.strict_affinity,
        "AutoAllocateBlocks false requires StrictAffinity to be enabled: nodes would only borrow from each \
         other; add {}",
        if off { "--auto-allocate-blocks=true" } else { "--strictaffinity=true" }
    );
    store.put_as(&resource, expect).await?;
    match format {
        Format::Json => out::json(&done.into_iter().collect::<std::collections::BTreeMap<_, _>>()),
        Format::Table => done.iter().for_each(|(k, v)| out::say!("Successfully set {k} to: {v}")),
    }
    Ok(Outcome::Ok)
}

pub(super) async fn split(store: Arc<dyn Store>, args: &SplitArgs, format: Format) -> Result<Outcome> {
    let n = args.number;
    ensure!(n >= 2 && n.is_power_of_two(), "{n}: a pool is split into a power of two: 2, 4, 8 …");
    ensure!(n <= MANY_PARTS, "{n}: a pool is split into {MANY_PARTS} at most");
    let world = World::read(&*store).await?;
    world.must_be_locked(args.force)?;
    let meant = world.view.pools.iter().find(|p| match (&args.cidr, &args.name) {
        (Some(cidr), _) => p.spec.cidr == cidr.trunc(),
        (None, name) => Some(&p.name) == name.as_ref(),
    });
    let pool = meant.with_context(|| {
        let wanted = args.cidr.map(|c| c.to_string()).or_else(|| args.name.clone()).unwrap_or_default();
        let names = world.view.pools.iter().map(|p| p.name.as_str());
        match brindle_config_core::suggest::closest(&wanted, names) {
            Some(meant) => format!("there is no IP pool {wanted}; did you mean {meant}?"),
            None => format!("there is no IP pool {wanted}; see `brindlectl get ippools`"),
        }
    })?;
    let bits = u8::try_from(n.ilog2()).unwrap_or(u8::MAX);
    let length = pool.spec.cidr.prefix_len().saturating_add(bits);
    ensure!(
        length <= pool.spec.block_size(),
        "{n} parts of {} are /{length} each, smaller than its blocks (/{})",
        pool.spec.cidr,
        pool.spec.block_size()
    );
    let cidrs: Vec<IpNet> = pool.spec.cidr.subnets(length)?.collect();
    let whole = store.get_as::<IpPoolSpec>(None, &pool.name).await?.resource.metadata;
    let mut annotations = whole.annotations;
    // What kubectl applied was the whole.
    annotations.remove("kubectl.kubernetes.io/last-applied-configuration");
    let mut names = Vec::new();
    for (i, cidr) in cidrs.iter().enumerate() {
        let name = format!("split-{}-{i}", pool.name);
        let spec = IpPoolSpec { cidr: *cidr, ..pool.spec.clone() };
        let meta = ObjectMeta {
            labels: whole.labels.clone(),
            annotations: annotations.clone(),
            ..ObjectMeta::named(&name)
        };
        let resource = Resource::new(meta, spec);
        match store.put_as(&resource, Expect::Absent).await {
            Ok(_) => {}
            // Left by a split that was interrupted: the same, or somebody else's.
            Err(StoreError::Exists(_)) => {
                let there = store.get_as::<IpPoolSpec>(None, &name).await?;
                ensure!(
                    there.resource.spec == resource.spec,
                    "IP pool {name} exists and is not this one's part"
                );
            }
            Err(e) => return Err(e.into()),
        }
        names.push(name);
    }
    store.delete(&Key::new(Kind::IpPool, None, &pool.name), Expect::Any).await?;
    match format {
        Format::Json => out::json(&json!({"deleted": pool.name, "created": names})),
        Format::Table => {
            names.iter().zip(&cidrs).for_each(|(n, c)| out::say!("Created IP pool {n} {c}"));
            out::say!("Split complete: pool {} is now {n} pools", pool.name);
        }
    }
    Ok(Outcome::Ok)
}

pub(super) async fn reserve(store: Arc<dyn Store>, args: &ReserveArgs, format: Format) -> Result<Outcome> {
    subdomain(&args.name).map_err(|why| anyhow::anyhow!("--name {:?}: {why}", args.name))?;
    let mut nets: Vec<IpNet> = Vec::new();
    for text in &args.cidrs {
        let net = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        let net = net.map_err(|_| anyhow::anyhow!("{text:?} is neither an address nor a CIDR"))?.trunc();
        if !nets.contains(&net) {
            nets.push(net);
        }
    }
    let world = World::read(&*store).await?;
    let (mut resource, expect) = match store.get_as::<IpReservationSpec>(None, &args.name).await {
        Ok(found) => (found.resource, Expect::Revision(found.revision)),
        Err(StoreError::NotFound(_)) if args.remove => bail!("there is no IPReservation {}", args.name),
        Err(StoreError::NotFound(_)) => {
            (Resource::new(ObjectMeta::named(&args.name), IpReservationSpec::default()), Expect::Absent)
        }
        Err(e) => return Err(e.into()),
    };
    let list = &mut resource.spec.reserved_cidrs;
    if args.remove {
        let reserved: Vec<IpNet> = list.iter().map(IpNet::trunc).collect();
        if let Some(net) = nets.iter().find(|n| !reserved.contains(n)) {
            match reserved.iter().find(|r| r.contains(net)) {
                Some(whole) => {
                    bail!("{net} is not reserved by itself: IPReservation {} has {whole}", args.name)
                }
                None => bail!("{net} is not in IPReservation {}", args.name),
            }
        }
    }
    list.retain(|r| !nets.contains(&r.trunc()));
    if !args.remove {
        list.extend(&nets);
    }
    if list.is_empty() {
        // One that reserves nothing is only in the way.
        store.delete(&resource.key(), expect).await?;
    } else {
        store.put_as(&resource, expect).await?;
    }
    // Who has one already keeps it; that is worth a word.
    let held: Vec<String> = world
        .endpoints
        .iter()
        .flat_map(|e| e.resource.spec.ip_networks.iter().map(move |n| (n.addr(), e)))
        .filter(|(ip, _)| !args.remove && nets.iter().any(|n| n.contains(ip)))
        .map(|(ip, e)| format!("{ip} ({})", workload(e)))
        .collect();
    let now: Vec<String> = resource.spec.reserved_cidrs.iter().map(ToString::to_string).collect();
    match format {
        Format::Json => out::json(&json!({"name": args.name, "reservedCIDRs": now, "inUse": held})),
        Format::Table => {
            out::say!(
                "IPReservation {}: {}",
                args.name,
                if now.is_empty() { "deleted, it is empty".into() } else { now.join(", ") }
            );
            if !held.is_empty() {
                out::say!("in use, and left to their pods: {}", held.join(", "));
            }
        }
    }
    Ok(Outcome::Ok)
}
