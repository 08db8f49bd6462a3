//! Who may do what: roles and how they nest, patterns of topics, and the one who asks.
//!
//! What a token may touch is said in topics. A deployment is what it reads and writes: its inputs, its
//! outputs and its dead letters. Whoever sees or changes it has to reach all of them, as its state is
//! made of the one and its plugin writes the other.
//!
//! **Invariant:** a pattern matches exactly unless it ends in `*`: `flights` is one topic and never
//! `flights-private`. An empty pattern is refused. What may not be touched is refused before it is
//! looked for, so that the refusal does not tell whether it is there.

use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::tokens::TokenRecord;
use super::{DeploymentSpec, Error, Event, Kind, Registry};
use crate::types::{DeploymentName, TopicName};

/// What a token is for. `admin` is all others and tokens; `deploy` is `produce`, `consume`, topics and
/// plugins; each of those is `observe`, too. `produce` and `consume` do not contain each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// See topics, plugins, deployments, events and metrics, but no record and no state.
    Observe,
    /// Read records and stores.
    Consume,
    /// Append records.
    Produce,
    /// Create and delete topics, push plugins, deploy and swap.
    Deploy,
    /// Make and revoke tokens.
    Admin,
}

impl Role {
    /// All of them.
    pub const ALL: [Role; 5] =
        [Role::Observe, Role::Consume, Role::Produce, Role::Deploy, Role::Admin];

    /// Whether it is or contains `needed`.
    pub fn covers(self, needed: Role) -> bool {
        match self {
            Role::Admin => true,
            Role::Deploy => needed != Role::Admin,
            Role::Produce | Role::Consume => needed == self || needed == Role::Observe,
            Role::Observe => needed == Role::Observe,
        }
    }

    /// As it is written.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Observe => "observe",
            Role::Consume => "consume",
            Role::Produce => "produce",
            Role::Deploy => "deploy",
            Role::Admin => "admin",
        }
    }
}

/// A topic's name, or the beginning of names and `*`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TopicPattern(String);

impl TopicPattern {
    /// Every topic.
    pub fn all() -> Self {
        Self("*".to_owned())
    }

    /// Whether it matches every name.
    pub fn is_all(&self) -> bool {
        self.0 == "*"
    }

    /// Whether it matches `name`.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix('*') {
            Some(beginning) => name.starts_with(beginning),
            None => self.0 == name,
        }
    }
}

impl FromStr for TopicPattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let named = match text.strip_suffix('*') {
            Some("") => return Ok(Self::all()),
            Some(beginning) => beginning,
            None => text,
        };
        named.parse::<TopicName>().map(|_| Self(text.to_owned())).map_err(|_| {
            let shown: String = text.chars().take(120).collect();
            format!(
                "{shown:?} names no topics: write a topic such as flights, the beginning of names such as flights-*, or * for all"
            )
        })
    }
}

impl TryFrom<String> for TopicPattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<TopicPattern> for String {
    fn from(pattern: TopicPattern) -> String {
        pattern.0
    }
}

/// The one who asks: the bearer of a token, or, where no token is asked for, anyone.
#[derive(Debug, Clone)]
pub struct Caller(Option<Arc<TokenRecord>>);

impl Caller {
    /// Whoever it is, where no token is asked for: everything is allowed.
    pub fn anyone() -> Self {
        Self(None)
    }

    pub(super) fn bearer(token: Arc<TokenRecord>) -> Self {
        Self(Some(token))
    }

    /// The token, if one was asked for.
    pub fn token(&self) -> Option<&Arc<TokenRecord>> {
        self.0.as_ref()
    }

    /// Whether every topic may be touched.
    pub fn reaches_all(&self) -> bool {
        self.0.as_ref().is_none_or(|token| token.topics.iter().any(TopicPattern::is_all))
    }

    /// Whether the topic may be touched.
    pub fn reaches(&self, topic: &str) -> bool {
        self.0
            .as_ref()
            .is_none_or(|token| token.topics.iter().any(|pattern| pattern.matches(topic)))
    }

    /// Refuses what the token's role does not cover.
    ///
    /// # Errors
    /// `role_forbidden`.
    pub fn check_role(&self, needed: Role) -> Result<(), Error> {
        let Some(token) = self.0.as_ref().filter(|token| !token.role.covers(needed)) else {
            return Ok(());
        };
        let (needed, role, id) = (needed.as_str(), token.role.as_str(), &token.id);
        let message = format!(
            "this call needs the role {needed}, and token {id} has {role}: use another token, or have an admin make one"
        );
        Err(Error::new(Kind::Forbidden, "role_forbidden", message))
    }

    /// Refuses a topic that may not be touched, whether it is there or not.
    ///
    /// # Errors
    /// `topic_forbidden`.
    pub fn check_topic(&self, topic: &str) -> Result<(), Error> {
        self.check(topic, "topic ", topic)
    }

    /// Refuses what concerns all topics, unless all may be touched.
    ///
    /// # Errors
    /// `topic_forbidden`.
    pub fn check_all(&self, what: &str) -> Result<(), Error> {
        match self.reaches_all() {
            true => Ok(()),
            false => Err(self.forbidden(&format!("all topics, which {what} need"))),
        }
    }

    /// Refuses a deployment that may not be touched, by its file.
    ///
    /// # Errors
    /// `topic_forbidden`.
    pub fn check_spec(&self, spec: &DeploymentSpec) -> Result<(), Error> {
        self.check_deployment_name(spec.name.as_str())?;
        let topics = spec.inputs.iter().chain(spec.outputs.values());
        let what = format!("deployment {} with its topic ", spec.name);
        topics.map(TopicName::as_str).try_for_each(|topic| self.check(topic, &what, topic))
    }

    /// By its name: its dead letters go to a topic of that name, whatever else it does.
    fn check_deployment_name(&self, name: &str) -> Result<(), Error> {
        let shown: String = name.chars().take(120).collect();
        self.check(&format!("{name}.dead-letters"), "deployment ", &shown)
    }

    fn check(&self, topic: &str, what: &str, shown: &str) -> Result<(), Error> {
        match self.reaches(topic) {
            true => Ok(()),
            false => Err(self.forbidden(&format!("{what}{shown}"))),
        }
    }

    fn forbidden(&self, what: &str) -> Error {
        let token = self.0.as_ref().map_or_else(String::new, |token| {
            let topics: Vec<&str> = token.topics.iter().map(|topic| topic.0.as_str()).collect();
            format!("token {} is for {}", token.id, topics.join(", "))
        });
        let message = format!("{token}, and not for {what}: use another token");
        Error::new(Kind::Forbidden, "topic_forbidden", message)
    }
}

impl Registry {
    /// Refuses a deployment that `caller` may not touch.
    ///
    /// # Errors
    /// `topic_forbidden`; by its name alone, whether it is there or not.
    pub fn check_deployment(&self, caller: &Caller, name: &str) -> Result<(), Error> {
        caller.check_deployment_name(name)?;
        self.spec_of(name).map_or(Ok(()), |spec| caller.check_spec(&spec))
    }

    /// Whether `caller` may hear of the event.
    pub fn may_hear(&self, caller: &Caller, event: &Event) -> bool {
        caller.reaches_all() || self.check_deployment(caller, &event.deployment).is_ok()
    }

    fn spec_of(&self, name: &str) -> Option<DeploymentSpec> {
        let name: DeploymentName = name.parse().ok()?;
        let deployment = self.inner.deployments.read().get(&name).cloned()?;
        let spec = deployment.state.lock().record.spec.clone();
        Some(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_nest_as_documented() {
        let covered = |role: Role| {
            let all = Role::ALL.into_iter().filter(|needed| role.covers(*needed));
            all.map(Role::as_str).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(covered(Role::Observe), "observe");
        assert_eq!(covered(Role::Consume), "observe consume");
        assert_eq!(covered(Role::Produce), "observe produce");
        assert_eq!(covered(Role::Deploy), "observe consume produce deploy");
        assert_eq!(covered(Role::Admin), "observe consume produce deploy admin");
    }

    #[test]
    fn patterns_match_exactly_unless_they_say_otherwise() {
        let cases = [
            ("flights", "flights", true),
            ("flights", "flights-private", false),
            ("flights", "flight", false),
            ("flights-*", "flights-private", true),
            ("flights-*", "flights-", true),
            ("flights-*", "flights", false),
            ("flights-*", "flightsx", false),
            ("flights*", "flights", true),
            ("flights.*", "flights-a", false),
            ("*", "anything", true),
        ];
        for (pattern, topic, expected) in cases {
            let parsed: TopicPattern = pattern.parse().unwrap();
            assert_eq!(parsed.matches(topic), expected, "{pattern} {topic}");
        }
        for wrong in ["", "**", "a*b", "a**", "-*", "Flights", "flights ", "../*", "a/*", "ä*"] {
            assert!(wrong.parse::<TopicPattern>().is_err(), "{wrong:?}");
            assert!(serde_json::from_value::<TopicPattern>(wrong.into()).is_err(), "{wrong:?}");
        }
    }
}
