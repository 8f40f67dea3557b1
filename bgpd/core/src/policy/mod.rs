//! Route policy: ordered rules that accept or reject a route and change its attributes, on import and on export.
//!
//! [`Filter`]s are what people write (Calico's BGPFilter, `filters:` of the file); a [`Policy`] is a list of them for
//! one direction of a session, compiled once into a flat program per family. Evaluation allocates nothing and says
//! which rule decided; operations are applied only when attributes have to be made anew.
//!
//! Semantics are those of Calico's BGPFilter: the matches of a rule are ANDed, the first rule that matches decides and
//! ends the whole list, no match means the usual treatment. RFC 1997 and 8092 (communities), RFC 4271 section 9.1.
//!
//! Nothing here knows peers, tables or where the rules came from.

mod program;
mod rules;
#[cfg(test)]
mod tests;

pub use self::{
    program::{Decision, Facts, Policy, RuleName, glob},
    rules::{
        Action, Community, Compare, Direction, Filter, Operation, PeerType, PrefixMatch, Rule,
        priority_to_local_pref,
    },
};
