//! What Calico's client gives each resource it makes, and without which it refuses to change one: `metadata.uid` and
//! `metadata.creationTimestamp`.

use std::{
    hash::{BuildHasher, RandomState},
    time::{SystemTime, UNIX_EPOCH},
};

use brindle_config_core::{Kind, time::Now};
use serde_json::Value;

/// A new UUID (version 4), and the present time.
pub(super) fn fresh() -> [(&'static str, String); 2] {
    let random = RandomState::new();
    let bits = (u128::from(random.hash_one(0u8)) << 64) | u128::from(random.hash_one(1u8));
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    [("uid", uuid(bits)), ("creationTimestamp", Now::from_secs(since.as_secs()).rfc3339())]
}

/// Random bits as a UUID of version 4.
fn uuid(bits: u128) -> String {
    const FIXED: u128 = 0xf000_c000_0000_0000_0000;
    const VERSION_4: u128 = 0x4000_8000_0000_0000_0000;
    let hex = format!("{:032x}", (bits & !FIXED) | VERSION_4);
    let mut text = String::with_capacity(36);
    for (i, digit) in hex.chars().enumerate() {
        if [8, 12, 16, 20].contains(&i) {
            text.push('-');
        }
        text.push(digit);
    }
    text
}

fn member<'a>(value: &'a Value, name: &str) -> Option<&'a str> {
    value.get("metadata")?.get(name)?.as_str().filter(|text| !text.is_empty())
}

/// Whether a value has both, or is of a kind that is stored without metadata.
pub(super) fn is_whole(kind: Kind, value: &Value) -> bool {
    let bare =
        matches!(kind, Kind::IpamBlock | Kind::IpamHandle | Kind::IpamConfiguration | Kind::BlockAffinity);
    bare || ["uid", "creationTimestamp"].iter().all(|name| member(value, name).is_some())
}

/// Gives a value what it lacks of both: what the stored one has, else what is `fresh`.
pub(super) fn complete(value: &mut Value, stored: Option<&[u8]>, fresh: [(&'static str, String); 2]) {
    let stored: Value = stored.and_then(|s| serde_json::from_slice(s).ok()).unwrap_or_default();
    for (name, fresh) in fresh {
        if member(value, name).is_none()
            && let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut)
        {
            let text = member(&stored, name).map_or(fresh, str::to_owned);
            metadata.insert(name.to_owned(), Value::String(text));
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn random_bits_become_a_uuid_of_version_4() {
        assert_eq!(uuid(0), "00000000-0000-4000-8000-000000000000");
        assert_eq!(uuid(u128::MAX), "ffffffff-ffff-4fff-bfff-ffffffffffff");
        let [(_, one), (_, time)] = fresh();
        let [(_, other), _] = fresh();
        assert_ne!(one, other);
        assert!(Now::parse_rfc3339(&time).is_some() && time.len() == 20, "{time}");
    }

    #[test]
    fn what_is_there_stays_and_what_is_lacking_is_filled_in() {
        let fresh = || [("uid", "new".to_owned()), ("creationTimestamp", "now".to_owned())];
        let done = |metadata: Value, stored: Option<Value>| {
            let mut value = json!({"metadata": metadata});
            assert!(!is_whole(Kind::IpPool, &value), "{value}");
            let stored = stored.map(|m| json!({"metadata": m}).to_string().into_bytes());
            complete(&mut value, stored.as_deref(), fresh());
            assert!(is_whole(Kind::IpPool, &value), "{value}");
            value["metadata"].clone()
        };
        let both = |uid: &str, time: &str| json!({"uid": uid, "creationTimestamp": time});
        assert_eq!(done(json!({}), None), both("new", "now"));
        assert_eq!(done(json!({"uid": "", "creationTimestamp": null}), None), both("new", "now"));
        assert_eq!(done(json!({"uid": "mine"}), Some(both("u", "t"))), both("mine", "t"));
        assert_eq!(done(json!({}), Some(json!({"uid": "u"}))), both("u", "now"));
        assert!(is_whole(Kind::IpamBlock, &json!({"spec": {}})), "stored without metadata");
        let mut no_object = json!(7);
        complete(&mut no_object, None, fresh());
        assert_eq!(no_object, json!(7));
    }
}
