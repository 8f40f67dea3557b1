//! Bits of the packet mark (FelixConfiguration.iptablesMarkMask). They are taken from the mask's low end; bits that
//! kube-proxy and the portmap plugin use are never touched, whatever the mask says. One bit more is of the mark of flows
//! (connection mark): no rule sets it on packets, for a host may save the marks of packets into those of their flows.

/// kube-proxy's drop and masquerade marks, and the bit portmap marks hairpins with.
pub const FOREIGN: u32 = 0x8000 | 0x4000 | 0x2000;
/// iptablesMarkMask's default.
pub const DEFAULT_MASK: u32 = 0xffff_0000;

/// Our bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Marks {
    /// A policy accepted the packet.
    pub accept: u32,
    /// A policy passed the packet on to the next tier.
    pub pass: u32,
    /// What IPVS needs; `None`: the mask has no bits left for it.
    pub through: Option<Through>,
    /// Of the mark of a flow: it is closed, for policy denies it. `None`: the mask has no bit left for it.
    pub closed: Option<u32>,
}

/// Bits of packets that IPVS takes in at INPUT and sends on through OUTPUT (`ipvs`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Through {
    /// Came in for a service: what leaves with it is not the host's own.
    pub service: u32,
    /// It came from a workload.
    pub workload: u32,
}

impl Through {
    /// Both bits.
    pub fn both(self) -> u32 {
        self.service | self.workload
    }
}

/// The mask has too few bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "iptablesMarkMask {mask:#x} leaves {left} bits beside those of kube-proxy and portmap ({FOREIGN:#x}), 2 are needed; \
     widen it, for example 0xffff0000"
)]
pub struct TooFew {
    mask: u32,
    left: u32,
}

impl Marks {
    /// Takes two bits of a mask, two more if it has them, and one for closed flows.
    pub fn new(mask: u32) -> Result<Self, TooFew> {
        let mut free = mask & !FOREIGN;
        let left = free.count_ones();
        let mut lowest = || {
            let bit = free & free.wrapping_neg();
            free &= !bit;
            bit
        };
        let [accept, pass, service, workload, fifth] = std::array::from_fn(|_| lowest());
        if pass == 0 {
            return Err(TooFew { mask, left });
        }
        let through = (workload != 0).then_some(Through { service, workload });
        // A third bit without a fourth is of no use to IPVS.
        let closed = if through.is_some() { fifth } else { service };
        Ok(Self { accept, pass, through, closed: (closed != 0).then_some(closed) })
    }

    /// The two bits of a verdict.
    pub fn both(self) -> u32 {
        self.accept | self.pass
    }
}

impl Default for Marks {
    fn default() -> Self {
        let through = Some(Through { service: 0x4_0000, workload: 0x8_0000 });
        Self { accept: 0x1_0000, pass: 0x2_0000, through, closed: Some(0x10_0000) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_come_from_the_low_end_and_never_from_kube_proxy() {
        assert_eq!(Marks::new(DEFAULT_MASK), Ok(Marks::default()));
        let through = Some(Through { service: 4, workload: 8 });
        assert_eq!(Marks::new(0xffff).unwrap(), Marks { accept: 1, pass: 2, through, closed: Some(16) });
        assert_eq!(Marks::new(0xf).unwrap(), Marks { accept: 1, pass: 2, through, closed: None });
        assert_eq!(Marks::new(0xe007).unwrap(), Marks { accept: 1, pass: 2, through: None, closed: Some(4) });
        assert_eq!(Marks::new(3).unwrap(), Marks { accept: 1, pass: 2, through: None, closed: None });
        assert_eq!(Marks::new(0x1_e000).unwrap_err().left, 1);
        let m = Marks::new(0x1800_c000).unwrap();
        assert_eq!((m.accept, m.pass), (0x0800_0000, 0x1000_0000));
        let e = Marks::new(0xe000).unwrap_err().to_string();
        assert!(e.contains("0xe000") && e.contains("leaves 0 bits"), "{e}");
    }
}
