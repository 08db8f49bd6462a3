//! Routes of plugins: push, list, inspect, delete.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};

use super::app::App;
use super::extract::{NoParams, Params, Path, Whole, expect_type};
use super::problem::{Problem, ProblemBody};
use crate::deployment::PluginStatus;
use crate::types::Digest;

/// All plugins that were pushed.
#[utoipa::path(get, path = "/v1/plugins", tag = "plugins",
    responses((status = 200, body = Vec<PluginStatus>)))]
pub async fn list_plugins(
    State(app): State<App>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<Vec<PluginStatus>>, Problem> {
    app.blocking(|registry| Ok(registry.plugins())).await.map(Json)
}

/// One plugin, by the digest that its push answered.
#[utoipa::path(get, path = "/v1/plugins/{digest}", tag = "plugins", params(("digest" = String, Path)),
    responses((status = 200, body = PluginStatus), (status = 404, body = ProblemBody)))]
pub async fn get_plugin(
    State(app): State<App>,
    Path(digest): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<PluginStatus>, Problem> {
    let digest = parse(&digest)?;
    app.blocking(move |registry| registry.plugin(&digest)).await.map(Json)
}

/// Deletes a plugin that no generation runs.
#[utoipa::path(delete, path = "/v1/plugins/{digest}", tag = "plugins", params(("digest" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn delete_plugin(
    State(app): State<App>,
    Path(digest): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<StatusCode, Problem> {
    let digest = parse(&digest)?;
    app.blocking(move |registry| registry.delete_plugin(&digest)).await?;
    Ok(StatusCode::NO_CONTENT)
}

fn parse(digest: &str) -> Result<Digest, Problem> {
    digest.parse().map_err(|error: String| Problem::invalid("invalid_digest", error))
}

/// Pushes a plugin: a component, or a core module that the host makes into one. It is compiled,
/// checked and described; pushing the same bytes again changes nothing.
#[utoipa::path(post, path = "/v1/plugins", tag = "plugins",
    request_body(content = Vec<u8>, content_type = "application/wasm"),
    responses((status = 200, body = PluginStatus), (status = 400, body = ProblemBody),
        (status = 415, body = ProblemBody), (status = 503, body = ProblemBody)))]
pub async fn push_plugin(
    State(app): State<App>,
    Params(NoParams {}): Params<NoParams>,
    headers: HeaderMap,
    Whole(body, _room): Whole,
) -> Result<Json<PluginStatus>, Problem> {
    expect_type(&headers, &["application/wasm"])?;
    app.blocking(move |registry| registry.push_plugin(&body)).await.map(Json)
}
