//! Tables whose columns are one figure over something ("at 25 % in ms") as curves, one picture below the other.

use plotters::{
    coord::ranged1d::{AsRangedCoord, ValueFormatter},
    prelude::*,
};

use crate::report::Table;

const WIDTH: u32 = 900;
const HEIGHT: u32 = 420;

/// All of these, as one SVG.
pub fn of(tables: &[&Table]) -> Result<String, Box<dyn std::error::Error>> {
    let mut svg = String::new();
    {
        let height = HEIGHT * u32::try_from(tables.len())?;
        let root = SVGBackend::with_string(&mut svg, (WIDTH, height)).into_drawing_area();
        root.fill(&WHITE)?;
        for (area, table) in root.split_evenly((tables.len(), 1)).iter().zip(tables) {
            draw(area, table)?;
        }
        root.present()?;
    }
    Ok(svg)
}

type Area<'a> = DrawingArea<SVGBackend<'a>, plotters::coord::Shift>;

fn draw(area: &Area<'_>, table: &Table) -> Result<(), Box<dyn std::error::Error>> {
    let unit = table.columns[0].rsplit_once(" in ").map_or("", |(_, unit)| unit);
    let figures = table.rows.iter().flat_map(|row| row.cells.iter().flatten());
    let lowest = figures.clone().map(|it| it.lowest).filter(|it| *it > 0.0).fold(f64::MAX, f64::min);
    let highest = figures.map(|it| it.highest).fold(lowest, f64::max);
    match unit {
        "%" => draw_over(area, table, unit, 0.0..highest * 1.1, 0.0),
        _ => draw_over(area, table, unit, (lowest * 0.9..highest * 1.1).log_scale(), lowest * 0.9),
    }
}

/// `bottom`: where the axis of these figures begins.
fn draw_over<Y>(
    area: &Area<'_>,
    table: &Table,
    unit: &str,
    figures: Y,
    bottom: f64,
) -> Result<(), Box<dyn std::error::Error>>
where
    Y: AsRangedCoord<Value = f64>,
    Y::CoordDescType: ValueFormatter<f64>,
{
    let across: Vec<f64> = table.columns.iter().map(|column| place(column)).collect();
    let (left, right) = (across[0], across[across.len() - 1]);
    let mut chart = ChartBuilder::on(area)
        .margin_right(20)
        .margin_left(15)
        .caption(&table.name, ("sans-serif", 18))
        .x_label_area_size(40)
        .y_label_area_size(60)
        // The right part is for the names.
        .build_cartesian_2d(left..right * 1.8, figures)?;
    let plain = ("sans-serif", 13).into_font();
    chart
        .configure_mesh()
        .x_desc("offered load in %")
        .y_desc(unit)
        .label_style(plain.clone())
        .x_label_formatter(&|x| if *x > right { String::new() } else { format!("{x:.0}") })
        .y_labels(20)
        .y_label_formatter(&|y| format!("{y:.0}"))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (n, row) in table.rows.iter().enumerate() {
        let colour = Palette99::pick(n).to_rgba();
        let points: Vec<(f64, f64)> = across
            .iter()
            .zip(&row.cells)
            .filter_map(|(x, cell)| Some((*x, cell.as_ref()?.median.max(bottom))))
            .collect();
        let spreads = across.iter().zip(&row.cells).filter_map(|(x, cell)| Some((*x, cell.as_ref()?)));
        chart.draw_series(spreads.map(|(x, it)| {
            PathElement::new([(x, it.lowest.max(bottom)), (x, it.highest)], colour.mix(0.4).stroke_width(2))
        }))?;
        chart
            .draw_series(LineSeries::new(points, colour.stroke_width(2)).point_size(3))?
            .label(&row.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour.stroke_width(3)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperRight)
        .label_font(plain)
        .background_style(WHITE.mix(0.9))
        .draw()?;
    Ok(())
}

/// "at 25 % in ms" -> 25
fn place(column: &str) -> f64 {
    column.split_whitespace().find_map(|word| word.parse().ok()).unwrap_or(0.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_column_is_where_its_number_is() {
        assert_eq!(["at 25 % in ms", "at 150 % in %", "elsewhere"].map(place), [25.0, 150.0, 0.0]);
    }
}
