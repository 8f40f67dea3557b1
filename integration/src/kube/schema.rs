//! Structural schemas of custom resources (`openAPIV3Schema`): pruning, defaults and validation, with the texts of
//! k8s.io/apiextensions-apiserver and kube-openapi. CEL rules (`x-kubernetes-validations`) are not evaluated.

use std::collections::BTreeMap;

use regex_lite::Regex;
use serde_json::{Map, Value};

use super::status::Cause;

/// A compiled schema node.
#[derive(Debug, Default)]
pub(crate) struct Schema {
    kind: String,
    properties: BTreeMap<String, Schema>,
    additional: Option<Box<Schema>>,
    additional_any: bool,
    items: Option<Box<Schema>>,
    required: Vec<String>,
    choices: Option<Vec<Value>>,
    pattern: Option<(String, Regex)>,
    format: String,
    minimum: Option<(f64, bool)>,
    maximum: Option<(f64, bool)>,
    multiple_of: Option<f64>,
    min_length: Option<u64>,
    max_length: Option<u64>,
    min_items: Option<u64>,
    max_items: Option<u64>,
    min_properties: Option<u64>,
    max_properties: Option<u64>,
    nullable: bool,
    default: Option<Value>,
    int_or_string: bool,
    preserve: bool,
    embedded: bool,
    list_type: String,
    list_keys: Vec<String>,
    all_of: Vec<Schema>,
    any_of: Vec<Schema>,
    one_of: Vec<Schema>,
    not: Option<Box<Schema>>,
}

fn list(v: &Value, what: &str, at: &str) -> Result<Vec<Schema>, String> {
    v[what].as_array().into_iter().flatten().map(|s| Schema::compile_part(s, at)).collect()
}

fn strings(v: &Value) -> Vec<String> {
    v.as_array().into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
}

impl Schema {
    /// Compiles and holds the schema against the rules for structural schemas.
    ///
    /// # Errors
    /// The place in the schema and what is wrong there.
    pub(crate) fn compile(v: &Value) -> Result<Self, String> {
        let s = Self::compile_part(v, "openAPIV3Schema")?;
        if s.kind != "object" {
            return Err("openAPIV3Schema.type: Required value: must be object at the root".into());
        }
        s.structural("openAPIV3Schema")?;
        Ok(s)
    }

    fn compile_part(v: &Value, at: &str) -> Result<Self, String> {
        if !v.is_object() {
            return Err(format!("{at}: must be an object"));
        }
        for refused in
            ["$ref", "definitions", "dependencies", "patternProperties", "deprecated", "discriminator"]
        {
            if v.get(refused).is_some() {
                return Err(format!("{at}.{refused}: Forbidden: {refused} is not supported"));
            }
        }
        let mut properties = BTreeMap::new();
        for (k, p) in v["properties"].as_object().into_iter().flatten() {
            properties.insert(k.clone(), Self::compile_part(p, &format!("{at}.properties[{k}]"))?);
        }
        let part = |name: &str| -> Result<Option<Box<Schema>>, String> {
            match v.get(name) {
                Some(s @ Value::Object(_)) => {
                    Ok(Some(Box::new(Self::compile_part(s, &format!("{at}.{name}"))?)))
                }
                _ => Ok(None),
            }
        };
        let pattern = match v["pattern"].as_str() {
            Some(p) => Some((
                p.to_owned(),
                Regex::new(p).map_err(|e| format!("{at}.pattern: Invalid value: {p:?}: must be a valid regular expression, but isn't: {e}"))?,
            )),
            None => None,
        };
        let flag = |name: &str| v[name].as_bool().unwrap_or(false);
        Ok(Self {
            kind: v["type"].as_str().unwrap_or("").to_owned(),
            properties,
            additional_any: flag("additionalProperties"),
            additional: part("additionalProperties")?,
            items: part("items")?,
            required: strings(&v["required"]),
            choices: v["enum"].as_array().cloned(),
            pattern,
            format: v["format"].as_str().unwrap_or("").to_owned(),
            minimum: v["minimum"].as_f64().map(|m| (m, flag("exclusiveMinimum"))),
            maximum: v["maximum"].as_f64().map(|m| (m, flag("exclusiveMaximum"))),
            multiple_of: v["multipleOf"].as_f64(),
            min_length: v["minLength"].as_u64(),
            max_length: v["maxLength"].as_u64(),
            min_items: v["minItems"].as_u64(),
            max_items: v["maxItems"].as_u64(),
            min_properties: v["minProperties"].as_u64(),
            max_properties: v["maxProperties"].as_u64(),
            nullable: flag("nullable"),
            default: v.get("default").cloned(),
            int_or_string: flag("x-kubernetes-int-or-string"),
            preserve: flag("x-kubernetes-preserve-unknown-fields"),
            embedded: flag("x-kubernetes-embedded-resource"),
            list_type: v["x-kubernetes-list-type"].as_str().unwrap_or("").to_owned(),
            list_keys: strings(&v["x-kubernetes-list-map-keys"]),
            all_of: list(v, "allOf", at)?,
            any_of: list(v, "anyOf", at)?,
            one_of: list(v, "oneOf", at)?,
            not: part("not")?,
        })
    }

    /// Every node outside the logical junctors has a type, and arrays have items.
    fn structural(&self, at: &str) -> Result<(), String> {
        if self.kind.is_empty() && !self.int_or_string && !self.preserve {
            return Err(format!("{at}.type: Required value: must not be empty for specified object fields"));
        }
        if self.kind == "array" && self.items.is_none() && !self.preserve {
            return Err(format!("{at}.items: Required value: must be specified"));
        }
        if !self.properties.is_empty() && (self.additional.is_some() || self.additional_any) {
            return Err(format!(
                "{at}.additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive"
            ));
        }
        for (k, p) in &self.properties {
            p.structural(&format!("{at}.properties[{k}]"))?;
        }
        if let Some(s) = &self.additional {
            s.structural(&format!("{at}.additionalProperties"))?;
        }
        if let Some(s) = &self.items {
            s.structural(&format!("{at}.items"))?;
        }
        Ok(())
    }

    /// Removes what the schema does not name. `root`: apiVersion, kind and metadata are always known.
    pub(crate) fn prune(&self, v: &mut Value, root: bool) {
        match v {
            Value::Object(o) => {
                let meta = root || self.embedded;
                if !self.preserve && self.additional.is_none() && !self.additional_any {
                    o.retain(|k, _| {
                        self.properties.contains_key(k)
                            || (meta && matches!(k.as_str(), "apiVersion" | "kind" | "metadata"))
                    });
                }
                for (k, v) in o.iter_mut() {
                    if meta && k == "metadata" {
                        continue;
                    }
                    if let Some(p) = self.properties.get(k) {
                        p.prune(v, false);
                    } else if let Some(p) = &self.additional {
                        p.prune(v, false);
                    }
                }
            }
            Value::Array(a) => {
                if let Some(i) = &self.items {
                    a.iter_mut().for_each(|v| i.prune(v, false));
                }
            }
            _ => {}
        }
    }

    /// Fills in defaults; a null where a default exists and null is not allowed counts as missing.
    pub(crate) fn fill(&self, v: &mut Value) {
        match v {
            Value::Object(o) => {
                for (k, p) in &self.properties {
                    if let Some(d) = &p.default
                        && o.get(k).is_none_or(|v| v.is_null() && !p.nullable)
                    {
                        o.insert(k.clone(), d.clone());
                    }
                    if let Some(v) = o.get_mut(k) {
                        p.fill(v);
                    }
                }
                if let Some(p) = &self.additional {
                    for (k, v) in o.iter_mut() {
                        if !self.properties.contains_key(k) {
                            p.fill(v);
                        }
                    }
                }
            }
            Value::Array(a) => {
                if let Some(i) = &self.items {
                    a.iter_mut().for_each(|v| i.fill(v));
                }
            }
            _ => {}
        }
    }

    /// Findings, with paths below `at` (empty at the root).
    pub(crate) fn validate(&self, v: &Value, at: &str, out: &mut Vec<Cause>) {
        if v.is_null() && self.nullable {
            return;
        }
        if !self.type_ok(v) {
            let want = if self.int_or_string { "integer,string" } else { &self.kind };
            let (have, text) = type_name(v);
            out.push(Cause::type_invalid(
                at,
                &have.into(),
                &format!("{at} in body must be of type {want}: {text:?}"),
            ));
            return;
        }
        if let Some(choices) = &self.choices
            && !choices.contains(v)
        {
            let names: Vec<_> =
                choices.iter().map(|c| c.as_str().map_or_else(|| c.to_string(), str::to_owned)).collect();
            out.push(Cause::unsupported(at, v, &names));
        }
        match v {
            Value::Object(o) => self.validate_object(o, v, at, out),
            Value::Array(a) => self.validate_array(a, v, at, out),
            Value::String(s) => self.validate_string(s, v, at, out),
            Value::Number(n) => self.validate_number(n.as_f64().unwrap_or(0.0), v, at, out),
            _ => {}
        }
        self.validate_junctors(v, at, out);
    }

    fn validate_junctors(&self, v: &Value, at: &str, out: &mut Vec<Cause>) {
        let good = |s: &Schema| {
            let mut found = Vec::new();
            s.validate(v, at, &mut found);
            found.is_empty()
        };
        for s in &self.all_of {
            s.validate(v, at, out);
        }
        if !self.any_of.is_empty() && !self.any_of.iter().any(good) {
            out.push(Cause::invalid(
                at,
                &brief(v),
                &format!("{at} in body must validate at least one schema (anyOf)"),
            ));
        }
        if !self.one_of.is_empty() {
            let n = self.one_of.iter().filter(|s| good(s)).count();
            if n != 1 {
                let found = if n == 0 {
                    "Found none valid".to_owned()
                } else {
                    format!("Found {n} valid alternatives")
                };
                out.push(Cause::invalid(
                    at,
                    &brief(v),
                    &format!("{at} in body must validate one and only one schema (oneOf). {found}"),
                ));
            }
        }
        if self.not.as_ref().is_some_and(|s| good(s)) {
            out.push(Cause::invalid(
                at,
                &brief(v),
                &format!("{at} in body must not validate the schema (not)"),
            ));
        }
    }

    fn type_ok(&self, v: &Value) -> bool {
        if self.int_or_string {
            return v.is_string() || v.is_i64() || v.is_u64();
        }
        match self.kind.as_str() {
            "object" => v.is_object(),
            "array" => v.is_array(),
            "string" => v.is_string(),
            "boolean" => v.is_boolean(),
            "integer" => v.is_i64() || v.is_u64() || v.as_f64().is_some_and(|f| f.fract() == 0.0),
            "number" => v.is_number(),
            _ => true,
        }
    }

    fn validate_object(&self, o: &Map<String, Value>, v: &Value, at: &str, out: &mut Vec<Cause>) {
        for r in &self.required {
            if !o.contains_key(r) {
                out.push(Cause::required(join(at, r), ""));
            }
        }
        let n = o.len() as u64;
        if self.min_properties.is_some_and(|m| n < m) {
            let m = self.min_properties.unwrap_or(0);
            out.push(Cause::invalid(
                at,
                &brief(v),
                &format!("{at} in body should have at least {m} properties"),
            ));
        }
        if self.max_properties.is_some_and(|m| n > m) {
            out.push(Cause::too_many(at, o.len(), self.max_properties.unwrap_or(0)));
        }
        for (k, v) in o {
            if let Some(p) = self.properties.get(k) {
                p.validate(v, &join(at, k), out);
            } else if let Some(p) = &self.additional {
                p.validate(v, &join(at, k), out);
            }
        }
    }

    fn validate_array(&self, a: &[Value], v: &Value, at: &str, out: &mut Vec<Cause>) {
        let n = a.len() as u64;
        if let Some(m) = self.min_items.filter(|m| n < *m) {
            out.push(Cause::invalid(at, &brief(v), &format!("{at} in body should have at least {m} items")));
        }
        if let Some(m) = self.max_items.filter(|m| n > *m) {
            out.push(Cause::too_many(at, a.len(), m));
        }
        if let Some(i) = &self.items {
            for (n, v) in a.iter().enumerate() {
                i.validate(v, &format!("{at}[{n}]"), out);
            }
        }
        let key = |v: &Value| -> Value {
            match self.list_type.as_str() {
                "map" => {
                    self.list_keys.iter().map(|k| (k.clone(), v[k].clone())).collect::<Map<_, _>>().into()
                }
                _ => v.clone(),
            }
        };
        if matches!(self.list_type.as_str(), "map" | "set") {
            for (n, v) in a.iter().enumerate() {
                if a[..n].iter().any(|o| key(o) == key(v)) {
                    out.push(Cause::duplicate(format!("{at}[{n}]"), &key(v)));
                }
            }
        }
    }

    fn validate_string(&self, s: &str, v: &Value, at: &str, out: &mut Vec<Cause>) {
        let n = s.chars().count() as u64;
        if let Some(m) = self.min_length.filter(|m| n < *m) {
            out.push(Cause::invalid(at, v, &format!("{at} in body should be at least {m} chars long")));
        }
        if let Some(m) = self.max_length.filter(|m| n > *m) {
            out.push(Cause::too_long(at, m));
        }
        if let Some((text, regex)) = &self.pattern
            && !regex.is_match(s)
        {
            out.push(Cause::invalid(at, v, &format!("{at} in body should match '{text}'")));
        }
        let ok = match self.format.as_str() {
            "date-time" => is_date_time(s),
            "ipv4" => s.parse::<std::net::Ipv4Addr>().is_ok(),
            "ipv6" => s.parse::<std::net::Ipv6Addr>().is_ok(),
            "cidr" => s.parse::<ipnet::IpNet>().is_ok(),
            _ => true,
        };
        if !ok {
            let f = &self.format;
            out.push(Cause::invalid(at, v, &format!("{at} in body must be of type {f}: {s:?}")));
        }
    }

    fn validate_number(&self, n: f64, v: &Value, at: &str, out: &mut Vec<Cause>) {
        if let Some((m, exclusive)) = self.minimum
            && (n < m || (exclusive && n == m))
        {
            let than = if exclusive { "greater than" } else { "greater than or equal to" };
            out.push(Cause::invalid(at, v, &format!("{at} in body should be {than} {m}")));
        }
        if let Some((m, exclusive)) = self.maximum
            && (n > m || (exclusive && n == m))
        {
            let than = if exclusive { "less than" } else { "less than or equal to" };
            out.push(Cause::invalid(at, v, &format!("{at} in body should be {than} {m}")));
        }
        if let Some(m) = self.multiple_of.filter(|m| *m != 0.0 && (n / m).fract() != 0.0) {
            out.push(Cause::invalid(at, v, &format!("{at} in body should be a multiple of {m}")));
        }
        let bounds = match self.format.as_str() {
            "int32" => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
            _ => None,
        };
        if bounds.is_some_and(|(low, high)| n < low || n > high) {
            let f = &self.format;
            out.push(Cause::invalid(at, v, &format!("{at} in body must be of type {f}: \"number\"")));
        }
    }

    /// The schema of a field, for the list types of server-side apply.
    pub(crate) fn field(&self, name: &str) -> Option<&Self> {
        self.properties.get(name).or(self.additional.as_deref())
    }

    pub(crate) fn element(&self) -> Option<&Self> {
        self.items.as_deref()
    }

    /// `x-kubernetes-list-type` and its keys.
    pub(crate) fn list_type(&self) -> (&str, &[String]) {
        (&self.list_type, &self.list_keys)
    }
}

fn join(at: &str, field: &str) -> String {
    if at.is_empty() { field.to_owned() } else { format!("{at}.{field}") }
}

/// Objects and lists are named by their type in messages.
fn brief(v: &Value) -> Value {
    match v {
        Value::Object(_) => "object".into(),
        Value::Array(_) => "array".into(),
        other => other.clone(),
    }
}

fn type_name(v: &Value) -> (&'static str, &'static str) {
    let t = match v {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    (t, t)
}

fn is_date_time(s: &str) -> bool {
    let b = s.as_bytes();
    b.len() >= 20
        && b[4] == b'-'
        && b[7] == b'-'
        && matches!(b[10], b'T' | b't')
        && b[13] == b':'
        && b[16] == b':'
        && (s.ends_with(['Z', 'z']) || b[b.len() - 3] == b':')
        && [0..4, 5..7, 8..10, 11..13, 14..16, 17..19]
            .into_iter()
            .all(|r| b[r].iter().all(u8::is_ascii_digit))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Schema {
        Schema::compile(&json!({"type": "object", "properties": {
            "spec": {"type": "object", "required": ["cidr"], "properties": {
                "cidr": {"type": "string", "pattern": "^[0-9./]+$", "maxLength": 20},
                "mode": {"type": "string", "enum": ["Always", "Never"], "default": "Never"},
                "size": {"type": "integer", "minimum": 20, "maximum": 32},
                "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "maybe": {"type": "string", "nullable": true},
                "map": {"type": "object", "additionalProperties": {"type": "string"}},
                "list": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["n"],
                         "items": {"type": "object", "properties": {"n": {"type": "string"}}}},
            }},
        }}))
        .unwrap()
    }

    fn findings(v: Value) -> Vec<String> {
        let mut out = Vec::new();
        schema().validate(&v, "", &mut out);
        out.into_iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    #[test]
    fn unknown_fields_go_and_defaults_come() {
        let mut v = json!({"metadata": {"x": 1}, "spec": {"cidr": "1", "no": 1, "free": {"a": {"b": 1}},
            "map": {"k": "v"}, "list": [{"n": "a", "m": 1}], "mode": null, "maybe": null}, "other": 1});
        let s = schema();
        s.prune(&mut v, true);
        s.fill(&mut v);
        assert_eq!(
            v,
            json!({"metadata": {"x": 1}, "spec": {"cidr": "1", "free": {"a": {"b": 1}}, "map": {"k": "v"},
                "list": [{"n": "a"}], "mode": "Never", "maybe": null}})
        );
    }

    #[test]
    fn findings_have_the_servers_words() {
        assert_eq!(findings(json!({"spec": {}})), ["spec.cidr: Required value"]);
        assert_eq!(
            findings(json!({"spec": {"cidr": 5}})),
            [r#"spec.cidr: Invalid value: "integer": spec.cidr in body must be of type string: "integer""#]
        );
        assert_eq!(
            findings(json!({"spec": {"cidr": "x", "mode": "Some", "size": 33}})),
            [
                r#"spec.cidr: Invalid value: "x": spec.cidr in body should match '^[0-9./]+$'"#,
                r#"spec.mode: Unsupported value: "Some": supported values: "Always", "Never""#,
                "spec.size: Invalid value: 33: spec.size in body should be less than or equal to 32",
            ]
        );
        assert_eq!(
            findings(json!({"spec": {"cidr": "1", "list": [{"n": "a"}, {"n": "a"}], "map": {"k": 1}}})),
            [
                r#"spec.list[1]: Duplicate value: {"n":"a"}"#,
                r#"spec.map.k: Invalid value: "integer": spec.map.k in body must be of type string: "integer""#,
            ]
        );
        assert!(findings(json!({"spec": {"cidr": "1", "port": "http", "maybe": null}})).is_empty());
        assert!(findings(json!({"spec": {"cidr": "1", "port": 80}})).is_empty());
        assert_eq!(findings(json!({"spec": {"cidr": "1", "port": true}})).len(), 1);
    }

    #[test]
    fn schemas_must_be_structural() {
        let no = |v: Value| Schema::compile(&v).unwrap_err();
        assert!(
            no(json!({"type": "object", "properties": {"a": {}}}))
                .contains("must not be empty for specified object")
        );
        assert!(
            no(json!({"type": "object", "properties": {"a": {"type": "array"}}})).contains("items: Required")
        );
        assert!(no(json!({"type": "string"})).contains("must be object at the root"));
        assert!(no(json!({"type": "object", "properties": {"a": {"$ref": "x"}}})).contains("not supported"));
    }

    #[test]
    fn times_are_known() {
        assert!(is_date_time("2026-01-02T03:04:05Z") && is_date_time("2026-01-02T03:04:05.123+01:00"));
        assert!(!is_date_time("yesterday") && !is_date_time("2026-01-02 03:04:05Z"));
    }
}
