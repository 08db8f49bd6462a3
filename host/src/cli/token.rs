//! `token`: made, listed and revoked by a host, or in the data directory of one that is stopped.
//!
//! **Invariant:** standard output of `create` is the token and nothing else, so that it can be redirected
//! into a file without passing a screen.

use serde_json::{Value, json};

use super::args::{Offline, Token, TokenRole};
use super::client::{Error, segment};
use super::commands::{Context, shaped};
use super::print::table;
use crate::config::Config;
use crate::deployment::{AuditEntry, CreateToken, Kind, Registry, TokenMade, TokenStatus};

/// Runs the command.
pub fn run(context: &Context, command: Token) -> Result<(), Error> {
    match command {
        Token::Create { name, role, topics, expires, offline } => {
            let role = match role {
                TokenRole::Observe => "observe",
                TokenRole::Consume => "consume",
                TokenRole::Produce => "produce",
                TokenRole::Deploy => "deploy",
                TokenRole::Admin => "admin",
            };
            let asked =
                json!({"name": name, "role": role, "topics": topics, "expires_in": expires});
            let made = match opened(context, &offline, true)? {
                Place::Host => {
                    let body = asked.to_string();
                    context.client.post("/v1/tokens", "application/json", body.as_bytes())?
                }
                Place::Directory(registry) => {
                    let asked: CreateToken = serde_json::from_value(asked)
                        .map_err(|error| Error::Usage(error.to_string()))?;
                    let make = |registry: &Registry| {
                        Ok(serde_json::to_value(registry.create_token(&asked)?).unwrap_or_default())
                    };
                    offline_call(&registry, "POST", "/v1/tokens", make, |made| {
                        made["id"].as_str().map(str::to_owned)
                    })?
                }
            };
            let token: TokenMade = shaped(&made)?;
            if !context.json {
                eprintln!(
                    "token {} has the role {role}; this is the only time that it is shown",
                    token.status.id
                );
            }
            context.print(&made, || format!("{}\n", token.token))
        }
        Token::List { offline } => {
            let tokens: Value = match opened(context, &offline, false)? {
                Place::Host => context.client.get("/v1/tokens", &[])?,
                Place::Directory(registry) => {
                    let tokens = json!(registry.tokens());
                    registry.close();
                    tokens
                }
            };
            let rows: Vec<Vec<String>> =
                shaped::<Vec<TokenStatus>>(&tokens)?.into_iter().map(row).collect();
            context.print(&tokens, || {
                table(&["ID", "NAME", "ROLE", "TOPICS", "CREATED", "EXPIRES"], &rows)
            })
        }
        Token::Revoke { id, offline } => {
            let path = format!("/v1/tokens/{}", segment(&id));
            match opened(context, &offline, false)? {
                Place::Host => context.client.delete(&path)?,
                Place::Directory(registry) => {
                    let revoke = |registry: &Registry| registry.revoke_token(&id);
                    offline_call(&registry, "DELETE", &path, revoke, |()| None)?;
                }
            }
            context.print(&json!({"revoked": id}), || format!("token {id} is revoked\n"))
        }
    }
}

fn row(token: TokenStatus) -> Vec<String> {
    let expires = match (token.expires_at, token.expired) {
        (None, _) => "never".to_owned(),
        (Some(at), false) => at,
        (Some(at), true) => format!("{at} (expired)"),
    };
    let topics = token.topics.join(" ");
    vec![token.id, token.name, token.role.as_str().to_owned(), topics, token.created_at, expires]
}

/// Who knows the tokens.
enum Place {
    /// A host that runs.
    Host,
    /// The data of one that does not, opened as `serve --safe` does.
    Directory(Registry),
}

/// Opens what the command is for; `makes` says that a data directory is made where there is none.
fn opened(context: &Context, offline: &Offline, makes: bool) -> Result<Place, Error> {
    let Some(dir) = &offline.data else { return Ok(Place::Host) };
    if !makes && !dir.join("format").exists() {
        let message = format!("{} is no data directory: name it with --data", dir.display());
        return Err(Error::Failed(message));
    }
    let config = offline.config.as_deref();
    let mut config =
        Config::load(config, std::env::vars()).map_err(|error| Error::Usage(error.to_string()))?;
    config.data.dir.clone_from(dir);
    let registry = Registry::open(&config, true, context.clock.clone());
    registry.map(Place::Directory).map_err(refused)
}

/// Does `work` and closes the directory; what was done is in its audit log.
fn offline_call<T>(
    registry: &Registry,
    method: &str,
    path: &str,
    work: impl FnOnce(&Registry) -> Result<T, crate::deployment::Error>,
    made: impl FnOnce(&T) -> Option<String>,
) -> Result<T, Error> {
    let done = work(registry);
    if let Ok(done) = &done {
        registry.audit().write(&AuditEntry {
            method: method.to_owned(),
            path: path.to_owned(),
            outcome: "done offline",
            made: made(done),
            ..AuditEntry::default()
        });
    }
    registry.close();
    done.map_err(refused)
}

/// A refusal with the exit code that it has over HTTP.
fn refused(error: crate::deployment::Error) -> Error {
    let status = match error.kind {
        Kind::Invalid => 400,
        Kind::NotFound => 404,
        Kind::Conflict => 409,
        Kind::Refused => 422,
        _ => return Error::Failed(error.message),
    };
    let problem = json!({"code": error.code, "detail": error.message});
    Error::Refused { status, detail: error.message, problem }
}
