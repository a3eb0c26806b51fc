//! `parma image …`

use super::layer::Format;
use super::policy::reference;
use super::run::spinner;
use anyhow::{Context as _, Result};
use clap::{Args, Subcommand};
use indicatif::HumanBytes;
use parma_layer::build::vhd_footer;
use parma_layer::cache::{Cache, CachedLayer};
use parma_layer::oci::{Image, Reference};
use serde_json::json;
use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// The commands.
#[derive(Subcommand)]
pub enum Command {
    Convert(Convert),
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
    let Command::Convert(arguments) = command;
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
