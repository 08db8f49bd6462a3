//! All routes, and their description at `/openapi.json`, which is made from the same list.

use axum::middleware::from_fn_with_state;
use axum::{Json, Router};
use utoipa::OpenApi;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::app::App;
use super::{deployments, fetch, layers, operations, plugins, stores, topics};

/// What is said of the whole API.
#[derive(OpenApi)]
#[openapi(info(
    title = "Anabranch",
    description = "Streams, plugins, deployments and their swaps. Errors are application/problem+json with a stable `code`; every reply carries `x-request-id`."
))]
struct Description;

/// The routes and their description.
fn described() -> OpenApiRouter<App> {
    OpenApiRouter::with_openapi(Description::openapi())
        .routes(routes!(topics::list_topics))
        .routes(routes!(topics::get_topic, topics::create_topic, topics::delete_topic))
        .routes(routes!(topics::produce))
        .routes(routes!(fetch::fetch))
        .routes(routes!(plugins::list_plugins, plugins::push_plugin))
        .routes(routes!(plugins::get_plugin))
        .routes(routes!(deployments::list_deployments))
        .routes(routes!(
            deployments::get_deployment,
            deployments::deploy,
            deployments::delete_deployment
        ))
        .routes(routes!(deployments::swap))
        .routes(routes!(deployments::promote))
        .routes(routes!(deployments::reject))
        .routes(routes!(deployments::cancel))
        .routes(routes!(deployments::rollback))
        .routes(routes!(deployments::pause))
        .routes(routes!(deployments::resume))
        .routes(routes!(deployments::list_generations))
        .routes(routes!(deployments::get_generation))
        .routes(routes!(stores::list_stores))
        .routes(routes!(stores::scan_store))
        .routes(routes!(stores::get_key))
        .routes(routes!(operations::events))
        .routes(routes!(operations::healthz))
        .routes(routes!(operations::readyz))
        .routes(routes!(operations::metrics))
        .routes(routes!(openapi))
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
    const SURFACE: [&str; 30] = [
        "delete /v1/deployments/{name}",
        "delete /v1/topics/{topic}",
        "get /healthz",
        "get /metrics",
        "get /openapi.json",
        "get /readyz",
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
        "get /v1/topics",
        "get /v1/topics/{topic}",
        "get /v1/topics/{topic}/partitions/{partition}/records",
        "post /v1/deployments/{name}/cancel",
        "post /v1/deployments/{name}/pause",
        "post /v1/deployments/{name}/promote",
        "post /v1/deployments/{name}/reject",
        "post /v1/deployments/{name}/resume",
        "post /v1/deployments/{name}/rollback",
        "post /v1/deployments/{name}/swap",
        "post /v1/plugins",
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
            }
        }
        assert_eq!(found, SURFACE.iter().map(|&s| s.to_owned()).collect());
    }
}
