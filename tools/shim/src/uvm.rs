//! A pod's guest: launched under the pod's policy, its disks, its containers.

use crate::containerd::Containerd;
use crate::network::Network;
use crate::spec::Size;
use crate::steps::Steps;
use anyhow::{Context as _, Result, anyhow};
use parma::output::hex;
use parma::pod::{Guest, Pod, Scratch, new_container_id, unobserved};
use parma::workload::{Layer, Policy};
use parma_guest::gate::fields::{ContainerId, Serial};
use parma_layer::build::Options;
use parma_layer::cache::Cache;
use parma_layer::oci::{self, Reference};
use parma_vmm::{Config, Image};
use rustix::fs::{FlockOperation, flock};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

/// Disks that can be plugged into a sandbox, one for each different layer of its containers.
const PORTS: u32 = 16;
/// Where the guest's measured image is, where PARMA_IMAGE does not say otherwise.
const IMAGE: &str = "/usr/share/parma/image";
/// Where layers are kept, where PARMA_CACHE does not say otherwise.
const CACHE: &str = "/var/cache/parma";
/// Most bytes of converted layers that are kept.
const MOST_CACHED: u64 = 64 << 30;
/// Beginning of the names of image layouts, which last as long as their conversion.
const LAYOUT: &str = "layout-";

/// The image of a container, and its layers as disks.
pub struct Contents {
    /// The image.
    pub image: oci::Image,
    /// Its layers, bottom first.
    pub layers: Vec<Layer>,
}

impl Contents {
    /// Fetches the image of a container from containerd and converts what of it was not converted before.
    ///
    /// # Errors
    /// containerd lacks it, it is none that can be run, or the disk is full.
    pub fn of(containerd: &Containerd, container: &str) -> Result<Self> {
        let directory = place("PARMA_CACHE", CACHE);
        let cache = Cache::at(&directory)?;
        let layout = Layout::new(&directory)?;
        let converted = |diff_id| cache.holds(diff_id, &Options::default());
        let name = containerd.layout(container, &layout.dir, &converted)?;
        let image = oci::Image::open(&Reference { dir: layout.dir.clone(), tag: None })
            .with_context(|| format!("image {name}"))?;
        let found = cache.convert(&image, &mut |_, _| {}).with_context(|| format!("image {name}"))?;
        let layers = found.into_iter().map(|layer| {
            // The same layer of two containers is one disk.
            let serial = format!("l{}", hex(&layer.root_hash[..9]));
            let serial = Serial::parse(&serial).map_err(|_| anyhow!("{serial} is no serial"))?;
            Ok(Layer { path: layer.path, root_hash: layer.root_hash, data_blocks: layer.data_blocks, serial })
        });
        let layers = layers.collect::<Result<Vec<_>>>()?;
        let used: Vec<_> = layers.iter().map(|layer| layer.path.as_path()).collect();
        cache.trim(MOST_CACHED, &used)?;
        Ok(Self { image, layers })
    }
}

/// A directory for an image while it is converted. One whose owner was killed is removed by the next.
struct Layout {
    dir: PathBuf,
    _lock: File,
}

impl Layout {
    fn new(cache: &Path) -> Result<Self> {
        let cannot = || format!("cannot write to {}: is there room?", cache.display());
        let all = File::create(cache.join("layouts.lock")).with_context(cannot)?;
        flock(&all, FlockOperation::LockExclusive).with_context(cannot)?;
        for entry in fs::read_dir(cache).with_context(cannot)?.flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.starts_with(LAYOUT)) {
                let abandoned = File::open(entry.path())
                    .is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok());
                if abandoned {
                    let _ = fs::remove_dir_all(entry.path());
                }
            }
        }
        let dir = tempfile::Builder::new().prefix(LAYOUT).tempdir_in(cache).with_context(cannot)?.keep();
        let lock = File::open(&dir).with_context(cannot)?;
        flock(&lock, FlockOperation::NonBlockingLockExclusive).with_context(cannot)?;
        Ok(Self { dir, _lock: lock })
    }
}

impl Drop for Layout {
    fn drop(&mut self) {
        // What stays is removed by the next.
        let _ = fs::remove_dir_all(&self.dir);
    }
}

/// A guest that runs. Dropping it ends it.
pub struct Uvm {
    /// What can be asked of it.
    pub guest: Arc<Guest>,
    /// QEMU's process.
    pub pid: u32,
    /// What decides in it.
    pub policy: Policy,
    scratch: Option<ContainerId>,
    /// `None` once it was ended.
    inner: Mutex<Option<Inner>>,
}

struct Inner {
    // In the order of their end.
    pod: Pod,
    _network: Option<Network>,
    layers: Vec<Layer>,
}

impl Uvm {
    /// Launches a guest with this network and these layers; one without layers gets ports for those that come later.
    ///
    /// # Errors
    /// Something that is needed is missing on the node, the machine ends, or the guest refuses the policy.
    pub fn launch(
        policy: Policy,
        size: &Size,
        layers: &[Layer],
        network: Option<Network>,
        steps: &mut Steps,
    ) -> Result<Self> {
        let image = Image::open(&place("PARMA_IMAGE", IMAGE))?;
        if !image.emulated {
            parma_vmm::snp::require()?;
        }
        let scratch = match size.scratch {
            0 => Scratch::Memory,
            mib => Scratch::disk(u64::from(mib) << 20)?,
        };
        let mut config = Config::new(image, policy.host_data());
        config.memory_mib = size.memory;
        config.vcpus = size.cpus;
        config.ports = if layers.is_empty() { PORTS } else { 0 };
        let mut distinct: Vec<Layer> = Vec::new();
        for layer in layers {
            if !distinct.iter().any(|other| other.serial == layer.serial) {
                distinct.push(layer.clone());
            }
        }
        config.disks = distinct.iter().map(Layer::disk).chain(scratch.to_attach()).collect();
        config.tap = network.as_ref().map(|network| network.tap.clone());
        let pod = Pod::boot(&config, unobserved())?;
        steps.done("machine");
        pod.set_policy(&policy)?;
        steps.done("policy");
        if let Some(network) = &network {
            pod.guest.set_up_network(network.request()?).context(
                "the pod's network: generate the policy with --allow-network, or add the annotation parma.dev/network: none",
            )?;
        }
        for layer in &distinct {
            pod.guest.mount_layer(layer)?;
        }
        let id = new_container_id()?;
        let scratch = pod.guest.mount_scratch(&id, &scratch)?.copied();
        steps.done("network and disks");
        let (guest, pid) = (pod.guest.clone(), pod.machine.pid());
        Ok(Self {
            guest,
            pid,
            policy,
            scratch,
            inner: Mutex::new(Some(Inner { pod, _network: network, layers: distinct })),
        })
    }

    /// Makes the root filesystem of a container. Its layers are plugged in where no container before had them; they stay
    /// until the guest ends, since a container that is started again needs them again.
    ///
    /// # Errors
    /// All ports are taken, or the guest refuses.
    pub fn assemble(&self, id: &ContainerId, layers: &[Layer]) -> Result<()> {
        {
            let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
            let inner = inner.as_mut().context("the pod's guest is gone")?;
            for layer in layers {
                if inner.layers.iter().any(|other| other.serial == layer.serial) {
                    continue;
                }
                let attached = inner.pod.machine.attach(&layer.disk()).with_context(|| {
                    format!(
                        "the containers of a pod have more than {PORTS} different layers: squash their images"
                    )
                })?;
                if let Err(error) = self.guest.mount_layer(layer) {
                    // The refusal says more.
                    let _ = inner.pod.machine.detach(attached);
                    return Err(error);
                }
                inner.layers.push(layer.clone());
            }
        }
        self.guest.mount_overlay(id, layers, self.scratch.as_ref())
    }

    /// Ends the machine; when this returns, also to a second caller, nothing of it is left.
    pub fn end(&self) {
        *self.inner.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

fn place(variable: &str, default: &str) -> PathBuf {
    let named = std::env::var_os(variable).filter(|value| !value.is_empty());
    named.map_or_else(|| default.into(), PathBuf::from)
}
