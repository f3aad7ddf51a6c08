//! Columns for people.

use anstyle::Style;
use comfy_table::{CellAlignment, ContentArrangement, Table as Grid, presets};

/// Rows under headings, without lines.
pub(crate) struct Table {
    grid: Grid,
}

impl Table {
    /// An empty table. A heading that ends with `>` makes its column flush right.
    pub(crate) fn new(headings: &[&str]) -> Table {
        let mut grid = Grid::new();
        grid.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        let style = Style::new().bold();
        let bold = |heading: &&str| format!("{style}{}{style:#}", heading.trim_end_matches('>'));
        grid.set_header(headings.iter().map(bold));
        for (index, column) in grid.column_iter_mut().enumerate() {
            let right = headings.get(index).is_some_and(|heading| heading.ends_with('>'));
            column.set_padding((0, 2));
            column.set_cell_alignment(if right { CellAlignment::Right } else { CellAlignment::Left });
        }
        Table { grid }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.grid.add_row(cells);
    }

    /// The table as text, with a newline at its end and no blanks at the ends of lines.
    pub(crate) fn text(&self) -> String {
        self.grid.lines().map(|line| format!("{}\n", line.trim_end())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["ID>", "NAME"]);
        table.row(["7".into(), "malloc".into()]);
        table.row(["1234".into(), "x".into()]);
        let plain = anstream::adapter::strip_str(&table.text()).to_string();
        assert_eq!(plain, "  ID  NAME\n   7  malloc\n1234  x\n");
    }
}
