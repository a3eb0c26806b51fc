//! The key service on the wire: HTTP/1.1, over TLS unless told otherwise.
//!
//! | request | gives |
//! |---|---|
//! | `GET /status` | `{"message": "STATUS OK"}` |
//! | `GET /certs` | the keys of tokens, a JWK set |
//! | `POST /attest/SevSnpVm` | evidence → token, as Microsoft's attestation service takes and gives them |
//! | `POST /keys/NAME/release`, `POST /keys/NAME/VERSION/release` | token → wrapped key, as managed HSMs do |
//! | `POST /kbs/v0/auth`, `POST /kbs/v0/attest`, `GET /kbs/v0/resource/REPOSITORY/TYPE/TAG` | a session, a token, an encrypted resource: RCAR 0.4.0 |
//! | `POST /parma/v1/offer`, `POST /parma/v1/release` | a sealed channel's offer, and the guest's answer → sealed key |
//!
//! Errors are `{"error": {"code", "message", "checks"?}}`; `checks` lists each check with its outcome. 400: malformed, 403: refused, 413:
//! too long, 429: too many, 503: busy. Those of `/kbs/v0` are as RFC 7807 has them, `{"type", "detail", "checks"?}`; 401: refused.
//!
//! Nobody can make it wait or grow: connections, bodies, times, and requests of one address are bounded.

use crate::service::kbs::{self, Holder};
use crate::service::{AttestRequest, Failure, OfferRequest, ReleaseRequest, SealedRequest, Service};
use crate::verify::Checklist;
use anyhow::{Context as _, Result};
use axum::Router;
use axum::extract::{ConnectInfo, DefaultBodyLimit, Path, Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, COOKIE, SET_COOKIE};
use axum::http::{HeaderMap, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, body::Bytes};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Longest body of a request, in bytes. Evidence has about 30,000.
pub const MAX_BODY: usize = 256 << 10;
/// Connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// Judgements at a time; each takes a processor for some milliseconds.
const MAX_JUDGEMENTS: usize = 16;
/// How long a connection may take for its handshake and for the head of each request.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long a whole request may take.
const REQUEST: Duration = Duration::from_secs(20);
/// Requests that an address may make at once, and how many more a second.
const BURST: f64 = 60.0;
const RATE: f64 = 20.0;
/// Addresses that are remembered.
const MAX_ADDRESSES: usize = 4096;

/// What all requests share.
pub struct Shared {
    service: Service,
    judgements: Semaphore,
    addresses: Mutex<HashMap<IpAddr, (Instant, f64)>>,
}

impl Shared {
    /// Around a service.
    #[must_use]
    pub fn new(service: Service) -> Arc<Self> {
        Arc::new(Self { service, judgements: Semaphore::new(MAX_JUDGEMENTS), addresses: Mutex::default() })
    }

    /// The service.
    #[must_use]
    pub fn service(&self) -> &Service {
        &self.service
    }

    /// Whether this address may make another request now.
    fn admits(&self, address: IpAddr) -> bool {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if addresses.len() >= MAX_ADDRESSES && !addresses.contains_key(&address) {
            // Whoever is full again need not be remembered.
            addresses.retain(|_, (since, left)| *left + since.elapsed().as_secs_f64() * RATE < BURST);
            if addresses.len() >= MAX_ADDRESSES {
                return false;
            }
        }
        let (since, left) = addresses.entry(address).or_insert((now, BURST));
        *left = (*left + now.duration_since(*since).as_secs_f64() * RATE).min(BURST);
        *since = now;
        let admitted = *left >= 1.0;
        if admitted {
            *left -= 1.0;
        }
        admitted
    }
}

fn error(status: StatusCode, code: &str, message: &str, checks: Option<Value>) -> Response {
    let mut error = json!({"code": code, "message": message});
    if let Some(checks) = checks {
        error["checks"] = checks;
    }
    (status, Json(json!({"error": error}))).into_response()
}

fn checks(list: Checklist) -> Option<Value> {
    serde_json::to_value(list.items).ok()
}

/// A failure as clients of KBS know them: 401, unless it is of another kind.
fn problem(failure: Failure) -> Response {
    let (status, kind, why, list) = match failure {
        Failure::Request(why) => (StatusCode::BAD_REQUEST, "malformed", why, None),
        Failure::Refused(why, list) => (StatusCode::UNAUTHORIZED, "refused", why, list),
        failure @ Failure::Service(_) => return failure.into_response(),
    };
    let mut body = json!({"type": format!("urn:parma:kbs:{kind}"), "detail": why});
    if let Some(checks) = list.and_then(checks) {
        body["checks"] = checks;
    }
    (status, [(CONTENT_TYPE, "application/problem+json")], body.to_string()).into_response()
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        match self {
            Self::Request(why) => error(StatusCode::BAD_REQUEST, "BadRequest", &why, None),
            Self::Refused(why, list) => {
                let checks = list.and_then(checks);
                error(StatusCode::FORBIDDEN, "Refused", &why, checks)
            }
            Self::Service(cause) => {
                eprintln!("kms: {cause:#}");
                error(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    "Internal",
                    "the service failed; its log says why",
                    None,
                )
            }
        }
    }
}

/// Reads the body as JSON and has it served on a thread of its own; a failure is told in this form.
async fn serve<T: DeserializeOwned + Send + 'static, A: IntoResponse + Send + 'static>(
    shared: Arc<Shared>,
    body: Bytes,
    tell: fn(Failure) -> Response,
    answer: impl FnOnce(&Service, &T) -> Result<A, Failure> + Send + 'static,
) -> Response {
    let Ok(request) = serde_json::from_slice::<T>(&body) else {
        return tell(Failure::Request("the body is not the JSON that this endpoint takes".into()));
    };
    judge(shared, tell, move |service| answer(service, &request)).await
}

/// Has something that takes a processor for a while done on a thread of its own.
async fn judge<A: IntoResponse + Send + 'static>(
    shared: Arc<Shared>,
    tell: fn(Failure) -> Response,
    answer: impl FnOnce(&Service) -> Result<A, Failure> + Send + 'static,
) -> Response {
    let Ok(_permit) = shared.judgements.try_acquire() else {
        return error(
            StatusCode::SERVICE_UNAVAILABLE,
            "Busy",
            "too many requests at a time; try again",
            None,
        );
    };
    let theirs = shared.clone();
    match tokio::task::spawn_blocking(move || answer(&theirs.service)).await {
        Ok(Ok(answer)) => answer.into_response(),
        Ok(Err(failure)) => tell(failure),
        Err(panic) => Failure::Service(panic.into()).into_response(),
    }
}

/// The endpoints of a KBS.
fn broker() -> Router<Arc<Shared>> {
    type S = State<Arc<Shared>>;
    Router::new()
        .route(
            "/auth",
            post(|State(shared): S, body: Bytes| {
                serve(shared, body, problem, |service, request| {
                    let begun = service.kbs_auth(request)?;
                    Ok(([(SET_COOKIE, begun.cookie)], Json(begun.challenge)))
                })
            }),
        )
        .route(
            "/attest",
            post(|State(shared): S, headers: HeaderMap, body: Bytes| {
                serve(shared, body, problem, move |service, request| {
                    let session = text(&headers, COOKIE).and_then(kbs::session);
                    service.kbs_attest(session, request).map(Json)
                })
            }),
        )
        .route(
            "/resource/{repository}/{type}/{tag}",
            get(
                |State(shared): S,
                 Path((repository, kind, tag)): Path<(String, String, String)>,
                 headers: HeaderMap| {
                    judge(shared, problem, move |service| {
                        let token =
                            text(&headers, AUTHORIZATION).and_then(|text| text.strip_prefix("Bearer "));
                        let session = text(&headers, COOKIE).and_then(kbs::session);
                        let holder = token.map(Holder::Token).or(session.map(Holder::Session));
                        service.kbs_resource(holder, &format!("{repository}/{kind}/{tag}")).map(Json)
                    })
                },
            ),
        )
}

fn text(headers: &HeaderMap, name: axum::http::HeaderName) -> Option<&str> {
    headers.get(name)?.to_str().ok()
}

async fn guard(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let address = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip());
    if address.is_some_and(|address| !shared.admits(address)) {
        return error(
            StatusCode::TOO_MANY_REQUESTS,
            "TooMany",
            "too many requests of this address; wait a second",
            None,
        );
    }
    match tokio::time::timeout(REQUEST, next.run(request)).await {
        Ok(response) => response,
        Err(_) => error(StatusCode::REQUEST_TIMEOUT, "Timeout", "the request took too long", None),
    }
}

/// The endpoints.
pub fn router(shared: Arc<Shared>) -> Router {
    type S = State<Arc<Shared>>;
    let release = |shared: Arc<Shared>, name: String, body: Bytes| {
        serve(shared, body, Failure::into_response, move |service, request: &ReleaseRequest| {
            service.release(&name, request).map(Json)
        })
    };
    Router::new()
        .route("/status", get(|| async { Json(json!({"message": "STATUS OK"})) }))
        .route("/certs", get(|State(shared): S| async move { Json(shared.service.key_set()) }))
        .route(
            "/attest/SevSnpVm",
            post(|State(shared): S, body: Bytes| {
                serve(shared, body, Failure::into_response, |service, request: &AttestRequest| {
                    service.attest(request).map(Json)
                })
            }),
        )
        .route(
            "/keys/{name}/release",
            post(move |State(shared): S, Path(name): Path<String>, body: Bytes| release(shared, name, body)),
        )
        .route(
            "/keys/{name}/{version}/release",
            post(move |State(shared): S, Path((name, _)): Path<(String, String)>, body: Bytes| {
                release(shared, name, body)
            }),
        )
        .route(
            "/parma/v1/offer",
            post(|State(shared): S, body: Bytes| {
                serve(shared, body, Failure::into_response, |service, request: &OfferRequest| {
                    service.offer(request).map(Json)
                })
            }),
        )
        .route(
            "/parma/v1/release",
            post(|State(shared): S, body: Bytes| {
                serve(shared, body, Failure::into_response, |service, request: &SealedRequest| {
                    service.release_sealed(request).map(Json)
                })
            }),
        )
        .nest(parma_release::rcar::PREFIX, broker())
        .layer(from_fn_with_state(shared.clone(), guard))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared)
}

/// A TLS configuration from a chain and a key in PEM.
///
/// # Errors
/// They are none, or do not fit together.
pub fn tls(chain: &[u8], key: &[u8]) -> Result<Arc<ServerConfig>> {
    let chain: Vec<_> = CertificateDer::pem_slice_iter(chain)
        .collect::<Result<_, _>>()
        .context("the TLS certificates are not in PEM")?;
    let key = PrivateKeyDer::from_pem_slice(key).context("the TLS key is not in PEM")?;
    let config = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key);
    Ok(Arc::new(config.context("the TLS certificate and key do not fit together")?))
}

/// Serves until the process ends.
///
/// # Errors
/// The listener fails.
pub async fn run(listener: TcpListener, tls: Option<Arc<ServerConfig>>, shared: Arc<Shared>) -> Result<()> {
    let connections = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let router = router(shared);
    let acceptor = tls.map(TlsAcceptor::from);
    loop {
        let permit = connections.clone().acquire_owned().await.context("the limit of connections")?;
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            // One connection that failed, or no descriptor for it: the others go on.
            Err(error) => {
                eprintln!("kms: a connection was not accepted: {error}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            }
        };
        let (router, acceptor) = (router.clone(), acceptor.clone());
        tokio::spawn(async move {
            let _permit = permit;
            let router = router.layer(axum::Extension(ConnectInfo(address)));
            let service = TowerToHyperService::new(router);
            let mut http = hyper::server::conn::http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE);
            // Whoever breaks off, or the protocol, only harms itself.
            match acceptor {
                None => drop(http.serve_connection(TokioIo::new(stream), service).await),
                Some(acceptor) => {
                    if let Ok(Ok(stream)) = tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
                        drop(http.serve_connection(TokioIo::new(stream), service).await);
                    }
                }
            }
        });
    }
}
