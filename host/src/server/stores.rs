//! Routes of state stores: list, one key, a range. Answers name the generation and the input
//! offsets that they stand for.

use axum::Json;
use axum::extract::State;
use serde::Deserialize;

use super::app::App;
use super::extract::{NoParams, Params, Path};
use super::problem::{Problem, ProblemBody};
use crate::deployment::{
    Caller, StoreAnswer, StoreEntry, StorePage, StoreQuery, StoreScan, StoreStatus,
};

/// The stores of a deployment's live generation.
#[utoipa::path(get, path = "/v1/deployments/{name}/stores", tag = "stores",
    params(("name" = String, Path)),
    responses((status = 200, body = Vec<StoreStatus>), (status = 404, body = ProblemBody)))]
pub async fn list_stores(
    State(app): State<App>,
    caller: Caller,
    Path(name): Path<String>,
    Params(NoParams {}): Params<NoParams>,
) -> Result<Json<Vec<StoreStatus>>, Problem> {
    app.on_deployment(caller, name, |registry, name| registry.stores(name)).await.map(Json)
}

/// Which store is meant.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct GetParams {
    /// The generation; the live one by default.
    generation: Option<u32>,
    /// The task partition; the one that the key belongs to by default.
    partition: Option<u32>,
}

/// The entry under a key, shown by the store's declared format.
#[utoipa::path(get, path = "/v1/deployments/{name}/stores/{store}/keys/{key}", tag = "stores",
    params(("name" = String, Path), ("store" = String, Path), ("key" = String, Path), GetParams),
    responses((status = 200, body = StoreAnswer<StoreEntry>), (status = 404, body = ProblemBody)))]
pub async fn get_key(
    State(app): State<App>,
    caller: Caller,
    Path((name, store, key)): Path<(String, String, String)>,
    Params(params): Params<GetParams>,
) -> Result<Json<StoreAnswer<StoreEntry>>, Problem> {
    let query = StoreQuery { generation: params.generation, partition: params.partition, key };
    app.on_deployment(caller, name, move |registry, name| registry.store_get(name, &store, &query))
        .await
        .map(Json)
}

/// Which entries are meant.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(deny_unknown_fields)]
pub struct ScanParams {
    /// The generation; the live one by default.
    generation: Option<u32>,
    /// The task partition; all by default.
    partition: Option<u32>,
    /// Keys that begin with this.
    prefix: Option<String>,
    /// Keys at or after this.
    start: Option<String>,
    /// Keys before this.
    end: Option<String>,
    /// Most entries of a page; 100 by default, 10,000 at most.
    limit: Option<usize>,
    /// Where the page before ended.
    cursor: Option<String>,
}

/// Entries in key order, a page at a time.
#[utoipa::path(get, path = "/v1/deployments/{name}/stores/{store}", tag = "stores",
    params(("name" = String, Path), ("store" = String, Path), ScanParams),
    responses((status = 200, body = StoreAnswer<StorePage>), (status = 404, body = ProblemBody)))]
pub async fn scan_store(
    State(app): State<App>,
    caller: Caller,
    Path((name, store)): Path<(String, String)>,
    Params(params): Params<ScanParams>,
) -> Result<Json<StoreAnswer<StorePage>>, Problem> {
    let limit = params.limit.unwrap_or(100);
    if !(1..=10_000).contains(&limit) {
        let detail = format!("limit {limit} is not between 1 and 10000");
        return Err(Problem::invalid("invalid_query", detail));
    }
    let scan = StoreScan {
        generation: params.generation,
        partition: params.partition,
        prefix: params.prefix,
        start: params.start,
        end: params.end,
        limit,
        cursor: params.cursor,
    };
    app.on_deployment(caller, name, move |registry, name| registry.store_scan(name, &store, &scan))
        .await
        .map(Json)
}
