//! The field names of each kind's `spec`, as Calico's schemas have them. They tell a field that this version merely
//! does not act on from one that is misspelt.

use crate::{Kind, felix::FelixConfigurationSpec, suggest};

/// Kind, then its fields, indented; `a.b` is a field of an object, `a[].b` one of the objects in a list.
const TABLE: &str = include_str!("fields.txt");

/// Metadata that Kubernetes puts on objects beside what the model has.
const METADATA: &str =
    "annotations creationTimestamp deletionGracePeriodSeconds deletionTimestamp finalizers generateName
    generation labels managedFields name namespace ownerReferences resourceVersion selfLink uid";

/// What is known about a field found in a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Known {
    /// Part of the schema.
    Yes,
    /// Not part of the schema; perhaps this one was meant.
    No { meant: Option<String> },
}

/// Looks a field up by its path from the top of the resource: `spec.ipipMode`, `spec.exportV4[0].cidr`,
/// `metadata.labels`.
pub fn lookup(kind: Kind, path: &str) -> Known {
    if let Some(field) = path.strip_prefix("metadata.") {
        return among(METADATA.split_whitespace(), "", field);
    }
    let Some(field) = path.strip_prefix("spec.") else {
        let slice = ["addressType", "endpoints", "ports"].into_iter().filter(|_| kind == Kind::EndpointSlice);
        let account = ["automountServiceAccountToken", "imagePullSecrets", "secrets"];
        let account = account.into_iter().filter(|_| kind == Kind::ServiceAccount);
        let everywhere = ["apiVersion", "kind", "metadata", "spec", "status"];
        return among(everywhere.into_iter().chain(slice).chain(account), "", path);
    };
    let field = without_indices(field);
    let parent = field.rfind('.').map_or("", |at| field.split_at(at + 1).0);
    among(of(kind), parent, &field)
}

/// Whether something reads a field that the model keeps among the others, so that it is not without effect. `field`: a
/// path inside of `spec`.
pub fn acts(kind: Kind, field: &str) -> bool {
    let top = field.split(['.', '[']).next().unwrap_or_default();
    match kind {
        Kind::FelixConfiguration => FelixConfigurationSpec::SETTINGS.contains(&top),
        // Addresses that make a node's automatic host endpoint; by what the node is called in Kubernetes, the controllers
        // know when it is gone.
        Kind::Node => ["interfaces", "ipv6VXLANTunnelAddr", "orchRefs", "wireguard"].contains(&top),
        _ => false,
    }
}

/// The fields of a kind's `spec`.
pub fn of(kind: Kind) -> impl Iterator<Item = &'static str> {
    TABLE
        .lines()
        .skip_while(move |l| *l != kind.as_str())
        .skip(1)
        .take_while(|l| l.starts_with(' '))
        .flat_map(str::split_whitespace)
}

fn among<'a>(known: impl IntoIterator<Item = &'a str>, parent: &str, field: &str) -> Known {
    let known: Vec<&str> = known.into_iter().collect();
    if known.contains(&field) {
        return Known::Yes;
    }
    // Only siblings are meant.
    let siblings = known.iter().filter_map(|k| k.strip_prefix(parent)).filter(|k| !k.contains('.'));
    let name = field.strip_prefix(parent).unwrap_or(field);
    Known::No { meant: suggest::closest(name, siblings).map(str::to_owned) }
}

/// `exportV4[3].cidr` → `exportV4[].cidr`.
fn without_indices(path: &str) -> String {
    let mut inside = false;
    path.chars()
        .filter(|c| {
            inside = (inside || *c == '[') && *c != ']';
            !(inside && c.is_ascii_digit())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meant(kind: Kind, path: &str) -> Option<String> {
        match lookup(kind, path) {
            Known::No { meant } => meant,
            Known::Yes => panic!("{path} is known"),
        }
    }

    #[test]
    fn every_kind_has_fields() {
        for kind in Kind::ALL {
            assert!(of(kind).count() > 0, "{kind}");
        }
        assert_eq!(of(Kind::IpReservation).collect::<Vec<_>>(), ["reservedCIDRs"]);
    }

    #[test]
    fn schema_fields_are_known_wherever_they_are() {
        assert_eq!(lookup(Kind::FelixConfiguration, "spec.bpfEnabled"), Known::Yes);
        assert_eq!(lookup(Kind::BgpFilter, "spec.exportV4[12].prefixLength.min"), Known::Yes);
        assert_eq!(lookup(Kind::IpPool, "metadata.managedFields"), Known::Yes);
        assert_eq!(lookup(Kind::IpPool, "status"), Known::Yes);
    }

    #[test]
    fn misspelt_fields_get_the_sibling_that_was_meant() {
        assert_eq!(meant(Kind::IpPool, "spec.ipipmode").as_deref(), Some("ipipMode"));
        assert_eq!(meant(Kind::BgpFilter, "spec.importV4[0].acton").as_deref(), Some("action"));
        assert_eq!(meant(Kind::BgpFilter, "spec.acton"), None, "a field of another level is not meant");
        assert_eq!(meant(Kind::IpPool, "spec.somethingElse"), None);
        assert_eq!(meant(Kind::IpPool, "specs").as_deref(), Some("spec"));
    }
}
