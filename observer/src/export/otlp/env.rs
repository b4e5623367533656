//! The standard `OTEL_*` variables. Pure: the caller gives the variables.

use crate::settings::{Otlp, OtlpSignal, Protocol};
use percent_encoding::percent_decode_str;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A variable that cannot be used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {problem}")]
pub struct EnvError {
    /// The variable.
    pub name: String,
    /// What is wrong with it. Never its value: headers hold secrets.
    pub problem: String,
}

/// Variables by name.
pub type Variables = BTreeMap<String, String>;

/// Where OTLP goes by the environment: nowhere unless an endpoint is given. A signal that has no endpoint, or whose `OTEL_{LOGS,METRICS}_EXPORTER`
/// is `none`, is not sent. Empty variables count as not set, as the specification says.
///
/// # Errors
/// A variable has a value that cannot be used.
pub fn otlp(variables: &Variables) -> Result<Option<Otlp>, EnvError> {
    let env = Env(variables);
    if env.is_true("OTEL_SDK_DISABLED")? {
        return Ok(None);
    }
    let all = env.signal("")?;
    let (for_events, for_metrics) = (env.signal("LOGS_")?, env.signal("METRICS_")?);
    let goes = |signal: &OtlpSignal| signal.endpoint.is_some() || all.endpoint.is_some();
    let events = goes(&for_events) && env.is_exported("OTEL_LOGS_EXPORTER")?;
    let metrics = goes(&for_metrics) && env.is_exported("OTEL_METRICS_EXPORTER")?;
    if !events && !metrics {
        return Ok(None);
    }
    let usual = Otlp::to(all.endpoint.unwrap_or_default());
    Ok(Some(Otlp {
        protocol: all.protocol.unwrap_or(usual.protocol),
        // The specification's default is none; ours is gzip, which every receiver must take.
        gzip: all.gzip.unwrap_or(usual.gzip),
        timeout: all.timeout.unwrap_or(usual.timeout),
        headers: all.headers.unwrap_or_default(),
        ca_file: all.ca_file,
        cert_file: all.cert_file,
        key_file: all.key_file,
        events,
        metrics,
        resource: resource(variables)?,
        for_events,
        for_metrics,
        ..usual
    }))
}

/// `OTEL_RESOURCE_ATTRIBUTES`, and `OTEL_SERVICE_NAME`, which wins.
///
/// # Errors
/// They are not `key=value,…`, percent-encoded UTF-8.
pub fn resource(variables: &Variables) -> Result<Vec<(String, String)>, EnvError> {
    let env = Env(variables);
    let mut attributes = match env.get("OTEL_RESOURCE_ATTRIBUTES") {
        Some((name, text)) => pairs(&name, text)?,
        None => Vec::new(),
    };
    if let Some((_, service)) = env.get("OTEL_SERVICE_NAME") {
        attributes.retain(|(key, _)| key != "service.name");
        attributes.push(("service.name".to_owned(), service.to_owned()));
    }
    Ok(attributes)
}

/// `OTEL_METRIC_EXPORT_INTERVAL`: time between two samples.
///
/// # Errors
/// It is no positive number of milliseconds.
pub fn metrics_interval(variables: &Variables) -> Result<Option<Duration>, EnvError> {
    Env(variables).get("OTEL_METRIC_EXPORT_INTERVAL").map(|(name, text)| milliseconds(&name, text)).transpose()
}

struct Env<'a>(&'a Variables);

impl Env<'_> {
    fn get(&self, name: &str) -> Option<(String, &str)> {
        let value = self.0.get(name).map(|value| value.trim()).filter(|value| !value.is_empty())?;
        Some((name.to_owned(), value))
    }

    fn is_true(&self, name: &str) -> Result<bool, EnvError> {
        // By the specification everything but "true" is false.
        Ok(self.get(name).is_some_and(|(_, text)| text.eq_ignore_ascii_case("true")))
    }

    fn is_exported(&self, name: &str) -> Result<bool, EnvError> {
        match self.get(name) {
            None => Ok(true),
            Some((_, "otlp")) => Ok(true),
            Some((_, "none")) => Ok(false),
            Some((name, _)) => Err(wrong(&name, "is neither `otlp` nor `none`")),
        }
    }

    /// What the variables of one signal say, or those of all.
    fn signal(&self, which: &str) -> Result<OtlpSignal, EnvError> {
        let get = |what: &str| self.get(&format!("OTEL_EXPORTER_OTLP_{which}{what}"));
        let path = |what: &str| get(what).map(|(_, text)| PathBuf::from(text));
        Ok(OtlpSignal {
            endpoint: get("ENDPOINT").map(|(name, text)| endpoint(&name, text)).transpose()?,
            protocol: get("PROTOCOL").map(|(name, text)| protocol(&name, text)).transpose()?,
            gzip: get("COMPRESSION").map(|(name, text)| compression(&name, text)).transpose()?,
            timeout: get("TIMEOUT").map(|(name, text)| milliseconds(&name, text)).transpose()?,
            headers: get("HEADERS").map(|(name, text)| headers(&name, text)).transpose()?,
            ca_file: path("CERTIFICATE"),
            cert_file: path("CLIENT_CERTIFICATE"),
            key_file: path("CLIENT_KEY"),
        })
    }
}

fn wrong(name: &str, problem: impl Into<String>) -> EnvError {
    EnvError { name: name.to_owned(), problem: problem.into() }
}

fn endpoint(name: &str, text: &str) -> Result<String, EnvError> {
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        // Without a scheme it is not said whether the connection is to be encrypted: no guess.
        Err(wrong(name, "is no URL: it must begin with http:// or https://"))
    }
}

fn protocol(name: &str, text: &str) -> Result<Protocol, EnvError> {
    match text {
        "grpc" => Ok(Protocol::Grpc),
        "http/protobuf" => Ok(Protocol::HttpProtobuf),
        _ => Err(wrong(name, format!("`{text}` is not spoken: use `grpc` or `http/protobuf`"))),
    }
}

fn compression(name: &str, text: &str) -> Result<bool, EnvError> {
    match text {
        "gzip" => Ok(true),
        "none" => Ok(false),
        _ => Err(wrong(name, format!("`{text}` is not known: use `gzip` or `none`"))),
    }
}

fn milliseconds(name: &str, text: &str) -> Result<Duration, EnvError> {
    match text.parse::<u64>() {
        Ok(count @ 1..) => Ok(Duration::from_millis(count)),
        _ => Err(wrong(name, format!("`{text}` is no positive number of milliseconds"))),
    }
}

fn headers(name: &str, text: &str) -> Result<Vec<(String, String)>, EnvError> {
    let headers = pairs(name, text)?;
    for (key, value) in &headers {
        let is_token = |byte: u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
        if !key.bytes().all(is_token) || !value.bytes().all(|byte| (0x20..0x7f).contains(&byte) || byte == b'\t') {
            return Err(wrong(name, format!("`{key}` cannot be a header")));
        }
    }
    Ok(headers)
}

/// `key=value,key=value`, each part percent-encoded (the form of W3C baggage).
fn pairs(name: &str, text: &str) -> Result<Vec<(String, String)>, EnvError> {
    let decode = |part: &str| {
        let decoded = percent_decode_str(part.trim()).decode_utf8();
        decoded.map(|text| text.into_owned()).map_err(|_| wrong(name, "is not UTF-8 after percent-decoding"))
    };
    let mut pairs: Vec<(String, String)> = Vec::new();
    for (place, part) in text.split(',').enumerate().filter(|(_, part)| !part.trim().is_empty()) {
        let Some((key, value)) = part.split_once('=') else {
            return Err(wrong(name, format!("part {} is not `key=value`", place + 1)));
        };
        let (key, value) = (decode(key)?, decode(value)?);
        if key.is_empty() {
            return Err(wrong(name, format!("part {} has no key", place + 1)));
        }
        // The last one wins.
        pairs.retain(|(other, _)| *other != key);
        pairs.push((key, value));
    }
    Ok(pairs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables(list: &[(&str, &str)]) -> Variables {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn problem(list: &[(&str, &str)]) -> String {
        otlp(&variables(list)).map_or_else(|error| error.to_string(), |otlp| format!("taken: {otlp:?}"))
    }

    const TO: (&str, &str) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4317");

    #[test]
    fn without_an_endpoint_nothing_is_sent() {
        assert_eq!(otlp(&Variables::new()), Ok(None));
        assert_eq!(otlp(&variables(&[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")])), Ok(None));
        assert_eq!(otlp(&variables(&[TO, ("OTEL_SDK_DISABLED", "True")])), Ok(None));
        assert_eq!(otlp(&variables(&[TO])), Ok(Some(Otlp::to("http://collector:4317"))));
        assert_eq!(
            otlp(&variables(&[TO, ("OTEL_LOGS_EXPORTER", "none"), ("OTEL_METRICS_EXPORTER", "none")])),
            Ok(None)
        );
    }

    #[test]
    fn every_variable_is_used() -> Result<(), EnvError> {
        let got = otlp(&variables(&[
            TO,
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "authorization=Basic%20dTpw, x-tenant = a%2Cb%3D"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "none"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE", "/cert.pem"),
            ("OTEL_EXPORTER_OTLP_CLIENT_KEY", "/key.pem"),
            ("OTEL_RESOURCE_ATTRIBUTES", "service.name=no,k8s.cluster.name=a%20b"),
            ("OTEL_SERVICE_NAME", "eyes"),
            ("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "https://other/api/otlp"),
            ("OTEL_EXPORTER_OTLP_METRICS_HEADERS", "k=v"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "1"),
            ("OTEL_EXPORTER_OTLP_LOGS_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "gzip"),
        ]))?;
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let expected = Otlp {
            protocol: Protocol::HttpProtobuf,
            gzip: false,
            timeout: Duration::from_millis(2500),
            headers: vec![pair("authorization", "Basic dTpw"), pair("x-tenant", "a,b=")],
            ca_file: Some("/ca.pem".into()),
            cert_file: Some("/cert.pem".into()),
            key_file: Some("/key.pem".into()),
            resource: vec![pair("k8s.cluster.name", "a b"), pair("service.name", "eyes")],
            for_events: OtlpSignal {
                timeout: Some(Duration::from_millis(1)),
                protocol: Some(Protocol::Grpc),
                gzip: Some(true),
                ..OtlpSignal::default()
            },
            for_metrics: OtlpSignal {
                endpoint: Some("https://other/api/otlp".to_owned()),
                headers: Some(vec![pair("k", "v")]),
                ..OtlpSignal::default()
            },
            ..Otlp::to("http://collector:4317")
        };
        assert_eq!(got, Some(expected));
        Ok(())
    }

    #[test]
    fn a_signal_without_an_endpoint_is_not_sent() -> Result<(), EnvError> {
        let got = otlp(&variables(&[("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs/v1/logs")]))?;
        assert_eq!(got.as_ref().map(|otlp| (otlp.events, otlp.metrics)), Some((true, false)));
        let got = otlp(&variables(&[TO, ("OTEL_LOGS_EXPORTER", "none")]))?;
        assert_eq!(got.as_ref().map(|otlp| (otlp.events, otlp.metrics)), Some((false, true)));
        Ok(())
    }

    #[test]
    fn errors_name_the_variable_and_keep_secrets() {
        let prefix = "OTEL_EXPORTER_OTLP_";
        for (name, value, says) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317", "begin with http://"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json", "`http/json` is not spoken"),
            ("OTEL_EXPORTER_OTLP_LOGS_COMPRESSION", "zstd", "`zstd` is not known"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_METRICS_TIMEOUT", "0", "milliseconds"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "hunter2", "part 1 is not `key=value`"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=1,=hunter2", "part 2 has no key"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%ff", "not UTF-8"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a=hunter2%0d%0ab: c", "`a` cannot be a header"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=hunter2", "`a b` cannot be a header"),
        ] {
            let text = problem(&[TO, (name, value)]);
            assert!(name.starts_with(prefix) && text.starts_with(&format!("{name}: ")), "{text}");
            assert!(text.contains(says) && !text.contains("hunter2"), "{text}");
        }
        assert!(problem(&[TO, ("OTEL_LOGS_EXPORTER", "console")]).starts_with("OTEL_LOGS_EXPORTER: "));
        assert!(problem(&[TO, ("OTEL_RESOURCE_ATTRIBUTES", "a")]).starts_with("OTEL_RESOURCE_ATTRIBUTES: "));
        let interval = |text: &str| metrics_interval(&variables(&[("OTEL_METRIC_EXPORT_INTERVAL", text)]));
        assert_eq!(interval("500"), Ok(Some(Duration::from_millis(500))));
        assert!(interval("-1").is_err());
    }
}
