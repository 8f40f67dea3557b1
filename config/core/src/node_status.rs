//! CalicoNodeStatus: somebody asks the agent of one node for its state, and the agent writes it into the status (Calico
//! `caliconodestatus.go`).

use serde::{Deserialize, Serialize};

use crate::{
    key::Kind,
    meta::{Extra, Spec},
};

/// Class of the speaker itself.
pub const AGENT: &str = "Agent";
/// Class of sessions.
pub const BGP: &str = "BGP";
/// Class of routes.
pub const ROUTES: &str = "Routes";

/// Longest period, a day.
pub const LONGEST_PERIOD: u32 = 86_400;

/// CalicoNodeStatus.spec.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoNodeStatusSpec {
    pub node: String,
    /// What is asked for: [`AGENT`], [`BGP`], [`ROUTES`].
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub classes: Vec<String>,
    /// 0 or absent = written once.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update_period_seconds: Option<u32>,
    #[serde(flatten)]
    pub extra: Extra,
}

impl Spec for CalicoNodeStatusSpec {
    const KIND: Kind = Kind::CalicoNodeStatus;

    fn extras(&self) -> Vec<(String, &Extra)> {
        vec![(String::new(), &self.extra)]
    }
}

/// CalicoNodeStatus.status.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct CalicoNodeStatusStatus {
    /// RFC 3339, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_updated: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bgp: Option<BgpState>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub routes: Option<RoutesState>,
}

/// The speaker, once for each family, as Calico has a daemon for each.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentState {
    #[serde(rename = "birdV4")]
    pub bird_v4: DaemonState,
    #[serde(rename = "birdV6")]
    pub bird_v6: DaemonState,
}

/// A speaker.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DaemonState {
    /// `Ready`, `NotReady`.
    pub state: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub version: String,
    #[serde(rename = "routerID", skip_serializing_if = "String::is_empty")]
    pub router_id: String,
    /// `2026-11-26 07:59:06`, UTC, as BIRD writes times.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_boot_time: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub last_reconfiguration_time: String,
}

/// Sessions.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BgpState {
    #[serde(rename = "numberEstablishedV4")]
    pub established_v4: usize,
    #[serde(rename = "numberNotEstablishedV4")]
    pub not_established_v4: usize,
    #[serde(rename = "numberEstablishedV6")]
    pub established_v6: usize,
    #[serde(rename = "numberNotEstablishedV6")]
    pub not_established_v6: usize,
    #[serde(rename = "peersV4", skip_serializing_if = "Vec::is_empty")]
    pub peers_v4: Vec<PeerState>,
    #[serde(rename = "peersV6", skip_serializing_if = "Vec::is_empty")]
    pub peers_v6: Vec<PeerState>,
}

/// A neighbor.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PeerState {
    #[serde(rename = "peerIP")]
    pub peer_ip: String,
    /// `NodeMesh`, `NodePeer`, `GlobalPeer`.
    #[serde(rename = "type")]
    pub kind: String,
    /// `Idle`, `Connect`, `Active`, `OpenSent`, `OpenConfirm`, `Established`.
    pub state: String,
    /// Like [`DaemonState::last_boot_time`].
    pub since: String,
}

/// Routes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RoutesState {
    #[serde(rename = "routesV4", skip_serializing_if = "Vec::is_empty")]
    pub routes_v4: Vec<RouteState>,
    #[serde(rename = "routesV6", skip_serializing_if = "Vec::is_empty")]
    pub routes_v6: Vec<RouteState>,
}

/// A route.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct RouteState {
    /// `FIB`: packets follow it. `RIB`: it is only known.
    #[serde(rename = "type")]
    pub kind: String,
    pub destination: String,
    /// `N/A` where there is none.
    pub gateway: String,
    /// `blackhole` for our own blocks.
    pub interface: String,
    pub learned_from: LearnedFrom,
}

/// Who taught a route.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LearnedFrom {
    /// `Kernel`, `Static`, `Direct`, `NodeMesh`, `BGPPeer`.
    pub source_type: String,
    #[serde(rename = "peerIP", skip_serializing_if = "String::is_empty")]
    pub peer_ip: String,
}
