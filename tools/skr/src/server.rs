//! What containers ask of the sidecar: HTTP/1.1 on the loopback interface, which only the containers of this guest reach. Who is
//! among them is for the policy to say.
//!
//! | request | takes | gives |
//! |---|---|---|
//! | `GET /status` | – | `{"message": "STATUS OK"}` |
//! | `POST /attest/raw` | `{runtime_data}` | `{report}`, in hexadecimal digits |
//! | `POST /attest/combined` | `{runtime_data}` | `{evidence, endorsements, uvm_endorsements, endorsed_tcb}` |
//! | `POST /attest/maa` | `{maa_endpoint, runtime_data}` | `{token}` |
//! | `POST /key/release` | `{maa_endpoint, akv_endpoint, kid, access_token?}` | `{key}`, the text of a JWK |
//! | `POST /kbs/resource` | `{kbs_endpoint, resource}` | `{resource}` |
//!
//! Runtime data and resources are in base64. Errors are `{"error": text}`; 400: malformed, 403: a service refuses, 500: whatever
//! else.

use crate::azure::{self, Release, WrappingKey};
use crate::client::Client;
use crate::evidence::{Evidence, Tee};
use crate::{Failure, kbs};
use anyhow::{Context as _, Result};
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parma_release::rsa_aes::Wrapping;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

/// Longest body of a request, in bytes.
pub const MAX_BODY: usize = 64 << 10;
/// Requests that are being done at a time; others wait.
const MAX_REQUESTS: usize = 8;

/// The sidecar.
pub struct Sidecar {
    /// What it shows.
    pub tee: Tee,
    /// How it reaches services.
    pub client: Client,
    /// What keys are wrapped to.
    pub key: WrappingKey,
    /// How they are to be.
    pub wrapping: Wrapping,
}

#[derive(Deserialize)]
struct Attest {
    runtime_data: String,
}

#[derive(Deserialize)]
struct AttestMaa {
    maa_endpoint: String,
    runtime_data: String,
}

#[derive(Deserialize)]
struct KeyRelease {
    maa_endpoint: String,
    akv_endpoint: String,
    kid: String,
    access_token: Option<String>,
}

#[derive(Deserialize)]
struct Resource {
    kbs_endpoint: String,
    resource: String,
}

fn runtime_data(text: &str) -> Result<Vec<u8>, Failure> {
    STANDARD.decode(text).map_err(|_| Failure::Request("runtime_data is not in base64".into()))
}

impl Sidecar {
    /// A report over the SHA-256 of runtime data.
    fn evidence(&self, request: &Attest) -> Result<Evidence, Failure> {
        Ok(self.tee.evidence(&Sha256::digest(runtime_data(&request.runtime_data)?))?)
    }

    fn raw(&self, request: &Attest) -> Result<Value, Failure> {
        let evidence = self.evidence(request)?;
        Ok(json!({"report": crate::hex(&evidence.report)}))
    }

    fn combined(&self, request: &Attest) -> Result<Value, Failure> {
        let evidence = self.evidence(request)?;
        Ok(json!({
            "evidence": STANDARD.encode(&evidence.report),
            "endorsements": STANDARD.encode(evidence.chain()),
            "uvm_endorsements": STANDARD.encode(evidence.endorsement.as_deref().unwrap_or_default()),
            "endorsed_tcb": evidence.endorsed_tcb()?,
        }))
    }

    fn maa(&self, request: &AttestMaa) -> Result<Value, Failure> {
        let data = runtime_data(&request.runtime_data)?;
        Ok(json!({"token": azure::attest(&self.client, &self.tee, &request.maa_endpoint, &data)?}))
    }

    fn release(&self, request: &KeyRelease) -> Result<Value, Failure> {
        let release = Release {
            maa: &request.maa_endpoint,
            akv: &request.akv_endpoint,
            kid: &request.kid,
            access_token: request.access_token.as_deref().filter(|token| !token.is_empty()),
            wrapping: self.wrapping,
        };
        // The JWK as a text, which is how existing clients take it.
        Ok(json!({"key": self.key.release(&self.client, &self.tee, &release)?.to_string()}))
    }

    fn resource(&self, request: &Resource) -> Result<Value, Failure> {
        let resource = kbs::resource(&self.client, &self.tee, &request.kbs_endpoint, &request.resource)?;
        Ok(json!({"resource": STANDARD.encode(&*resource)}))
    }
}

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        let status = match self {
            Self::Request(_) => StatusCode::BAD_REQUEST,
            Self::Refused(_) => StatusCode::FORBIDDEN,
            Self::Own(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        (status, Json(json!({"error": self.to_string()}))).into_response()
    }
}

#[derive(Clone)]
struct Shared {
    sidecar: Arc<Sidecar>,
    requests: Arc<Semaphore>,
}

/// An endpoint: the body as JSON, done on a thread of its own.
fn endpoint<T: DeserializeOwned + Send + 'static>(
    answer: fn(&Sidecar, &T) -> Result<Value, Failure>,
) -> axum::routing::MethodRouter<Shared> {
    post(async move |State(shared): State<Shared>, body: Bytes| {
        let Ok(request) = serde_json::from_slice::<T>(&body) else {
            return Failure::Request("the body is not the JSON that this endpoint takes".into())
                .into_response();
        };
        let permit = shared.requests.acquire_owned().await;
        let sidecar = shared.sidecar;
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            answer(&sidecar, &request)
        });
        match done.await {
            Ok(Ok(value)) => Json(value).into_response(),
            Ok(Err(failure)) => failure.into_response(),
            Err(panic) => Failure::Own(panic.into()).into_response(),
        }
    })
}

/// Serves until the process ends.
///
/// # Errors
/// The listener fails.
pub async fn run(listener: TcpListener, sidecar: Sidecar) -> Result<()> {
    let shared = Shared { sidecar: Arc::new(sidecar), requests: Arc::new(Semaphore::new(MAX_REQUESTS)) };
    let router = Router::new()
        .route("/status", get(async || Json(json!({"message": "STATUS OK"}))))
        .route("/attest/raw", endpoint(Sidecar::raw))
        .route("/attest/combined", endpoint(Sidecar::combined))
        .route("/attest/maa", endpoint(Sidecar::maa))
        .route("/key/release", endpoint(Sidecar::release))
        .route("/kbs/resource", endpoint(Sidecar::resource))
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .with_state(shared);
    axum::serve(listener, router).await.context("the listener")
}
