//! Every route has a role and refuses those that do not cover it; topics bound what a token reaches.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::token;
use crate::support::Host;

/// What each operation needs, written down once more: a slip in the host's own table shows here.
const NEEDS: [(&str, &str); 36] = [
    ("delete /v1/deployments/{name}", "deploy"),
    ("delete /v1/plugins/{digest}", "deploy"),
    ("delete /v1/tokens/{id}", "admin"),
    ("delete /v1/topics/{topic}", "deploy"),
    ("get /healthz", "open"),
    ("get /metrics", "observe"),
    ("get /openapi.json", "open"),
    ("get /readyz", "open"),
    ("get /v1/backups/{name}", "admin"),
    ("post /v1/backups/{name}", "admin"),
    ("get /v1/deployments", "observe"),
    ("get /v1/deployments/{name}", "observe"),
    ("get /v1/deployments/{name}/generations", "observe"),
    ("get /v1/deployments/{name}/generations/{generation}", "observe"),
    ("get /v1/deployments/{name}/stores", "observe"),
    ("get /v1/deployments/{name}/stores/{store}", "consume"),
    ("get /v1/deployments/{name}/stores/{store}/keys/{key}", "consume"),
    ("get /v1/events", "observe"),
    ("get /v1/plugins", "observe"),
    ("get /v1/plugins/{digest}", "observe"),
    ("get /v1/tokens", "admin"),
    ("get /v1/topics", "observe"),
    ("get /v1/topics/{topic}", "observe"),
    ("get /v1/topics/{topic}/partitions/{partition}/records", "consume"),
    ("post /v1/deployments/{name}/cancel", "deploy"),
    ("post /v1/deployments/{name}/pause", "deploy"),
    ("post /v1/deployments/{name}/promote", "deploy"),
    ("post /v1/deployments/{name}/reject", "deploy"),
    ("post /v1/deployments/{name}/resume", "deploy"),
    ("post /v1/deployments/{name}/rollback", "deploy"),
    ("post /v1/deployments/{name}/swap", "deploy"),
    ("post /v1/plugins", "deploy"),
    ("post /v1/tokens", "admin"),
    ("post /v1/topics/{topic}/records", "produce"),
    ("put /v1/deployments/{name}", "deploy"),
    ("put /v1/topics/{topic}", "deploy"),
];

/// The roles that cover what a route needs.
fn covering(needed: &str) -> &'static [&'static str] {
    match needed {
        "observe" => &["observe", "consume", "produce", "deploy", "admin"],
        "consume" => &["consume", "deploy", "admin"],
        "produce" => &["produce", "deploy", "admin"],
        "deploy" => &["deploy", "admin"],
        _ => &["admin"],
    }
}

#[test]
fn every_route_refuses_who_may_not() {
    let (host, root) = Host::start_guarded(&[]);
    let admin = host.bearer(&root);
    let description = host.get("/openapi.json").ok();
    let mut described = BTreeMap::new();
    for (path, operations) in description["paths"].as_object().unwrap() {
        for (method, operation) in operations.as_object().unwrap() {
            let role = operation["x-anabranch-role"].as_str().unwrap_or("open").to_owned();
            described.insert(format!("{method} {path}"), role);
        }
    }
    let expected = NEEDS.iter().map(|(call, role)| ((*call).to_owned(), (*role).to_owned()));
    assert_eq!(described, expected.collect::<BTreeMap<_, _>>());

    let roles = ["observe", "consume", "produce", "deploy", "admin"];
    let tokens = roles.map(|role| match role {
        "admin" => (role, token(&admin, role, &[])),
        _ => (role, token(&admin, role, &["*"])),
    });
    let stranger = format!("{}0", &root[..root.len() - 1]);
    let stranger =
        if stranger == root { format!("{}1", &root[..root.len() - 1]) } else { stranger };
    for (call, needed) in NEEDS {
        let (method, path) = call.split_once(' ').unwrap();
        // Nothing of these names is there, so that whoever may call changes nothing.
        let path = path
            .replace("{name}", "none")
            .replace("{topic}", "none")
            .replace("{partition}", "0")
            .replace("{generation}", "1")
            .replace("{digest}", "sha256:0")
            .replace("{id}", "none")
            .replace("{store}", "none")
            .replace("{key}", "none");
        let ask = |bearer: Option<&str>| {
            let asked = bearer.map_or_else(|| host.client(), |bearer| host.bearer(bearer));
            // An event stream has no end; a position that is none is refused after the token is taken.
            let headers = [("last-event-id", "none")];
            asked.ask(&method.to_uppercase(), &path, &headers, b"").expect("the host answers")
        };
        if needed == "open" {
            assert_eq!(ask(None).status, 200, "{call}");
            assert_eq!(ask(Some(&stranger)).status, 200, "{call}");
            continue;
        }
        let reply = ask(None);
        reply.refused(401, "token_missing", &["Bearer TOKEN", "ANABRANCH_TOKEN"]);
        assert_eq!(reply.headers["www-authenticate"], "Bearer realm=\"anabranch\"", "{call}");
        for wrong in [stranger.as_str(), "root", &root.to_uppercase(), &format!("{root}00")] {
            let reply = ask(Some(wrong));
            reply.refused(401, "token_invalid", &["no token of this host"]);
            let how = reply.headers["www-authenticate"].to_str().unwrap();
            assert!(how.ends_with("error=\"invalid_token\""), "{call}: {how}");
        }
        for (role, token) in &tokens {
            let reply = ask(Some(token));
            if covering(needed).contains(role) {
                assert!(![401, 403].contains(&reply.status), "{call} as {role}: {}", reply.text);
            } else {
                reply.refused(403, "role_forbidden", &[needed, role]);
            }
        }
    }
    // HEAD is GET, and a method that a route does not take is refused as such.
    let head = host.ask("HEAD", "/v1/topics", &[], b"").unwrap();
    assert_eq!(head.status, 401);
    assert_eq!(host.bearer(&root).ask("PATCH", "/v1/topics", &[], b"").unwrap().status, 405);
}

#[test]
fn a_token_reaches_its_topics_and_no_others() {
    let (host, root) = Host::start_guarded(&[]);
    let admin = host.bearer(&root);
    for topic in ["flights", "flights-private", "delays"] {
        admin.topic(topic, &json!({}));
        admin.append(topic, &[json!({"value": topic})]);
    }
    let names = |listed: Value| -> Vec<String> {
        let listed = listed.as_array().unwrap().iter();
        listed.map(|topic| topic["name"].as_str().unwrap().to_owned()).collect()
    };
    let reader = host.bearer(&token(&admin, "consume", &["flights"]));
    assert_eq!(names(reader.get("/v1/topics").ok()), ["flights"]);
    assert_eq!(reader.records("flights", 0).len(), 1);
    // Whether it is there or not, however it is written.
    for topic in ["flights-private", "flights%2Dprivate", "%66lights-private", "nothing", "flight"]
    {
        for path in ["", "/partitions/0/records", "/partitions/0/records?follow=true"] {
            let reply = reader.get(&format!("/v1/topics/{topic}{path}"));
            reply.refused(403, "topic_forbidden", &["is for flights"]);
        }
    }
    for path in ["flights%2F..%2Fflights-private", "flights%00", "flights*", "*", "%20flights"] {
        let reply = reader.get(&format!("/v1/topics/{path}"));
        assert_eq!(reply.body["code"], "invalid_name", "{path}: {}", reply.text);
    }
    for path in ["/v1/topics/flights/../flights-private", "/v1//topics/flights", "/%761/topics"] {
        let reply = reader.get(path);
        assert_eq!(reply.body["code"], "route_not_found", "{path}: {}", reply.text);
    }
    reader.get("/metrics").refused(403, "topic_forbidden", &["all topics"]);
    assert_eq!(admin.get("/metrics").status, 200);

    let writer = host.bearer(&token(&admin, "produce", &["flights-*", "delays"]));
    writer.produce("flights", "{\"value\":1}").refused(
        403,
        "topic_forbidden",
        &["flights-*, delays"],
    );
    writer.append("flights-private", &[json!({"value": 1})]);
    writer.append("delays", &[json!({"value": 1})]);
    let deployer = host.bearer(&token(&admin, "deploy", &["flights*"]));
    assert_eq!(deployer.put("/v1/topics/flights2", &json!({})).status, 200);
    deployer.put("/v1/topics/other", &json!({})).refused(403, "topic_forbidden", &["topic other"]);
    let delete =
        |topic: &str| deployer.ask("DELETE", &format!("/v1/topics/{topic}"), &[], b"").unwrap();
    delete("delays").refused(403, "topic_forbidden", &["topic delays"]);
    assert_eq!(delete("flights2").status, 204);
}

#[test]
fn a_deployment_is_reached_by_who_reaches_all_its_topics() {
    let (host, root) = Host::start_guarded(&[]);
    let admin = host.bearer(&root);
    for topic in ["a-in", "b-in"] {
        admin.topic(topic, &json!({}));
    }
    let digest = admin.push("count");
    let spec = |name: &str, input: &str, output: &str| json!({"name": name, "plugin": digest, "inputs": [input], "outputs": {"counts": output}});
    let deployer = host.bearer(&token(&admin, "deploy", &["a-*"]));
    // The name counts: dead letters go to a topic of that name.
    for (name, input, output) in
        [("a-x", "b-in", "a-out"), ("a-x", "a-in", "b-out"), ("b-x", "a-in", "a-out")]
    {
        let reply = deployer.put(&format!("/v1/deployments/{name}"), &spec(name, input, output));
        reply.refused(403, "topic_forbidden", &["is for a-*", name]);
    }
    assert_eq!(admin.get("/v1/deployments").ok(), json!([]), "nothing was made");
    deployer.put("/v1/deployments/a-x", &spec("a-x", "a-in", "a-out")).ok();
    admin.put("/v1/deployments/b-x", &spec("b-x", "b-in", "b-out")).ok();
    // A name that it may use, of a deployment that it may not.
    admin.put("/v1/deployments/a-mixed", &spec("a-mixed", "b-in", "a-mixed-out")).ok();

    let listed = deployer.get("/v1/deployments").ok();
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    for name in ["b-x", "a-mixed", "b-none"] {
        for path in
            ["", "/generations", "/generations/1", "/stores", "/stores/s", "/stores/s/keys/k"]
        {
            let reply = deployer.get(&format!("/v1/deployments/{name}{path}"));
            reply.refused(403, "topic_forbidden", &[name]);
        }
        for action in ["promote", "reject", "cancel", "rollback", "pause", "resume"] {
            let reply = deployer.post(&format!("/v1/deployments/{name}/{action}"), &json!({}));
            reply.refused(403, "topic_forbidden", &[name]);
        }
        let path = format!("/v1/deployments/{name}");
        deployer.ask("DELETE", &path, &[], b"").unwrap().refused(403, "topic_forbidden", &[name]);
        let swap = deployer.post(&format!("{path}/swap"), &json!({"plugin": digest}));
        swap.refused(403, "topic_forbidden", &[name]);
    }
    assert_eq!(deployer.get("/v1/deployments/a-none").status, 404, "a name of its own");
    assert_eq!(deployer.get("/v1/deployments/a-x/stores").status, 200);

    // It hears of its own deployments alone, of what was before as of what comes.
    let events = |of: &crate::support::Client| {
        of.events("/v1/events", Some("1"))
            .map(|(_, kind, event)| (kind, event["deployment"].clone()))
    };
    let everything: Vec<_> = events(&admin).take(3).collect();
    assert!(everything.contains(&("deployed".to_owned(), json!("b-x"))), "{everything:?}");
    let mut own = events(&deployer);
    assert_eq!(own.next(), Some(("deployed".to_owned(), json!("a-x"))));
    admin.post("/v1/deployments/b-x/pause", &json!({})).ok();
    deployer.post("/v1/deployments/a-x/pause", &json!({})).ok();
    assert_eq!(own.next(), Some(("paused".to_owned(), json!("a-x"))));
}
