//! Typed names. Each is cheap to clone (a shared string), ordered, hashable, and validated once, when
//! it is made; the rules follow the service whose API we speak (endpoint names: at most 63 characters,
//! letters, digits and inner hyphens).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use thiserror::Error;

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("{what} \"{text}\" {rule}")]
pub struct InvalidName {
    /// Which kind of name was asked for, for example `endpoint name`.
    pub what: &'static str,
    /// The text that was refused, on one line and shortened to 80 characters.
    pub text: String,
    /// What a valid one looks like, as the end of the sentence.
    pub rule: &'static str,
}

macro_rules! name {
    ($(#[$doc:meta])* $type:ident, $what:literal, $valid:path, $rule:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String")]
        pub struct $type(Arc<str>);

        impl Ord for $type {
            fn cmp(&self, other: &Self) -> std::cmp::Ordering {
                // Most lookups are made with a copy of the very key: its text need not be read.
                if Arc::ptr_eq(&self.0, &other.0) {
                    return std::cmp::Ordering::Equal;
                }
                self.0.cmp(&other.0)
            }
        }

        impl PartialOrd for $type {
            fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
                Some(self.cmp(other))
            }
        }

        impl $type {
            /// Makes one from `text`.
            ///
            /// # Errors
            /// [`InvalidName`] with the rule when `text` breaks it.
            pub fn new(text: impl AsRef<str>) -> Result<Self, InvalidName> {
                let text = text.as_ref();
                if $valid(text) {
                    Ok(Self(Arc::from(text)))
                } else {
                    let text = text.chars().take(80).flat_map(char::escape_debug).collect();
                    Err(InvalidName { what: $what, text, rule: $rule })
                }
            }

            /// The name as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $type {
            type Error = InvalidName;
            fn try_from(text: String) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl std::str::FromStr for $type {
            type Err = InvalidName;
            fn from_str(text: &str) -> Result<Self, InvalidName> {
                Self::new(text)
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&*self.0, f)
            }
        }

        impl std::borrow::Borrow<str> for $type {
            fn borrow(&self) -> &str {
                &self.0
            }
        }
    };
}

name!(
    /// What a client calls: the endpoint's name.
    EndpointName, "endpoint name", is_label, "must be 1 to 63 letters and digits, with hyphens inside"
);
name!(
    /// One variant of an endpoint; unique within it.
    VariantName, "variant name", is_label, "must be 1 to 63 letters and digits, with hyphens inside"
);
name!(
    /// An instance type such as `ml.p5.48xlarge`; the value of the metric label `InstanceType`.
    InstanceTypeName, "instance type", is_dotted, "must be 1 to 63 letters, digits, dots, hyphens and underscores"
);
name!(
    /// A provider as the config names it.
    ProviderName, "provider name", is_dotted, "must be 1 to 63 letters, digits, dots, hyphens and underscores"
);
name!(
    /// A model as workers know it, for example `meta-llama/Llama-3-8B`.
    ModelName, "model name", is_model, "must be 1 to 256 printable characters without blanks or quotes"
);
name!(
    /// A client's key, as the config calls it; never the key itself.
    KeyName, "key name", is_dotted, "must be 1 to 63 letters, digits, dots, hyphens and underscores"
);
name!(
    /// One instance, for its whole life; never used again.
    InstanceId, "instance id", is_long_label, "must be 1 to 160 letters, digits, dots, hyphens and underscores"
);
name!(
    /// One proxy process, as it calls itself towards the manager.
    ProxyId, "proxy id", is_long_label, "must be 1 to 160 letters, digits, dots, hyphens and underscores"
);

fn is_label(text: &str) -> bool {
    (1..=63).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        && !text.starts_with('-')
        && !text.ends_with('-')
}

fn is_dotted(text: &str) -> bool {
    text.len() <= 63 && is_long_label(text)
}

fn is_long_label(text: &str) -> bool {
    (1..=160).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
        && text.as_bytes()[0].is_ascii_alphanumeric()
}

fn is_model(text: &str) -> bool {
    (1..=256).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// Which start of a worker is meant. Grows by one with every instance that is made, across restarts of
/// the manager, so that two workers at the same address are told apart.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An endpoint's variant, wherever both names are needed to say which.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct VariantKey {
    /// The endpoint.
    pub endpoint: EndpointName,
    /// The variant within it.
    pub variant: VariantName,
}

impl fmt::Display for VariantKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.endpoint, self.variant)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_their_rules() {
        for good in ["a", "my-endpoint", "A1", &"x".repeat(63)] {
            assert!(EndpointName::new(good).is_ok(), "{good}");
        }
        for bad in ["", "-a", "a-", "a.b", "a b", "a/b", "é", &"x".repeat(64)] {
            assert!(EndpointName::new(bad).is_err(), "{bad}");
        }
        assert!(InstanceTypeName::new("ml.p5.48xlarge").is_ok());
        assert!(InstanceTypeName::new(".p5").is_err());
        assert!(ModelName::new("meta-llama/Llama-3:8b@main").is_ok());
        assert!(ModelName::new("two words").is_err());
    }

    #[test]
    fn a_refusal_says_what_and_why() {
        let refusal = EndpointName::new("a b").expect_err("a blank");
        assert_eq!(
            refusal.to_string(),
            "endpoint name \"a b\" must be 1 to 63 letters and digits, with hyphens inside"
        );
    }

    #[test]
    fn deserializing_validates() {
        assert!(serde_json::from_str::<EndpointName>("\"ok\"").is_ok());
        assert!(serde_json::from_str::<EndpointName>("\"not ok\"").is_err());
    }
}
