//! Tables for a terminal: columns that line up, no borders.

use comfy_table::{CellAlignment, ColumnConstraint, Row, Table, Width, presets::NOTHING};

/// One column.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Column {
    head: &'static str,
    alignment: CellAlignment,
    /// Its least width in characters, for rows that are printed one by one.
    least: u16,
}

/// A column of words.
pub(crate) const fn words(head: &'static str, least: u16) -> Column {
    Column { head, alignment: CellAlignment::Left, least }
}

/// A column of figures: they stand to the right.
pub(crate) const fn figures(head: &'static str, least: u16) -> Column {
    Column { head, alignment: CellAlignment::Right, least }
}

impl Column {
    /// What stands above it.
    pub(crate) const fn head(&self) -> &'static str {
        self.head
    }

    /// Whether it is one of figures.
    pub(crate) fn is_figures(&self) -> bool {
        self.alignment == CellAlignment::Right
    }
}

/// The lines of a table: its head, then one per row.
pub(crate) fn lines<R: Into<Row>>(columns: &[Column], rows: impl IntoIterator<Item = R>) -> Vec<String> {
    let mut table = Table::new();
    table.load_style(NOTHING).set_header(columns.iter().map(|column| column.head)).add_rows(rows);
    for (to, column) in table.column_iter_mut().zip(columns) {
        to.set_padding((0, 2)).set_constraint(ColumnConstraint::LowerBoundary(Width::Fixed(column.least + 2)));
        to.set_cell_alignment(column.alignment);
    }
    table.lines().map(|line| line.trim_end().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::{figures, lines, words};

    #[test]
    fn columns_line_up_and_have_a_least_width() {
        let columns = [words("name", 0), figures("count", 0), words("", 0)];
        let all = lines(&columns, [["a", "7", "x"], ["longer", "1 234 567", ""]]);
        assert_eq!(all, ["name        count", "a               7  x", "longer  1 234 567"]);
        let wide = [figures("s", 4), words("x", 3), words("y", 0)];
        assert_eq!(lines(&wide, [["1", "2", "3"]]), ["   s  x    y", "   1  2    3"]);
    }
}
