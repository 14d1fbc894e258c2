//! Output of the subcommands: tables for people, JSON for scripts.
use serde::Serialize;
use spoke_command::text::visible;

/// A table with titles; columns are as wide as their widest cell, two spaces apart.
pub fn render(titles: &[&str], rows: &[Vec<String>]) -> String {
    let rows: Vec<Vec<String>> = rows.iter().map(|r| r.iter().map(|c| visible(c).into_owned()).collect()).collect();
    let width = |i: usize| {
        let cells = rows.iter().filter_map(|r| r.get(i)).map(|c| c.chars().count());
        cells.chain([titles.get(i).map_or(0, |t| t.len())]).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..titles.len()).map(width).collect();
    let line = |cells: &mut dyn Iterator<Item = &str>| {
        let padded: Vec<String> = cells.zip(&widths).map(|(c, w)| format!("{c:<w$}")).collect();
        format!("{}\n", padded.join("  ").trim_end())
    };
    let mut out = line(&mut titles.iter().copied());
    for row in &rows {
        out.push_str(&line(&mut row.iter().map(String::as_str)));
    }
    out
}

/// One line for each name and value, values aligned.
pub fn pairs(lines: &[(&str, String)]) -> String {
    let width = lines.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    lines.iter().map(|(name, value)| format!("{name:<width$}  {}\n", visible(value))).collect()
}

/// One JSON document.
pub fn json(value: &impl Serialize) -> String {
    serde_json::to_string_pretty(value).map_or_else(|e| format!("{{\"error\":\"{e}\"}}\n"), |t| t + "\n")
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["edge-1".to_owned(), "up".to_owned()], vec!["e".to_owned(), "down".to_owned()]];
        assert_eq!(super::render(&["NODE", "IS"], &rows), "NODE    IS\nedge-1  up\ne       down\n");
    }
}
