//! Whether a new pod would be given an address: what STATUS says of the pools. Asked every few seconds, so it goes by what the
//! allocator remembers; only when that leaves no room are the blocks read anew, now and then.

use std::{
    sync::PoisonError,
    time::{Duration, Instant},
};

use brindle_cni::{error::code, proto::Reply};
use brindle_ipam::{View, pools::Family};
use ipnet::IpNet;

use super::{address::Wish, now, refused::Refused, service::Service};

/// How often blocks are read because there seems to be no room: other nodes give back what they do not use.
const READ_EVERY: Duration = Duration::from_secs(60);

impl Service {
    /// The families that any pod of this node can have.
    pub(super) async fn families(&self) -> Result<Reply, Refused> {
        let view = View::load(&*self.store, &self.node).await?;
        let (v4, v6) = view.families(&self.node);
        Ok(Reply::Families { v4, v6 })
    }

    pub(super) async fn has_room(&self, wish: &Wish) -> Result<(), Refused> {
        let view = View::load(&*self.store, &self.node).await?;
        if !view.pools.iter().any(|p| !p.spec.disabled && !p.terminating) {
            return Err(Refused::new(code::NOT_AVAILABLE, "no IP pool is enabled", "create an IPPool"));
        }
        // Not told which families: one is enough.
        let told = wish.num4 > 0 || wish.num6 > 0;
        let families = [(Family::V4, &wish.pools4, wish.num4), (Family::V6, &wish.pools6, wish.num6)];
        let mut last = Ok(());
        for (family, pools, _) in families.into_iter().filter(|(.., n)| !told || *n > 0) {
            let room = match view.serving(&self.node, family, pools) {
                Ok(pools) => self.has_room_in(&pools, &view).await,
                Err(why) => Err(Refused::new(
                    code::NOT_AVAILABLE,
                    format!("no IP pool serves this node: {why}"),
                    "create an IPPool whose nodeSelector selects it",
                )),
            };
            match (room, told) {
                (Ok(()), false) => return Ok(()),
                (Ok(()), true) => {}
                (Err(why), true) => return Err(why),
                // Of a family without pools there is nothing to say when the other is only full.
                (Err(why), false) => {
                    if last.is_ok() || view.serving(&self.node, family, pools).is_ok() {
                        last = Err(why);
                    }
                }
            }
        }
        last
    }

    async fn has_room_in(&self, pools: &[IpNet], view: &View) -> Result<(), Refused> {
        // Somebody is being given an address right now.
        let Ok(mut allocator) = self.allocator.try_lock() else { return Ok(()) };
        if !allocator.seems_full(pools, view, now()) {
            return Ok(());
        }
        if self.may_read() {
            allocator.reload(view).await?;
            if !allocator.seems_full(pools, view, now()) {
                return Ok(());
            }
        }
        let names: Vec<String> = pools
            .iter()
            .map(|p| {
                format!("{p}{}", if view.wholly_reserved(p) { " (reserved by IPReservations)" } else { "" })
            })
            .collect();
        Err(Refused::new(
            code::NOT_AVAILABLE,
            format!("no address is left in {}", names.join(", ")),
            "add an IPPool that serves this node, or free addresses",
        ))
    }

    fn may_read(&self) -> bool {
        // An instant is replaced whole.
        let mut last = self.read_for_status.lock().unwrap_or_else(PoisonError::into_inner);
        let may = last.is_none_or(|t| t.elapsed() >= READ_EVERY);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}
