//! What the shim asks of containerd: which image a container is of, and that image's blobs.
//!
//! The messages are the fields in use of containerd's API (`api/services/{containers,images,content}/v1`); protobuf
//! ignores the others. Blobs go into an OCI layout, whose reader checks every digest, so nothing here has to be believed.

use anyhow::{Context as _, Result, ensure};
use hyper_util::rt::TokioIo;
use parma_layer::oci::{Digest, MAX_JSON};
use serde_json::{Value, json};
use std::fs::{self, File};
use std::io::Write as _;
use std::path::{Path, PathBuf};
use tokio::net::UnixStream;
use tonic::client::Grpc;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

#[derive(Clone, PartialEq, prost::Message)]
struct GetContainer {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotContainer {
    #[prost(message, optional, tag = "1")]
    container: Option<Container>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(string, tag = "3")]
    image: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GetImage {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct GotImage {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(message, optional, tag = "3")]
    target: Option<Descriptor>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Descriptor {
    #[prost(string, tag = "1")]
    media_type: String,
    #[prost(string, tag = "2")]
    digest: String,
    #[prost(int64, tag = "3")]
    size: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ReadContent {
    #[prost(string, tag = "1")]
    digest: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContentPart {
    #[prost(bytes = "vec", tag = "2")]
    data: Vec<u8>,
}

/// A connection to containerd, for one namespace.
pub struct Containerd {
    runtime: tokio::runtime::Runtime,
    channel: Channel,
    namespace: MetadataValue<Ascii>,
}

impl Containerd {
    /// Connects to the socket of this path.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(socket: &str, namespace: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_io()
            .enable_time()
            .build()
            .context("no runtime for containerd's API")?;
        let path = PathBuf::from(socket.strip_prefix("unix://").unwrap_or(socket));
        let to = path.clone();
        let connector = service_fn(move |_: Uri| {
            let to = to.clone();
            async move { UnixStream::connect(to).await.map(TokioIo::new) }
        });
        // The address is only a name: the connector knows where to go.
        let endpoint = Endpoint::from_static("http://containerd");
        let channel = runtime
            .block_on(endpoint.connect_with_connector(connector))
            .with_context(|| format!("cannot reach containerd at {}", path.display()))?;
        let namespace = namespace.parse().context("containerd's namespace is no header")?;
        Ok(Self { runtime, channel, namespace })
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.metadata_mut().insert("containerd-namespace", self.namespace.clone());
        request
    }

    fn unary<Q, A>(&self, path: &'static str, message: Q) -> Result<A, Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let request = self.request(message);
        self.runtime.block_on(async {
            let mut grpc = Grpc::new(self.channel.clone());
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            let codec = ProstCodec::<Q, A>::default();
            Ok(grpc.unary(request, PathAndQuery::from_static(path), codec).await?.into_inner())
        })
    }

    /// Puts the image of a container into an OCI layout in `dir`, without those layers of which `converted` says, by
    /// their diff id, that they are not needed. Gives the image's name.
    ///
    /// # Errors
    /// containerd knows no such container or image, or lacks one of its blobs.
    pub fn layout(&self, container: &str, dir: &Path, converted: &dyn Fn(Digest) -> bool) -> Result<String> {
        let of = || format!("containerd's container {container}");
        let found: GotContainer = self
            .unary("/containerd.services.containers.v1.Containers/Get", GetContainer { id: container.into() })
            .with_context(of)?;
        let name = found.container.unwrap_or_default().image;
        ensure!(!name.is_empty(), "{}: it has no image: it must be made from one", of());
        let found: GotImage = self
            .unary("/containerd.services.images.v1.Images/Get", GetImage { name: name.clone() })
            .with_context(|| format!("image {name}: pull it again"))?;
        let target = found.image.and_then(|image| image.target).with_context(of)?;
        self.write_layout(&target, dir, converted).with_context(|| format!("image {name}"))?;
        Ok(name)
    }

    fn write_layout(
        &self,
        target: &Descriptor,
        dir: &Path,
        converted: &dyn Fn(Digest) -> bool,
    ) -> Result<()> {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).with_context(|| format!("cannot make {}", blobs.display()))?;
        let index = json!({"schemaVersion": 2, "manifests": [
            {"mediaType": target.media_type, "digest": target.digest, "size": target.size},
        ]});
        fs::write(dir.join("index.json"), index.to_string()).context("cannot write an image layout")?;
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)
            .context("cannot write an image layout")?;
        let mut document = self.document(&blobs, &target.digest)?;
        // An index of platforms: what the reader of the layout would choose.
        while let Some(manifests) = document["manifests"].as_array() {
            let ours = manifests.iter().find(|manifest| {
                manifest["platform"]["os"] == "linux" && manifest["platform"]["architecture"] == "amd64"
            });
            let ours = ours.or(manifests.first()).context("an index without images")?;
            document = self.document(&blobs, text(&ours["digest"])?)?;
        }
        let config = self.document(&blobs, text(&document["config"]["digest"])?)?;
        let layers = document["layers"].as_array().context("a manifest without layers")?;
        for (index, layer) in layers.iter().enumerate() {
            let diff_id = config["rootfs"]["diff_ids"][index].as_str().unwrap_or_default();
            if !Digest::parse(diff_id).is_ok_and(converted) {
                self.blob(&blobs, text(&layer["digest"])?, u64::MAX)?;
            }
        }
        Ok(())
    }

    fn document(&self, blobs: &Path, digest: &str) -> Result<Value> {
        let path = self.blob(blobs, digest, MAX_JSON)?;
        serde_json::from_slice(&fs::read(path)?).with_context(|| format!("{digest} is no JSON"))
    }

    /// Fetches a blob of at most `most` bytes.
    fn blob(&self, blobs: &Path, digest: &str, most: u64) -> Result<PathBuf> {
        let path = blobs.join(Digest::parse(digest)?.hex());
        let mut file = File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
        let request = self.request(ReadContent { digest: digest.to_owned() });
        let mut length = 0;
        self.runtime
            .block_on(async {
                let mut grpc = Grpc::new(self.channel.clone());
                grpc.ready().await?;
                let codec = ProstCodec::<ReadContent, ContentPart>::default();
                let read = PathAndQuery::from_static("/containerd.services.content.v1.Content/Read");
                let mut parts = grpc.server_streaming(request, read, codec).await?.into_inner();
                while let Some(part) = parts.message().await? {
                    length += part.data.len() as u64;
                    ensure!(length <= most, "longer than {most} bytes");
                    file.write_all(&part.data)?;
                }
                Ok(())
            })
            .with_context(|| {
                format!("cannot fetch {digest} from containerd: is there room on the disk, and was the image pulled whole?")
            })?;
        Ok(path)
    }
}

fn text(value: &Value) -> Result<&str> {
    value.as_str().context("a descriptor without a digest")
}
