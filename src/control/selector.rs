//! Labels of nodes, and selectors over them: `site=berlin,model!=pi3`. Pure.
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// Labels of one entity at most.
pub const MAX_LABELS: usize = 32;

/// Terms of a selector at most.
const MAX_TERMS: usize = 16;

/// The longest key or value, in bytes.
const MAX_TEXT: usize = 63;

/// What a key or value must be.
pub const LABEL_FORM: &str =
    "at most 32 labels; keys and values of 1 to 63 letters, digits, dots, dashes, underscores and slashes";

/// Labels of an entity: `site` → `berlin`.
pub type Labels = BTreeMap<String, String>;

/// Whether every key and value is well-formed, and there are not too many.
pub fn are_labels(labels: &Labels) -> bool {
    labels.len() <= MAX_LABELS && labels.iter().all(|(key, value)| is_text(key) && is_text(value))
}

fn is_text(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_' | b'/');
    (1..=MAX_TEXT).contains(&text.len()) && text.bytes().all(allowed)
}

/// One condition of a selector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    /// The label's key.
    pub key: String,
    /// Its value.
    pub value: String,
    /// Whether the label must be equal; otherwise it must be absent or another one.
    pub equal: bool,
}

/// Conditions on labels, all of which must hold; without any, everything is selected.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Term>);

/// Not a selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no condition on a label: write key=value or key!=value, at most 16 of them, separated by commas")]
pub struct BadSelector(String);

impl Selector {
    /// The conditions.
    pub fn terms(&self) -> &[Term] {
        &self.0
    }

    /// Whether it selects an entity with these labels.
    pub fn selects(&self, labels: &Labels) -> bool {
        self.0.iter().all(|t| labels.get(&t.key).is_some_and(|v| *v == t.value) == t.equal)
    }
}

impl FromStr for Selector {
    type Err = BadSelector;
    fn from_str(text: &str) -> Result<Self, BadSelector> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        let term = |text: &str| {
            let (key, value, equal) = match text.split_once("!=") {
                Some((key, value)) => (key, value, false),
                None => {
                    let (key, value) = text.split_once('=')?;
                    (key, value, true)
                }
            };
            (is_text(key) && is_text(value)).then(|| Term { key: key.to_owned(), value: value.to_owned(), equal })
        };
        let clipped = |text: &str| BadSelector(text.chars().take(MAX_TEXT).collect());
        let mut terms = Vec::new();
        for part in text.split(',') {
            if terms.len() == MAX_TERMS {
                return Err(clipped(part));
            }
            terms.push(term(part).ok_or_else(|| clipped(part))?);
        }
        Ok(Self(terms))
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            let sign = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{sign}{}", term.key, term.value)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn every_term_must_hold() {
        let berlin = labels(&[("site", "berlin"), ("model", "pi4")]);
        let holds = |text: &str| text.parse::<Selector>().unwrap().selects(&berlin);
        assert!(holds(""));
        assert!(holds("site=berlin"));
        assert!(holds("site=berlin,model!=pi3"));
        assert!(holds("rack!=7"), "an absent label is another one");
        assert!(!holds("site=berlin,model=pi3"));
        assert!(!holds("site!=berlin"));
        assert!(!holds("rack=7"));
    }

    #[test]
    fn malformed_conditions_are_named() {
        for text in ["site", "site=", "=berlin", "site=a b", "site==berlin", "site=berlin,", "site=ü", "a!=b!=c"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
        let many = vec!["a=b"; MAX_TERMS + 1].join(",");
        assert!(many.parse::<Selector>().is_err());
        let error = "site=berlin,model".parse::<Selector>().unwrap_err().to_string();
        assert!(error.contains("'model'"), "{error}");
    }

    #[test]
    fn labels_are_bounded() {
        assert!(are_labels(&labels(&[("example.org/site", "berlin-1")])));
        assert!(!are_labels(&labels(&[("", "x")])));
        assert!(!are_labels(&labels(&[("x", &"y".repeat(MAX_TEXT + 1))])));
        assert!(!are_labels(&(0..=MAX_LABELS).map(|i| (i.to_string(), "x".to_owned())).collect()));
    }

    proptest! {
        #[test]
        fn text_of_a_selector_is_read_back(terms in proptest::collection::vec(("[a-z./_-]{1,63}", "[A-Z0-9]{1,9}", any::<bool>()), 0..16)) {
            let terms = terms.into_iter().map(|(key, value, equal)| Term { key, value, equal }).collect();
            let selector = Selector(terms);
            prop_assert_eq!(selector.to_string().parse::<Selector>(), Ok(selector));
        }
    }
}
