//! A table as a picture: each row a line, its columns of one unit as points with their spread.

use plotters::{
    prelude::*,
    style::text_anchor::{HPos, Pos, VPos},
};

use crate::{
    curves,
    report::{self, Report, Spread, Table},
};

const WIDTH: u32 = 900;
const ROW: u32 = 30;
const MARGINS: u32 = 110;

/// One for each group: of its first table, or of those that are curves.
pub fn write(reports: &[Report]) -> Result<(), Box<dyn std::error::Error>> {
    std::fs::create_dir_all(report::path("docs/benchmarks"))?;
    for report in reports {
        let file = report::path(&format!("docs/benchmarks/{}.svg", report.group));
        let curves: Vec<_> = report.tables.iter().filter(|it| report.curves.contains(&it.name)).collect();
        let plot = if curves.is_empty() { of(&report.tables[0])? } else { curves::of(&curves)? };
        std::fs::write(file, plot)?;
    }
    Ok(())
}

/// The first columns, as many as have the unit of the first one, as an SVG.
pub fn of(table: &Table) -> Result<String, Box<dyn std::error::Error>> {
    let unit = |column: &str| column.rsplit_once(" in ").map(|(_, unit)| unit.to_owned());
    let first = unit(&table.columns[0]);
    let columns = table.columns.iter().take_while(|column| unit(column) == first).count();
    let spreads = table.rows.iter().flat_map(|row| row.cells[..columns].iter().flatten());
    let lowest = spreads.clone().map(|it| it.lowest).filter(|it| *it > 0.0).fold(f64::MAX, f64::min);
    let highest = spreads.map(|it| it.highest).fold(lowest, f64::max);

    let mut svg = String::new();
    {
        let rows = table.rows.len();
        let height = u32::try_from(rows)? * ROW + MARGINS;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin_right(30)
            .caption(&table.name, ("sans-serif", 18))
            .x_label_area_size(40)
            .y_label_area_size(330)
            .build_cartesian_2d((lowest * 0.8..highest * 1.25).log_scale(), -0.5..rows as f64 - 0.5)?;
        let plain = ("sans-serif", 13).into_font();
        chart
            .configure_mesh()
            .disable_y_mesh()
            .y_labels(0)
            .x_desc(first.unwrap_or_default())
            .x_label_style(plain.clone())
            .x_label_formatter(&|x| round(*x))
            .light_line_style(TRANSPARENT)
            .draw()?;
        let name = plain.into_text_style(&root).pos(Pos::new(HPos::Right, VPos::Center));
        let left = lowest * 0.8;
        chart.draw_series(table.rows.iter().enumerate().map(|(i, row)| {
            let at = (left, (rows - 1 - i) as f64);
            EmptyElement::at(at) + Text::new(row.name.clone(), (-8, 0), name.clone())
        }))?;
        for (column, title) in table.columns[..columns].iter().enumerate() {
            let colour = Palette99::pick(column).to_rgba();
            let cells = table.rows.iter().enumerate();
            let cells = cells.filter_map(|(i, row)| Some(((rows - 1 - i) as f64, row.cells[column]?)));
            let cells: Vec<(f64, Spread)> = cells.collect();
            chart.draw_series(cells.iter().map(|(y, it)| {
                PathElement::new([(it.lowest.max(left), *y), (it.highest, *y)], colour.stroke_width(2))
            }))?;
            chart
                .draw_series(cells.iter().map(|(y, it)| Circle::new((it.median, *y), 4, colour.filled())))?
                .label(title)
                .legend(move |(x, y)| Circle::new((x + 10, y), 4, colour.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
    }
    Ok(svg)
}

/// A place on a logarithmic axis, if it is a 1, a 2 or a 5: the others have no room.
fn round(figure: f64) -> String {
    let magnitude = (figure.log10() + 1e-9).floor();
    let digit = figure / 10f64.powf(magnitude);
    if ![1.0, 2.0, 5.0].iter().any(|round| (digit - round).abs() < 1e-6) {
        return String::new();
    }
    format!("{figure:.0$}", (-magnitude).max(0.0) as usize)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_axis_says_round_figures_only() {
        let said = [0.1, 0.2, 0.1 + 0.2, 0.5, 1.0, 6.0, 1_000.0, 5_000.0, 9_000.0].map(round);
        assert_eq!(said, ["0.1", "0.2", "", "0.5", "1", "", "1000", "5000", ""]);
    }
}
