//! All routes with who may call them, and their description at `/openapi.json`: both from one table.

use axum::middleware::from_fn_with_state;
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter};
use utoipa_axum::routes;

use super::access::{Access, SCHEME};
use super::app::App;
use super::{backups, deployments, fetch, layers, operations, plugins, stores, tokens, topics};
use crate::deployment::Role;

/// What is said of the whole API.
#[derive(OpenApi)]
#[openapi(info(
    title = "Anabranch",
    description = "Streams, plugins, deployments and their swaps. Errors are application/problem+json with a stable `code`; every reply carries `x-request-id`. Where the host requires tokens, `x-anabranch-role` is the least role that an operation needs, on a token that reaches its topics."
))]
struct Description;

/// Each route, and who may call it.
fn table() -> Vec<UtoipaMethodRouter<App>> {
    use Role::{Admin, Consume, Deploy, Observe, Produce};
    let needs = Access::Needs;
    vec![
        needs(Observe).to(routes!(topics::list_topics)),
        needs(Observe).to(routes!(topics::get_topic)),
        needs(Deploy).to(routes!(topics::create_topic, topics::delete_topic)),
        needs(Produce).to(routes!(topics::produce)),
        needs(Consume).to(routes!(fetch::fetch)),
        needs(Observe).to(routes!(plugins::list_plugins)),
        needs(Deploy).to(routes!(plugins::push_plugin)),
        needs(Observe).to(routes!(plugins::get_plugin)),
        needs(Deploy).to(routes!(plugins::delete_plugin)),
        needs(Observe).to(routes!(deployments::list_deployments)),
        needs(Observe).to(routes!(deployments::get_deployment)),
        needs(Deploy).to(routes!(deployments::deploy, deployments::delete_deployment)),
        needs(Deploy).to(routes!(deployments::swap)),
        needs(Deploy).to(routes!(deployments::promote)),
        needs(Deploy).to(routes!(deployments::reject)),
        needs(Deploy).to(routes!(deployments::cancel)),
        needs(Deploy).to(routes!(deployments::rollback)),
        needs(Deploy).to(routes!(deployments::pause)),
        needs(Deploy).to(routes!(deployments::resume)),
        needs(Observe).to(routes!(deployments::list_generations)),
        needs(Observe).to(routes!(deployments::get_generation)),
        needs(Observe).to(routes!(stores::list_stores)),
        needs(Consume).to(routes!(stores::scan_store)),
        needs(Consume).to(routes!(stores::get_key)),
        needs(Admin).to(routes!(tokens::list_tokens, tokens::create_token)),
        needs(Admin).to(routes!(tokens::revoke_token)),
        needs(Admin).to(routes!(backups::get_backup, backups::back_up)),
        needs(Observe).to(routes!(operations::events)),
        needs(Observe).to(routes!(operations::metrics)),
        Access::Open.to(routes!(operations::healthz)),
        Access::Open.to(routes!(operations::readyz)),
        Access::Open.to(routes!(openapi)),
    ]
}

/// The routes and their description.
fn described() -> OpenApiRouter<App> {
    let mut description = Description::openapi();
    let scheme = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).build();
    let components = description.components.get_or_insert_default();
    components.add_security_scheme(SCHEME, SecurityScheme::Http(scheme));
    table().into_iter().fold(OpenApiRouter::with_openapi(description), OpenApiRouter::routes)
}

/// The description of this API (OpenAPI 3.1).
#[utoipa::path(get, path = "/openapi.json", tag = "operations",
    responses((status = 200, body = Object)))]
async fn openapi() -> Json<utoipa::openapi::OpenApi> {
    Json(described().into_openapi())
}

/// The router of the whole surface.
pub fn router(app: App) -> Router {
    Router::from(described())
        .fallback(layers::no_route)
        .method_not_allowed_fallback(layers::no_method)
        .layer(from_fn_with_state(app.clone(), layers::around))
        .with_state(app)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The surface as published, but for what is left for later.
    const SURFACE: [&str; 36] = [
        "delete /v1/deployments/{name}",
        "delete /v1/plugins/{digest}",
        "delete /v1/tokens/{id}",
        "delete /v1/topics/{topic}",
        "get /healthz",
        "get /metrics",
        "get /openapi.json",
        "get /readyz",
        "get /v1/backups/{name}",
        "get /v1/deployments",
        "get /v1/deployments/{name}",
        "get /v1/deployments/{name}/generations",
        "get /v1/deployments/{name}/generations/{generation}",
        "get /v1/deployments/{name}/stores",
        "get /v1/deployments/{name}/stores/{store}",
        "get /v1/deployments/{name}/stores/{store}/keys/{key}",
        "get /v1/events",
        "get /v1/plugins",
        "get /v1/plugins/{digest}",
        "get /v1/tokens",
        "get /v1/topics",
        "get /v1/topics/{topic}",
        "get /v1/topics/{topic}/partitions/{partition}/records",
        "post /v1/backups/{name}",
        "post /v1/deployments/{name}/cancel",
        "post /v1/deployments/{name}/pause",
        "post /v1/deployments/{name}/promote",
        "post /v1/deployments/{name}/reject",
        "post /v1/deployments/{name}/resume",
        "post /v1/deployments/{name}/rollback",
        "post /v1/deployments/{name}/swap",
        "post /v1/plugins",
        "post /v1/tokens",
        "post /v1/topics/{topic}/records",
        "put /v1/deployments/{name}",
        "put /v1/topics/{topic}",
    ];

    #[test]
    fn every_route_is_described() {
        let document = serde_json::to_value(described().into_openapi()).unwrap();
        let mut found = BTreeSet::new();
        for (path, item) in document["paths"].as_object().unwrap() {
            for (method, operation) in item.as_object().unwrap() {
                found.insert(format!("{method} {path}"));
                assert!(operation["summary"].is_string(), "{method} {path} has no summary");
                assert!(operation["responses"]["200"].is_object() || method == "delete");
                let role = operation["x-anabranch-role"].as_str().unwrap_or("open");
                let open = ["/healthz", "/readyz", "/openapi.json"].contains(&path.as_str());
                assert_eq!(role == "open", open, "{method} {path}");
                let scheme = serde_json::json!([{ SCHEME: [role] }]);
                let expected = if open { serde_json::json!([]) } else { scheme };
                assert_eq!(operation["security"], expected, "{method} {path}");
                assert_eq!(operation["responses"]["403"].is_object(), !open, "{method} {path}");
            }
        }
        assert_eq!(found, SURFACE.iter().map(|&s| s.to_owned()).collect());
    }
}
