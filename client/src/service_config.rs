//! gRFC A6's vocabulary: policies per method from a JSON service config. Pure.

use std::time::Duration;

use serde_json::{Map, Value};
use tonic::Code;

use crate::{
    budget::Throttle,
    policy::{Codes, HedgeDelay, Policy},
};

/// A6 takes more attempts than this for this many.
const MOST_ATTEMPTS: u64 = 5;
/// The longest duration of proto3's JSON form.
const MOST_SECONDS: u64 = 315_576_000_000;

/// What a service config says.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct ServiceConfig {
    pub(crate) methods: Vec<(Scope, MethodConfig)>,
    pub(crate) throttle: Option<Throttle>,
}

/// Which methods are meant.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Scope {
    All,
    /// Full name of a service.
    Service(String),
    /// `/package.Service/Method`.
    Method(String),
}

/// How they are called.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct MethodConfig {
    pub(crate) policy: Option<(Policy, Codes)>,
    pub(crate) timeout: Option<Duration>,
}

/// One line: where in the document, and what is wrong there.
type Fault = String;

/// Reads a service config.
///
/// # Errors
/// It is no JSON, or says something that is not known or not valid.
pub(crate) fn parse(json: &str) -> Result<ServiceConfig, Fault> {
    let document: Value = serde_json::from_str(json).map_err(|e| format!("no JSON: {e}"))?;
    let root = At { path: String::new(), value: &document };
    let fields = root.fields(&["methodConfig", "retryThrottling"])?;
    let mut config = ServiceConfig::default();
    for entry in fields.list("methodConfig")?.unwrap_or_default() {
        let (scopes, method) = method_config(&entry)?;
        for scope in scopes {
            if config.methods.iter().any(|(known, _)| *known == scope) {
                return Err(entry.get("name").fault("names a method that another entry has named"));
            }
            config.methods.push((scope, method));
        }
    }
    config.throttle = fields.optional("retryThrottling").map(|at| throttling(&at)).transpose()?;
    Ok(config)
}

fn method_config(entry: &At<'_>) -> Result<(Vec<Scope>, MethodConfig), Fault> {
    let fields = entry.fields(&["name", "hedgingPolicy", "retryPolicy", "timeout"])?;
    if let Some(retry) = fields.optional("retryPolicy") {
        return Err(retry
            .fault("retries with backoff are not supported; use hedgingPolicy, which asks another server"));
    }
    let names = fields.list("name")?.ok_or_else(|| entry.fault("has no name"))?;
    let scopes = names.iter().map(scope).collect::<Result<_, _>>()?;
    let policy = fields.optional("hedgingPolicy").map(|at| hedging(&at)).transpose()?;
    let timeout = fields.optional("timeout").map(|at| at.duration()).transpose()?;
    Ok((scopes, MethodConfig { policy, timeout }))
}

fn scope(name: &At<'_>) -> Result<Scope, Fault> {
    let fields = name.fields(&["service", "method"])?;
    let text = |key| fields.optional(key).map(|at| at.text().map(str::to_owned)).transpose();
    let service = text("service")?.filter(|s| !s.is_empty());
    let method = text("method")?.filter(|s| !s.is_empty());
    match (service, method) {
        (Some(service), Some(method)) => Ok(Scope::Method(format!("/{service}/{method}"))),
        (Some(service), None) => Ok(Scope::Service(service)),
        (None, None) => Ok(Scope::All),
        (None, Some(_)) => Err(name.fault("has a method and no service")),
    }
}

fn hedging(at: &At<'_>) -> Result<(Policy, Codes), Fault> {
    let fields = at.fields(&["maxAttempts", "hedgingDelay", "nonFatalStatusCodes"])?;
    let attempts = fields.required("maxAttempts")?;
    let max = attempts.whole_number().filter(|n| *n > 1);
    let max = max.ok_or_else(|| attempts.fault("want a whole number greater than 1"))?.min(MOST_ATTEMPTS);
    let delay = fields.optional("hedgingDelay").map(|at| at.duration()).transpose()?.unwrap_or_default();
    let codes = fields.list("nonFatalStatusCodes")?.unwrap_or_default();
    let codes: Vec<Code> = codes.iter().map(At::code).collect::<Result<_, _>>()?;
    let max_attempts = u32::try_from(max).unwrap_or(u32::MAX);
    let policy = Policy::Hedged { delay: HedgeDelay::Fixed(delay), max_attempts };
    Ok((policy, Codes::of(&codes).all_but()))
}

fn throttling(at: &At<'_>) -> Result<Throttle, Fault> {
    let fields = at.fields(&["maxTokens", "tokenRatio"])?;
    let tokens = fields.required("maxTokens")?;
    let max = tokens.whole_number().filter(|n| (1..=1_000).contains(n));
    let max = max.ok_or_else(|| tokens.fault("want a whole number from 1 to 1000"))?;
    let ratio = fields.required("tokenRatio")?;
    let part = ratio.value.as_f64().filter(|n| *n > 0.0);
    let part = part.ok_or_else(|| ratio.fault("want a number greater than 0"))?;
    // Beyond three decimal places nothing counts; what that leaves nothing of, counts a little. `as`
    // saturates.
    let thousandths = ((part * 1_000.0 + 1e-6) as u32).max(1);
    Ok(Throttle::new(u32::try_from(max).unwrap_or(u32::MAX), thousandths))
}

/// A place in the document.
struct At<'a> {
    path: String,
    value: &'a Value,
}

impl<'a> At<'a> {
    fn fault(&self, what: &str) -> Fault {
        let path = if self.path.is_empty() { "the document" } else { &self.path };
        format!("{path}: {what}")
    }

    /// An object that has no fields but these.
    fn fields(&self, known: &[&str]) -> Result<Fields<'a>, Fault> {
        let Value::Object(map) = self.value else { return Err(self.fault("want an object")) };
        if let Some(unknown) = map.keys().find(|key| !known.contains(&key.as_str())) {
            let shown: String = unknown.chars().filter(|c| !c.is_control()).take(64).collect();
            return Err(self
                .at(&shown, self.value)
                .fault(&format!("not known here; want {}", known.join(", "))));
        }
        Ok(Fields { path: self.path.clone(), map })
    }

    fn at(&self, key: &str, value: &'a Value) -> Self {
        let dot = if self.path.is_empty() { "" } else { "." };
        Self { path: format!("{}{dot}{key}", self.path), value }
    }

    /// A field, or the object itself if it has none of that name.
    fn get(&self, key: &str) -> Self {
        self.at(key, self.value.get(key).unwrap_or(self.value))
    }

    fn text(&self) -> Result<&'a str, Fault> {
        self.value.as_str().ok_or_else(|| self.fault("want a string"))
    }

    /// 3 and 3.0 are the same number in JSON.
    fn whole_number(&self) -> Option<u64> {
        let float = || self.value.as_f64().filter(|n| n.fract() == 0.0 && (0.0..1e9).contains(n));
        self.value.as_u64().or_else(|| float().map(|n| n as u64))
    }

    /// proto3's JSON form: seconds with up to nine decimal places and an `s`.
    fn duration(&self) -> Result<Duration, Fault> {
        let fault = || self.fault("want a duration such as \"0.5s\"");
        let text = self.text().ok().and_then(|t| t.strip_suffix('s')).ok_or_else(fault)?;
        let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
        let digits = |t: &str| !t.is_empty() && t.bytes().all(|b| b.is_ascii_digit());
        if !digits(whole) || !digits(part) || part.len() > 9 {
            return Err(fault());
        }
        let seconds = whole.parse().ok().filter(|s| *s <= MOST_SECONDS).ok_or_else(fault)?;
        let nanos = format!("{part:0<9}").parse().map_err(|_| fault())?;
        Ok(Duration::new(seconds, nanos))
    }

    /// By number or by name, in any case.
    fn code(&self) -> Result<Code, Fault> {
        let fault = || self.fault("want a gRPC status code, such as \"UNAVAILABLE\" or 14");
        match self.value {
            Value::String(name) => by_name(name).ok_or_else(fault),
            _ => {
                let number = self.whole_number().filter(|n| *n <= 16).ok_or_else(fault)?;
                Ok(Code::from_i32(i32::try_from(number).map_err(|_| fault())?))
            }
        }
    }
}

struct Fields<'a> {
    path: String,
    map: &'a Map<String, Value>,
}

impl<'a> Fields<'a> {
    fn optional(&self, key: &str) -> Option<At<'a>> {
        let dot = if self.path.is_empty() { "" } else { "." };
        let value = self.map.get(key).filter(|value| !value.is_null())?;
        Some(At { path: format!("{}{dot}{key}", self.path), value })
    }

    fn required(&self, key: &str) -> Result<At<'a>, Fault> {
        let here = || At { path: self.path.clone(), value: &Value::Null };
        self.optional(key).ok_or_else(|| here().fault(&format!("has no {key}")))
    }

    fn list(&self, key: &str) -> Result<Option<Vec<At<'a>>>, Fault> {
        let Some(at) = self.optional(key) else { return Ok(None) };
        let Value::Array(values) = at.value else { return Err(at.fault("want a list")) };
        let item = |(i, value)| At { path: format!("{}[{i}]", at.path), value };
        Ok(Some(values.iter().enumerate().map(item).collect()))
    }
}

fn by_name(name: &str) -> Option<Code> {
    let code = match name.to_ascii_uppercase().as_str() {
        "OK" => Code::Ok,
        "CANCELLED" => Code::Cancelled,
        "UNKNOWN" => Code::Unknown,
        "INVALID_ARGUMENT" => Code::InvalidArgument,
        "DEADLINE_EXCEEDED" => Code::DeadlineExceeded,
        "NOT_FOUND" => Code::NotFound,
        "ALREADY_EXISTS" => Code::AlreadyExists,
        "PERMISSION_DENIED" => Code::PermissionDenied,
        "RESOURCE_EXHAUSTED" => Code::ResourceExhausted,
        "FAILED_PRECONDITION" => Code::FailedPrecondition,
        "ABORTED" => Code::Aborted,
        "OUT_OF_RANGE" => Code::OutOfRange,
        "UNIMPLEMENTED" => Code::Unimplemented,
        "INTERNAL" => Code::Internal,
        "UNAVAILABLE" => Code::Unavailable,
        "DATA_LOSS" => Code::DataLoss,
        "UNAUTHENTICATED" => Code::Unauthenticated,
        _ => return None,
    };
    Some(code)
}

/// What `grpc-retry-pushback-ms` says: a pause in milliseconds; anything else means never.
pub(crate) fn pushback(value: &str) -> Option<Duration> {
    let canonical = value.bytes().all(|b| b.is_ascii_digit()) && (value == "0" || !value.starts_with('0'));
    let millis: i32 = value.parse().ok().filter(|_| canonical)?;
    Some(Duration::from_millis(u64::try_from(millis).ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_the_proposal_is_read() {
        let config = parse(
            r#"{"methodConfig": [{
                "name": [{"service": "a.B", "method": "C"}, {"service": "a.D"}, {}],
                "hedgingPolicy": {"maxAttempts": 4, "hedgingDelay": "0.5s",
                                  "nonFatalStatusCodes": ["UNAVAILABLE", "internal", 10]},
                "timeout": "1.5s"}],
               "retryThrottling": {"maxTokens": 10, "tokenRatio": 0.1}}"#,
        )
        .unwrap();
        let scopes: Vec<_> = config.methods.iter().map(|(scope, _)| scope.clone()).collect();
        assert_eq!(scopes, [Scope::Method("/a.B/C".into()), Scope::Service("a.D".into()), Scope::All]);
        let method = config.methods[0].1;
        let (policy, fatal) = method.policy.unwrap();
        let delay = HedgeDelay::Fixed(Duration::from_millis(500));
        assert_eq!(policy, Policy::Hedged { delay, max_attempts: 4 });
        for code in [Code::Unavailable, Code::Internal, Code::Aborted, Code::Ok] {
            assert!(!fatal.contains(code), "{code:?}");
        }
        assert!(fatal.contains(Code::NotFound) && fatal.contains(Code::Unauthenticated));
        assert_eq!(method.timeout, Some(Duration::from_millis(1_500)));
        assert_eq!(config.throttle, Some(Throttle::new(10, 100)));
    }

    #[test]
    fn without_codes_all_failures_are_fatal_and_without_delay_all_copies_go_at_once() {
        let json = r#"{"methodConfig": [{"name": [{}], "hedgingPolicy": {"maxAttempts": 9}}]}"#;
        let (policy, fatal) = parse(json).unwrap().methods[0].1.policy.unwrap();
        let delay = HedgeDelay::Fixed(Duration::ZERO);
        assert_eq!(policy, Policy::Hedged { delay, max_attempts: 5 }, "more than 5 is taken for 5");
        assert!((1..17).all(|n| fatal.contains(Code::from_i32(n))));
    }

    #[test]
    fn a_ratio_has_three_decimal_places() {
        let json = r#"{"retryThrottling": {"maxTokens": 10, "tokenRatio": 0.5466}}"#;
        assert_eq!(parse(json).unwrap().throttle, Some(Throttle::new(10, 546)));
    }

    #[test]
    fn what_is_wrong_is_told_on_one_line_with_its_place() {
        let hedging = |inner: &str| {
            format!(r#"{{"methodConfig": [{{"name": [{{}}], "hedgingPolicy": {{{inner}}}}}]}}"#)
        };
        let bad: [(String, &str); 17] = [
            ("{".into(), "no JSON"),
            ("[]".into(), "the document: want an object"),
            (r#"{"x": 1}"#.into(), "x: not known here; want methodConfig, retryThrottling"),
            (r#"{"methodConfig": {}}"#.into(), "methodConfig: want a list"),
            (r#"{"methodConfig": [{}]}"#.into(), "methodConfig[0]: has no name"),
            (
                r#"{"methodConfig": [{"name": [{"method": "C"}]}]}"#.into(),
                "methodConfig[0].name[0]: has a method and no service",
            ),
            (
                r#"{"methodConfig": [{"name": [{}], "waitForReady": true}]}"#.into(),
                "methodConfig[0].waitForReady: not known here",
            ),
            (
                r#"{"methodConfig": [{"name": [{}], "retryPolicy": {"maxAttempts": 4}}]}"#.into(),
                "methodConfig[0].retryPolicy: retries with backoff are not supported; use hedgingPolicy",
            ),
            (
                r#"{"methodConfig": [{"name": [{}]}, {"name": [{}]}]}"#.into(),
                "methodConfig[1].name: names a method that another entry has named",
            ),
            (hedging(""), "methodConfig[0].hedgingPolicy: has no maxAttempts"),
            (hedging(r#""maxAttempts": 1"#), "hedgingPolicy.maxAttempts: want a whole number greater than 1"),
            (hedging(r#""maxAttempts": 2, "hedgingDelay": "1m""#), "hedgingDelay: want a duration"),
            (hedging(r#""maxAttempts": 2, "hedgingDelay": "-1s""#), "hedgingDelay: want a duration"),
            (
                hedging(r#""maxAttempts": 2, "nonFatalStatusCodes": ["NOPE"]"#),
                "nonFatalStatusCodes[0]: want a gRPC status code",
            ),
            (
                hedging(r#""maxAttempts": 2, "nonFatalStatusCodes": [14, 17]"#),
                "nonFatalStatusCodes[1]: want a gRPC status code",
            ),
            (
                r#"{"retryThrottling": {"maxTokens": 1001, "tokenRatio": 1}}"#.into(),
                "retryThrottling.maxTokens: want a whole number from 1 to 1000",
            ),
            (
                r#"{"retryThrottling": {"maxTokens": 10, "tokenRatio": 0}}"#.into(),
                "retryThrottling.tokenRatio: want a number greater than 0",
            ),
        ];
        for (json, wanted) in bad {
            let fault = parse(&json).unwrap_err();
            assert!(fault.contains(wanted) && !fault.contains('\n'), "{json}: {fault}");
        }
    }

    #[test]
    fn pushback_is_a_plain_number_of_milliseconds() {
        assert_eq!(pushback("0"), Some(Duration::ZERO));
        assert_eq!(pushback("1500"), Some(Duration::from_millis(1_500)));
        for never in ["-1", "", "x", "01", "+5", "1.5", "99999999999"] {
            assert_eq!(pushback(never), None, "{never:?}");
        }
    }
}
