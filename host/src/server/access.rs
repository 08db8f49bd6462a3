//! What a route asks of its caller, and how a request shows who that is.
//!
//! The table of routes (`router`) gives each an [`Access`]; [`Access::guard`] holds it at run time and
//! [`Access::describe`] tells it in `/openapi.json`. Which topics a caller reaches is asked by the
//! handlers, which know the topic: they get it through [`topic_name`] alone.
//!
//! **Invariant:** no handler runs for a caller without the role that its route declares. An
//! administrative call is carried through and written to the audit log also if its client leaves.

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::{FromRequestParts, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use tokio::sync::OwnedRwLockReadGuard;
use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::SecurityRequirement;
use utoipa::openapi::{Ref, RefOr, ResponseBuilder};
use utoipa_axum::router::UtoipaMethodRouter;

use super::app::{App, run_blocking};
use super::extract::discard_unread;
use super::problem::Problem;
use crate::deployment::{AuditEntry, Caller, Registry, Role, claimed_id};
use crate::types::TopicName;

/// The name of the bearer scheme in `/openapi.json`.
pub const SCHEME: &str = "token";

/// Who may call a route.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Anyone, also without a token: it says nothing but whether the host is there.
    Open,
    /// Whose token has the role, or one that contains it.
    Needs(Role),
}

impl Access {
    /// Whether calls are written to the audit log: what changes the host, and who may.
    fn is_administrative(self) -> bool {
        matches!(self, Access::Needs(Role::Deploy | Role::Admin))
    }

    /// `routes`, guarded and described.
    pub fn to(
        self,
        (schemas, mut paths, routes): UtoipaMethodRouter<App>,
    ) -> UtoipaMethodRouter<App> {
        for item in paths.paths.values_mut() {
            let operations =
                [&mut item.get, &mut item.put, &mut item.post, &mut item.delete, &mut item.patch];
            operations.into_iter().flatten().for_each(|operation| self.describe(operation));
        }
        let guard = from_fn(move |request, next| self.guard(request, next));
        (schemas, paths, routes.route_layer(guard))
    }

    /// Says in the description what the route needs.
    fn describe(self, operation: &mut Operation) {
        let Access::Needs(role) = self else {
            operation.security = Some(Vec::new());
            return;
        };
        operation.security = Some(vec![SecurityRequirement::new(SCHEME, [role.as_str()])]);
        operation.extensions =
            Some(ExtensionsBuilder::new().add("x-anabranch-role", role.as_str()).build());
        let problem = || {
            use utoipa::openapi::content::ContentBuilder;
            let schema = RefOr::Ref(Ref::from_schema_name("ProblemBody"));
            let content = ContentBuilder::new().schema(Some(schema)).build();
            ResponseBuilder::new().content("application/json", content)
        };
        for (status, what) in [
            ("401", "No token, or none that is good"),
            ("403", "The token's role or topics do not cover it"),
            ("429", "Too many requests"),
        ] {
            let response = problem().description(what).build();
            operation.responses.responses.entry(status.to_owned()).or_insert(response.into());
        }
    }

    /// Lets a request through to its handler if its caller has the role.
    async fn guard(self, request: Request, next: Next) -> Response {
        let Some(asked) = request.extensions().get::<Asked>().cloned() else {
            return Problem::internal("a route without the layer around it").into_response();
        };
        if let Access::Needs(role) = self
            && let Err(problem) = asked.caller().and_then(|caller| Ok(caller.check_role(role)?))
        {
            return refuse_unread(asked.app(), request, problem).await;
        }
        if !self.is_administrative() {
            return next.run(request).await;
        }
        let carried = tokio::spawn(async move {
            let mut reply = next.run(request).await;
            asked.write_down(asked.entry(&reply)).await;
            reply.extensions_mut().insert(WrittenDown);
            reply
        });
        carried.await.unwrap_or_else(|error| {
            tracing::error!(%error, "a request panicked");
            Problem::internal("the host failed at this request").into_response()
        })
    }
}

/// On a reply that is in the audit log already.
#[derive(Clone)]
pub struct WrittenDown;

/// On a reply that made something: the id that the audit log names it by.
#[derive(Clone)]
pub struct Made(pub String);

/// What is known of a request before its handler runs; cheap to clone.
#[derive(Clone)]
pub struct Asked(Arc<Inner>);

struct Inner {
    app: App,
    request_id: String,
    remote: Option<SocketAddr>,
    method: String,
    path: String,
    claimed: Option<String>,
    caller: Result<Caller, Problem>,
    /// Held until the request and whatever carries it through are done.
    _gate: Option<OwnedRwLockReadGuard<()>>,
}

impl Asked {
    /// A request, and who sends it as far as that is known.
    pub fn new(
        app: App,
        request_id: String,
        remote: Option<SocketAddr>,
        request: &Request,
        caller: Result<Caller, Problem>,
        gate: Option<OwnedRwLockReadGuard<()>>,
    ) -> Self {
        Self(Arc::new(Inner {
            app,
            request_id,
            remote,
            method: request.method().to_string(),
            path: request.uri().path().to_owned(),
            claimed: bearer(request.headers()).and_then(claimed_id).map(str::to_owned),
            caller,
            _gate: gate,
        }))
    }

    fn app(&self) -> &App {
        &self.0.app
    }

    fn caller(&self) -> Result<Caller, Problem> {
        self.0.caller.clone()
    }

    /// What the audit log says of the call, with what came of it.
    pub fn entry(&self, reply: &Response) -> AuditEntry {
        let inner = &self.0;
        let token = inner.caller.as_ref().ok().and_then(Caller::token);
        let status = reply.status();
        AuditEntry {
            request_id: inner.request_id.clone(),
            token: token.map(|token| token.id.clone()).or_else(|| inner.claimed.clone()),
            role: token.map(|token| token.role.as_str()),
            remote: inner.remote.map(|remote| remote.to_string()),
            method: inner.method.clone(),
            path: inner.path.clone(),
            status: status.as_u16(),
            outcome: match () {
                () if is_refusal(status) => REFUSED,
                () if status.is_success() => "done",
                () => "failed",
            },
            code: reply.extensions().get::<Problem>().map(Problem::code),
            made: reply.extensions().get::<Made>().map(|Made(id)| id.clone()),
        }
    }

    /// Writes to the audit log, once there is one: before the host is open, nothing is done for anyone.
    pub async fn write_down(&self, entry: AuditEntry) {
        let Ok(registry) = self.0.app.registry().cloned() else { return };
        let written = run_blocking(move || {
            match entry.outcome {
                REFUSED => registry.audit().refused(&entry),
                _ => registry.audit().write(&entry),
            }
            Ok(())
        });
        // A panic there is in the host's log; the call is answered all the same.
        let _ = written.await;
    }
}

/// The outcome of a call that was refused for who asked, or how.
pub const REFUSED: &str = "refused";

/// Whether a reply of this status refuses who asks, or how, and not what is asked.
pub fn is_refusal(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::UNAUTHORIZED
            | StatusCode::FORBIDDEN
            | StatusCode::REQUEST_TIMEOUT
            | StatusCode::TOO_MANY_REQUESTS
            | StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE
    )
}

/// Refuses a request whose body nobody has read: it is read and thrown away, unless its client waits to
/// be asked for it.
pub async fn refuse_unread(app: &App, request: Request, problem: Problem) -> Response {
    discard_unread(&app.config().http, request).await;
    problem.into_response()
}

/// The text of the token that the request bears.
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// Who asks.
///
/// # Errors
/// 401 when a token is required and there is none that is good; 503 while the host starts.
pub fn identify(app: &App, headers: &HeaderMap) -> Result<Caller, Problem> {
    if !app.config().auth.required {
        return Ok(Caller::anyone());
    }
    let registry: &Registry = app.registry()?;
    if !headers.contains_key(header::AUTHORIZATION) {
        return Err(Problem::unauthenticated(
            "token_missing",
            "this host asks for a token: send the header authorization: Bearer TOKEN, or set ANABRANCH_TOKEN for the command line",
        ));
    }
    let token = bearer(headers).ok_or_else(|| {
        Problem::unauthenticated("token_invalid", "the header authorization is not Bearer TOKEN")
    })?;
    Ok(registry.authenticate(token)?)
}

impl FromRequestParts<App> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &App) -> Result<Self, Problem> {
        match parts.extensions.get::<Asked>() {
            Some(asked) => asked.caller(),
            None => Err(Problem::internal("a route without the layer around it")),
        }
    }
}

/// The topic that a path names, if the caller may touch it.
///
/// # Errors
/// 400 that says how names are written; 403 whether the topic is there or not.
pub fn topic_name(caller: &Caller, text: &str) -> Result<TopicName, Problem> {
    let name: TopicName =
        text.parse().map_err(|error| Problem::invalid("invalid_name", format!("{error}")))?;
    caller.check_topic(name.as_str())?;
    Ok(name)
}
