//! Columns for people.

use anstyle::Style;

/// Rows under headings, without lines.
pub(crate) struct Table {
    /// Headings; true for a column that is flush right.
    headings: Vec<(String, bool)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// An empty table. A heading that ends with `>` makes its column flush right.
    pub(crate) fn new(headings: &[&str]) -> Table {
        let heading = |text: &&str| (text.trim_end_matches('>').to_owned(), text.ends_with('>'));
        Table { headings: headings.iter().map(heading).collect(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.into());
    }

    /// The table as text, with a newline at its end and no blanks at the ends of lines.
    pub(crate) fn text(&self) -> String {
        let widths: Vec<usize> = (0..self.headings.len()).map(|column| self.width(column)).collect();
        let style = Style::new().bold();
        let headings: Vec<&str> = self.headings.iter().map(|(text, _)| text.as_str()).collect();
        let mut text = format!("{style}{}{style:#}\n", self.line(&headings, &widths));
        for row in &self.rows {
            let cells: Vec<&str> = row.iter().map(String::as_str).collect();
            text.push_str(&self.line(&cells, &widths));
            text.push('\n');
        }
        text
    }

    fn width(&self, column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells.chain([&self.headings[column].0]).map(|cell| cell.chars().count()).max().unwrap_or(0)
    }

    fn line(&self, cells: &[&str], widths: &[usize]) -> String {
        let mut line = String::new();
        for ((cell, &width), (_, right)) in cells.iter().zip(widths).zip(&self.headings) {
            match right {
                true => line.push_str(&format!("{cell:>width$}  ")),
                false => line.push_str(&format!("{cell:<width$}  ")),
            }
        }
        line.trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up() {
        let mut table = Table::new(&["ID>", "NAME", "µ"]);
        table.row(["7".into(), "malloc".into(), "é".into()]);
        table.row(["1234".into(), "x".into(), String::new()]);
        let plain = anstream::adapter::strip_str(&table.text()).to_string();
        assert_eq!(plain, "  ID  NAME    µ\n   7  malloc  é\n1234  x\n");
    }
}
