//! What lies between two configurations.
//!
//! Both are serialised and compared field by field, so that a field added to the schema cannot be forgotten here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use serde::Serialize;
use serde_json::{Map, Value};

use super::Config;

/// One difference.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Change {
    /// What kind of thing differs.
    pub kind: Kind,
    /// Which one: a name, an address, an id, `pool/backend`; empty for what a file has once.
    pub name: String,
    /// How it differs.
    #[serde(flatten)]
    pub what: What,
}

/// Kinds of things that a configuration holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
#[expect(missing_docs, reason = "each is the table that it names")]
pub enum Kind {
    Node,
    Cluster,
    Tables,
    Limits,
    Timeouts,
    Replication,
    Shedding,
    Health,
    Interface,
    Bfd,
    Member,
    Witness,
    Vip,
    Pool,
    Backend,
    Service,
    Decap,
}

/// How a thing differs.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "what", rename_all = "lowercase")]
pub enum What {
    /// Only the new configuration has it.
    Added,
    /// Only the old configuration has it.
    Removed,
    /// One of its fields differs; `Null` where a side lacks the field.
    Changed {
        /// The field, such as `weight` or `path[0].vlan`.
        field: String,
        /// Its old value.
        old: Value,
        /// Its new value.
        new: Value,
    },
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&format!("{self:?}").to_lowercase())
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.what {
            What::Added => '+',
            What::Removed => '-',
            What::Changed { .. } => '~',
        };
        write!(f, "{sign} {}", self.kind)?;
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        match &self.what {
            What::Changed { field, old, new } => write!(f, ": {field} {} -> {}", shown(old), shown(new)),
            What::Added | What::Removed => Ok(()),
        }
    }
}

/// A value as people write it: text without quotes, nothing as a dash.
fn shown(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(shown).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}

/// Lists the differences, kind by kind and in order of names. Equal configurations have none; the order of services,
/// pools, backends and the like does not count, that of paths does.
pub fn diff(old: &Config, new: &Config) -> Vec<Change> {
    let (mut old, mut new) = (things(old), things(new));
    let mut changes = Vec::new();
    for key in old.keys().chain(new.keys()).cloned().collect::<BTreeSet<_>>() {
        let (order, name) = key.clone();
        let change = |what| Change { kind: KINDS[order], name: name.clone(), what };
        match (old.remove(&key), new.remove(&key)) {
            (Some(old), Some(new)) => {
                let mut fields = Vec::new();
                compare("", &old, &new, &mut fields);
                changes.extend(fields.into_iter().map(change));
            }
            (Some(_), None) => changes.push(change(What::Removed)),
            (None, _) => changes.push(change(What::Added)),
        }
    }
    changes
}

/// The order of the listing: what others refer to comes first.
const KINDS: [Kind; 17] = [
    Kind::Node,
    Kind::Cluster,
    Kind::Tables,
    Kind::Limits,
    Kind::Timeouts,
    Kind::Replication,
    Kind::Shedding,
    Kind::Health,
    Kind::Interface,
    Kind::Bfd,
    Kind::Member,
    Kind::Witness,
    Kind::Vip,
    Kind::Pool,
    Kind::Backend,
    Kind::Service,
    Kind::Decap,
];

/// Everything that a configuration holds, by kind (as its place in `KINDS`) and name.
fn things(config: &Config) -> BTreeMap<(usize, String), Value> {
    let mut things = BTreeMap::new();
    let mut put = |kind: Kind, name: String, value: Value| {
        let order = KINDS.iter().position(|&known| known == kind).unwrap_or(KINDS.len());
        things.insert((order, name), value);
    };
    put(Kind::Node, String::new(), json(&config.node));
    put(Kind::Cluster, String::new(), json(&config.cluster));
    put(Kind::Tables, String::new(), json(&config.tables));
    put(Kind::Limits, String::new(), json(&config.limits));
    put(Kind::Timeouts, String::new(), json(&config.timeouts));
    put(Kind::Replication, String::new(), json(&config.replication));
    put(Kind::Shedding, String::new(), json(&config.shedding));
    put(Kind::Health, String::new(), json(&config.health));
    config.interfaces.iter().for_each(|i| put(Kind::Interface, i.name.clone(), json(i)));
    config.bfds.iter().for_each(|b| put(Kind::Bfd, b.peer.to_string(), json(b)));
    config.members.iter().for_each(|m| put(Kind::Member, m.id.to_string(), json(m)));
    config.witnesses.iter().for_each(|w| put(Kind::Witness, w.id.to_string(), json(w)));
    config.vips.iter().for_each(|v| put(Kind::Vip, v.address.to_string(), json(v)));
    config.services.iter().for_each(|s| put(Kind::Service, s.name.clone(), json(s)));
    config.decap.iter().for_each(|d| put(Kind::Decap, String::new(), json(d)));
    for pool in &config.pools {
        let mut fields = json(pool);
        fields.as_object_mut().and_then(|fields| fields.remove("backend"));
        put(Kind::Pool, pool.name.clone(), fields);
        pool.backends.iter().for_each(|b| put(Kind::Backend, format!("{}/{}", pool.name, b.name), json(b)));
    }
    things
}

/// The schema's types have string keys and no fallible parts, so serialising them cannot fail.
fn json(value: &impl Serialize) -> Value {
    serde_json::to_value(value).unwrap_or_default()
}

/// Collects the fields in which two values differ; tables and lists of tables are gone into, other lists are one value.
fn compare(field: &str, old: &Value, new: &Value, found: &mut Vec<What>) {
    let of_tables = |list: &[Value]| list.iter().all(Value::is_object);
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let get = |map: &Map<String, Value>, name: &str| map.get(name).cloned().unwrap_or_default();
            for name in old.keys().chain(new.keys()).collect::<BTreeSet<_>>() {
                let path = if field.is_empty() { name.clone() } else { format!("{field}.{name}") };
                compare(&path, &get(old, name), &get(new, name), found);
            }
        }
        (Value::Array(old), Value::Array(new)) if of_tables(old) && of_tables(new) => {
            for index in 0..old.len().max(new.len()) {
                let get = |list: &[Value]| list.get(index).cloned().unwrap_or_default();
                compare(&format!("{field}[{index}]"), &get(old), &get(new), found);
            }
        }
        _ if old == new => {}
        _ => found.push(What::Changed { field: field.to_owned(), old: old.clone(), new: new.clone() }),
    }
}
