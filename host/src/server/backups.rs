//! Routes of backups, which the host makes on its own disk. For those who administer the host.
//!
//! **Invariant:** a client names a folder in the configured directory and nothing else: it has no say
//! in where the host writes.

use axum::Json;
use axum::extract::State;

use super::app::App;
use super::extract::{NoParams, Params, Path};
use super::problem::{Problem, ProblemBody};
use crate::deployment::BackupStatus;

/// How far a backup is, or what it holds.
#[utoipa::path(get, path = "/v1/backups/{name}", tag = "operations",
    params(("name" = String, Path)),
    responses((status = 200, body = BackupStatus), (status = 404, body = ProblemBody),
        (status = 422, body = ProblemBody)))]
pub async fn get_backup(
    State(app): State<App>,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<BackupStatus>, Problem> {
    app.blocking(move |registry| registry.backup(&name)).await.map(Json)
}

/// Starts a backup into a folder of the directory that the host's configuration names, beside
/// everything else. One that is there already is brought up to date; only one runs at a time.
#[utoipa::path(post, path = "/v1/backups/{name}", tag = "operations",
    params(("name" = String, Path)),
    responses((status = 200, body = BackupStatus), (status = 400, body = ProblemBody),
        (status = 409, body = ProblemBody), (status = 422, body = ProblemBody)))]
pub async fn back_up(
    State(app): State<App>,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<BackupStatus>, Problem> {
    app.blocking(move |registry| registry.start_backup(&name)).await.map(Json)
}
