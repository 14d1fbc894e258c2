//! A document of any form, in the order of its writer: what was serialised once can be printed in another format.
//!
//! A serialiser compiled for every type and format is large: the configuration's TOML had 45 KB beside its JSON.
use serde::de::{MapAccess, SeqAccess, Visitor};
use serde::ser::SerializeMap as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;

/// A value of JSON or TOML.
#[derive(Clone, Debug, PartialEq)]
pub enum Tree {
    /// Absent.
    Null,
    /// A boolean.
    Bool(bool),
    /// A number that is not negative.
    Unsigned(u64),
    /// A negative number.
    Signed(i64),
    /// A number with a fraction.
    Float(f64),
    /// A string.
    Text(String),
    /// A list.
    List(Vec<Tree>),
    /// Keys and values, in the order of the writer.
    Map(Vec<(String, Tree)>),
}

/// Version of the documents of `--json`: raised when a key changes its meaning.
pub const SCHEMA: u64 = 1;

impl Tree {
    /// A document of `--json`: an object that begins with `schema`; a list is its `items`.
    #[must_use]
    pub fn document(self) -> Self {
        let schema = ("schema".to_owned(), Self::Unsigned(SCHEMA));
        match self {
            Self::Map(own) if own.iter().any(|(key, _)| key == "schema") => Self::Map(own),
            Self::Map(own) => Self::Map([vec![schema], own].concat()),
            list => Self::Map(vec![schema, ("items".to_owned(), list)]),
        }
    }

    /// An object of texts.
    pub fn of_texts(texts: &[(&str, &str)]) -> Self {
        Self::Map(texts.iter().map(|(key, text)| ((*key).to_owned(), Self::Text((*text).to_owned()))).collect())
    }

    /// A list of texts.
    pub fn of_lines<T: Into<String>>(lines: impl IntoIterator<Item = T>) -> Self {
        Self::List(lines.into_iter().map(|line| Self::Text(line.into())).collect())
    }

    /// Without the keys whose value is absent; TOML has no null.
    #[must_use]
    pub fn without_nulls(self) -> Self {
        match self {
            Self::List(items) => Self::List(items.into_iter().map(Self::without_nulls).collect()),
            Self::Map(entries) => {
                let kept = entries.into_iter().filter(|(_, value)| *value != Self::Null);
                Self::Map(kept.map(|(key, value)| (key, value.without_nulls())).collect())
            }
            other => other,
        }
    }
}

impl Serialize for Tree {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Null => serializer.serialize_unit(),
            Self::Bool(value) => serializer.serialize_bool(*value),
            Self::Unsigned(value) => serializer.serialize_u64(*value),
            Self::Signed(value) => serializer.serialize_i64(*value),
            Self::Float(value) => serializer.serialize_f64(*value),
            Self::Text(value) => serializer.serialize_str(value),
            Self::List(items) => items.serialize(serializer),
            Self::Map(entries) => {
                let mut map = serializer.serialize_map(Some(entries.len()))?;
                for (key, value) in entries {
                    map.serialize_entry(key, value)?;
                }
                map.end()
            }
        }
    }
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Unsigned(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Signed(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Float(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Tree, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element()? {
            items.push(item);
        }
        Ok(Tree::List(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Tree, A::Error> {
        let mut entries = Vec::new();
        while let Some(entry) = map.next_entry()? {
            entries.push(entry);
        }
        Ok(Tree::Map(entries))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_document_has_its_schema_once() {
        let document = |text: &str| {
            let tree: Tree = serde_json::from_str(text).unwrap();
            serde_json::to_string(&tree.document()).unwrap()
        };
        assert_eq!(document(r#"{"a":1}"#), r#"{"schema":1,"a":1}"#);
        assert_eq!(document("[1,2]"), r#"{"schema":1,"items":[1,2]}"#);
        assert_eq!(document(r#"{"a":1,"schema":7}"#), r#"{"a":1,"schema":7}"#);
    }

    #[test]
    fn document_is_printed_in_its_own_order() {
        let text = r#"{"z":1,"a":[-1,0.5,18446744073709551615,"x",true,null,{}],"m":{"y":null,"b":"é\n"}}"#;
        let tree: Tree = serde_json::from_str(text).unwrap();
        assert_eq!(serde_json::to_string(&tree).unwrap(), text);
    }

    #[test]
    fn absent_values_have_no_key() {
        let tree: Tree = serde_json::from_str(r#"{"a":null,"b":[{"c":null,"d":1}]}"#).unwrap();
        assert_eq!(serde_json::to_string(&tree.without_nulls()).unwrap(), r#"{"b":[{"d":1}]}"#);
    }
}
