//! A registry, asked for an image (OCI distribution-spec v1.1, "Pull").
//!
//! What this module promises: user and password go to the registry that they are for (see [`crate::credentials`]) and to its
//! token server, over TLS unless the user asked for less, and follow no redirection (attack K12); what a registry answers
//! is bounded in time, and in length by what was asked for. Its bytes are nothing until their digest was compared.

use std::collections::BTreeMap;
use std::io::{Cursor, Read};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use http_auth::ChallengeRef;
use http_auth::parser::ChallengeParser;
use oci_spec::distribution;
use serde::Deserialize;
use ureq::config::RedirectAuthHeaders;
use ureq::http::header::{ACCEPT, AUTHORIZATION, CONTENT_RANGE, CONTENT_TYPE, RANGE, WWW_AUTHENTICATE};
use ureq::http::{Response, StatusCode, Uri};
use ureq::{Agent, Body, ResponseExt as _};

use crate::credentials::{self, Credentials, DOCKER};
use crate::oci::{Digest, INDEX_TYPES, MANIFEST_TYPES, MAX_JSON};
use crate::pull::{Blob, Source};

/// How long a registry may take to be reached, to begin its answer, and to go on with it.
const PATIENCE: Duration = Duration::from_secs(60);
/// Most redirections of one request: registries give blobs out of other stores.
const MAX_REDIRECTS: u32 = 5;
/// Longest answer of a token server, in bytes.
const MAX_TOKEN: u64 = 64 << 10;
/// The host behind the name of Docker's own registry.
const DOCKERS_HOST: &str = "registry-1.docker.io";

/// How a registry is to be spoken to.
#[derive(Clone, Debug, Default)]
pub struct Access {
    /// Without TLS. (With `localhost` and `127.0.0.1` always.)
    pub plain_http: bool,
    /// The host that may be given user and password of the registry, where it is neither the registry's own nor in one domain with it.
    pub token_server: Option<String>,
    /// Where credentials are; see [`credentials::files`].
    pub files: Vec<PathBuf>,
}

/// An image in a registry.
pub struct Registry {
    agent: Agent,
    access: Access,
    image: distribution::Reference,
    /// `http` or `https`, and the host with its port.
    scheme: &'static str,
    host: String,
    credentials: Option<Credentials>,
    /// What to say who we are, once that is known.
    authorization: Option<String>,
    /// Documents that came before they were asked for by digest.
    documents: BTreeMap<Digest, Vec<u8>>,
}

impl Registry {
    /// The image that is called so; nothing is asked yet.
    pub fn new(image: distribution::Reference, access: Access) -> Result<Self> {
        let name = image.registry();
        let host = if name == DOCKER { DOCKERS_HOST } else { name }.to_owned();
        let local = matches!(without_port(&host), "localhost" | "127.0.0.1");
        let plain = local || access.plain_http;
        let credentials = credentials::find(&access.files, name, image.repository())?;
        let mut config = Agent::config_builder()
            .https_only(!plain)
            .http_status_as_error(false)
            .max_redirects(MAX_REDIRECTS)
            .redirect_auth_headers(RedirectAuthHeaders::Never)
            .timeout_resolve(Some(PATIENCE))
            .timeout_connect(Some(PATIENCE))
            .timeout_recv_response(Some(PATIENCE))
            .timeout_per_read(Some(PATIENCE))
            .user_agent("parma");
        if local {
            config = config.proxy(None);
        }
        Ok(Self {
            agent: config.build().new_agent(),
            access,
            scheme: if plain { "http" } else { "https" },
            host,
            credentials,
            image,
            authorization: None,
            documents: BTreeMap::new(),
        })
    }

    /// Asks for something of the image's repository, and says who we are if the registry wants to know.
    fn get(&mut self, path: &str, accept: &str, from: u64) -> Result<Response<Body>> {
        let url = format!("{}://{}/v2/{}/{path}", self.scheme, self.host, self.image.repository());
        let mut answer = self.send(&url, accept, from)?;
        if answer.status() == StatusCode::UNAUTHORIZED {
            self.authorization = self.authenticate(&answer)?;
            // Once more also where there was a token: it may have expired.
            if self.authorization.is_some() {
                answer = self.send(&url, accept, from)?;
            }
        }
        let host = &self.host;
        match answer.status() {
            StatusCode::OK | StatusCode::PARTIAL_CONTENT => Ok(answer),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => match &self.credentials {
                Some(known) => bail!(
                    "{host} refuses the user of {}: log in again with podman login {}",
                    known.file.display(),
                    self.image.registry()
                ),
                None => bail!(
                    "{host} refuses: there is no such image, or one has to log in for it: podman login {} (no file of \
                     credentials has an entry; docker's credsStore is not asked)",
                    self.image.registry()
                ),
            },
            StatusCode::NOT_FOUND => bail!("{host} has none: look at the name and the tag"),
            StatusCode::TOO_MANY_REQUESTS => bail!("{host} wants fewer requests: wait, or log in"),
            status => bail!("{host} answers with status {}", status.as_u16()),
        }
    }

    fn send(&self, url: &str, accept: &str, from: u64) -> Result<Response<Body>> {
        let mut request = self.agent.get(url).header(ACCEPT, accept);
        if let Some(authorization) = &self.authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        request.call().with_context(|| format!("{} cannot be asked", self.host))
    }

    /// What to answer to a challenge. `None`: nothing that is known here.
    fn authenticate(&self, answer: &Response<Body>) -> Result<Option<String>> {
        let asking = answer.get_uri();
        // SECURITY: K12: whoever the registry redirects to is not the registry, and must not say where to send its password.
        ensure!(
            asking.authority().is_some_and(|authority| authority.as_str() == self.host)
                && asking.scheme_str() == Some(self.scheme),
            "{} redirects to {:?}, which asks for a user: that is refused",
            self.host,
            asking.authority().map_or("", |authority| authority.as_str())
        );
        let headers =
            answer.headers().get_all(WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
        let challenges: Vec<_> = headers.flat_map(ChallengeParser::new).filter_map(Result::ok).collect();
        let of = |scheme: &str| challenges.iter().find(|found| found.scheme.eq_ignore_ascii_case(scheme));
        if let Some(bearer) = of("bearer") {
            return self.token(bearer).map(|token| Some(format!("Bearer {token}")));
        }
        Ok(of("basic").and(self.credentials.as_ref()).map(Credentials::basic))
    }

    /// Gets a token for the image from the server that the registry names.
    fn token(&self, challenge: &ChallengeRef<'_>) -> Result<String> {
        let value = |name: &str| {
            let found = challenge.params.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
            found.map(|(_, value)| value.to_unescaped())
        };
        let realm = value("realm").with_context(|| format!("{} names no token server", self.host))?;
        let uri: Uri = realm.parse().with_context(|| format!("token server {realm:?}"))?;
        let server = uri.host().unwrap_or_default();
        let own = server == without_port(&self.host);
        ensure!(
            uri.scheme_str() == Some("https")
                || (own && self.scheme == "http" && uri.scheme_str() == Some("http")),
            "{} names a token server without TLS, {realm:?}: that is refused",
            self.host
        );
        let scope = format!("repository:{}:pull", self.image.repository());
        let mut request = self.agent.get(&uri).query("scope", scope);
        if let Some(service) = value("service") {
            request = request.query("service", service);
        }
        if let Some(credentials) = &self.credentials {
            // SECURITY: K12
            ensure!(
                own || one_domain(server, without_port(self.image.registry()))
                    || self.access.token_server.as_deref() == Some(server),
                "{} wants the password sent to {server:?}, which is not in its domain: if that is its token server, say so with \
                 --token-server",
                self.host
            );
            request = request.header(AUTHORIZATION, credentials.basic());
        }
        let mut answer = request.call().with_context(|| format!("token server {server} cannot be asked"))?;
        ensure!(
            answer.status() == StatusCode::OK,
            "token server {server} refuses (status {}): log in with podman login {}",
            answer.status().as_u16(),
            self.image.registry()
        );
        let text = answer.body_mut().with_config().limit(MAX_TOKEN).read_to_vec();
        let text = text.with_context(|| format!("token server {server}"))?;
        let Token { token, access_token } = serde_json::from_slice(&text)
            .ok()
            .with_context(|| format!("token server {server} gives no token"))?;
        let token = token.or(access_token).filter(|token| token.bytes().all(|byte| byte.is_ascii_graphic()));
        token.with_context(|| format!("token server {server} gives no token"))
    }
}

#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Source for Registry {
    fn image(&mut self) -> Result<Blob> {
        let digest = self.image.digest().map(Digest::parse).transpose()?;
        let reference = match digest {
            Some(digest) => digest.to_string(),
            None => self.image.tag().unwrap_or("latest").to_owned(),
        };
        let accept = [MANIFEST_TYPES, INDEX_TYPES].concat().join(", ");
        let mut answer = self.get(&format!("manifests/{reference}"), &accept, 0)?;
        let media_type = answer.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
        let media_type =
            media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        let document = answer.body_mut().with_config().limit(MAX_JSON).read_to_vec();
        let document = document
            .with_context(|| format!("{} does not give a manifest of at most {MAX_JSON} bytes", self.host))?;
        let found = Digest::of(&document);
        if let Some(digest) = digest {
            ensure!(found == digest, "{} gives {found} for {digest}: it is damaged, or lies", self.host);
        }
        let size = document.len() as u64;
        self.documents.insert(found, document);
        Ok(Blob { digest: found, size, media_type })
    }

    fn open(&mut self, blob: &Blob, from: u64) -> Result<(u64, Box<dyn Read>)> {
        if let Some(document) = self.documents.remove(&blob.digest) {
            return Ok((0, Box::new(Cursor::new(document))));
        }
        let Blob { digest, media_type, .. } = blob;
        let is_document = [MANIFEST_TYPES, INDEX_TYPES].concat().contains(&media_type.as_str());
        let kind = if is_document { "manifests" } else { "blobs" };
        let accept = if is_document { media_type } else { "*/*" };
        let answer = self.get(&format!("{kind}/{digest}"), accept, from)?;
        let start = match answer.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.headers().get(CONTENT_RANGE).and_then(|value| value.to_str().ok());
                let start =
                    range.and_then(|range| range.strip_prefix("bytes ")?.split('-').next()?.parse().ok());
                start
                    .with_context(|| format!("{} does not say which part of the blob it gives", self.host))?
            }
            _ => 0,
        };
        Ok((start, Box::new(answer.into_body().into_reader())))
    }
}

fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    }
}

/// Whether one of two hosts is the other, or below it, at a label's boundary.
fn one_domain(one: &str, other: &str) -> bool {
    let below = |name: &str, domain: &str| {
        name.strip_suffix(domain).is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    // What is one label is a top-level domain, in which everybody is.
    let domain = |name: &str| name.split('.').filter(|label| !label.is_empty()).count() > 1;
    (domain(other) && below(one, other)) || (domain(one) && below(other, one))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k12_a_token_server_is_in_the_domain_of_its_registry_at_a_labels_boundary() {
        for (server, registry) in
            [("ghcr.io", "ghcr.io"), ("auth.docker.io", "docker.io"), ("gitlab.com", "registry.gitlab.com")]
        {
            assert!(one_domain(server, registry), "{server} {registry}");
        }
        for (server, registry) in [
            ("evilghcr.io", "ghcr.io"),
            ("ghcr.io.evil.com", "ghcr.io"),
            ("ghcr.io", "evilghcr.io"),
            ("io", "ghcr.io"),
            (".io", "ghcr.io"),
            ("", "ghcr.io"),
            ("evil.com", "ghcr.io"),
        ] {
            assert!(!one_domain(server, registry), "{server} {registry}");
        }
    }
}
