//! Communities as people write them: `aa:nn` (RFC 1997) and `aa:nn:mm` (RFC 8092).

use brindle_bgpd_core::wire::AttrSet;

/// A standard or a large community.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tag {
    Standard(u32),
    Large((u32, u32, u32)),
}

impl Tag {
    /// Adds the community where it belongs; the set stays sorted and without repeats.
    pub(crate) fn attach(self, set: &mut AttrSet) {
        match self {
            Self::Standard(c) => {
                if let Err(at) = set.communities.binary_search(&c) {
                    set.communities.insert(at, c);
                }
            }
            Self::Large(c) => {
                if let Err(at) = set.large_communities.binary_search(&c) {
                    set.large_communities.insert(at, c);
                }
            }
        }
    }
}

/// Reads one; `None` if it is neither form.
pub(crate) fn parse(text: &str) -> Option<Tag> {
    let mut parts = text.split(':');
    let (a, b, c) = (parts.next()?, parts.next()?, parts.next());
    match (c, parts.next()) {
        (None, None) => {
            let (a, b): (u16, u16) = (a.parse().ok()?, b.parse().ok()?);
            Some(Tag::Standard(u32::from(a) << 16 | u32::from(b)))
        }
        (Some(c), None) => Some(Tag::Large((a.parse().ok()?, b.parse().ok()?, c.parse().ok()?))),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_forms_are_read_and_nothing_else() {
        assert_eq!(parse("65000:7"), Some(Tag::Standard(65000 << 16 | 7)));
        assert_eq!(parse("4200000000:1:2"), Some(Tag::Large((4_200_000_000, 1, 2))));
        for bad in ["", "7", "65536:1", "1:2:3:4", "a:b", "1:", ":1", "-1:2"] {
            assert_eq!(parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn attached_communities_stay_sorted_and_unique() {
        let mut set = AttrSet::default();
        for text in ["3:1", "1:1", "3:1", "9:9:9", "1:2:3"] {
            parse(text).unwrap().attach(&mut set);
        }
        assert_eq!(set.communities.as_slice(), [1 << 16 | 1, 3 << 16 | 1]);
        assert_eq!(set.large_communities.as_slice(), [(1, 2, 3), (9, 9, 9)]);
    }
}
