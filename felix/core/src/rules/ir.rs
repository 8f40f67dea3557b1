//! Rules, chains and tables as both back ends understand them. No text here: `iptables` and `nft` write it.

use std::fmt;

use ipnet::IpNet;

/// Address family of a rule set. Each family has its own tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// Whether an address or prefix belongs to it.
    pub fn has(self, net: &IpNet) -> bool {
        matches!((self, net), (Self::V4, IpNet::V4(_)) | (Self::V6, IpNet::V6(_)))
    }

    /// `4` or `6`.
    pub fn digit(self) -> char {
        match self {
            Self::V4 => '4',
            Self::V6 => '6',
        }
    }

    /// Number of the ICMP of this family.
    pub fn icmp(self) -> u8 {
        match self {
            Self::V4 => 1,
            Self::V6 => 58,
        }
    }
}

/// Tables in the order packets meet them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Table {
    Raw,
    Mangle,
    Nat,
    Filter,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Raw, Self::Mangle, Self::Nat, Self::Filter];

    /// Name in both tools.
    pub fn name(self) -> &'static str {
        match self {
            Self::Raw => "raw",
            Self::Mangle => "mangle",
            Self::Nat => "nat",
            Self::Filter => "filter",
        }
    }

    /// The table of that name.
    pub fn parse(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|t| t.name() == name)
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A device name, or the beginning of one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Iface {
    Exact(String),
    Prefix(String),
}

/// Ports, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Ports {
    pub first: u16,
    pub last: u16,
}

impl Ports {
    /// How many of multiport's 15 places it takes.
    pub fn places(self) -> usize {
        if self.first == self.last { 1 } else { 2 }
    }
}

/// One condition; all of a rule's must hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Match {
    In {
        iface: Iface,
        not: bool,
    },
    Out {
        iface: Iface,
        not: bool,
    },
    /// Protocol number.
    Proto {
        number: u8,
        not: bool,
    },
    Src {
        net: IpNet,
        not: bool,
    },
    Dst {
        net: IpNet,
        not: bool,
    },
    /// Address in a set of networks, by set name.
    SrcSet {
        set: String,
        not: bool,
    },
    DstSet {
        set: String,
        not: bool,
    },
    /// (address, protocol, port) in a set.
    SrcPortSet {
        set: String,
        not: bool,
    },
    DstPortSet {
        set: String,
        not: bool,
    },
    /// Needs a protocol with ports.
    SrcPorts {
        ports: Vec<Ports>,
        not: bool,
    },
    DstPorts {
        ports: Vec<Ports>,
        not: bool,
    },
    /// The family's ICMP; without `code` any.
    Icmp {
        kind: u8,
        code: Option<u8>,
        not: bool,
    },
    /// `packet mark & mask == value`.
    Mark {
        value: u32,
        mask: u32,
    },
    /// Established or related.
    Known,
    /// Fits no flow and starts none.
    Invalid,
    /// The mark of its flow: `mark & mask == value`. Never of a packet without a flow.
    FlowMark {
        value: u32,
        mask: u32,
    },
    /// Not of a flow, but about one: an ICMP error.
    Related,
    /// Its destination was translated. There is no opposite: of a packet without a flow nftables knows neither.
    Dnat,
    /// The way back to its source leaves through another device.
    ReverseFails,
    SrcLocal,
    DstLocal,
    /// The source is an address of this host, but not of the device it leaves through.
    SrcOfOtherDevice,
    /// Of IPv6: hop limit 255, so no router has passed it on. iptables would need one more module of the kernel for it and
    /// does not ask: only for what the kernel itself takes from no further away.
    OnLink,
    /// At most so many per `unit` (`second`, `minute`, `hour`, `day`).
    Rate {
        count: u32,
        unit: &'static str,
        burst: u32,
    },
}

/// What becomes of a packet all conditions of a rule hold for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    Accept,
    Drop,
    Reject,
    Return,
    Jump(String),
    Goto(String),
    /// `mark = (mark & !mask) | value`.
    SetMark {
        value: u32,
        mask: u32,
    },
    Log {
        prefix: String,
    },
    NoTrack,
    Masquerade {
        ports: Option<Ports>,
    },
    Dnat {
        to: std::net::IpAddr,
    },
    Snat {
        to: std::net::IpAddr,
        ports: Option<Ports>,
    },
}

/// One rule.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    pub matches: Vec<Match>,
    pub action: Action,
    /// For people; what `iptables -L` shows.
    pub comment: Option<String>,
}

impl Rule {
    /// A rule without a comment.
    pub fn new(matches: Vec<Match>, action: Action) -> Self {
        Self { matches, action, comment: None }
    }

    /// The same with a comment.
    #[must_use]
    pub fn because(mut self, comment: impl Into<String>) -> Self {
        self.comment = Some(comment.into());
        self
    }
}

/// A chain: rules in order.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Chain {
    pub name: String,
    pub rules: Vec<Rule>,
    /// The first so many rules never hold for the same packet, so that their order means nothing: one more is put in
    /// front without touching the others.
    pub loose: usize,
}

impl Chain {
    pub fn new(name: impl Into<String>, rules: Vec<Rule>) -> Self {
        Self { name: name.into(), rules, loose: 0 }
    }

    /// With rules in front whose order means nothing.
    pub fn choosing(name: impl Into<String>, choices: Vec<Rule>, otherwise: &[Rule]) -> Self {
        let loose = choices.len();
        let mut rules = choices;
        rules.extend_from_slice(otherwise);
        Self { name: name.into(), rules, loose }
    }
}

/// Which device a dispatch looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Way {
    /// Where the packet came in.
    In,
    /// Where it goes out.
    Out,
}

/// Chooses a chain by the device; packets of a device that is not listed meet `otherwise`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Dispatch {
    pub name: String,
    pub way: Way,
    /// What the names of the many begin with (interfacePrefix): the tree has its branches behind it, whoever is there, so
    /// that a newcomer changes no branch of others.
    pub stems: Vec<String>,
    /// Device → chain, sorted by device.
    pub entries: Vec<(String, String)>,
    /// Rules after it, for devices not listed.
    pub otherwise: Vec<Rule>,
}

/// Where our rules stand in a chain of the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Place {
    First,
    Last,
}

/// Our rules in a chain of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    /// `INPUT`, `FORWARD`, …
    pub chain: &'static str,
    pub place: Place,
    pub rules: Vec<Rule>,
}
