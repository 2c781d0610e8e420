use serde::Serialize;

use super::{Format, Output, PAGE, Row, text_pairs};

#[derive(Serialize)]
struct Thing {
    name: String,
    count: u64,
}

impl Row for Thing {
    fn header() -> &'static [&'static str] {
        &["NAME", "COUNT"]
    }

    fn cells(&self) -> Vec<String> {
        vec![self.name.clone(), self.count.to_string()]
    }
}

fn written(format: Format, things: &[(&str, u64)]) -> String {
    let rows = things.iter().map(|&(name, count)| Thing { name: name.to_owned(), count });
    let mut out = Vec::new();
    Output { format }.write_list(&mut out, rows).unwrap();
    String::from_utf8(out).unwrap()
}

#[test]
fn a_table_has_a_header_and_no_borders() {
    assert_eq!(written(Format::Table, &[("a", 1), ("longer", 22)]), "NAME     COUNT\na        1\nlonger   22\n");
    assert_eq!(written(Format::Table, &[]), "NAME   COUNT\n");
}

#[test]
fn json_is_a_list_of_objects() {
    let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &[("a", 1), ("b", 2)])).unwrap();
    assert_eq!(json, serde_json::json!([{"name": "a", "count": 1}, {"name": "b", "count": 2}]));
    assert_eq!(written(Format::Json, &[]), "[]\n");
}

#[test]
fn yaml_is_the_same_list() {
    assert_eq!(
        written(Format::Yaml, &[("a", 1), ("b: c", 2)]),
        "- name: a\n  count: 1\n- name: \"b: c\"\n  count: 2\n"
    );
    assert_eq!(written(Format::Yaml, &[]), "[]\n");
    // YAML 1.1, which many readers still speak, takes bare digits between colons for a number of base 60.
    assert!(written(Format::Yaml, &[("52:54:00:12:34:56", 1)]).contains("\"52:54:00:12:34:56\""));
}

#[test]
fn a_long_table_has_one_header_and_columns_that_never_get_narrower() {
    let things: Vec<_> = (0..PAGE as u64 + 1).map(|count| (if count == 0 { "longest" } else { "x" }, count)).collect();
    let text = written(Format::Table, &things);
    assert_eq!(text.lines().filter(|line| line.starts_with("NAME")).count(), 1);
    assert_eq!(text.lines().last(), Some("x         1000"));
}

#[test]
fn pairs_stand_below_each_other() {
    assert_eq!(text_pairs(vec![("slot", "7".into()), ("version", "1".into())]), "slot      7\nversion   1\n");
}
