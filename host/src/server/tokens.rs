//! Routes of tokens: make, list, revoke.

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Extension, Json};

use super::access::Made;
use super::app::App;
use super::extract::{JsonBody, NoParams, Params, Path};
use super::problem::{Problem, ProblemBody};
use crate::deployment::{CreateToken, TokenMade, TokenStatus};

/// All tokens, without their secrets.
#[utoipa::path(get, path = "/v1/tokens", tag = "tokens",
    responses((status = 200, body = Vec<TokenStatus>)))]
pub async fn list_tokens(
    State(app): State<App>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<Vec<TokenStatus>>, Problem> {
    app.blocking(|registry| Ok(registry.tokens())).await.map(Json)
}

/// Makes a token. The answer holds it, this once: the host keeps a hash.
#[utoipa::path(post, path = "/v1/tokens", tag = "tokens", request_body = CreateToken,
    responses((status = 200, body = TokenMade), (status = 400, body = ProblemBody),
        (status = 422, body = ProblemBody)))]
pub async fn create_token(
    State(app): State<App>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(asked): JsonBody<CreateToken>,
) -> Result<impl IntoResponse, Problem> {
    let made = app.blocking(move |registry| registry.create_token(&asked)).await?;
    let id = Extension(Made(made.status.id.clone()));
    Ok((id, [(header::CACHE_CONTROL, "no-store")], Json(made)))
}

/// Revokes a token, at once: streams that were opened with it end, too.
#[utoipa::path(delete, path = "/v1/tokens/{id}", tag = "tokens", params(("id" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemBody)))]
pub async fn revoke_token(
    State(app): State<App>,
    Path(id): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<StatusCode, Problem> {
    app.blocking(move |registry| registry.revoke_token(&id)).await?;
    Ok(StatusCode::NO_CONTENT)
}
