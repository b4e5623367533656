//! Values as they are typed: in the file, as a flag, in the environment.

use super::load::did_you_mean;
use crate::detect::Kind;
use crate::settings::{CpuBudget, Protocol, Silence};
use clap::ValueEnum;
use serde::de::{Deserializer, Error as _, Visitor};
use serde::{Deserialize, Serialize, Serializer};
use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;
use std::time::Duration;

/// A duration as `humantime` writes it: `5s`, `1m 30s`, `250ms`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span(pub(super) Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text).map(Self).map_err(|error| format!("{error}; write a duration such as 5s"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// An address to listen on, or `none`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Listen(pub(super) Option<SocketAddr>);

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let why = "write ADDRESS:PORT, such as 127.0.0.1:9465 or [::]:9465, or none";
        text.parse().map(|address| Self(Some(address))).map_err(|_| why.to_owned())
    }
}

impl fmt::Display for Listen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(address) => address.fmt(f),
            None => f.write_str("none"),
        }
    }
}

/// In the file these are strings.
macro_rules! as_text {
    ($($type:ty, $expecting:literal;)*) => {$(
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
    )*};
}

as_text! {
    Span, "a duration in quotes, such as \"5s\"";
    CpuBudget, "a share of one CPU in quotes, such as \"1%\", or \"off\"";
    Listen, "an address in quotes, such as \"127.0.0.1:9465\", or \"none\"";
}

/// How OTLP is spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
pub(super) enum Wire {
    /// gRPC, usually port 4317
    #[value(name = "grpc")]
    #[serde(rename = "grpc")]
    Grpc,
    /// HTTP with protobuf bodies, usually port 4318
    #[value(name = "http/protobuf")]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

impl From<Protocol> for Wire {
    fn from(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Grpc => Self::Grpc,
            Protocol::HttpProtobuf => Self::HttpProtobuf,
        }
    }
}

impl From<Wire> for Protocol {
    fn from(wire: Wire) -> Self {
        match wire {
            Wire::Grpc => Self::Grpc,
            Wire::HttpProtobuf => Self::HttpProtobuf,
        }
    }
}

/// Which probes are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Probes {
    /// The best that this kernel has
    Auto,
    /// None
    None,
}

/// How bodies are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Compression {
    /// With gzip
    Gzip,
    /// Not at all
    None,
}

/// `NAME=VALUE`, percent-encoded where the value has a comma.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Pair(pub(super) String, pub(super) String);

impl FromStr for Pair {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
        let decode = |part: &str| {
            let bytes = percent_encoding::percent_decode_str(part.trim());
            bytes.decode_utf8().map(|text| text.into_owned()).map_err(|_| "not UTF-8 after percent-decoding".to_owned())
        };
        let name = decode(name)?;
        if name.is_empty() {
            return Err("the name before `=` is empty".to_owned());
        }
        Ok(Self(name, decode(value)?))
    }
}

/// In the file pairs are a table.
pub(super) mod pairs {
    use super::{BTreeMap, Deserialize, Deserializer, Pair, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        pairs: &Option<Vec<Pair>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_map(pairs.iter().flatten().map(|Pair(name, value)| (name, value)))
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Vec<Pair>>, D::Error> {
        let map = BTreeMap::<String, String>::deserialize(deserializer)?;
        Ok(Some(map.into_iter().map(|(name, value)| Pair(name, value)).collect()))
    }
}

/// One `[[silence]]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub(super) struct SilenceKeys {
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "kind")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    exe: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cgroup: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    up_to: Option<Span>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    labels: BTreeMap<String, String>,
}

/// The keys of a `[[silence]]`.
pub(super) const SILENCE_KEYS: [&str; 5] = ["kind", "exe", "cgroup", "up-to", "labels"];

fn kind<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    known_kind(&String::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

fn known_kind(name: &str) -> Result<String, String> {
    let kinds = Kind::ALL.map(Kind::name);
    if kinds.contains(&name) {
        return Ok(name.to_owned());
    }
    let hint = did_you_mean(name, &kinds).unwrap_or_else(|| format!("; there are {}", kinds.join(", ")));
    Err(format!("no kind of finding is called `{name}`{hint}"))
}

impl FromStr for SilenceKeys {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut keys = Self::default();
        for part in text.split(',') {
            let (key, value) = part.split_once('=').ok_or("write KEY=VALUE,…, such as kind=lock_wait,up-to=1h")?;
            let once = |slot: &mut Option<String>| match slot.replace(value.to_owned()) {
                Some(_) => Err(format!("`{key}` is given twice: write two silences")),
                None => Ok(()),
            };
            match key.trim() {
                "kind" => once(&mut keys.kind).and_then(|()| known_kind(value).map(drop))?,
                "exe" => once(&mut keys.exe)?,
                "cgroup" => once(&mut keys.cgroup)?,
                "up-to" => keys.up_to = Some(value.parse()?),
                other => match other.strip_prefix("labels.") {
                    Some(label) if !label.is_empty() => {
                        keys.labels.insert(label.to_owned(), value.to_owned());
                    }
                    _ => {
                        let names = ["kind", "exe", "cgroup", "up-to", "labels.NAME"];
                        let hint =
                            did_you_mean(other, &names).unwrap_or_else(|| format!("; there are {}", names.join(", ")));
                        return Err(format!("unknown key `{other}`{hint}"));
                    }
                },
            }
        }
        Ok(keys)
    }
}

impl From<Silence> for SilenceKeys {
    fn from(Silence { kind, exe, cgroup, labels, up_to }: Silence) -> Self {
        Self { kind, exe, cgroup, labels, up_to: up_to.map(Span) }
    }
}

impl From<SilenceKeys> for Silence {
    fn from(SilenceKeys { kind, exe, cgroup, labels, up_to }: SilenceKeys) -> Self {
        Self { kind, exe, cgroup, labels, up_to: up_to.map(|span| span.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silences_as_flags() {
        let silence: SilenceKeys =
            "kind=lock_wait,exe=/usr/bin/foo,up-to=1h,labels.app.kubernetes.io/name=web".parse().expect("a silence");
        assert_eq!(
            Silence::from(silence),
            Silence {
                kind: Some("lock_wait".into()),
                exe: Some("/usr/bin/foo".into()),
                cgroup: None,
                labels: BTreeMap::from([("app.kubernetes.io/name".to_owned(), "web".to_owned())]),
                up_to: Some(Duration::from_secs(3600)),
            }
        );
        for (text, expected) in [
            ("kind=lockwait", "did you mean `lock_wait`"),
            ("knd=lock_wait", "did you mean `kind`"),
            ("kind", "write KEY=VALUE"),
            ("", "write KEY=VALUE"),
            ("kind=deadlock,kind=stopped", "given twice"),
            ("up-to=soon", "such as 5s"),
            ("labels.=x", "labels.NAME"),
        ] {
            let error = text.parse::<SilenceKeys>().expect_err(text);
            assert!(error.contains(expected), "{text}: {error}");
        }
    }

    #[test]
    fn pairs_are_percent_encoded() {
        assert_eq!("a=b%2Cc=d".parse(), Ok(Pair("a".into(), "b,c=d".into())));
        assert_eq!(" a = b ".parse(), Ok(Pair("a".into(), "b".into())));
        assert!("a".parse::<Pair>().is_err() && "=b".parse::<Pair>().is_err() && "a=%ff".parse::<Pair>().is_err());
    }

    #[test]
    fn texts_come_back() {
        for text in ["5s", "1m 30s", "250ms"] {
            assert_eq!(text.parse::<Span>().expect(text).to_string(), text);
        }
        for text in ["none", "[::1]:9465", "0.0.0.0:1"] {
            assert_eq!(text.parse::<Listen>().expect(text).to_string(), text);
        }
        assert!("5".parse::<Span>().is_err() && "localhost:1".parse::<Listen>().is_err());
    }
}
