//! Names, ids and positions as types of their own, so that none is taken for another.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a name was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{what} name {name:?} is not valid: use 1 to 100 of a-z, 0-9, '.', '_' and '-', beginning with a letter or digit"
)]
pub struct NameError {
    what: &'static str,
    name: String,
}

/// Whether `name` matches `[a-z0-9][a-z0-9._-]{0,99}`.
fn is_valid_name(name: &str) -> bool {
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = name.as_bytes();
    (1..=100).contains(&bytes.len())
        && letter(bytes[0])
        && bytes.iter().all(|&b| letter(b) || matches!(b, b'.' | b'_' | b'-'))
}

macro_rules! name_type {
    ($(#[$doc:meta])* $type:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type(String);

        impl $type {
            /// The name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $type {
            type Err = NameError;

            fn from_str(name: &str) -> Result<Self, NameError> {
                if is_valid_name(name) {
                    Ok(Self(name.to_owned()))
                } else {
                    Err(NameError { what: $what, name: name.chars().take(120).collect() })
                }
            }
        }

        impl TryFrom<String> for $type {
            type Error = NameError;

            fn try_from(name: String) -> Result<Self, NameError> {
                name.parse()
            }
        }

        impl From<$type> for String {
            fn from(name: $type) -> String {
                name.0
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name_type!(
    /// A topic's name: `[a-z0-9][a-z0-9._-]{0,99}`. Names can be used again, ids cannot.
    TopicName, "topic"
);
name_type!(
    /// A deployment's name, under the same rule as topic names.
    DeploymentName, "deployment"
);

name_type!(
    /// A backup's name, under the same rule as topic names.
    BackupName, "backup"
);

macro_rules! number_type {
    ($(#[$doc:meta])* $type:ident, $inner:ty) => {
        $(#[$doc])*
        #[derive(
            Debug, Default, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $type(pub $inner);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number_type!(
    /// A topic, for ever: a topic that is deleted and created again under its name gets a new id.
    TopicId, u64
);
number_type!(
    /// A physical log. A topic's name mounts one or more of them; changelogs and journals are logs too.
    LogId, u64
);
number_type!(
    /// A partition of a topic or of a physical log, counted from 0.
    PartitionId, u32
);
number_type!(
    /// A deployment, for ever.
    DeploymentId, u64
);
number_type!(
    /// A generation of a deployment, counted from 1.
    GenerationNumber, u32
);
number_type!(
    /// A position in a partition: always the NEXT offset to be read or written. Offsets rise and may
    /// have gaps; they stay below 2^53.
    Offset, u64
);

impl Offset {
    /// The first offset of every partition.
    pub const ZERO: Offset = Offset(0);
    /// All offsets are below this, so that JavaScript can hold them.
    pub const LIMIT: Offset = Offset(1 << 53);
}

/// A generation of a deployment, unique in the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct GenerationId {
    /// The deployment.
    pub deployment: DeploymentId,
    /// Its generation.
    pub number: GenerationNumber,
}

impl fmt::Display for GenerationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/g{}", self.deployment, self.number)
    }
}

/// The SHA-256 of a plugin's bytes, written `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        use sha2::Digest as _;
        Self(sha2::Sha256::digest(bytes).into())
    }

    /// The 64 hexadecimal digits alone, as used in file names.
    pub fn hex(&self) -> String {
        hex::encode(self.0)
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Digest {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut bytes = [0; 32];
        text.strip_prefix("sha256:")
            .and_then(|digits| hex::decode_to_slice(digits, &mut bytes).ok())
            .map(|()| Self(bytes))
            .ok_or_else(|| {
                format!("{text:?} is not a digest: write sha256: and 64 hexadecimal digits")
            })
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> String {
        digest.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rule() {
        for good in ["a", "0", "flights", "a.b-c_d", &"x".repeat(100)] {
            assert_eq!(good.parse::<TopicName>().map(String::from), Ok(good.to_owned()));
        }
        for bad in ["", ".a", "-a", "A", "a/b", "ä", "a b", &"x".repeat(101)] {
            assert!(bad.parse::<TopicName>().is_err(), "{bad:?} was taken");
        }
    }

    #[test]
    fn digests_round_trip() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("sha256:12".parse::<Digest>().is_err());
    }
}
