//! Routes of deployments and their generations: deploy, swap, and what an operator decides.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;

use super::app::App;
use super::extract::{JsonBody, NoParams, Params, Path};
use super::problem::{Problem, ProblemBody};
use crate::deployment::{
    Caller, DeploymentSpec, DeploymentStatus, GenerationStatus, SwapRequest, SwapStarted,
};

/// All deployments whose topics the caller reaches, by name.
#[utoipa::path(get, path = "/v1/deployments", tag = "deployments",
    responses((status = 200, body = Vec<DeploymentStatus>)))]
pub async fn list_deployments(
    State(app): State<App>,
    caller: Caller,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<Vec<DeploymentStatus>>, Problem> {
    let mut deployments = app.blocking(|registry| Ok(registry.deployments())).await?;
    deployments.retain(|deployment| caller.check_spec(&deployment.spec).is_ok());
    Ok(Json(deployments))
}

/// One deployment with its generations and their progress.
#[utoipa::path(get, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path)),
    responses((status = 200, body = DeploymentStatus), (status = 404, body = ProblemBody)))]
pub async fn get_deployment(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<DeploymentStatus>, Problem> {
    app.on_deployment(caller, name, |registry, name| registry.deployment(name)).await.map(Json)
}

/// Deploys: the body is the deployment file as JSON, its plugin a digest that was pushed. The same
/// file again changes nothing; another one is a conflict that says to swap.
#[utoipa::path(put, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path)), request_body = DeploymentSpec,
    responses((status = 200, body = DeploymentStatus), (status = 400, body = ProblemBody),
        (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn deploy(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(spec): JsonBody<DeploymentSpec>,
) -> Result<Json<DeploymentStatus>, Problem> {
    if spec.name.as_str() != name {
        return Err(Problem::invalid(
            "name_mismatch",
            format!("the path says {name:?}, the file says {:?}: use one name", spec.name.as_str()),
        ));
    }
    caller.check_spec(&spec)?;
    app.on_deployment(caller, name, move |registry, _| registry.deploy(&spec)).await.map(Json)
}

/// Deletes a deployment with its generations and stores; the topics of its outputs stay.
#[utoipa::path(delete, path = "/v1/deployments/{name}", tag = "deployments",
    params(("name" = String, Path)),
    responses((status = 204), (status = 404, body = ProblemBody), (status = 409, body = ProblemBody)))]
pub async fn delete_deployment(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<StatusCode, Problem> {
    app.on_deployment(caller, name, |registry, name| registry.delete_deployment(name)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Starts a swap: a candidate replays history beside the live generation.
#[utoipa::path(post, path = "/v1/deployments/{name}/swap", tag = "swap",
    params(("name" = String, Path)), request_body = SwapRequest,
    responses((status = 200, body = SwapStarted), (status = 404, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub async fn swap(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
    JsonBody(request): JsonBody<SwapRequest>,
) -> Result<Json<SwapStarted>, Problem> {
    app.on_deployment(caller, name, move |registry, name| registry.swap(name, &request))
        .await
        .map(Json)
}

macro_rules! actions {
    ($($(#[doc = $doc:literal])* $action:ident at $path:literal;)*) => { $(
        $(#[doc = $doc])*
        #[utoipa::path(post, path = $path, tag = "swap", params(("name" = String, Path)),
            responses((status = 200, body = DeploymentStatus), (status = 404, body = ProblemBody),
                (status = 409, body = ProblemBody)))]
        pub async fn $action(
            State(app): State<App>,
            caller: Caller,
            Path(name): Path<String>,
            Params(NoParams {}): Params<NoParams>,
        ) -> Result<Json<DeploymentStatus>, Problem> {
            app.on_deployment(caller, name, |registry, name| registry.$action(name)).await.map(Json)
        }
    )* };
}

actions! {
    /// Makes the candidate that has caught up the live generation.
    promote at "/v1/deployments/{name}/promote";
    /// Turns down the candidate that waits at the gate.
    reject at "/v1/deployments/{name}/reject";
    /// Calls off the candidate that replays.
    cancel at "/v1/deployments/{name}/cancel";
    /// Makes the warm generation live again, at once.
    rollback at "/v1/deployments/{name}/rollback";
    /// Stops processing until it is resumed; nothing is lost.
    pause at "/v1/deployments/{name}/pause";
    /// Goes on after a pause.
    resume at "/v1/deployments/{name}/resume";
}

/// All generations of a deployment, oldest first.
#[utoipa::path(get, path = "/v1/deployments/{name}/generations", tag = "swap",
    params(("name" = String, Path)),
    responses((status = 200, body = Vec<GenerationStatus>), (status = 404, body = ProblemBody)))]
pub async fn list_generations(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<Vec<GenerationStatus>>, Problem> {
    let status =
        app.on_deployment(caller, name, |registry, name| registry.deployment(name)).await?;
    Ok(Json(status.generations))
}

/// One generation.
#[utoipa::path(get, path = "/v1/deployments/{name}/generations/{generation}", tag = "swap",
    params(("name" = String, Path), ("generation" = u32, Path)),
    responses((status = 200, body = GenerationStatus), (status = 404, body = ProblemBody)))]
pub async fn get_generation(
    State(app): State<App>,
    caller: Caller,
    Path((name, number)): Path<(String, u32)>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<GenerationStatus>, Problem> {
    let wanted = name.clone();
    let status =
        app.on_deployment(caller, name, |registry, name| registry.deployment(name)).await?;
    let count = status.generations.len();
    let found = status.generations.into_iter().find(|generation| generation.number == number);
    found.map(Json).ok_or_else(|| {
        Problem::new(
            StatusCode::NOT_FOUND,
            "generation_not_found",
            format!("deployment {wanted:?} has no generation {number}; it has made {count} so far"),
        )
    })
}
