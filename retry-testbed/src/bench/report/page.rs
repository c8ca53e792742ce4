//! One page that needs nothing else: no script, no network.

use crate::bench::model::{Case, Measurement};

use super::{
    svg::{self, escape},
    table::cells,
};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:.25em .6em;text-align:left}\
td.n{text-align:right;font-variant-numeric:tabular-nums}tr.missed td{background:#fbeae4}svg{max-width:100%;height:auto}";

/// The page.
pub(super) fn page(machine: &str, cases: &[(&'static Case, Measurement)]) -> String {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>retry-endpoint: bench</title><style>{STYLE}</style>\
         <h1>retry-endpoint: bench</h1><p>{}. Medians of rounds that took turns with their references; ratios are medians \
         of the rounds' ratios. Rates swing from run to run: compare ratios of one run only.</p>",
        escape(machine)
    );
    let bars: Vec<(String, f64, bool)> = cases
        .iter()
        .flat_map(|(_, found)| &found.rows)
        .filter_map(|row| {
            let least: f64 = row.target.strip_prefix("ratio >= ")?.parse().ok()?;
            Some((format!("{} of {}", row.case, row.reference), row.ratio / least, row.met))
        })
        .collect();
    if !bars.is_empty() {
        page.push_str("<h2>Ratios beside their targets</h2>");
        page.push_str(&svg::bars("ratio reached over ratio wanted", &bars));
    }
    for (case, found) in cases {
        page.push_str(&format!("<h2>{}</h2><p>{}</p>", escape(case.name), escape(case.about)));
        page.push_str("<table><tr><th>case<th>median<th>min<th>max<th>unit<th>reference<th>ratio<th>target</tr>");
        for row in &found.rows {
            page.push_str(if row.met { "<tr>" } else { "<tr class=\"missed\">" });
            for (at, cell) in cells(row).iter().enumerate() {
                let class = if matches!(at, 1..=3 | 6) { " class=\"n\"" } else { "" };
                page.push_str(&format!("<td{class}>{}</td>", escape(cell)));
            }
            page.push_str("</tr>");
        }
        page.push_str("</table>");
        for note in &found.notes {
            page.push_str(&format!("<p>{}</p>", escape(note)));
        }
        for curve in &found.curves {
            page.push_str(&format!("<h3>{}</h3>{}", escape(&curve.title), svg::curve(curve)));
        }
    }
    page.push_str("</html>\n");
    page
}
