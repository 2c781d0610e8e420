use serde_json::{Value, json};

use super::compare::{Verdict, changes, missing};
use super::*;

fn results(name: &str, rows: Value) -> Results {
    Results(BTreeMap::from([(name.to_owned(), super::rows(&rows).unwrap())]))
}

fn verdicts(name: &str, before: Value, now: Value) -> Vec<(&'static str, Verdict)> {
    let changes = changes(&results(name, now), &results(name, before));
    changes.into_iter().map(|change| (change.figure, change.verdict)).collect()
}

#[test]
fn a_change_counts_when_it_is_beyond_its_noise_by_part_and_by_size() {
    let row = |ratio: f64| json!([{"cell": "shared-l2", "flows": 1, "ratio_median": ratio}]);
    assert_eq!(verdicts("packet", row(3.0), row(3.31)), [("ratio", Verdict::Worse)]);
    assert_eq!(verdicts("packet", row(3.0), row(3.2)), [("ratio", Verdict::Noise)]);
    assert_eq!(verdicts("packet", row(1.0), row(1.12)), [("ratio", Verdict::Noise)]);
    assert_eq!(verdicts("packet", row(3.0), row(2.6)), [("ratio", Verdict::Better)]);
}

#[test]
fn more_is_better_where_it_is_said() {
    let row = |ratio: f64| json!([{"way": "redirector", "cores": 1, "flows": 1, "ratio_median": ratio}]);
    assert_eq!(verdicts("forward", row(0.6), row(0.5)), [("of the floor", Verdict::Worse)]);
    assert_eq!(verdicts("forward", row(0.5), row(0.6)), [("of the floor", Verdict::Better)]);
}

#[test]
fn rows_are_compared_with_their_own_alone() {
    let before =
        json!([{"cell": "a", "flows": 1, "ratio_median": 3.0}, {"cell": "a", "flows": 10, "ratio_median": 9.0}]);
    let now = json!([{"cell": "a", "flows": 10, "ratio_median": 9.0}, {"cell": "b", "flows": 1, "ratio_median": 99.0}]);
    assert_eq!(verdicts("packet", before, now), [("ratio", Verdict::Noise)]);
}

#[test]
fn a_single_connection_that_breaks_is_worse() {
    let row = |broken: u64| json!([{"fault": "owner", "profile": "fast", "broken_connections": broken}]);
    assert_eq!(verdicts("failover", row(0), row(1)), [("connections broken", Verdict::Worse)]);
}

#[test]
fn the_first_that_is_lost_where_none_may_be_is_worse() {
    let row = |lost: u64, targets: Value| json!([{"fault": "drain", "profile": "fast", "lost": {"max": lost}, "targets": targets}]);
    let none = json!({"lost.max": 0.0});
    assert_eq!(verdicts("failover", row(0, none.clone()), row(2, none)), [("max", Verdict::Worse)]);
    assert_eq!(verdicts("failover", row(0, json!({})), row(2, json!({}))), [("max", Verdict::Noise)]);
}

#[test]
fn a_quantile_of_a_few_is_no_verdict() {
    let row = |kills: u64| {
        let gap = json!({"p50": 30.0, "p99": 31.0, "max": 31.0});
        json!([{"fault": "owner", "profile": "fast", "kills": kills, "gap_ms": gap, "targets": {"gap_ms.p99": 35.0}}])
    };
    let verdict = |kills| results("failover", row(kills)).targets()[0].1.verdict();
    assert_eq!((verdict(2), verdict(50)), (super::Verdict::TooFew, super::Verdict::Met));
}

#[test]
fn what_was_not_run_is_not_compared() {
    let ran = json!([{"fault": "leader", "profile": "fast", "gap_ms": {"p50": 20.0, "p99": 30.0, "max": 30.0}}]);
    let not_run = json!([{"fault": "leader", "profile": "fast", "kills": 0, "not_run": "no leader"}]);
    assert!(verdicts("failover", ran.clone(), not_run.clone()).is_empty());
    let (ran, not_run) = (results("failover", ran), results("failover", not_run));
    assert_eq!(missing(&not_run, &ran), [("failover", "leader, fast".to_owned())]);
    assert!(missing(&ran, &not_run).is_empty() && missing(&ran, &ran).is_empty());
}

#[test]
fn targets_are_met_or_missed() {
    let rows = json!([
        {"change": "death", "nodes": 64, "ms": {"p50": 1.0, "p99": 5.5, "max": 6.0}, "target": 5.0},
        {"change": "death", "nodes": 3, "ms": {"p50": 1.0, "p99": 1.5, "max": 2.0}, "target": 5.0},
    ]);
    let met: Vec<bool> = results("rewrite", rows).targets().iter().map(|(_, target)| target.met).collect();
    assert_eq!(met, [false, true]);
    let row = json!([{
        "flows": 100_000, "flush_ms": 50, "flows_per_second": 199_000.0, "lag_ms": {"p50": 50.0, "p99": 90.0, "max": 99.0},
        "targets": {"lag_ms.p99": 100.0, "flows_per_second": 200_000.0},
    }]);
    let met: Vec<_> =
        results("replicate", row).targets().into_iter().map(|(_, target)| (target.figure, target.met)).collect();
    assert_eq!(met, [("flows/s", false), ("p99", true)]);
}

#[test]
fn one_measurement_is_a_list_and_several_are_an_object() {
    let directory = std::env::temp_dir().join(format!("redirector-results-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let file = directory.join("results.json");
    let one = results("cpu", json!([{"profile": "fast", "at": "idle"}]));
    one.write(&file).unwrap();
    assert_eq!(one.earlier(&file).unwrap(), one);
    let mut told = one.clone();
    told.describe("on a machine");
    told.write(&file).unwrap();
    assert_eq!(told.earlier(&file).unwrap(), one, "one measurement is a list of its own rows alone");
    let mut two = one.clone();
    two.0.extend(results("rewrite", json!([])).0);
    assert!(two.earlier(&file).unwrap_err().to_string().contains("name the one measurement"));
    two.write(&file).unwrap();
    assert_eq!(one.earlier(&file).unwrap(), two);
    for odd in ["{", "3", "{\"cpu\": 3}", "[3]"] {
        fs::write(&file, odd).unwrap();
        assert!(one.earlier(&file).is_err(), "{odd}");
    }
    fs::remove_dir_all(&directory).unwrap();
}

#[test]
fn numbers_are_written_as_people_read_them() {
    let numbers = [(1_234_567.0, "1,234,567"), (0.456, "0.46"), (12.34, "12.3"), (5.0, "5"), (-1234.0, "-1,234")];
    for (value, text) in numbers {
        assert_eq!(shape::number(value), text);
    }
}

#[test]
fn a_page_has_every_measurement_and_nothing_from_elsewhere() {
    let mut all = results("cpu", json!([{"profile": "fast", "at": "idle", "cpu_pct": {"p50": 1.5}, "target": 2.0}]));
    let kills = json!([{"gap_ms": 25.0}, {"gap_ms": 31.0}]);
    all.0.extend(results("failover", json!([{"fault": "owner <&>", "profile": "fast", "kills": 2, "each": kills}])).0);
    all.describe("On a machine, by a command");
    let page = page::page(&all).unwrap();
    assert!(
        page.contains("On a machine, by a command")
            && page.contains("What agents take")
            && page.contains("owner &lt;&amp;&gt;")
            && page.contains("<svg")
    );
    for foreign in ["<script src", "<link", "@import", "url("] {
        assert!(!page.contains(foreign), "{foreign}");
    }
}
