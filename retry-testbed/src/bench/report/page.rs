//! One page that needs nothing else: no script, no network.

use anyhow::Result;

use super::{
    svg::{self, Bar},
    table::{COLUMNS, cells},
};
use crate::{
    bench::model::{Case, Measurement},
    table::Column,
};

const STYLE: &str = "body{font:15px/1.5 sans-serif;max-width:70em;margin:2em auto;padding:0 1em;color:#222}\
table{border-collapse:collapse;width:100%;font-size:13px}td,th{border-bottom:1px solid #ddd;padding:.25em .6em;text-align:left}\
td.n{text-align:right;font-variant-numeric:tabular-nums}tr.missed td{background:#fbeae4}svg{max-width:100%;height:auto}";

/// The page.
pub(super) fn page(machine: &str, cases: &[(&'static Case, Measurement)]) -> Result<String> {
    let mut page = format!(
        "<!doctype html><html lang=\"en\"><meta charset=\"utf-8\"><title>retry-endpoint: bench</title><style>{STYLE}</style>\
         <h1>retry-endpoint: bench</h1><p>{}. Medians of rounds that took turns with their references; ratios are medians \
         of the rounds' ratios. Rates swing from run to run: compare ratios of one run only.</p>",
        escape(machine)
    );
    let bars: Vec<Bar> = cases
        .iter()
        .flat_map(|(_, found)| &found.rows)
        .filter_map(|row| {
            let least: f64 = row.target.strip_prefix("ratio >= ")?.parse().ok()?;
            let name = format!("{} of {}", row.case, row.reference);
            Some(Bar { name, value: row.ratio / least, met: row.met })
        })
        .collect();
    if !bars.is_empty() {
        page.push_str("<h2>Ratios beside their targets</h2>");
        page.push_str(&svg::bars(&bars)?);
    }
    for (case, found) in cases {
        page.push_str(&format!("<h2>{}</h2><p>{}</p>", escape(case.name), escape(case.about)));
        let heads: Vec<&str> = COLUMNS.iter().map(Column::head).collect();
        page.push_str(&format!("<table><tr><th>{}</tr>", heads.join("<th>")));
        for row in &found.rows {
            page.push_str(if row.met { "<tr>" } else { "<tr class=\"missed\">" });
            for (column, cell) in COLUMNS.iter().zip(&cells(row)) {
                let class = if column.is_figures() { " class=\"n\"" } else { "" };
                page.push_str(&format!("<td{class}>{}</td>", escape(cell)));
            }
            page.push_str("</tr>");
        }
        page.push_str("</table>");
        for note in &found.notes {
            page.push_str(&format!("<p>{}</p>", escape(note)));
        }
        for curve in &found.curves {
            page.push_str(&format!("<h3>{}</h3>{}", escape(&curve.title), svg::curve(curve)?));
        }
    }
    page.push_str("</html>\n");
    Ok(page)
}

/// Text that is safe between tags and in attributes.
fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            other => safe.push(other),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::escape;

    #[test]
    fn what_has_a_meaning_in_markup_is_escaped() {
        assert_eq!(escape("a < b & \"c\" > 'd'"), "a &lt; b &amp; &quot;c&quot; &gt; &#39;d&#39;");
    }
}
