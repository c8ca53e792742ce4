//! Plots as inline SVG: curves over a logarithmic axis, and bars of ratios beside their targets.

use std::fmt::Write as _;

use super::table::figure;
use crate::bench::model::Curve;

const WIDTH: f64 = 720.0;
const HEIGHT: f64 = 280.0;
const LEFT: f64 = 80.0;
const BOTTOM: f64 = 50.0;
const TOP: f64 = 20.0;
const RIGHT: f64 = 20.0;
const COLOURS: [&str; 4] = ["#1f5fa8", "#c0532b", "#3a8a3a", "#7a4fa0"];

/// Text that is safe between tags and in attributes.
pub(super) fn escape(text: &str) -> String {
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

/// One curve.
pub(super) fn curve(curve: &Curve) -> String {
    let points = || curve.series.iter().flat_map(|(_, points)| points.iter().copied());
    let (low, high) = points().fold((f64::INFINITY, 1.0f64), |(low, high), (x, _)| (low.min(x), high.max(x)));
    let top = points().map(|(_, y)| y).fold(0.0, f64::max) * 1.1;
    let place = |x: f64, y: f64| {
        let span = (high / low).ln();
        let share = if span > 0.0 { (x / low).ln() / span } else { 0.5 };
        let up = if top > 0.0 { y / top } else { 0.0 };
        (LEFT + share * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - up * (HEIGHT - BOTTOM - TOP))
    };
    let mut svg = open(&curve.title, HEIGHT);
    for step in 0..=4 {
        let value = top * f64::from(step) / 4.0;
        let (_, y) = place(low, value);
        line(&mut svg, (LEFT, y), (WIDTH - RIGHT, y), "#ddd");
        text(&mut svg, (LEFT - 6.0, y + 4.0), "end", &figure(value));
    }
    let mut marks: Vec<f64> = points().map(|(x, _)| x).collect();
    marks.sort_by(f64::total_cmp);
    marks.dedup();
    for mark in marks {
        let (x, y) = place(mark, 0.0);
        line(&mut svg, (x, y), (x, y + 5.0), "#666");
        text(&mut svg, (x, y + 18.0), "middle", &figure(mark));
    }
    text(&mut svg, ((LEFT + WIDTH - RIGHT) / 2.0, HEIGHT - 12.0), "middle", curve.across);
    text(&mut svg, (4.0, 14.0), "start", curve.unit);
    for (at, (name, points)) in curve.series.iter().enumerate() {
        let colour = COLOURS[at % COLOURS.len()];
        let path: Vec<String> = points
            .iter()
            .map(|(x, y)| {
                let (x, y) = place(*x, *y);
                format!("{x:.1},{y:.1}")
            })
            .collect();
        put(
            &mut svg,
            format_args!(
                "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" points=\"{}\"/>",
                path.join(" ")
            ),
        );
        for (x, y) in points {
            let (x, y) = place(*x, *y);
            put(&mut svg, format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
        }
        if let Some((x, y)) = points.last() {
            let (x, y) = place(*x, *y);
            text(&mut svg, (x, y - 8.0), "end", name);
        }
    }
    svg.push_str("</svg>");
    svg
}

/// Bars of ratios over their targets: 1 is the target.
pub(super) fn bars(title: &str, bars: &[(String, f64, bool)]) -> String {
    const ROW: f64 = 22.0;
    const NAMES: f64 = 300.0;
    let height = TOP + 20.0 + ROW * f64::from(u16::try_from(bars.len()).unwrap_or(u16::MAX));
    let most = bars.iter().map(|(_, value, _)| *value).fold(1.2, f64::max).min(3.0);
    let across = |value: f64| NAMES + value.min(most) / most * (WIDTH - NAMES - 70.0);
    let mut svg = open(title, height);
    let mut y = TOP;
    for (name, value, met) in bars {
        let colour = if *met { COLOURS[2] } else { COLOURS[1] };
        let width = (across(*value) - NAMES).max(1.0);
        put(
            &mut svg,
            format_args!("<rect x=\"{NAMES}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"16\" fill=\"{colour}\"/>"),
        );
        text(&mut svg, (NAMES - 6.0, y + 13.0), "end", name);
        text(&mut svg, (across(*value) + 6.0, y + 13.0), "start", &figure(*value));
        y += ROW;
    }
    line(&mut svg, (across(1.0), TOP - 6.0), (across(1.0), y), "#222");
    text(&mut svg, (across(1.0), y + 14.0), "middle", "target");
    svg.push_str("</svg>");
    svg
}

fn open(title: &str, height: f64) -> String {
    let title = escape(title);
    format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" width=\"{WIDTH}\" role=\"img\" \
         aria-label=\"{title}\" font-family=\"sans-serif\" font-size=\"12\"><title>{title}</title>"
    )
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), colour: &str) {
    put(
        svg,
        format_args!(
            "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\"/>",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn text(svg: &mut String, at: (f64, f64), anchor: &str, words: &str) {
    let words = escape(words);
    put(svg, format_args!("<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\">{words}</text>", at.0, at.1));
}

fn put(svg: &mut String, piece: std::fmt::Arguments<'_>) {
    // A string takes whatever it is given.
    let written = svg.write_fmt(piece);
    debug_assert!(written.is_ok());
}

#[cfg(test)]
mod tests {
    use super::{Curve, bars, curve, escape};

    #[test]
    fn what_has_a_meaning_in_markup_is_escaped() {
        assert_eq!(escape("a < b & \"c\" > 'd'"), "a &lt; b &amp; &quot;c&quot; &gt; &#39;d&#39;");
    }

    #[test]
    fn a_curve_is_one_closed_picture_of_numbers() {
        let one = Curve {
            title: "x<y".to_owned(),
            across: "frames",
            unit: "ns",
            series: vec![("a&b".to_owned(), vec![(10.0, 1.0), (1000.0, 2.0)]), ("one".to_owned(), vec![(10.0, 0.0)])],
        };
        let svg = curve(&one);
        assert!(svg.starts_with("<svg") && svg.ends_with("</svg>"));
        assert!(svg.contains("x&lt;y") && svg.contains("a&amp;b"));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
        let lonely = Curve { series: vec![("p".to_owned(), vec![(5.0, 5.0)])], ..one };
        assert!(!curve(&lonely).contains("NaN"));
    }

    #[test]
    fn bars_have_a_line_at_the_target() {
        let svg = bars("ratios", &[("a".to_owned(), 0.5, false), ("b".to_owned(), 99.0, true)]);
        assert_eq!(svg.matches("<rect").count(), 2);
        assert!(svg.contains(">target<"));
    }
}
