//! Tokens: made once, shown once, kept as a hash in the catalogue, and gone at once when revoked.
//!
//! A token is `anabranch_ID_SECRET`: sixteen hexadecimal digits that may be shown anywhere, and 64 that
//! are shown to whoever has it made and to nobody else. The catalogue keeps SHA-256 of the whole text:
//! a secret of 256 random bits cannot be guessed, so that a slow hash would only slow down requests.
//!
//! **Invariant:** a token that is presented is compared in constant time with the hash under its id, or
//! with none that fits if there is no such id; nothing is told about a token whose secret is wrong. A
//! change is durable before it is answered, and holds for every request and stream from then on.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;
use tokio::sync::watch;
use utoipa::ToSchema;

use super::events::rfc3339;
use super::spec::span;
use super::{Caller, Error, Kind, Registry, Role, TopicPattern};
use crate::clock::secret;
use crate::log::Commit;
use crate::threads::{Mutex, RwLock};

/// The longest time after which a token may expire: a hundred years.
const MOST_LASTING: Duration = Duration::from_secs(36_500 * 86_400);

/// What every token begins with, so that it is known for one wherever it turns up.
const PREFIX: &str = "anabranch_";
/// Most letters of a token's name.
const NAME_LETTERS: usize = 100;

/// A token, as it stands in the catalogue under `a` and its id.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TokenRecord {
    /// Sixteen hexadecimal digits.
    pub id: String,
    /// What its maker calls it.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The topics that it reaches.
    pub topics: Vec<TopicPattern>,
    /// SHA-256 of its text.
    #[serde(with = "hex::serde")]
    sha256: [u8; 32],
    /// When it was made, in milliseconds since the Unix epoch.
    pub created_ms: i64,
    /// When it ends, if it does.
    pub expires_ms: Option<i64>,
}

impl TokenRecord {
    fn key(id: &str) -> Vec<u8> {
        [b"a", id.as_bytes()].concat()
    }

    fn is_over(&self, now_ms: i64) -> bool {
        self.expires_ms.is_some_and(|end| end <= now_ms)
    }

    fn status(&self, now_ms: i64) -> TokenStatus {
        TokenStatus {
            id: self.id.clone(),
            name: self.name.clone(),
            role: self.role,
            topics: self.topics.iter().cloned().map(String::from).collect(),
            created_at: rfc3339(self.created_ms),
            expires_at: self.expires_ms.map(rfc3339),
            expired: self.is_over(now_ms),
        }
    }
}

/// What a token is made with.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateToken {
    /// What it is called, in lists: printable ASCII, 1 to 100 letters.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The topics that it reaches: names, beginnings of names such as `flights-*`, or `*` for all. An
    /// admin reaches all.
    #[serde(default)]
    #[schema(value_type = Vec<String>)]
    pub topics: Vec<TopicPattern>,
    /// How long it is good for: `30m`, `12h`, `90d`. Until it is revoked, if left out.
    #[serde(default)]
    pub expires_in: Option<String>,
}

/// A token as it is listed: without its secret, which nobody has but its bearer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenStatus {
    /// Sixteen hexadecimal digits, which the audit log names it by.
    pub id: String,
    /// What it is called.
    pub name: String,
    /// What it is for.
    pub role: Role,
    /// The topics that it reaches.
    pub topics: Vec<String>,
    /// When it was made, RFC 3339.
    pub created_at: String,
    /// When it ends, RFC 3339, if it does.
    pub expires_at: Option<String>,
    /// Whether it has ended. It is of no use then, and can be revoked to be out of the list.
    pub expired: bool,
}

/// A token that was just made.
#[derive(Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct TokenMade {
    /// What will be listed of it.
    #[serde(flatten)]
    pub status: TokenStatus,
    /// The token. It is shown this once.
    pub token: String,
}

/// Without the token, wherever it may be printed.
impl std::fmt::Debug for TokenMade {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.status.fmt(f)
    }
}

/// All tokens in memory.
pub(super) struct Tokens {
    known: RwLock<BTreeMap<String, Arc<TokenRecord>>>,
    /// Held while one is made or revoked.
    changing: Mutex<()>,
    /// Told after one was revoked.
    revoked: watch::Sender<()>,
}

impl Default for Tokens {
    fn default() -> Self {
        let revoked = watch::channel(()).0;
        Self { known: RwLock::default(), changing: Mutex::default(), revoked }
    }
}

/// The id that a token claims to have; it is no secret.
pub fn claimed_id(token: &str) -> Option<&str> {
    let (id, secret) = token.strip_prefix(PREFIX)?.split_once('_')?;
    let digits = |text: &str| text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'a'..=b'f'));
    (id.len() == 16 && secret.len() == 64 && digits(id) && digits(secret)).then_some(id)
}

impl Registry {
    /// Reads all tokens.
    pub(super) fn read_tokens(&self) -> Result<(), Error> {
        let mut known = self.inner.tokens.known.write();
        let mut damaged = None;
        let scanned = self.inner.log.metadata_scan(b"a", |_, value| {
            match serde_json::from_slice::<TokenRecord>(&value) {
                Ok(record) => drop(known.insert(record.id.clone(), Arc::new(record))),
                Err(error) => damaged = Some(error.to_string()),
            }
        });
        match scanned.map_err(|e| e.to_string()).err().or(damaged) {
            Some(e) => Err(Error::new(Kind::Internal, "catalogue_damaged", e)),
            None => Ok(()),
        }
    }

    /// Makes a token; its text is in the answer and nowhere else.
    ///
    /// # Errors
    /// When it has no proper name, reaches nothing, or there are too many.
    pub fn create_token(&self, asked: &CreateToken) -> Result<TokenMade, Error> {
        let invalid = |message: String| Error::new(Kind::Invalid, "invalid_token", message);
        let named = asked.name.bytes().all(|b| b == b' ' || b.is_ascii_graphic());
        if !named || asked.name.trim().is_empty() || asked.name.len() > NAME_LETTERS {
            return Err(invalid(format!(
                "a token's name has 1 to {NAME_LETTERS} printable letters of ASCII, as lists and the audit log show it"
            )));
        }
        let topics = match (asked.role, asked.topics.as_slice()) {
            (Role::Admin, topics) if topics.iter().all(TopicPattern::is_all) => {
                vec![TopicPattern::all()]
            }
            (Role::Admin, _) => {
                return Err(invalid(
                    "an admin makes tokens for all topics and so reaches all: leave topics out, or choose another role"
                        .to_owned(),
                ));
            }
            (_, []) => {
                return Err(invalid(
                    "topics says what the token reaches, and is empty: name topics, beginnings of names such as flights-*, or * for all"
                        .to_owned(),
                ));
            }
            (_, topics) => topics.to_vec(),
        };
        let now_ms = self.inner.clock.now_ms();
        let lasts = asked.expires_in.as_deref().map(span::parse).transpose().map_err(invalid)?;
        if lasts.is_some_and(|lasts| lasts.is_zero() || lasts > MOST_LASTING) {
            let most = MOST_LASTING.as_secs() / 86_400;
            return Err(invalid(format!(
                "expires_in is more than nothing and at most {most}d; leave it out for a token that does not expire"
            )));
        }
        let expires_ms = lasts.map(|lasts| now_ms.saturating_add(lasts.as_millis() as i64));
        let _changing = self.inner.tokens.changing.lock();
        let most = self.inner.config.auth.max_tokens;
        if self.inner.tokens.known.read().len() >= most {
            let message = format!(
                "there are {most} tokens (auth.max_tokens): revoke what is not needed, or has ended"
            );
            return Err(Error::new(Kind::Refused, "too_many_tokens", message));
        }
        let drawn = secret().and_then(|id| Ok((id, secret()?)));
        let (id, secret) = drawn.map_err(|error| {
            let message = format!("no random bytes for a token: {error}");
            Error::new(Kind::Internal, "internal", message)
        })?;
        let id = hex::encode(&id[..8]);
        let token = format!("{PREFIX}{id}_{}", hex::encode(secret));
        let record = TokenRecord {
            id: id.clone(),
            name: asked.name.clone(),
            role: asked.role,
            topics,
            sha256: Sha256::digest(&token).into(),
            created_ms: now_ms,
            expires_ms,
        };
        let value = serde_json::to_vec(&record).unwrap_or_default();
        self.commit(Commit {
            metadata: vec![(TokenRecord::key(&id), Some(value))],
            ..Commit::default()
        })?;
        let status = record.status(now_ms);
        self.inner.tokens.known.write().insert(id, Arc::new(record));
        Ok(TokenMade { status, token })
    }

    /// All tokens, oldest first.
    pub fn tokens(&self) -> Vec<TokenStatus> {
        let now_ms = self.inner.clock.now_ms();
        let mut known: Vec<_> = self.inner.tokens.known.read().values().cloned().collect();
        known.sort_by(|a, b| (a.created_ms, &a.id).cmp(&(b.created_ms, &b.id)));
        known.iter().map(|token| token.status(now_ms)).collect()
    }

    /// Revokes a token: for every request from now on, and for the streams that are open.
    ///
    /// # Errors
    /// When there is none.
    pub fn revoke_token(&self, id: &str) -> Result<(), Error> {
        let _changing = self.inner.tokens.changing.lock();
        if !self.inner.tokens.known.read().contains_key(id) {
            let shown: String = id.chars().take(40).collect();
            let message = format!(
                "there is no token {shown:?}: name one by its id, as `anabranch token list` shows it"
            );
            return Err(Error::new(Kind::NotFound, "token_not_found", message));
        }
        self.commit(Commit { metadata: vec![(TokenRecord::key(id), None)], ..Commit::default() })?;
        self.inner.tokens.known.write().remove(id);
        self.inner.tokens.revoked.send_replace(());
        Ok(())
    }

    /// Who bears `token`.
    ///
    /// # Errors
    /// `token_invalid` or, for the right secret only, `token_expired`.
    pub fn authenticate(&self, token: &str) -> Result<Caller, Error> {
        let id = claimed_id(token).unwrap_or_default();
        let record = self.inner.tokens.known.read().get(id).cloned();
        let hash: [u8; 32] = Sha256::digest(token).into();
        let kept = record.as_ref().map_or([0; 32], |record| record.sha256);
        let same = bool::from(hash.ct_eq(&kept));
        let Some(record) = record.filter(|_| same) else {
            let message = "this is no token of this host: it was revoked, never made, or not copied whole; an admin can make another";
            return Err(Error::new(Kind::Unauthenticated, "token_invalid", message));
        };
        if record.is_over(self.inner.clock.now_ms()) {
            let end = rfc3339(record.expires_ms.unwrap_or_default());
            let message =
                format!("token {} expired at {end}: an admin can make another", record.id);
            return Err(Error::new(Kind::Unauthenticated, "token_expired", message));
        }
        Ok(Caller::bearer(record))
    }

    /// Whether `caller` may still ask.
    pub fn is_valid(&self, caller: &Caller) -> bool {
        caller.token().is_none_or(|token| {
            let kept = self.inner.tokens.known.read().contains_key(&token.id);
            kept && !token.is_over(self.inner.clock.now_ms())
        })
    }

    /// How long until the token of `caller` expires, if it does.
    pub fn expires_in(&self, caller: &Caller) -> Option<Duration> {
        let left = caller.token()?.expires_ms?.saturating_sub(self.inner.clock.now_ms());
        Some(Duration::from_millis(left.max(0).unsigned_abs()))
    }

    /// Told when a token was revoked.
    pub fn revocations(&self) -> watch::Receiver<()> {
        self.inner.tokens.revoked.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ManualClock;
    use crate::config::Config;

    fn asked(role: Role, topics: &[&str], expires_in: Option<&str>) -> CreateToken {
        CreateToken {
            name: "test".to_owned(),
            role,
            topics: topics.iter().map(|topic| topic.parse().unwrap()).collect(),
            expires_in: expires_in.map(str::to_owned),
        }
    }

    #[test]
    fn tokens_are_kept_as_hashes_and_end_when_revoked_or_over() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().join("data");
        config.storage.min_free_bytes = 0;
        config.auth.max_tokens = 2;
        let clock = ManualClock::new(1_000_000, 1);
        let registry = Registry::open(&config, true, clock.clone()).unwrap();
        let made = registry.create_token(&asked(Role::Consume, &["flights"], Some("1h"))).unwrap();
        let other = registry.create_token(&asked(Role::Admin, &[], None)).unwrap();
        assert_eq!(
            registry.create_token(&asked(Role::Admin, &[], None)).unwrap_err().code,
            "too_many_tokens"
        );

        let refused = |token: &str| registry.authenticate(token).unwrap_err().code;
        let caller = registry.authenticate(&made.token).unwrap();
        assert_eq!(caller.token().map(|token| token.id.as_str()), Some(&*made.status.id));
        assert!(caller.reaches("flights") && !caller.reaches("flights-private"));
        // One digit, the length, the other's secret under this id.
        let mut wrong = made.token.clone().into_bytes();
        let last = wrong.len() - 1;
        wrong[last] ^= 1;
        let wrong = String::from_utf8(wrong).unwrap();
        let swapped =
            format!("{PREFIX}{}_{}", made.status.id, &other.token[other.token.len() - 64..]);
        for wrong in
            [&wrong, &made.token[..last], &swapped, "", "anabranch__", &made.token.to_uppercase()]
        {
            assert_eq!(refused(wrong), "token_invalid", "{wrong}");
        }
        let listed = serde_json::to_string(&registry.tokens()).unwrap();
        assert!(!listed.contains(&made.token[30..]), "{listed}");

        clock.advance_ms(3_599_999);
        assert!(registry.is_valid(&caller));
        clock.advance_ms(1);
        assert!(!registry.is_valid(&caller));
        assert_eq!(refused(&made.token), "token_expired");
        assert_eq!(refused(&wrong), "token_invalid", "nothing is told without the secret");

        registry.revoke_token(&made.status.id).unwrap();
        assert_eq!(refused(&made.token), "token_invalid");
        assert_eq!(registry.revoke_token(&made.status.id).unwrap_err().code, "token_not_found");
        registry.close();
        drop(registry);
        // What is on disk holds no secret, and is there after a restart.
        let registry = Registry::open(&config, true, clock).unwrap();
        assert!(registry.authenticate(&other.token).is_ok());
        assert_eq!(registry.tokens().len(), 1);
        registry.close();
        for entry in std::fs::read_dir(config.data.dir.join("head")).unwrap() {
            let path = entry.unwrap().path();
            if path.is_file() {
                let bytes = std::fs::read(path).unwrap();
                let secret = &other.token.as_bytes()[other.token.len() - 64..];
                assert!(!bytes.windows(64).any(|part| part == secret));
            }
        }
    }

    #[test]
    fn what_a_token_may_not_be_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::default();
        config.data.dir = dir.path().join("data");
        config.storage.min_free_bytes = 0;
        let registry = Registry::open(&config, true, ManualClock::new(0, 1)).unwrap();
        let mut cases = vec![
            asked(Role::Consume, &[], None),
            asked(Role::Admin, &["flights"], None),
            asked(Role::Consume, &["*"], Some("soon")),
        ];
        for name in ["", " ", "a\nb", "a\u{202e}b", &"x".repeat(101)] {
            cases.push(CreateToken { name: name.to_owned(), ..asked(Role::Admin, &[], None) });
        }
        for case in cases {
            assert_eq!(registry.create_token(&case).unwrap_err().code, "invalid_token", "{case:?}");
        }
        assert!(registry.tokens().is_empty());
        registry.close();
    }
}
