//! Config schemas: the part of JSON Schema that the host checks.
//!
//! **Invariant:** a schema that uses more than this part is refused when the plugin is pushed, so
//! that a constraint is either enforced or known not to be.
//!
//! Understood: `type` (one or a list), `properties`, `required`, `additionalProperties` (a boolean or
//! a schema), `items`, `enum`, `const`, `minimum`, `maximum`, `minLength`, `maxLength`; and as mere
//! notes `title`, `description`, `default`, `examples`, `format`, `$schema`, `$id`, `$comment`.

use serde_json::{Map, Value};

use super::imports::reason;

/// How deep schemas and configs are followed.
const MAX_DEPTH: u32 = 32;

const TYPES: [&str; 7] = ["object", "array", "string", "number", "integer", "boolean", "null"];
const NOTES: [&str; 8] =
    ["title", "description", "default", "examples", "format", "$schema", "$id", "$comment"];

/// What is wrong, and where in the document.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{document}{path}: {problem}")]
pub struct SchemaError {
    document: &'static str,
    path: String,
    problem: String,
}

/// Checks a deployment's config against its plugin's schema.
pub fn check_config(schema: &Value, config: &Value) -> Result<(), SchemaError> {
    check(schema, config, &mut Vec::new()).map_err(|(path, problem)| SchemaError {
        document: "config",
        path: reason(&dotted(&path)),
        problem: reason(&problem),
    })
}

/// Checks that a schema uses only what [`check_config`] understands.
pub(super) fn check_schema(schema: &Value) -> Result<(), SchemaError> {
    understand(schema, &mut Vec::new()).map_err(|(path, problem)| SchemaError {
        document: "the config schema",
        path: reason(&dotted(&path)),
        problem: reason(&problem),
    })
}

type Problem = (Vec<String>, String);

fn dotted(path: &[String]) -> String {
    path.iter().map(|part| format!(".{part}")).collect()
}

fn understand(schema: &Value, path: &mut Vec<String>) -> Result<(), Problem> {
    let problem = |path: &[String], text: String| Err((path.to_vec(), text));
    let Value::Object(fields) = schema else {
        return problem(path, "a schema must be an object".into());
    };
    if path.len() as u32 > 2 * MAX_DEPTH {
        return problem(path, format!("schemas may nest {MAX_DEPTH} deep"));
    }
    for (name, value) in fields {
        let fits = match name.as_str() {
            "type" => type_names(value).is_some_and(|t| t.iter().all(|t| TYPES.contains(t))),
            "required" => value.as_array().is_some_and(|all| all.iter().all(Value::is_string)),
            "enum" => value.is_array(),
            "const" => true,
            "minimum" | "maximum" => value.is_number(),
            "minLength" | "maxLength" => value.is_u64(),
            "properties" => value.is_object(),
            "items" => value.is_object(),
            "additionalProperties" => value.is_object() || value.is_boolean(),
            note if NOTES.contains(&note) => true,
            other => {
                let text = format!("{other:?} is not something this host checks: leave it out");
                return problem(path, text);
            }
        };
        if !fits {
            return problem(path, format!("{name:?} has a value that JSON Schema does not allow"));
        }
    }
    for (name, value) in properties(fields) {
        path.extend(["properties".to_owned(), name.clone()]);
        understand(value, path)?;
        path.truncate(path.len() - 2);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(inner @ Value::Object(_)) = fields.get(name) {
            path.push(name.to_owned());
            understand(inner, path)?;
            path.pop();
        }
    }
    Ok(())
}

fn properties(fields: &Map<String, Value>) -> impl Iterator<Item = (&String, &Value)> {
    fields.get("properties").and_then(Value::as_object).into_iter().flatten()
}

fn type_names(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(name) => Some(vec![name]),
        Value::Array(names) => names.iter().map(Value::as_str).collect(),
        _ => None,
    }
}

fn has_type(value: &Value, name: &str) -> bool {
    match name {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "number" => value.is_number(),
        "integer" => {
            value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
        }
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        _ => false,
    }
}

fn check(schema: &Value, value: &Value, path: &mut Vec<String>) -> Result<(), Problem> {
    let no_fields = Map::new();
    let fields = schema.as_object().unwrap_or(&no_fields);
    check_self(fields, value).map_err(|text| (path.clone(), text))?;
    if path.len() as u32 > MAX_DEPTH {
        return Err((path.clone(), format!("values may nest {MAX_DEPTH} deep")));
    }
    if let (Some(all), Some(inner)) = (value.as_array(), fields.get("items")) {
        for (i, item) in all.iter().enumerate() {
            path.push(i.to_string());
            check(inner, item, path)?;
            path.pop();
        }
    }
    let known = fields.get("properties").and_then(Value::as_object).unwrap_or(&no_fields);
    for (name, item) in value.as_object().into_iter().flatten() {
        path.push(name.clone());
        match (known.get(name), fields.get("additionalProperties")) {
            (Some(inner), _) | (None, Some(inner @ Value::Object(_))) => check(inner, item, path)?,
            (None, Some(Value::Bool(false))) => {
                let names: Vec<_> = known.keys().collect();
                return Err((path.clone(), format!("is not known; known are {names:?}")));
            }
            (None, _) => {}
        }
        path.pop();
    }
    Ok(())
}

/// Checks all but what a value contains.
fn check_self(fields: &Map<String, Value>, value: &Value) -> Result<(), String> {
    if let Some(types) = fields.get("type").and_then(type_names)
        && !types.iter().any(|name| has_type(value, name))
    {
        return Err(format!("must be of type {}, not {value}", types.join(" or ")));
    }
    if let Some(allowed) = fields.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        return Err(format!("must be one of {}, not {value}", Value::Array(allowed.clone())));
    }
    if let Some(only) = fields.get("const")
        && only != value
    {
        return Err(format!("must be {only}, not {value}"));
    }
    let number = |name| fields.get(name).and_then(Value::as_f64);
    if let Some(n) = value.as_f64() {
        if let Some(least) = number("minimum").filter(|&least| n < least) {
            return Err(format!("must be at least {least}, not {value}"));
        }
        if let Some(most) = number("maximum").filter(|&most| n > most) {
            return Err(format!("must be at most {most}, not {value}"));
        }
    }
    if let Some(text) = value.as_str() {
        let n = text.chars().count() as f64;
        if number("minLength").is_some_and(|least| n < least)
            || number("maxLength").is_some_and(|most| n > most)
        {
            return Err(format!("has {n} characters, which is not a length that is allowed"));
        }
    }
    let required = fields.get("required").and_then(Value::as_array).into_iter().flatten();
    for name in required.filter_map(Value::as_str) {
        if value.as_object().is_some_and(|object| !object.contains_key(name)) {
            return Err(format!("lacks {name:?}, which is required"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn configs_are_held_to_the_schema() {
        let schema = json!({"type": "object", "required": ["field"], "additionalProperties": false,
            "properties": {
                "field": {"type": "string", "minLength": 1},
                "minutes": {"type": "integer", "minimum": 0, "maximum": 60},
                "mode": {"enum": ["mean", "max"]},
                "tags": {"type": "array", "items": {"type": ["string", "null"]}}}});
        check_schema(&schema).unwrap();
        let good = json!({"field": "x", "minutes": 15, "mode": "max", "tags": ["a", null]});
        check_config(&schema, &good).unwrap();
        let cases = [
            (json!([]), "config: must be of type object"),
            (json!({}), "config: lacks \"field\""),
            (json!({"field": ""}), "config.field: has 0 characters"),
            (json!({"field": "x", "minutes": 1.5}), "config.minutes: must be of type integer"),
            (json!({"field": "x", "minutes": 61}), "config.minutes: must be at most 60"),
            (json!({"field": "x", "mode": "min"}), "config.mode: must be one of"),
            (
                json!({"field": "x", "tags": ["a", 1]}),
                "config.tags.1: must be of type string or null",
            ),
            (json!({"field": "x", "feild": 1}), "config.feild: is not known"),
        ];
        for (config, part) in cases {
            let error = check_config(&schema, &config).unwrap_err().to_string();
            assert!(error.starts_with(part), "{config}: {error}");
        }
    }

    #[test]
    fn schemas_that_promise_more_are_refused() {
        let cases = [
            (json!(true), "must be an object"),
            (json!({"oneOf": []}), "\"oneOf\""),
            (json!({"type": "text"}), "\"type\""),
            (json!({"properties": {"a": {"pattern": "x"}}}), ".properties.a: \"pattern\""),
        ];
        for (schema, part) in cases {
            let error = check_schema(&schema).unwrap_err().to_string();
            assert!(error.contains(part), "{schema}: {error}");
        }
    }
}
