//! `parma image …`

use super::layer::Format;
use super::policy::reference;
use super::run::spinner;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use parma_layer::build::vhd_footer;
use parma_layer::cache::{Cache, CachedLayer};
use parma_layer::credentials;
use parma_layer::oci::{Image, Reference};
use parma_layer::pull::{Access, From, Progress, Pulled, pull};
use serde_json::json;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Pull(Pull),
    Convert(Convert),
}

/// Get an image into an OCI layout; prints where it is, as the other commands take it
///
/// Every blob is checked against its digest before it gets its name. A pull that was interrupted goes on where it stopped, and
/// what is there already is not fetched again. Of an image for several platforms, linux/amd64 is taken.
#[derive(Args)]
#[command(
    after_help = "Users and passwords are those of podman login and docker login: $REGISTRY_AUTH_FILE, or else
$XDG_RUNTIME_DIR/containers/auth.json, then $DOCKER_CONFIG/config.json or ~/.docker/config.json. Credential helpers are not run.

Examples:
  parma image pull docker://docker.io/library/python:3.13      into oci:python:3.13
  parma image pull docker://ghcr.io/team/app@sha256:… --to oci:images:app
  parma image pull docker-archive:saved.tar:app:1 --to oci:app:1
  parma run $(parma image pull docker://quay.io/team/app:1)"
)]
pub struct Pull {
    /// Where it is: docker://HOST/NAME[:TAG][@DIGEST], oci:DIR[:TAG] or docker-archive:FILE[:NAME]
    #[arg(value_parser = from)]
    from: From,
    /// Where it goes: oci:DIR or oci:DIR:TAG; made where it is not there [default: its own name and tag, here]
    #[arg(long, value_name = "LAYOUT", value_parser = reference)]
    to: Option<Reference>,
    /// Speak to the registry without TLS: user, password and image can be read on the way (localhost is always spoken to so)
    #[arg(long)]
    plain_http: bool,
    /// Send user and password to this host, too, if the registry names it as its token server; hosts in the registry's domain
    /// need not be named
    #[arg(long, value_name = "HOST")]
    token_server: Option<String>,
    /// Print a JSON object: image, manifest, layers: [{digest, diff_id, size}], fetched, present (both in bytes)
    #[arg(long)]
    json: bool,
}

/// Parses where an image is, for clap.
fn from(text: &str) -> Result<From, String> {
    From::parse(text).map_err(|error| format!("{error:#}"))
}

/// Make the disks of all layers of an image; prints a line for each, the lowest first: root hash, blocks, file
///
/// Disks are kept in $PARMA_CACHE, or ~/.cache/parma, by the layer's digest and the options, so that a layer is converted
/// once, whatever image it is in. A run that is interrupted leaves nothing that a later one trips over, and runs at the
/// same time wait for each other's layers.
#[derive(Args)]
#[command(after_help = "Examples:
  parma image convert oci:python:latest
  parma image convert oci:python -o disks --vhd")]
pub struct Convert {
    /// The image: oci:DIR or oci:DIR:TAG
    #[arg(value_parser = reference)]
    image: Reference,
    #[command(flatten)]
    format: Format,
    /// Put copies of the disks here, as layer0.img and so on
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Append a VHD footer to each copy, as Azure's disks have
    #[arg(long, requires = "output")]
    vhd: bool,
    /// Print a JSON object: image, layers: [{digest, diff_id, root_hash, data_blocks, path}]
    #[arg(long)]
    json: bool,
}

/// Runs one of them.
pub fn main(command: Command) -> Result<ExitCode> {
    match command {
        Command::Pull(arguments) => get(arguments),
        Command::Convert(arguments) => convert(&arguments),
    }
}

fn get(arguments: Pull) -> Result<ExitCode> {
    let Pull { from, to, plain_http, token_server, json, .. } = arguments;
    let to = match to {
        Some(Reference { dir, tag: None }) => {
            let tag = from.usual_place().ok().and_then(|place| place.tag);
            Reference { dir, tag: Some(tag.unwrap_or_else(|| "latest".into())) }
        }
        Some(to) => to,
        None => from.usual_place()?,
    };
    let bar = spinner(false);
    bar.set_message("asking for the manifest");
    let access = Access { plain_http, token_server, files: credentials::files() };
    let pulled = pull(&from, &to, access, &mut |Progress { layer, layers, bytes, size }| {
        bar.set_message(format!("layer {layer} of {layers}: {} of {}", HumanBytes(bytes), HumanBytes(size)));
    })?;
    bar.finish_and_clear();
    let text = if json { pulled_json(&pulled) } else { to.to_string() };
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn pulled_json(pulled: &Pulled) -> String {
    let Pulled { image, fetched, present } = pulled;
    let layers = image.layers.iter().map(|layer| {
        json!({"digest": layer.digest.to_string(), "diff_id": layer.diff_id.to_string(), "size": layer.size})
    });
    json!({
        "image": image.reference.to_string(), "manifest": image.manifest.to_string(),
        "layers": layers.collect::<Vec<_>>(), "fetched": fetched, "present": present,
    })
    .to_string()
}

fn convert(arguments: &Convert) -> Result<ExitCode> {
    let bar = spinner(false);
    let image = Image::open(&arguments.image)?;
    let cache = Cache::open()?;
    let options = arguments.format.options();
    let count = image.layers.len();
    let mut layers = Vec::new();
    for index in 0..count {
        let place = format!("layer {} of {count}", index + 1);
        bar.set_message(place.clone());
        let mut layer = cache.layer(&image, index, &options, &mut |bytes| {
            bar.set_message(format!("{place}: {}", HumanBytes(bytes)));
        })?;
        if let Some(output) = &arguments.output {
            layer.path = copy(&layer, output, index, arguments.vhd)?;
        }
        layers.push(layer);
    }
    bar.finish_and_clear();
    let text = if arguments.json { json(&image, &layers) } else { lines(&layers) };
    writeln!(io::stdout(), "{text}").context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

/// Copies a disk out of the cache; it appears whole or not at all.
fn copy(layer: &CachedLayer, directory: &Path, index: usize, vhd: bool) -> Result<PathBuf> {
    let path = directory.join(format!("layer{index}.img"));
    let cannot = || format!("cannot write {}: may you write there, and is there room?", path.display());
    fs::create_dir_all(directory).with_context(cannot)?;
    let mut file = tempfile::Builder::new().prefix(".parma-").tempfile_in(directory).with_context(cannot)?;
    let mut source = fs::File::open(&layer.path).with_context(|| layer.path.display().to_string())?;
    let bytes = io::copy(&mut source, file.as_file_mut()).with_context(cannot)?;
    if vhd {
        file.write_all(&vhd_footer(bytes, &layer.root_hash)).with_context(cannot)?;
    }
    file.persist(&path).with_context(cannot)?;
    Ok(path)
}

fn lines(layers: &[CachedLayer]) -> String {
    let line =
        |layer: &CachedLayer| format!("{} {} {}", layer.root_hex(), layer.data_blocks, layer.path.display());
    layers.iter().map(line).collect::<Vec<_>>().join("\n")
}

fn json(image: &Image, layers: &[CachedLayer]) -> String {
    let layers = image.layers.iter().zip(layers).map(|(blob, layer)| {
        json!({
            "digest": blob.digest.to_string(), "diff_id": blob.diff_id.to_string(), "root_hash": layer.root_hex(),
            "data_blocks": layer.data_blocks, "path": layer.path,
        })
    });
    json!({"image": image.manifest.to_string(), "layers": layers.collect::<Vec<_>>()}).to_string()
}
