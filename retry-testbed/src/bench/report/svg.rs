//! Plots as inline SVG: curves over a logarithmic axis, and bars of ratios beside their targets.

use anyhow::Result;
use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use super::table::figure;
use crate::bench::model::Curve;

const WIDTH: u32 = 720;
const COLOURS: [RGBColor; 4] = [BLUE, RED, GREEN, PURPLE];
const BLUE: RGBColor = RGBColor(0x1F, 0x5F, 0xA8);
const RED: RGBColor = RGBColor(0xC0, 0x53, 0x2B);
const GREEN: RGBColor = RGBColor(0x3A, 0x8A, 0x3A);
const PURPLE: RGBColor = RGBColor(0x7A, 0x4F, 0xA0);
const FONT: (&str, u32) = ("sans-serif", 12);

/// A ratio beside its target.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Bar {
    /// What was measured, and beside what.
    pub(super) name: String,
    /// The ratio reached over the ratio wanted: 1 is the target.
    pub(super) value: f64,
    /// Whether the target was met.
    pub(super) met: bool,
}

/// One curve.
pub(super) fn curve(curve: &Curve) -> Result<String> {
    let points = || curve.series.iter().flat_map(|(_, points)| points.iter().copied());
    let (low, high) =
        points().fold((f64::INFINITY, f64::MIN_POSITIVE), |(low, high), (x, _)| (low.min(x), high.max(x)));
    // An axis has a length, also below a single point.
    let (low, high) = (low.min(high) / 1.1, high * 1.1);
    let top = points().map(|(_, y)| y).fold(f64::MIN_POSITIVE, f64::max) * 1.1;
    draw(280, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .x_label_area_size(45)
            .y_label_area_size(80)
            .build_cartesian_2d((low..high).log_scale(), 0.0..top)?;
        let mesh = &mut chart.configure_mesh();
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).label_style(FONT).x_labels(5).y_labels(5);
        mesh.x_desc(curve.across).y_desc(curve.unit).axis_desc_style(FONT);
        mesh.x_label_formatter(&|x| figure(*x)).y_label_formatter(&|y| figure(*y)).draw()?;
        for ((name, points), colour) in curve.series.iter().zip(COLOURS.into_iter().cycle()) {
            let line = LineSeries::new(points.iter().copied(), colour.stroke_width(2)).point_size(3);
            chart.draw_series(line)?;
            if let Some(last) = points.last() {
                let style = FONT.into_text_style(area).pos(Pos::new(HPos::Right, VPos::Bottom));
                let name = Text::new(name.clone(), (0, -6), style);
                chart.draw_series([EmptyElement::at(*last) + name])?;
            }
        }
        Ok(())
    })
}

/// Bars of ratios over their targets, from the top down.
pub(super) fn bars(bars: &[Bar]) -> Result<String> {
    let most = bars.iter().map(|bar| bar.value).fold(1.2, f64::max).min(3.0);
    let count = u32::try_from(bars.len())?;
    draw(60 + 22 * count, |area| {
        let mut chart = ChartBuilder::on(area)
            .margin(10)
            .margin_left(300)
            .x_label_area_size(40)
            .build_cartesian_2d(0.0..most * 1.1, 0.0..f64::from(count))?;
        let mesh = &mut chart.configure_mesh();
        mesh.disable_mesh().disable_y_axis().label_style(FONT).axis_desc_style(FONT);
        mesh.x_desc("ratio reached over ratio wanted: 1 is the target").x_label_formatter(&|x| figure(*x)).draw()?;
        let text = |side| FONT.into_text_style(area).pos(Pos::new(side, VPos::Center));
        for (bar, row) in bars.iter().rev().zip(0u32..) {
            let row = f64::from(row);
            let (end, colour) = (bar.value.min(most), if bar.met { GREEN } else { RED });
            chart.draw_series([Rectangle::new([(0.0, row + 0.15), (end, row + 0.85)], colour.filled())])?;
            let name = Text::new(bar.name.clone(), (-6, 0), text(HPos::Right));
            chart.draw_series([EmptyElement::at((0.0, row + 0.5)) + name])?;
            let value = Text::new(figure(bar.value), (6, 0), text(HPos::Left));
            chart.draw_series([EmptyElement::at((end, row + 0.5)) + value])?;
        }
        chart.draw_series([PathElement::new([(1.0, 0.0), (1.0, f64::from(count))], BLACK)])?;
        Ok(())
    })
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(height: u32, picture: impl FnOnce(&Area<'_>) -> Result<()>) -> Result<String> {
    let mut svg = String::new();
    {
        let area = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        picture(&area)?;
        area.present()?;
    }
    Ok(svg)
}

#[cfg(test)]
mod tests {
    use super::{Bar, Curve, bars, curve};

    #[test]
    fn a_curve_is_one_closed_picture_of_numbers() {
        let one = Curve {
            title: "x<y".to_owned(),
            across: "frames<",
            unit: "ns",
            series: vec![("a&b".to_owned(), vec![(10.0, 1.0), (1000.0, 2.0)]), ("one".to_owned(), vec![(10.0, 0.0)])],
        };
        let svg = curve(&one).expect("a picture");
        assert!(svg.starts_with("<svg") && svg.trim_end().ends_with("</svg>"), "{svg}");
        assert!(svg.contains("frames&lt;") && svg.contains("a&amp;b"), "{svg}");
        assert_eq!(svg.matches("<polyline fill=\"none\" opacity=\"1\" stroke=\"#1F5FA8\"").count(), 1, "{svg}");
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
        let lonely = Curve { series: vec![("p".to_owned(), vec![(5.0, 5.0)])], ..one.clone() };
        assert!(!curve(&lonely).expect("a picture").contains("NaN"));
        let empty = Curve { series: Vec::new(), ..one };
        assert!(!curve(&empty).expect("a picture").contains("NaN"));
    }

    #[test]
    fn bars_have_names_figures_and_a_line_at_the_target() {
        let all = [("above", 99.0, true), ("below", 0.5, false)];
        let all = all.map(|(name, value, met)| Bar { name: name.to_owned(), value, met });
        let svg = bars(&all).expect("a picture");
        for word in ["above", "below", "99.0", "0.500", "#3A8A3A", "#C0532B"] {
            assert!(svg.contains(word), "{word} in {svg}");
        }
        assert_eq!(svg.matches("<rect").count(), 2, "{svg}");
        assert!(bars(&all[..1]).expect("a picture").contains("above"));
    }
}
