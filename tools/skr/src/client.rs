//! HTTP to services: over TLS with the roots that were pinned when the sidecar started, to the host that was asked for and to no
//! other, and bounded in time and length.

use crate::Failure;
use anyhow::{Context as _, Result, anyhow, ensure};
use serde_json::Value;
use std::sync::Arc;
use std::time::Duration;
use ureq::http::Request;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};

/// Longest answer, in bytes.
pub const MAX_ANSWER: u64 = 1 << 20;
/// How long one may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// A client.
pub struct Client {
    agent: ureq::Agent,
    plain_http: bool,
}

/// Whom a request comes from.
#[derive(Debug, Clone, Copy)]
pub enum Identity<'a> {
    /// Nobody in particular.
    None,
    /// The holder of a token.
    Bearer(&'a str),
    /// The holder of a cookie, `NAME=VALUE`.
    Cookie(&'a str),
}

/// What a service answered.
#[derive(Debug)]
pub struct Answer {
    /// JSON.
    pub body: Value,
    /// `NAME=VALUE` of the cookie that it set.
    pub cookie: Option<String>,
}

impl Client {
    /// One that trusts these roots (PEM), or where there are none those of the web; and that speaks without TLS where that is said.
    ///
    /// # Errors
    /// The roots are no certificates.
    pub fn new(roots: &[u8], plain_http: bool) -> Result<Self> {
        let mut pinned = Vec::new();
        for item in parse_pem(roots) {
            let PemItem::Certificate(certificate) = item.context("the roots are not in PEM")? else {
                return Err(anyhow!("something else than a certificate is among the roots"));
            };
            pinned.push(certificate);
        }
        ensure!(roots.is_empty() || !pinned.is_empty(), "there is no certificate among the roots");
        let roots = |certificates: Vec<Certificate<'static>>| RootCerts::Specific(Arc::new(certificates));
        let tls = TlsConfig::builder();
        let tls = if pinned.is_empty() { tls } else { tls.root_certs(roots(pinned)) };
        let config = ureq::Agent::config_builder()
            .tls_config(tls.build())
            .timeout_global(Some(PATIENCE))
            .http_status_as_error(false)
            .max_redirects(0)
            .proxy(None)
            .https_only(!plain_http)
            .user_agent("parma-skr");
        Ok(Self { agent: config.build().new_agent(), plain_http })
    }

    /// The URL of a path at an endpoint, which is a host with an optional port, or a URL of one.
    ///
    /// # Errors
    /// It is something else, or without TLS.
    pub fn url(&self, endpoint: &str, path: &str) -> Result<String, Failure> {
        let (scheme, rest) = match endpoint.split_once("://") {
            None => (if self.plain_http { "http" } else { "https" }, endpoint),
            Some((scheme, rest)) => (scheme, rest),
        };
        let host = rest.strip_suffix('/').unwrap_or(rest);
        let is_host = (1..=255).contains(&host.len())
            && host.bytes().all(|c| c.is_ascii_alphanumeric() || b".-:[]".contains(&c));
        match scheme {
            "https" if is_host => Ok(format!("https://{host}{path}")),
            "http" if is_host && self.plain_http => Ok(format!("http://{host}{path}")),
            // SECURITY (K08): whoever is on the way could answer with a key of its own.
            "http" => Err(Failure::Request("an endpoint without TLS is not spoken to".into())),
            _ => Err(Failure::Request("an endpoint is a host, with a port if needed".into())),
        }
    }

    /// Posts JSON.
    ///
    /// # Errors
    /// The service cannot be reached, or refuses, or does not answer with JSON.
    pub fn post(&self, url: &str, body: &Value, identity: Identity<'_>) -> Result<Answer, Failure> {
        self.send("POST", url, body.to_string(), identity)
    }

    /// Gets JSON.
    ///
    /// # Errors
    /// As [`Self::post`].
    pub fn get(&self, url: &str, identity: Identity<'_>) -> Result<Answer, Failure> {
        self.send("GET", url, String::new(), identity)
    }

    fn send(&self, method: &str, url: &str, body: String, identity: Identity<'_>) -> Result<Answer, Failure> {
        let mut request = Request::builder().method(method).uri(url);
        if !body.is_empty() {
            request = request.header("content-type", "application/json");
        }
        request = match identity {
            Identity::None => request,
            Identity::Bearer(token) => request.header("authorization", format!("Bearer {token}")),
            Identity::Cookie(cookie) => request.header("cookie", cookie),
        };
        let answer = if body.is_empty() {
            let request = request.body(()).map_err(|_| Failure::Request("not a request".into()))?;
            self.agent.run(request)
        } else {
            let request = request.body(body).map_err(|_| Failure::Request("not a request".into()))?;
            self.agent.run(request)
        };
        let mut answer = answer.with_context(|| format!("{url} cannot be asked"))?;
        let cookie = answer.headers().get("set-cookie").and_then(|value| value.to_str().ok());
        let cookie = cookie.and_then(|value| value.split(';').next()).map(str::to_owned);
        let status = answer.status();
        let text = answer
            .body_mut()
            .with_config()
            .limit(MAX_ANSWER)
            .read_to_vec()
            .with_context(|| format!("{url} does not answer to its end"))?;
        let body = serde_json::from_slice::<Value>(&text);
        match (status.as_u16(), body) {
            (200, Ok(body)) => Ok(Answer { body, cookie }),
            (200, Err(_)) => Err(Failure::Own(anyhow!("{url} does not answer with JSON"))),
            (400..500, body) => {
                Err(Failure::Refused(format!("{url} refuses: {}", reason(&body.unwrap_or_default()))))
            }
            _ => Err(Failure::Own(anyhow!("{url} fails with status {}", status.as_u16()))),
        }
    }
}

/// Why a service refuses, in the forms that there are, so that it can stand in a log.
fn reason(body: &Value) -> String {
    let texts = [&body["error"]["message"], &body["detail"], &body["error"]];
    let text = texts.into_iter().find_map(Value::as_str).unwrap_or("it does not say why");
    text.chars().take(512).map(|c| if c.is_control() { '?' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k08_an_endpoint_is_a_host_and_without_tls_only_on_request() {
        let (tls, plain) = (Client::new(b"", false).unwrap(), Client::new(b"", true).unwrap());
        for (endpoint, url) in [
            ("kms.example", "https://kms.example/x"),
            ("kms.example:8443", "https://kms.example:8443/x"),
            ("https://kms.example/", "https://kms.example/x"),
            ("[::1]:8443", "https://[::1]:8443/x"),
        ] {
            assert_eq!(tls.url(endpoint, "/x").unwrap(), url);
        }
        assert_eq!(plain.url("10.0.2.2:80", "/x").unwrap(), "http://10.0.2.2:80/x");
        assert_eq!(plain.url("https://kms.example", "/x").unwrap(), "https://kms.example/x");
        for wrong in
            ["", "http://kms.example", "a/b", "a?b", "a#b", "user@a", "a b", "ftp://a", "a\r\nb", "https://"]
        {
            assert!(matches!(tls.url(wrong, "/x"), Err(Failure::Request(_))), "{wrong:?}");
        }
        assert!(Client::new(b"nothing", false).is_err());
    }

    #[test]
    fn reasons_are_short_and_printable() {
        let long = "x".repeat(1 << 16);
        for (body, expected) in [
            (serde_json::json!({"error": {"message": "host-data: \u{1b}[2J"}}), "host-data: ?[2J"),
            (serde_json::json!({"detail": "nonce"}), "nonce"),
            (serde_json::json!({"error": "text"}), "text"),
            (Value::Null, "it does not say why"),
            (serde_json::json!({"detail": long}), &long[..512]),
        ] {
            assert_eq!(reason(&body), expected);
        }
    }
}
