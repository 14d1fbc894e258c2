//! Output of the subcommands: tables for people, JSON for scripts.
use serde::Serialize;
use spoke_command::text::visible;
use spoke_model::time::Wall;
use spoke_model::tree::Tree;

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

/// One JSON document: see [`Tree::document`]. Times are RFC 3339.
pub fn json(value: &impl Serialize) -> String {
    let print = || -> serde_json::Result<String> {
        let tree: Tree = serde_json::from_slice(&serde_json::to_vec(value)?)?;
        serde_json::to_string_pretty(&with_times(tree).document())
    };
    print().map_or_else(|e| format!("{{\"schema\":1,\"error\":\"{e}\"}}\n"), |t| t + "\n")
}

/// Moments in milliseconds since 1970, by the names that the store gives them; 0 is none.
const MOMENTS: [&str; 3] = ["since_ms", "renewed_ms", "unchained_until_ms"];

fn with_times(tree: Tree) -> Tree {
    let entry = |(key, value): (String, Tree)| match (MOMENTS.contains(&key.as_str()), value) {
        (true, Tree::Unsigned(ms)) => {
            let time = if ms == 0 { Tree::Null } else { Tree::Text(Wall(ms / 1000).to_string()) };
            (key.trim_end_matches("_ms").to_owned(), time)
        }
        (true, Tree::Null) => (key.trim_end_matches("_ms").to_owned(), Tree::Null),
        (_, value) => (key, with_times(value)),
    };
    match tree {
        Tree::List(items) => Tree::List(items.into_iter().map(with_times).collect()),
        Tree::Map(entries) => Tree::Map(entries.into_iter().map(entry).collect()),
        other => other,
    }
}

/// Prints what a command without a table has done: the named texts as JSON, or `text`.
pub fn done(json: bool, values: &[(&str, &str)], text: &str) {
    spoke_command::print(&if json { self::json(&Tree::of_texts(values)) } else { text.to_owned() });
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_aligned() {
        let rows = [vec!["edge-1".to_owned(), "up".to_owned()], vec!["e".to_owned(), "down".to_owned()]];
        assert_eq!(super::render(&["NODE", "IS"], &rows), "NODE    IS\nedge-1  up\ne       down\n");
    }
}
