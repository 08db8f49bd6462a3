//! What a plugin says of itself: the JSON document that `describe` returns, read and checked.
//!
//! **Invariant:** a [`Description`] is sound: names follow their rule and are unique, and the config
//! schema uses only what the host checks, so that nothing is promised that nobody enforces.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::imports::{printable, shown};
use super::schema;

/// The format that `describe` must name in its field `anabranch`.
const FORMAT: &str = "0.1";
/// Stores, and outputs, that a plugin may declare.
const MAX_DECLARATIONS: usize = 64;
/// Bytes of the whole document.
const MAX_BYTES: usize = 256 << 10;

/// The type of a part of a store's key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyPart {
    /// Text.
    Utf8,
    /// A signed integer.
    I64,
    /// A floating-point number.
    F64,
    /// Bytes.
    Bytes,
    /// True or false.
    Bool,
}

/// How a store's values are to be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ValueFormat {
    /// A JSON document.
    Json,
    /// Text.
    Utf8,
    /// A signed integer, 8 bytes.
    I64,
    /// A floating-point number, 8 bytes.
    F64,
    /// Bytes.
    Bytes,
}

/// What an output's records mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OutputKind {
    /// Each record stands for itself.
    Stream,
    /// A record replaces the earlier one with its key; a null value deletes it.
    Table,
}

/// A keyed store that the plugin uses.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StoreDeclaration {
    /// Its name: `[a-z0-9][a-z0-9._-]{0,99}`.
    pub name: String,
    /// Version of its schema: stores of different versions are not taken over.
    pub version: u32,
    /// Types of the key's parts.
    pub key: Vec<KeyPart>,
    /// Format of the values.
    pub value: ValueFormat,
}

/// An output that the plugin writes to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputDeclaration {
    /// Its name, under the same rule; the deployment maps it to a topic.
    pub name: String,
    /// What its records mean.
    pub kind: OutputKind,
}

/// What a plugin is.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Description {
    /// Version of this document's format.
    pub anabranch: String,
    /// The plugin's name.
    pub name: String,
    /// The plugin's own version, for people.
    pub version: String,
    /// Its stores.
    #[serde(default)]
    pub stores: Vec<StoreDeclaration>,
    /// Its outputs.
    #[serde(default)]
    pub outputs: Vec<OutputDeclaration>,
    /// Whether it never looks at the values of its inputs: then they come as nulls, and nobody decompresses
    /// or copies them.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub ignores_values: bool,
    /// A schema of its config; `None` takes any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Value>,
}

/// What is wrong with a description.
#[derive(Debug, thiserror::Error)]
pub enum DescriptionError {
    /// Not a document of the expected shape.
    #[error("describe does not return the JSON document that wit/worlds.wit asks for: {0}")]
    Json(#[from] serde_json::Error),
    /// Another format.
    #[error(
        "describe returns a document of format {0:?}, this host reads {FORMAT:?}: build the plugin with a matching SDK"
    )]
    Format(String),
    /// Larger than allowed.
    #[error("describe returns {0} bytes, the limit is {MAX_BYTES}")]
    TooLarge(usize),
    /// A field breaks its rule.
    #[error("describe: {0}")]
    Field(String),
}

impl Description {
    /// Reads and checks a document.
    pub fn parse(json: &str) -> Result<Self, DescriptionError> {
        if json.len() > MAX_BYTES {
            return Err(DescriptionError::TooLarge(json.len()));
        }
        let value: Value = serde_json::from_str(json)?;
        // Looked at first: the rest of another format's document cannot be judged.
        if let Some(format) = value.get("anabranch").and_then(Value::as_str)
            && format != FORMAT
        {
            return Err(DescriptionError::Format(format.chars().take(40).collect()));
        }
        let description: Self = serde_json::from_value(value)?;
        description.check().map_err(DescriptionError::Field)?;
        Ok(description)
    }

    fn check(&self) -> Result<(), String> {
        check_name("the plugin", &self.name)?;
        let version = &self.version;
        if !(1..=100).contains(&version.len()) || printable(version) != *version {
            return Err("the version must be 1 to 100 bytes of printable text".into());
        }
        check_names("store", self.stores.iter().map(|store| store.name.as_str()))?;
        check_names("output", self.outputs.iter().map(|output| output.name.as_str()))?;
        if let Some(store) = self.stores.iter().find(|s| !(1..=16).contains(&s.key.len())) {
            let (name, parts) = (&store.name, store.key.len());
            return Err(format!("the key of store {name} has {parts} parts, 1 to 16 are allowed"));
        }
        match &self.config {
            None => Ok(()),
            Some(schema) => schema::check_schema(schema).map_err(|error| error.to_string()),
        }
    }

    /// The position of an output among those declared.
    pub fn output_index(&self, name: &str) -> Option<usize> {
        self.outputs.iter().position(|output| output.name == name)
    }

    pub(super) fn unknown_output(&self, name: &str) -> String {
        let names: Vec<_> = self.outputs.iter().map(|output| output.name.as_str()).collect();
        let name = shown(name);
        format!("output {name:?} is not declared by describe, which names {names:?}")
    }
}

fn check_name(what: &str, name: &str) -> Result<(), String> {
    match name.parse::<crate::types::TopicName>() {
        Ok(_) => Ok(()),
        Err(_) => Err(format!(
            "{what} name {:?} is not valid: use 1 to 100 of a-z, 0-9, '.', '_' and '-', \
             beginning with a letter or digit",
            shown(name)
        )),
    }
}

fn check_names<'a>(
    what: &str,
    names: impl ExactSizeIterator<Item = &'a str>,
) -> Result<(), String> {
    let mut seen = Vec::new();
    if names.len() > MAX_DECLARATIONS {
        return Err(format!(
            "{} {what}s are declared, the limit is {MAX_DECLARATIONS}",
            names.len()
        ));
    }
    for name in names {
        check_name(what, name)?;
        if seen.contains(&name) {
            return Err(format!("{what} {name} is declared twice"));
        }
        seen.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const FULL: &str = r#"{"anabranch": "0.1", "name": "delays", "version": "1.0.0",
        "stores": [{"name": "by-carrier", "version": 1, "key": ["utf8", "i64"], "value": "json"}],
        "outputs": [{"name": "delays", "kind": "table"}],
        "config": {"type": "object", "properties": {"minutes": {"type": "integer"}}}}"#;

    #[test]
    fn a_full_document_is_read_and_written_alike() {
        let description = Description::parse(FULL).unwrap();
        assert_eq!(description.output_index("delays"), Some(0));
        assert_eq!(description.stores[0].key, [KeyPart::Utf8, KeyPart::I64]);
        let again = serde_json::to_string(&description).unwrap();
        assert_eq!(Description::parse(&again).unwrap(), description);
    }

    #[test]
    fn what_breaks_a_rule_is_named() {
        let cases = [
            ("nonsense", "JSON document"),
            (r#"{"name": "a", "version": "1"}"#, "anabranch"),
            (r#"{"anabranch": "0.2", "stuff": 1}"#, "format \"0.2\""),
            (r#"{"anabranch": "0.1", "name": "a", "version": "1", "colour": 1}"#, "colour"),
            (r#"{"anabranch": "0.1", "name": "A b", "version": "1"}"#, "\"A b\""),
            (r#"{"anabranch": "0.1", "name": "a", "version": ""}"#, "version"),
            ("{\"anabranch\": \"0.1\", \"name\": \"a\", \"version\": \"1\u{202e}0\"}", "version"),
            (
                r#"{"anabranch": "0.1", "name": "a", "version": "1",
                    "outputs": [{"name": "o", "kind": "stream"}, {"name": "o", "kind": "table"}]}"#,
                "output o is declared twice",
            ),
            (
                r#"{"anabranch": "0.1", "name": "a", "version": "1",
                    "outputs": [{"name": "o", "kind": "heap"}]}"#,
                "heap",
            ),
            (
                r#"{"anabranch": "0.1", "name": "a", "version": "1",
                    "stores": [{"name": "s", "version": 1, "key": [], "value": "json"}]}"#,
                "store s has 0 parts",
            ),
            (
                r#"{"anabranch": "0.1", "name": "a", "version": "1", "config": {"pattern": "x"}}"#,
                "pattern",
            ),
        ];
        for (json, part) in cases {
            let error = Description::parse(json).unwrap_err().to_string();
            assert!(error.contains(part), "{json}: {error}");
        }
    }
}
