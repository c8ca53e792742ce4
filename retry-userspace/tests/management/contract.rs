//! docs/openapi.json against the routes and the answers.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::http::Method;
use serde_json::Value;

use crate::rig::{Answer, Listener};
use retry_userspace::parts::admin::{self, manage};

/// The methods that the document may use.
const METHODS: [&str; 4] = ["delete", "get", "post", "put"];

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../../docs/openapi.json")).expect("docs/openapi.json is JSON")
});

/// Holds an answer of `listener` against the document: its status, its content type, its headers and its JSON.
pub(crate) fn check(listener: Listener, method: &Method, path: &str, answer: &Answer) {
    let path = path.split('?').next().expect("always one");
    let what = format!("{method} {path}: {}", answer.status);
    let operation = paths(listener)
        .find(|(template, _)| fits(template, path))
        .map(|(_, item)| item.get(method.as_str().to_ascii_lowercase()));
    let response = match operation {
        Some(Some(operation)) => &operation["responses"][answer.status.to_string()],
        // What no operation stands for is refused in the same words.
        Some(None) => outside(&[401, 403, 405], answer),
        None => outside(&[401, 403, 404], answer),
    };
    assert!(response.is_object(), "{what} is not documented");
    let response = resolved(response);
    for (name, header) in response["headers"].as_object().into_iter().flatten() {
        let value = answer.header(&name.to_ascii_lowercase());
        assert!(value.is_some() || header["required"] != true, "{what} has no header {name}");
    }
    let kind = answer.header("content-type").map(|kind| kind.split(';').next().expect("always one"));
    let Some(content) = response["content"].as_object() else {
        assert!(answer.body.is_empty() && kind.is_none(), "{what} has a body");
        return;
    };
    let kind = kind.unwrap_or_else(|| panic!("{what} has no content type"));
    let media = content.get(kind).unwrap_or_else(|| panic!("{what} is {kind}, which is not documented"));
    if kind == "application/json" {
        fit(&what, &answer.json(), &media["schema"]);
    }
}

/// The response of a request that is for no operation: an error as all are.
fn outside(statuses: &[u16], answer: &Answer) -> &'static Value {
    match statuses.contains(&answer.status) {
        true => &DOCUMENT["components"]["responses"]["badRequest"],
        false => &Value::Null,
    }
}

/// The paths of a listener; those of `-metrics-addr` name their server.
fn paths(listener: Listener) -> impl Iterator<Item = (&'static str, &'static Value)> {
    let all = DOCUMENT["paths"].as_object().expect("paths");
    let on_metrics = |item: &Value| item.get("servers").is_some();
    all.iter()
        .filter(move |(_, item)| on_metrics(item) == (listener == Listener::Metrics))
        .map(|(path, item)| (path.as_str(), item))
}

fn fits(template: &str, path: &str) -> bool {
    let parts = template.split('/').zip(path.split('/'));
    template.split('/').count() == path.split('/').count()
        && parts.into_iter().all(|(template, part)| template.starts_with('{') || template == part)
}

fn resolved(node: &'static Value) -> &'static Value {
    match node["$ref"].as_str() {
        Some(reference) => {
            let target = DOCUMENT.pointer(reference.strip_prefix('#').expect("inside the document"));
            resolved(target.unwrap_or_else(|| panic!("{reference} is not in the document")))
        }
        None => node,
    }
}

/// What the document uses of JSON Schema: `type`, `enum`, `properties` (all named, extra ones refused), `required`, `items`.
fn fit(at: &str, value: &Value, schema: &'static Value) {
    let schema = resolved(schema);
    let kinds: Vec<_> = match &schema["type"] {
        Value::String(kind) => vec![kind.as_str()],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => panic!("{at}: the schema has no type"),
    };
    let is = |kind: &str| match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => panic!("{at}: {kind} is no type"),
    };
    assert!(kinds.iter().any(|kind| is(kind)), "{at}: {value} is not {kinds:?}");
    if let Some(words) = schema["enum"].as_array() {
        assert!(words.contains(value), "{at}: {value} is none of {words:?}");
    }
    for (i, one) in value.as_array().into_iter().flatten().enumerate() {
        fit(&format!("{at}[{i}]"), one, &schema["items"]);
    }
    let Some(object) = value.as_object() else { return };
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        assert!(object.contains_key(name), "{at}: {name} is missing");
    }
    for (name, value) in object {
        let known = schema["properties"].get(name).unwrap_or(&schema["additionalProperties"]);
        assert!(known.is_object(), "{at}: {name} is not documented");
        fit(&format!("{at}.{name}"), value, known);
    }
}

/// Methods and paths of a listener.
fn documented(listener: Listener) -> BTreeSet<String> {
    let operations = |item: &'static Value| {
        let keys = item.as_object().expect("an object").keys();
        keys.filter(|key| METHODS.contains(&key.as_str())).map(|key| key.to_ascii_uppercase())
    };
    paths(listener).flat_map(|(path, item)| operations(item).map(move |method| format!("{method} {path}"))).collect()
}

#[test]
fn the_document_has_the_routes_and_no_others() {
    fn set(routes: impl Iterator<Item = (Method, &'static str)>) -> BTreeSet<String> {
        routes.map(|(method, path)| format!("{method} {path}")).collect()
    }
    assert_eq!(documented(Listener::Api), set(manage::routes()));
    assert_eq!(documented(Listener::Metrics), set(admin::routes()));
}

/// Every reference leads somewhere, every operation is named, explained and guarded, every parameter of a path is described.
#[test]
fn the_document_is_whole() {
    assert_eq!(DOCUMENT["openapi"], "3.1.0");
    walk(&DOCUMENT);
    let mut names = BTreeSet::new();
    for (path, item) in DOCUMENT["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("an object") {
            if !METHODS.contains(&method.as_str()) {
                continue;
            }
            let at = format!("{method} {path}");
            assert!(operation["summary"].is_string(), "{at} has no summary");
            let name = operation["operationId"].as_str().unwrap_or_else(|| panic!("{at} has no operationId"));
            assert!(names.insert(name), "{name} twice");
            let responses = operation["responses"].as_object().expect("responses");
            for (status, response) in responses {
                assert!(resolved(response)["description"].is_string(), "{at}: {status} is not explained");
            }
            if item.get("servers").is_none() {
                assert!(responses.contains_key("401"), "{at} says nothing of 401");
            } else {
                assert_eq!(operation["security"], serde_json::json!([]), "{at} takes no token");
            }
            let parameters = [&item["parameters"], &operation["parameters"]];
            let described: BTreeSet<_> = parameters
                .into_iter()
                .flat_map(|list| list.as_array().into_iter().flatten())
                .map(resolved)
                .filter(|parameter| parameter["in"] == "path")
                .map(|parameter| format!("{{{}}}", parameter["name"].as_str().expect("a name")))
                .collect();
            let in_path: BTreeSet<_> =
                path.split('/').filter(|part| part.starts_with('{')).map(str::to_owned).collect();
            assert_eq!(described, in_path, "{at}");
        }
    }
}

fn walk(node: &'static Value) {
    match node {
        Value::Object(object) => {
            resolved(node);
            object.values().for_each(walk);
        }
        Value::Array(list) => list.iter().for_each(walk),
        _ => {}
    }
}
