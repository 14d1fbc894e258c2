//! Reads typed values from a configuration tree and collects all faults instead of stopping at the first.
use super::fault::ConfigFault;
use config::{Value, ValueKind};
use spoke_model::duration::{parse_duration, show_duration};
use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;
use std::time::Duration;

/// One table of the tree. Keys are taken out of it; [`Table::finish`] reports those never read.
pub struct Table<'f> {
    path: String,
    /// Origin of the value last taken.
    file: String,
    /// The configuration file's name.
    base: String,
    /// Prefix of the variables that set keys.
    prefix: &'static str,
    values: BTreeMap<String, Value>,
    asked: Vec<&'static str>,
    taken: Vec<&'static str>,
    faults: &'f mut Vec<ConfigFault>,
}

impl<'f> Table<'f> {
    /// The root table.
    pub fn root(
        values: impl IntoIterator<Item = (String, Value)>,
        file: &str,
        faults: &'f mut Vec<ConfigFault>,
    ) -> Self {
        let values = values.into_iter().collect();
        Self {
            path: String::new(),
            file: file.to_owned(),
            base: file.to_owned(),
            prefix: "SPOKE",
            values,
            asked: Vec::new(),
            taken: Vec::new(),
            faults,
        }
    }

    /// The same table, whose keys are set by variables `PREFIX__SECTION__KEY`.
    #[must_use]
    pub fn with_variables(self, prefix: &'static str) -> Self {
        Self { prefix, ..self }
    }

    /// Adds a fault at `key` of this table.
    pub fn fault(&mut self, key: &str, problem: impl Display, remedy: impl Display) {
        let key = self.key(key);
        let file = self.file.clone();
        self.faults.push(ConfigFault {
            element: String::new(),
            file,
            key,
            problem: problem.to_string(),
            remedy: remedy.to_string(),
        });
    }

    /// The full path of this table, e.g. `interface[0]`.
    pub fn path(&self) -> &str {
        &self.path
    }

    fn key(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (false, true) => self.path.clone(),
            (false, false) => format!("{}.{key}", self.path),
        }
    }

    /// Where a value comes from: the variable, or the file.
    fn origin(&self, key: &str, value: &Value) -> String {
        match variable(&self.key(key), value) {
            Some(path) => {
                let name = path.replace('.', "__").to_ascii_uppercase();
                format!("the environment, {}__{name}", self.prefix)
            }
            None => self.base.clone(),
        }
    }

    fn take(&mut self, key: &'static str) -> Option<Value> {
        self.asked.push(key);
        let value = self.values.remove(key)?;
        self.taken.push(key);
        self.file = self.origin(key, &value);
        if matches!(value.kind, ValueKind::Nil) { None } else { Some(value) }
    }

    fn wrong(&mut self, key: &str, value: &Value, expected: &str) {
        let value = shown(key, value).unwrap_or_else(|| "of another kind".into());
        self.fault(key, format_args!("is {value}"), format_args!("write {expected}"));
    }

    /// A text that cannot be read as `key`, which may be an item of a list.
    fn unreadable(&mut self, at: &str, key: &str, text: &str, why: &dyn Display, expected: &str) {
        // What to write instead is said by the remedy.
        let why = why.to_string();
        let end =
            [": expected ", ": write ", "; an endpoint is ", " such as "].iter().filter_map(|w| why.find(w)).min();
        let (why, remedy) = (why.get(..end.unwrap_or(why.len())).unwrap_or(&why), format_args!("write {expected}"));
        match shown_text(key, text) {
            Some(text) => self.fault(at, format_args!("{text}: {why}"), remedy),
            None => self.fault(at, why, remedy),
        }
    }

    /// Text parsed into `T`; the parse error is the problem, `expected` the remedy.
    pub fn parsed<T: FromStr<Err: Display>>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        let value = self.take(key)?;
        let Some(text) = text(&value) else {
            self.wrong(key, &value, expected);
            return None;
        };
        match text.parse() {
            Ok(v) => Some(v),
            Err(e) => {
                self.unreadable(key, key, &text, &e, expected);
                None
            }
        }
    }

    /// A whole number or text, parsed into `T`.
    pub fn scalar<T: FromStr<Err: Display>>(&mut self, key: &'static str, expected: &str) -> Option<T> {
        let value = self.take(key)?;
        let parsed = match &value.kind {
            ValueKind::String(_) | ValueKind::I64(_) | ValueKind::U64(_) => value.to_string().parse().ok(),
            _ => None,
        };
        if parsed.is_none() {
            self.wrong(key, &value, expected);
        }
        parsed
    }

    /// A list of texts parsed into `T`. From the environment: separated by commas.
    pub fn list<T: FromStr<Err: Display>>(&mut self, key: &'static str, expected: &str) -> Option<Vec<T>> {
        let value = self.take(key)?;
        let items: Vec<String> = match &value.kind {
            ValueKind::Array(items) => {
                let texts: Vec<_> = items.iter().filter_map(text).collect();
                if texts.len() != items.len() {
                    self.wrong(key, &value, &format!("a list of {expected}"));
                    return None;
                }
                texts
            }
            ValueKind::String(s) if from_environment(&value) => {
                s.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
            }
            _ => {
                self.wrong(key, &value, &format!("a list of {expected}"));
                return None;
            }
        };
        let mut out = Vec::with_capacity(items.len());
        for (i, item) in items.iter().enumerate() {
            match item.parse() {
                Ok(v) => out.push(v),
                Err(e) => {
                    let at = format!("{key}[{i}]");
                    self.unreadable(&at, key, item, &e, expected);
                }
            }
        }
        Some(out)
    }

    /// Plain text.
    pub fn text(&mut self, key: &'static str) -> Option<String> {
        self.parsed(key, "text in quotes")
    }

    /// `true` or `false`.
    pub fn flag(&mut self, key: &'static str) -> Option<bool> {
        let value = self.take(key)?;
        match &value.kind {
            ValueKind::Boolean(b) => Some(*b),
            ValueKind::String(s) if from_environment(&value) && (s == "true" || s == "false") => Some(s == "true"),
            _ => {
                self.wrong(key, &value, "true or false");
                None
            }
        }
    }

    /// A whole number within `range`.
    pub fn number(&mut self, key: &'static str, range: std::ops::RangeInclusive<u64>) -> Option<u64> {
        let value = self.take(key)?;
        let expected = format!("a whole number from {} to {}", range.start(), range.end());
        let n = match &value.kind {
            ValueKind::I64(n) => u64::try_from(*n).ok(),
            ValueKind::U64(n) => Some(*n),
            ValueKind::I128(n) => u64::try_from(*n).ok(),
            ValueKind::U128(n) => u64::try_from(*n).ok(),
            ValueKind::String(s) if from_environment(&value) => s.parse().ok(),
            _ => None,
        };
        match n.filter(|n| range.contains(n)) {
            Some(n) => Some(n),
            None => {
                self.wrong(key, &value, &expected);
                None
            }
        }
    }

    /// A duration such as `"500ms"`, `"30s"`, `"5m"`, `"12h"` or `"7d"`, within `range`.
    pub fn duration(&mut self, key: &'static str, range: std::ops::RangeInclusive<Duration>) -> Option<Duration> {
        let value = self.take(key)?;
        let expected = format!(
            "a duration from {} to {} such as \"30s\" (units ms, s, m, h, d)",
            show_duration(*range.start()),
            show_duration(*range.end())
        );
        match text(&value).and_then(|t| parse_duration(&t)).filter(|d| range.contains(d)) {
            Some(d) => Some(d),
            None => {
                self.wrong(key, &value, &expected);
                None
            }
        }
    }

    /// A subtable; an absent one reads as empty.
    pub fn table(&mut self, key: &'static str) -> Table<'_> {
        let path = self.key(key);
        let values = match self.take(key) {
            None => BTreeMap::new(),
            Some(value) => match value.kind {
                ValueKind::Table(map) => map.into_iter().collect(),
                _ => {
                    self.wrong(key, &value, &format!("a table [{path}]"));
                    BTreeMap::new()
                }
            },
        };
        Table {
            path,
            file: self.file.clone(),
            base: self.base.clone(),
            prefix: self.prefix,
            values,
            asked: Vec::new(),
            taken: Vec::new(),
            faults: self.faults,
        }
    }

    /// A subtable, read by `read`; keys it did not read are reported.
    pub fn section<T>(&mut self, key: &'static str, read: impl FnOnce(&mut Table<'_>) -> T) -> T {
        let mut table = self.table(key);
        let value = read(&mut table);
        table.finish();
        value
    }

    /// Whether `key` was given, readable or not.
    pub fn has(&self, key: &str) -> bool {
        self.values.contains_key(key) || self.taken.contains(&key)
    }

    /// Whether any fault was found so far, in any table.
    pub fn faulty(&self) -> bool {
        !self.faults.is_empty()
    }

    /// Reports a missing key; `remedy` is what to write.
    pub fn required(&mut self, key: &'static str, remedy: &str) {
        self.asked.push(key);
        self.fault(key, "is missing", format_args!("add {key}: {remedy}"));
    }

    /// A list of tables (`[[key]]`), each read by `read`.
    pub fn tables<T>(&mut self, key: &'static str, mut read: impl FnMut(&mut Table<'_>) -> Option<T>) -> Vec<T> {
        let Some(value) = self.take(key) else { return Vec::new() };
        let ValueKind::Array(items) = value.kind else {
            let path = self.key(key);
            self.wrong(key, &value, &format!("a list of tables [[{path}]]"));
            return Vec::new();
        };
        let mut out = Vec::with_capacity(items.len());
        for (i, item) in items.into_iter().enumerate() {
            let path = format!("{}[{i}]", self.key(key));
            let ValueKind::Table(map) = item.kind else {
                self.wrong(key, &item, &format!("a table [[{path}]]"));
                continue;
            };
            let mut table = Table {
                path,
                file: self.file.clone(),
                base: self.base.clone(),
                prefix: self.prefix,
                values: map.into_iter().collect(),
                asked: Vec::new(),
                taken: Vec::new(),
                faults: self.faults,
            };
            let read = read(&mut table);
            table.finish();
            out.extend(read);
        }
        out
    }

    /// Reports every unknown key, with the nearest known one.
    pub fn finish(mut self) {
        for (key, value) in std::mem::take(&mut self.values) {
            self.file = self.origin(&key, &value);
            let near = self.asked.iter().map(|k| (distance(k, &key), *k)).min().filter(|(d, k)| *d <= 1 + k.len() / 3);
            let remedy = match near {
                Some((_, k)) => format!("did you mean `{k}`?"),
                None => format!("remove it; known here: {}", self.asked.join(", ")),
            };
            self.fault(&key, "unknown key", remedy);
        }
    }
}

fn from_environment(value: &Value) -> bool {
    value.origin().is_some_and(|o| o.contains("environment"))
}

fn text(value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(s) => Some(s.clone()),
        _ => None,
    }
}

/// The path of the variable that a value comes from; `None`: the file.
fn variable(path: &str, value: &Value) -> Option<String> {
    if let ValueKind::Table(map) = &value.kind {
        let mut each = map.iter().map(|(key, value)| variable(&format!("{path}.{key}"), value));
        let first = each.next()??;
        return each.all(|v| v.is_some()).then_some(first);
    }
    from_environment(value).then(|| path.to_owned())
}

/// Keys whose values are secrets, or URLs that may hold one; others of such a value are typed into them by mistake.
const SECRET_KEYS: &[&str] = &[
    "private_key",
    "preshared_key",
    "public_key",
    "secret",
    "token",
    "identity",
    "operator_token",
    "pin",
    "tls_key",
    "endpoints",
    "url",
    "url_from",
    "source",
    "secrets",
];

/// Longest run of letters and digits that is shown: shorter than any usable key or token.
const MAX_RUN: usize = 15;

/// A text for people, unless it is or may be a secret.
fn shown_text(key: &str, text: &str) -> Option<String> {
    let secretive = |c: char| c.is_alphanumeric() || matches!(c, '+' | '/' | '=' | '_' | '-');
    let long = text.split(|c| !secretive(c)).any(|run| run.chars().count() > MAX_RUN);
    let url = text.contains("://") || text.contains('@');
    (!SECRET_KEYS.contains(&key) && !long && !url).then(|| format!("{:?}", clipped(text)))
}

/// A value for people, unless it is or may be a secret.
fn shown(key: &str, value: &Value) -> Option<String> {
    match &value.kind {
        ValueKind::String(s) => shown_text(key, s),
        ValueKind::Table(_) => Some("a table".to_owned()),
        ValueKind::Array(_) => Some("a list".to_owned()),
        other if SECRET_KEYS.contains(&key) => Some(match other {
            ValueKind::Boolean(_) => "true or false".to_owned(),
            _ => "a number".to_owned(),
        }),
        other => Some(clipped(&other.to_string())),
    }
}

fn clipped(text: &str) -> String {
    match text.char_indices().nth(24) {
        Some((at, _)) => format!("{}…", &text[..at]),
        None => text.to_owned(),
    }
}

/// Optimal string alignment distance, for suggestions.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().take(64).collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    for (j, cell) in rows[0].iter_mut().enumerate() {
        *cell = j;
    }
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let cost = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(rows[i][j - 1] + 1).min(rows[i - 1][j - 1] + cost);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = best;
        }
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn durations_read_back(ms in 0u64..10_000_000_000) {
            let d = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&show_duration(d)), Some(d));
        }

        #[test]
        fn duration_of_any_text_never_panics(text in "\\PC{0,30}") {
            let _ = parse_duration(&text);
        }
    }

    #[test]
    fn misspellings_are_near() {
        assert_eq!(distance("listen_port", "listen_prot"), 1);
        assert_eq!(distance("mtu", "mut"), 1);
        assert_eq!(distance("", "abc"), 3);
    }
}
