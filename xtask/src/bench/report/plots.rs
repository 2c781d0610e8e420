//! Which plots there are, of which figures.

use anyhow::Result;
use serde_json::Value;

use super::Results;
use super::plot::{Bar, Distribution, OTHERS, OWNED, SHARED, Series, WHOLE, another, bars, histograms, lines};
use super::shape::figure;

/// A plot of a measurement's figures.
pub(super) struct Plot {
    /// What a file of it is called.
    pub(super) name: &'static str,
    /// The measurement.
    pub(super) of: &'static str,
    /// What is seen.
    pub(super) caption: &'static str,
    /// The plot.
    pub(super) svg: String,
}

/// All plots that there are figures for.
pub(super) fn all(results: &Results) -> Result<Vec<Plot>> {
    let mut plots = Vec::new();
    let mut add = |name, of, caption, svg: Option<String>| {
        plots.extend(svg.map(|svg| Plot { name, of, caption, svg }));
    };
    let packet = cost_by_flows(results.rows("packet"), "flows", |row| text(row, "cell"))?;
    add("packet", "packet", "Cost of a packet against the number of flows, as a ratio to the floor.", packet);
    let forward = forward(results.rows("forward"))?;
    add("forward", "forward", "Packets a second, as a part of the floor's. Red: what was aimed at.", forward);
    let failover = failover(results.rows("failover"))?;
    add("failover", "failover", "How often the longest gap was how long, by fault.", failover);
    let lag = lag(results.rows("replicate"))?;
    add(
        "lag",
        "replicate",
        "Replication lag: the bar ends at p99, ticks are p50 and maximum. Red: what was aimed at.",
        lag,
    );
    let rewrite = rewrite(results.rows("rewrite"))?;
    add("rewrite", "rewrite", "Time to the new slot table, p99. Red: what was aimed at.", rewrite);
    for (name, axis, caption) in [
        ("cost", "flows", "Cost of a packet against the number of flows, as a ratio to the floor."),
        ("services", "services", "The same against the number of services, all of them hit."),
        ("backends", "backends", "The same against the number of backends of the pool, 100,000 flows."),
        ("nodes", "nodes", "The same against the number of nodes, 100,000 flows."),
    ] {
        let rows: Vec<Value> = results.rows("scale").iter().filter(|row| text(row, "axis") == axis).cloned().collect();
        add(name, "scale", caption, cost(&rows, axis, "count", |row| text(row, "cell"))?);
    }
    let cpu = cpu(results.rows("cpu"))?;
    add(
        "cpu",
        "cpu",
        "An agent's share of one core: the median of five agents, the tick is the highest. Red: what was aimed at.",
        cpu,
    );
    Ok(plots)
}

fn text(row: &Value, key: &str) -> String {
    row.get(key).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// A line for each cell that was measured with more than one number of flows.
fn cost_by_flows(rows: &[Value], x: &str, name: fn(&Value) -> String) -> Result<Option<String>> {
    let several = |row: &&Value| rows.iter().filter(|other| name(other) == name(row)).count() > 1;
    let rows: Vec<Value> = rows.iter().filter(several).cloned().collect();
    cost(&rows, x, x, name)
}

fn cost(rows: &[Value], axis: &str, x: &str, name: fn(&Value) -> String) -> Result<Option<String>> {
    let mut series: Vec<Series> = Vec::new();
    for row in rows {
        let (Some(x), Some(y)) = (figure(row, x), figure(row, "ratio_median")) else { continue };
        let name = name(row);
        let at = series.iter().position(|one| one.name == name).unwrap_or_else(|| {
            let colour = match name.as_str() {
                "owned, whole cluster" => WHOLE,
                name if name.contains("forward") || name.contains("entering") => OTHERS,
                name if name.starts_with("owned") => OWNED,
                _ => SHARED,
            };
            let colour = another(&series, colour);
            series.push(Series { name, colour, points: Vec::new() });
            series.len() - 1
        });
        series[at].points.push((x, y));
    }
    if series.is_empty() {
        return Ok(None);
    }
    lines(axis, "ratio to the floor", &series, None).map(Some)
}

fn some_bars(unit: &str, all: Vec<Bar>) -> Result<Option<String>> {
    if all.is_empty() { Ok(None) } else { bars(unit, &all).map(Some) }
}

fn forward(rows: &[Value]) -> Result<Option<String>> {
    let bar = |row: &Value| {
        let (way, cores, flows) = (text(row, "way"), figure(row, "cores")?, figure(row, "flows")?);
        let colour = match way.as_str() {
            way if !way.starts_with("redirector") => OTHERS,
            way if way.ends_with("owned") => OWNED,
            _ => SHARED,
        };
        let plural = |count: f64, what: &str| {
            format!("{} {what}{}", super::shape::number(count), if count == 1.0 { "" } else { "s" })
        };
        Some(Bar {
            label: format!("{way}, {}, {}", plural(cores, "core"), plural(flows, "flow")),
            colour,
            value: figure(row, "ratio_median")?,
            marks: Vec::new(),
            target: figure(row, "target"),
        })
    };
    some_bars("part of the floor's packets a second", rows.iter().filter_map(bar).collect())
}

fn failover(rows: &[Value]) -> Result<Option<String>> {
    let distribution = |row: &Value| {
        let kills = row.get("each")?.as_array()?;
        let values: Vec<f64> = kills.iter().filter_map(|kill| figure(kill, "gap_ms")).collect();
        let name = text(row, "fault");
        let colour = if name == "keepalived" { OTHERS } else { SHARED };
        let name = if name == "keepalived" { name } else { format!("{name}, {}", text(row, "profile")) };
        (!values.is_empty()).then_some(Distribution { name, colour, values })
    };
    let all: Vec<_> = rows.iter().filter_map(distribution).collect();
    if all.is_empty() { Ok(None) } else { histograms("longest gap, ms", &all, 50).map(Some) }
}

fn lag(rows: &[Value]) -> Result<Option<String>> {
    let bar = |row: &Value| {
        let flush = figure(row, "flush_ms")?;
        Some(Bar {
            label: format!("{} flows, flush {flush} ms", super::shape::number(figure(row, "flows")?)),
            colour: if flush > 10.0 { SHARED } else { OWNED },
            value: figure(row, "lag_ms.p99")?,
            marks: vec![figure(row, "lag_ms.p50")?, figure(row, "lag_ms.max")?],
            target: row.get("targets")?.get("lag_ms.p99")?.as_f64(),
        })
    };
    some_bars("ms", rows.iter().filter_map(bar).collect())
}

fn rewrite(rows: &[Value]) -> Result<Option<String>> {
    let series = |change: &str, colour| {
        let rows = rows.iter().filter(|row| text(row, "change") == change);
        let points = rows.filter_map(|row| Some((figure(row, "nodes")?, figure(row, "ms.p99")?))).collect();
        Series { name: change.to_owned(), colour, points }
    };
    if rows.is_empty() {
        return Ok(None);
    }
    let all = [series("death", SHARED), series("ranks", OTHERS)];
    lines("nodes", "ms", &all, rows.iter().find_map(|row| figure(row, "target"))).map(Some)
}

fn cpu(rows: &[Value]) -> Result<Option<String>> {
    let bar = |row: &Value| {
        let at = text(row, "at");
        Some(Bar {
            label: format!("{}, {at}", text(row, "profile")),
            colour: if at == "idle" { SHARED } else { OWNED },
            value: figure(row, "cpu_pct.p50")?,
            marks: vec![figure(row, "cpu_pct.max")?],
            target: figure(row, "target"),
        })
    };
    some_bars("% of one core", rows.iter().filter_map(bar).collect())
}
