//! The page: targets, and for each measurement its plots and its table. Nothing on it comes from elsewhere.

use std::fmt::Write as _;

use anyhow::Result;
use serde_json::Value;

use super::shape::{self, Shape};
use super::{Results, Target, Verdict, plots, targets};

const STYLE: &str = "\
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2937; background: #fff; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { margin-bottom: 0; } h2 { margin: 2.5rem 0 .25rem; border-top: 1px solid #e5e7eb; padding-top: 1.25rem; }
p.how, figcaption, footer { color: #6b7280; } p.how { margin-top: 0; }
code { background: #f3f4f6; border-radius: 3px; padding: .1em .3em; }
figure { margin: 1rem 0; } svg { width: 100%; height: auto; } .wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; } td, th { padding: .2rem .6rem; border-bottom: 1px solid #e5e7eb; white-space: nowrap; }
th { text-align: left; font-weight: 600; vertical-align: bottom; } td.figure, th.figure { text-align: right; font-variant-numeric: tabular-nums; }
.met { color: #047857; } .missed { color: #b91c1c; font-weight: 600; }
nav a { margin-right: 1em; }";

/// The page.
pub(super) fn page(results: &Results) -> Result<String> {
    let run = results.run().unwrap_or("It was not kept where and by what this was measured");
    let shapes: Vec<&Shape> = shape::ALL.iter().filter(|shape| results.0.contains_key(shape.name)).collect();
    let plots = plots::all(results)?;
    let mut page = String::new();
    page += "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">";
    page += "<meta name=\"viewport\" content=\"width=device-width\"><title>Redirector, measured</title>";
    write!(page, "<style>{STYLE}</style></head><body><h1>Redirector, measured</h1><p class=\"how\">")?;
    write!(page, "{}.</p><nav>", escaped(run))?;
    for Shape { name, .. } in &shapes {
        write!(page, "<a href=\"#{name}\">{name}</a>")?;
    }
    page += "</nav>";
    write_targets(&mut page, results)?;
    for shape in shapes {
        let Shape { name, title, how, .. } = shape;
        write!(page, "<h2 id=\"{name}\">{title}</h2><p class=\"how\"><code>{name}</code>. {how}</p>")?;
        for plot in plots.iter().filter(|plot| plot.of == *name) {
            write!(page, "<figure>{}<figcaption>{}</figcaption></figure>", plot.svg, plot.caption)?;
        }
        write_table(&mut page, shape, results.rows(name))?;
    }
    page += "<footer><p>Figures are medians or quantiles of what was measured in one run on one machine; compare ratios, not \
             nanoseconds. Steal is the share of CPU time that the hypervisor gave to others meanwhile, load the average \
             number of programs that wanted to run.</p></footer></body></html>\n";
    Ok(page)
}

fn write_targets(page: &mut String, results: &Results) -> Result<()> {
    let all = results.targets();
    if all.is_empty() {
        return Ok(());
    }
    let met = all.iter().filter(|(_, target)| target.verdict() == Verdict::Met).count();
    let few = all.iter().filter(|(_, target)| target.verdict() == Verdict::TooFew).count();
    write!(page, "<h2>Targets</h2><p class=\"how\">{met} of {} met", all.len() - few)?;
    if few > 0 {
        write!(page, "; for {few} more there are too few values")?;
    }
    page.push_str(
        ". Each section says how its figures come about: all are of test runs and veths, none of a network card.</p>",
    );
    page.push_str("<div class=\"wide\"><table><tr>");
    page.push_str("<th>measurement</th><th>of</th><th>figure</th><th class=\"figure\">measured</th>");
    page.push_str("<th class=\"figure\">aimed at</th><th></th></tr>");
    for (name, one) in all {
        let verdict = one.verdict().word();
        let Target { row, figure, value, target, .. } = one;
        write!(page, "<tr><td>{name}</td><td>{}</td><td>{figure}</td>", escaped(&row))?;
        write!(page, "<td class=\"figure\">{}</td>", shape::number(value))?;
        write!(page, "<td class=\"figure\">{}</td><td class=\"{verdict}\">{verdict}</td></tr>", shape::number(target))?;
    }
    page.push_str("</table></div>");
    Ok(())
}

fn write_table(page: &mut String, shape: &'static Shape, rows: &[Value]) -> Result<()> {
    page.push_str("<div class=\"wide\"><table><tr>");
    for key in shape.keys {
        write!(page, "<th>{}</th>", key.replace('_', " "))?;
    }
    for figure in shape.figures {
        write!(page, "<th class=\"figure\">{}</th>", figure.label)?;
    }
    page.push_str("</tr>");
    for row in rows {
        page.push_str("<tr>");
        for key in shape.keys {
            write!(page, "<td>{}</td>", escaped(&key_text(row.get(key))))?;
        }
        if let Some(reason) = row.get("not_run").and_then(Value::as_str) {
            write!(page, "<td colspan=\"{}\">not run: {}</td></tr>", shape.figures.len(), escaped(reason))?;
            continue;
        }
        let targets = targets(shape, row);
        for figure in shape.figures {
            let verdict = targets
                .iter()
                .find(|(_, target)| target.figure == figure.label)
                .map_or("", |(_, target)| target.verdict().word());
            let text = shape::figure(row, figure.path).map_or_else(|| "–".to_owned(), shape::number);
            write!(page, "<td class=\"figure {verdict}\">{text}</td>")?;
        }
        page.push_str("</tr>");
    }
    page.push_str("</table></div>");
    Ok(())
}

fn key_text(value: Option<&Value>) -> String {
    match value {
        Some(Value::String(text)) => text.clone(),
        Some(value) => value.as_f64().map_or_else(String::new, shape::number),
        None => String::new(),
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
