//! The reference monitor: request → decision → permit → act → commit.
//!
//! Everything that a host can make the guest do goes through [`Gate::serve`], one request at a time. It
//!
//! 1. looks up whether this [`Phase`] accepts the request at all ([`Phase::accepts`], one table);
//! 2. turns the request's fields into checked values ([`fields`]), refusing the first that is not valid;
//! 3. checks that what the request names exists and is not in use (`objects`);
//! 4. asks the policy ([`Engine::decide`]), which answers with a delta to its state, or refuses;
//! 5. commits the delta, so that it holds whatever happens next;
//! 6. hands an [`Actor`] the [`Permit`] for exactly the values that were decided on;
//! 7. where the action failed and was undone, takes the delta back; where it could not be undone, poisons the guest;
//! 8. records in the audit log what came of the request.
//!
//! So no side effect comes before a decision (differences D5 and D6), check and use see the same values, and a refused
//! request leaves everything as it was. The one thing that survives a failed action is that a container's id is burned
//! (difference D12).

pub mod action;
mod channel;
pub mod fields;
pub mod fragment;
pub(crate) mod input;
pub mod memory;
pub mod network;
mod objects;
pub mod settings;
#[cfg(test)]
mod tests;

use crate::attest::audit::{self, Verdict};
use crate::point::Point;
use crate::policy::{self, Arena, Decision, Delta, Engine, Fault, Undo, Value};
use crate::wire::{
    self, Capabilities, Culprit, Denied, Doing, Excerpt, ExitStatus, Field, List, MAX_LAYERS, MAX_LISTED,
    Phase, Process, ProcessProperties, Properties, Reason, Refusal, Reply, Request, Rule, ScratchProperties,
    Step, Tags, Usage, VolumeProperties,
};
use action::{
    ActError, Actor, CreateContainer, DumpStack, Endorse, ExecExternal, ExecInContainer, GetUsage, Mount,
    MountDevice, MountOverlay, MountScratch, MountVolume, Permit, ProcessId, ResizeTerminal, SetLogging,
    SetUpNetwork, ShutdownContainer, SignalProcess, Source, StartProcess, UnmountDevice, UnmountOverlay,
    UnmountScratch, UnmountVolume, Unoffered, UpdateContainer, User,
};
use alloc::boxed::Box;
use alloc::string::String;
use alloc::vec::Vec;
use channel::Channels;
use fields::{
    Args, CAPABILITY_NAMES, CapabilitySets, ContainerId, DataBlocks, DirectoryName, Env, Invalid, MountPoint,
    ProfileHash, Resources, RootHash, ScratchBlocks, Serial, Signal, Slot, Stdio, Umask, UserSpec, VolumeId,
    WindowSize, WorkingDir,
};
use fragment::Fragments;
use memory::OutOfMemory;
use network::Network;
use objects::{Device, MAX_CONTAINERS, MAX_PROCESSES, Objects, Overlay, Scratch, Volume};
use settings::{PodSettings, Settings, Unclear};
use sha2::{Digest, Sha256};

/// Memory for one decision, in bytes.
pub const ARENA: usize = 64 << 10;

impl Phase {
    /// The table of authority: what a phase accepts, and where that leads.
    ///
    /// | phase | policy | power off | everything else |
    /// |---|---|---|---|
    /// | `AwaitPolicy` | → `Running` if it is HOST_DATA's | → `Stopping` | – |
    /// | `Running` | – | → `Stopping` | the policy decides; → `Poisoned` if an undo fails |
    /// | `Poisoned` | – | → `Stopping` | reading the audit log, if the policy allows it |
    /// | `Stopping` | – | – | – |
    pub const fn accepts(self, request: &Request<'_>) -> bool {
        match (self, request) {
            (Self::Stopping, _) => false,
            (_, Request::PowerOff) => true,
            (Self::AwaitPolicy, Request::SetPolicy { .. }) => true,
            // SECURITY (P03): a policy is set once.
            (Self::Running, Request::SetPolicy { .. }) => false,
            (Self::Running, _) => true,
            // What came before can be looked at, if the policy says so.
            (Self::Poisoned, Request::ReadAudit { .. }) => true,
            (Self::AwaitPolicy | Self::Poisoned, _) => false,
        }
    }
}

fn refuse<T>(culprit: Culprit, reason: Reason) -> Result<T, Refusal> {
    Err(Refusal { culprit, reason })
}

impl From<Invalid<'_>> for Refusal {
    fn from(Invalid { field, rule, value }: Invalid<'_>) -> Self {
        let value = Excerpt::of(value);
        Self { culprit: Culprit::Host, reason: Reason::Invalid { field, rule, value } }
    }
}

fn unknown<T>(field: Field) -> Result<T, Refusal> {
    refuse(Culprit::Host, Reason::Unknown { field })
}

fn in_use<T>(field: Field) -> Result<T, Refusal> {
    refuse(Culprit::Host, Reason::InUse { field })
}

fn limit<T>(field: Field) -> Result<T, Refusal> {
    refuse(Culprit::Host, Reason::Limit { field })
}

impl From<ActError> for Refusal {
    fn from(ActError { step, errno, undone }: ActError) -> Self {
        let culprit = match step {
            Step::FindDevice | Step::DeviceSize => Culprit::Host,
            Step::LayerFilesystem
            | Step::VolumeContent
            | Step::ResolveUser
            | Step::WorkingDir
            | Step::Execute => Culprit::Image,
            _ => Culprit::Guest,
        };
        Self { culprit, reason: if undone { Reason::Failed { step, errno } } else { Reason::Poisoned } }
    }
}

/// The monitor and everything it knows.
pub struct Gate {
    phase: Phase,
    host_data: [u8; 32],
    /// The attestation report whose HOST_DATA that is.
    report: Box<[u8]>,
    /// The guest's own copy of the policy.
    image: Option<&'static [u8]>,
    engine: Option<Engine<'static>>,
    arena: Box<[u8]>,
    objects: Objects,
    fragments: Fragments,
    channels: Channels,
    audit: audit::Log,
    /// The points that were asked about for the request at hand.
    points: u32,
    /// The digest of the user that it named.
    user: [u8; 32],
}

/// What a request that was allowed and done is answered with.
enum Completed {
    Done,
    PolicyAccepted,
    Started(ProcessId),
    Listed { ready: bool },
    Stacks(List<Doing, MAX_LISTED>),
    Read { first: u64 },
    Used(Usage),
    Channel,
    Sealed(Verdict),
}

impl Gate {
    /// A gate that awaits the policy whose SHA-256 is `host_data`. `report` is the attestation report that says so.
    pub fn new(host_data: [u8; 32], report: &[u8]) -> Self {
        Self {
            phase: Phase::AwaitPolicy,
            host_data,
            report: report.into(),
            image: None,
            engine: None,
            arena: alloc::vec![0; ARENA].into_boxed_slice(),
            objects: Objects::default(),
            fragments: Fragments::default(),
            channels: Channels::default(),
            audit: audit::Log::new(host_data),
            points: 0,
            user: [0; 32],
        }
    }

    /// Where the guest stands.
    pub fn phase(&self) -> Phase {
        self.phase
    }

    /// Whether everything runs that the policy requires. A guest says that it is ready, and secrets are released to it,
    /// only then (attack C09).
    pub fn ready(&mut self) -> bool {
        let running = self.phase == Phase::Running;
        running && self.engine.as_mut().is_some_and(|engine| engine.ready(&mut Arena::new(&mut self.arena)))
    }

    /// Processes that have ended, for a host that connects anew.
    pub fn exited(&self) -> impl Iterator<Item = (ProcessId, ExitStatus)> {
        self.objects.processes.iter().filter_map(|process| Some((process.id, process.exited?)))
    }

    /// Notes that a process ended. Returns whether it is one that a host knows.
    pub fn process_exited(&mut self, id: ProcessId, status: ExitStatus) -> bool {
        match self.objects.processes.iter_mut().find(|process| process.id == id) {
            Some(process) => {
                process.exited = Some(status);
                true
            }
            None => false,
        }
    }

    /// What stands for everything that was asked for since the policy is in force, and what came of it.
    pub fn audit_head(&self) -> [u8; 32] {
        self.audit.head()
    }

    /// Decides a request and, if it is allowed, has it done; then records in the audit log what came of it. `body` is that
    /// of the request's frame.
    pub fn serve(
        &mut self,
        actor: &mut impl Actor,
        request: &Request<'_>,
        body: &[u8],
    ) -> Result<Reply<'_>, Refusal> {
        let done = self.recorded(body, |gate| gate.act(actor, request))?;
        self.reply(done)
    }

    /// As [`Self::serve`] for what came sealed and is known in the open, for a verifier who plays a log again: `body` is that
    /// of the frame in which it came, `order` what was in it.
    pub fn replay(&mut self, actor: &mut impl Actor, order: &wire::Order<'_>, body: &[u8]) {
        // Whatever comes of it is in the log.
        let _ = self.recorded(body, |gate| gate.order(actor, order));
    }

    /// Records an entry of a log that is played again, of which nothing is to be played: nothing was asked of the policy.
    pub fn pass_over(&mut self, body: &[u8], entry: &audit::Entry) {
        let state = self.engine.as_ref().map_or([0; 32], Engine::state_digest);
        // Without memory the log lacks it, which is seen.
        let _ = self.audit.record(audit::request_digest(body), 0, entry.user, entry.verdict, state);
    }

    /// Does something, and records what came of it.
    fn recorded(
        &mut self,
        body: &[u8],
        act: impl FnOnce(&mut Self) -> Result<Completed, Refusal>,
    ) -> Result<Completed, Refusal> {
        // Before there is a policy nothing can be done, and nothing is recorded.
        let before = self.phase != Phase::AwaitPolicy;
        if before && !self.audit.reserve() {
            return Err(OutOfMemory.into());
        }
        (self.points, self.user) = (0, [0; 32]);
        let result = act(self);
        if before || result.is_ok() {
            let state = self.engine.as_ref().map_or([0; 32], Engine::state_digest);
            let digest = audit::request_digest(body);
            let verdict = match &result {
                Ok(Completed::Sealed(verdict)) => *verdict,
                result => Verdict::of(result.as_ref().err()),
            };
            if !self.audit.record(digest, self.points, self.user, verdict, state) {
                // SECURITY: what was done and is not in the log would be missing from the guest's history.
                self.phase = Phase::Poisoned;
                return refuse(Culprit::Guest, Reason::Poisoned);
            }
        }
        result
    }

    /// As [`Self::serve`], without a record.
    #[cfg(test)]
    fn handle(&mut self, actor: &mut impl Actor, request: &Request<'_>) -> Result<Reply<'_>, Refusal> {
        let done = self.act(actor, request)?;
        self.reply(done)
    }

    fn reply(&self, done: Completed) -> Result<Reply<'_>, Refusal> {
        Ok(match done {
            Completed::Done => Reply::Done,
            Completed::PolicyAccepted => Reply::PolicyAccepted { report: &self.report },
            Completed::Started(process) => Reply::Started { process: process.0 },
            Completed::Listed { ready } => Reply::Properties(self.properties(ready)?),
            Completed::Stacks(stacks) => Reply::Stacks(stacks),
            Completed::Used(usage) => Reply::Usage(usage),
            Completed::Channel => self.opened(),
            Completed::Sealed(_) => self.answer(),
            Completed::Read { first } => Reply::Audit(self.audit.read(first)),
        })
    }

    // Secrets are in frames of the stack below this one, and in none above.
    #[inline(never)]
    fn act(&mut self, actor: &mut impl Actor, request: &Request<'_>) -> Result<Completed, Refusal> {
        if !self.phase.accepts(request) {
            return match self.phase {
                Phase::Poisoned => refuse(Culprit::Guest, Reason::Poisoned),
                phase => refuse(Culprit::Host, Reason::WrongPhase { phase }),
            };
        }
        match *request {
            Request::SetPolicy { image } => return self.set_policy(image),
            Request::PowerOff => self.phase = Phase::Stopping,
            Request::MountDevice { device, root_hash, data_blocks } => {
                self.mount_device(actor, device, root_hash, data_blocks)?;
            }
            Request::UnmountDevice { device } => self.unmount_device(actor, device)?,
            Request::MountOverlay { container, ref layers, scratch } => {
                self.mount_overlay(actor, container, layers, scratch)?;
            }
            Request::UnmountOverlay { container } => self.unmount_overlay(actor, container)?,
            Request::CreateContainer { container, privileged, ref mounts, seccomp, ref process } => {
                return self.create_container(
                    actor,
                    container,
                    privileged,
                    mounts,
                    seccomp.map(ProfileHash),
                    process,
                );
            }
            Request::ExecInContainer { container, ref process } => {
                return self.exec_in_container(actor, container, process);
            }
            Request::SignalContainerProcess { container, process, signal } => {
                self.signal_process(actor, container, process, signal)?;
            }
            Request::ShutdownContainer { container } => self.shutdown_container(actor, container)?,
            Request::GetProperties => return self.list(),
            Request::RuntimeLogging { enabled } => {
                let decision = self.decide(Point::RuntimeLogging, &no_value, &|input| input.object(&[]))?;
                self.perform(decision.delta, || actor.set_logging(Permit::granted(SetLogging { enabled })))?;
            }
            Request::MountScratch { scratch, device, data_blocks, tags } => {
                self.mount_scratch(actor, scratch, device, data_blocks, tags)?;
            }
            Request::UnmountScratch { scratch } => self.unmount_scratch(actor, scratch)?,
            Request::MountVolume { volume, device } => self.mount_volume(actor, VolumeId(volume), device)?,
            Request::UnmountVolume { volume } => self.unmount_volume(actor, VolumeId(volume))?,
            Request::LoadFragment { envelope } => self.load_fragment(envelope)?,
            Request::SetUpNetwork(ref network) => self.set_up_network(actor, network)?,
            Request::UpdateContainer { container, resources } => {
                self.update_container(actor, container, resources)?;
            }
            Request::GetUsage { container } => return self.usage(actor, container),
            Request::OpenChannel { ref nonce, key } => return self.open_channel(actor, nonce, key),
            Request::Sealed { channel, message } => return self.sealed(actor, channel, message),
            Request::ReadAudit { first } => {
                let decision = self.decide(Point::GetProperties, &no_value, &|input| input.object(&[]))?;
                self.perform(decision.delta, || Ok(()))?;
                return Ok(Completed::Read { first });
            }
            Request::ExecExternal { ref args, ref env, working_dir } => {
                self.exec_external(actor, args, env, working_dir)?;
            }
            Request::DumpStacks => return self.dump_stacks(actor),
            Request::Unoffered { point, container } => self.unoffered(actor, point, container)?,
            Request::ResizeTerminal { container, process, size } => {
                self.resize_terminal(actor, container, process, size)?;
            }
            Request::Endorse { certificates, endorsement } => {
                if certificates.len().max(endorsement.len()) > wire::MAX_ENDORSEMENT {
                    return limit(Field::Endorsement);
                }
                // Nothing is done with it that the policy has not to allow: it shows only where containers attest themselves.
                actor.endorse(Permit::granted(Endorse { certificates, endorsement }))?;
            }
        }
        Ok(Completed::Done)
    }

    /// SECURITY (P01, P02, P05, P06): the bytes are copied once into the guest's memory, and that one copy is hashed,
    /// verified and run. Nothing of it is looked at before its hash is HOST_DATA. There is no default to fall back to.
    fn set_policy(&mut self, image: &[u8]) -> Result<Completed, Refusal> {
        if image.len() > crate::wire::MAX_POLICY {
            return limit(Field::Policy);
        }
        if Sha256::digest(image)[..] != self.host_data {
            return refuse(Culprit::Host, Reason::NotHostData);
        }
        let image = match self.image {
            // A host may send again what is no valid policy. It is the same bytes, since it has the same hash.
            Some(own) => own,
            None => {
                let mut own = memory::room(image.len())?;
                own.extend_from_slice(image);
                // A policy is in force until power-off.
                *self.image.insert(Vec::leak(own))
            }
        };
        match Engine::new(image) {
            Ok(engine) => self.engine = Some(engine),
            Err(_) => return refuse(Culprit::Policy, Reason::PolicyInvalid),
        }
        self.phase = Phase::Running;
        Ok(Completed::PolicyAccepted)
    }

    fn mount_device(
        &mut self,
        actor: &mut impl Actor,
        device: &str,
        root_hash: [u8; 32],
        data_blocks: u64,
    ) -> Result<(), Refusal> {
        let device = Serial::parse(device)?;
        let root_hash = RootHash(root_hash);
        let data_blocks = DataBlocks::new(data_blocks)?;
        if self.objects.serial_in_use(&device) {
            return in_use(Field::Device);
        }
        let Some(slot) = self.objects.free_slot() else { return limit(Field::Device) };
        if self.objects.devices.try_reserve(1).is_err() {
            return limit(Field::Device);
        }
        let hash = root_hash.hex();
        let decision = self.decide(
            Point::MountDevice,
            &|reason| if reason == policy::Reason::InvalidDeviceHash { &hash } else { "" },
            &|input| {
                let target = input.string(&slot.path())?;
                let device_hash = input.string(&hash)?;
                let regex = input.string(input::MOUNT_PATH_REGEX)?;
                input.object(&[("deviceHash", device_hash), ("mountPathRegex", regex), ("target", target)])
            },
        )?;
        let panic_on_corruption = decision.panic_on_corruption == Some(true);
        let action =
            MountDevice { device: device.clone(), slot, root_hash, data_blocks, panic_on_corruption };
        self.perform(decision.delta, || actor.mount_device(Permit::granted(action)))?;
        self.objects.devices.push(Device { serial: device, slot });
        Ok(())
    }

    fn unmount_device(&mut self, actor: &mut impl Actor, device: &str) -> Result<(), Refusal> {
        let device = Serial::parse(device)?;
        let Some(slot) = self.objects.device(&device).map(|device| device.slot) else {
            return unknown(Field::Device);
        };
        // SECURITY (I06): a mount point is not freed under an overlay that reads through it.
        if self.objects.slot_in_use(slot) {
            return in_use(Field::Device);
        }
        let decision = self
            .decide(Point::UnmountDevice, &no_value, &|input| input::unmount_target(input, &slot.path()))?;
        self.perform(decision.delta, || actor.unmount_device(Permit::granted(UnmountDevice { slot })))?;
        self.objects.devices.retain(|device| device.slot != slot);
        Ok(())
    }

    fn mount_scratch(
        &mut self,
        actor: &mut impl Actor,
        scratch: &str,
        device: &str,
        data_blocks: u64,
        tags: Tags,
    ) -> Result<(), Refusal> {
        let scratch = scratch_id(scratch)?;
        let device = Serial::parse(device)?;
        let blocks = ScratchBlocks::new(data_blocks)?;
        // SECURITY (L06): one purpose for a disk.
        if self.objects.serial_in_use(&device) {
            return in_use(Field::Device);
        }
        // A container's folder is where the scratch space of that id would be mounted.
        if self.objects.scratch(&scratch).is_some() || self.objects.overlay(&scratch).is_some() {
            return in_use(Field::Scratch);
        }
        let Some(number) = self.objects.free_scratch() else { return limit(Field::Scratch) };
        if self.objects.scratches.try_reserve(1).is_err() {
            return limit(Field::Scratch);
        }
        let decision = self.decide(Point::RwMountDevice, &no_value, &|input| {
            input::rw_mount_device(input, &scratch, blocks, tags)
        })?;
        let action = MountScratch { scratch, number, device: device.clone(), blocks, tags };
        self.perform(decision.delta, || actor.mount_scratch(Permit::granted(action)))?;
        self.objects.scratches.push(Scratch { id: scratch, number, serial: device, tags });
        Ok(())
    }

    fn unmount_scratch(&mut self, actor: &mut impl Actor, scratch: &str) -> Result<(), Refusal> {
        let scratch = scratch_id(scratch)?;
        if self.objects.scratch(&scratch).is_none() {
            return unknown(Field::Scratch);
        }
        if self.objects.scratch_in_use(&scratch) {
            return in_use(Field::Scratch);
        }
        let decision = self.decide(Point::RwUnmountDevice, &no_value, &|input| {
            input::unmount_target(input, &input::folder(&scratch))
        })?;
        self.perform(decision.delta, || actor.unmount_scratch(Permit::granted(UnmountScratch { scratch })))?;
        self.objects.scratches.retain(|other| other.id != scratch);
        Ok(())
    }

    fn mount_volume(
        &mut self,
        actor: &mut impl Actor,
        volume: VolumeId,
        device: &str,
    ) -> Result<(), Refusal> {
        let device = Serial::parse(device)?;
        if self.objects.serial_in_use(&device) {
            return in_use(Field::Device);
        }
        if self.objects.volume(&volume).is_some() {
            return in_use(Field::Volume);
        }
        let Some(number) = self.objects.free_volume() else { return limit(Field::Volume) };
        if self.objects.volumes.try_reserve(1).is_err() {
            return limit(Field::Volume);
        }
        let decision =
            self.decide(Point::RwMountDevice, &no_value, &|input| input::rw_mount_volume(input, &volume))?;
        let action = MountVolume { volume, number, device: device.clone() };
        let generation = self.perform(decision.delta, || actor.mount_volume(Permit::granted(action)))?;
        self.objects.volumes.push(Volume { id: volume, number, serial: device, generation });
        Ok(())
    }

    fn unmount_volume(&mut self, actor: &mut impl Actor, volume: VolumeId) -> Result<(), Refusal> {
        if self.objects.volume(&volume).is_none() {
            return unknown(Field::Volume);
        }
        if self.objects.volume_in_use(&volume) {
            return in_use(Field::Volume);
        }
        let decision = self.decide(Point::RwUnmountDevice, &no_value, &|input| {
            input::unmount_target(input, &volume.path())
        })?;
        self.perform(decision.delta, || actor.unmount_volume(Permit::granted(UnmountVolume { volume })))?;
        self.objects.volumes.retain(|other| other.id != volume);
        Ok(())
    }

    fn mount_overlay(
        &mut self,
        actor: &mut impl Actor,
        container: &str,
        layers: &[&str],
        scratch: Option<&str>,
    ) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        let scratch = scratch.map(scratch_id).transpose()?;
        if scratch.is_some_and(|scratch| self.objects.scratch(&scratch).is_none()) {
            return unknown(Field::Scratch);
        }
        // The folder of this container is another's scratch space.
        if scratch != Some(container) && self.objects.scratch(&container).is_some() {
            return in_use(Field::Container);
        }
        let mut slots = memory::room(layers.len())?;
        for &layer in layers {
            let serial = Serial::parse(layer)?;
            let Some(device) = self.objects.device(&serial) else { return unknown(Field::Layers) };
            // SECURITY (I05): overlayfs refuses a directory that is in the stack twice; so do we, before the policy.
            if slots.contains(&device.slot) {
                return Err(Invalid { field: Field::Layers, rule: Rule::NoDuplicates, value: layer }.into());
            }
            slots.push(device.slot);
        }
        if slots.is_empty() {
            return Err(Invalid { field: Field::Layers, rule: Rule::NotEmpty, value: "" }.into());
        }
        if self.objects.overlay(&container).is_some() || self.objects.is_burned(&container) {
            return in_use(Field::Container);
        }
        if self.objects.overlays.len() >= MAX_CONTAINERS || self.objects.overlays.try_reserve(1).is_err() {
            return limit(Field::Container);
        }
        let mut decision = self.decide(Point::MountOverlay, &no_value, &|input| {
            let id = input.string(container.as_str())?;
            let mut paths = heapless::Vec::<Value, MAX_LAYERS>::new();
            for slot in &slots {
                paths.push(input.string(&slot.path())?).map_err(|_| Fault::Arena)?;
            }
            let paths = input.array(&paths)?;
            let target = input.string(&input::rootfs(&container))?;
            input.object(&[("containerID", id), ("layerPaths", paths), ("target", target)])
        })?;
        let writable = self.decide(Point::ScratchMount, &no_value, &|input| {
            input::scratch_mount(input, scratch.as_ref(), &container)
        })?;
        let mut layers = memory::room(slots.len())?;
        layers.extend_from_slice(&slots);
        let action = MountOverlay { container, layers, scratch };
        both(&mut decision.delta, writable.delta)?;
        self.perform(decision.delta, || actor.mount_overlay(Permit::granted(action)))?;
        let (mounts, volumes) = (Vec::new(), Vec::new());
        let overlay = Overlay {
            container,
            layers: slots,
            scratch,
            mounts,
            volumes,
            created: false,
            stdio: false,
            output_waits: false,
            paused: false,
        };
        self.objects.overlays.push(overlay);
        Ok(())
    }

    fn unmount_overlay(&mut self, actor: &mut impl Actor, container: &str) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        let scratch = match self.objects.overlay(&container) {
            None => return unknown(Field::Container),
            // SECURITY (C14): not under a running container.
            Some(overlay) if overlay.created => return in_use(Field::Container),
            Some(overlay) => overlay.scratch,
        };
        let mut decision = self.decide(Point::UnmountOverlay, &no_value, &|input| {
            input::unmount_target(input, &input::rootfs(&container))
        })?;
        let writable = self.decide(Point::ScratchUnmount, &no_value, &|input| {
            input::unmount_target(input, &input::writable(scratch.as_ref().unwrap_or(&container), &container))
        })?;
        both(&mut decision.delta, writable.delta)?;
        self.perform(decision.delta, || {
            actor.unmount_overlay(Permit::granted(UnmountOverlay { container, scratch }))
        })?;
        self.objects.overlays.retain(|overlay| overlay.container != container);
        Ok(())
    }

    fn create_container(
        &mut self,
        actor: &mut impl Actor,
        container: &str,
        privileged: bool,
        mounts: &[wire::Mount<'_>],
        seccomp: Option<ProfileHash>,
        process: &Process<'_>,
    ) -> Result<Completed, Refusal> {
        let container = ContainerId::parse(container)?;
        let scratch = match self.objects.overlay(&container) {
            None => return unknown(Field::Container),
            Some(overlay) => overlay.scratch.unwrap_or(container),
        };
        // SECURITY (C08, D12): an id serves once, whatever the policy's own state says.
        if self.objects.is_burned(&container) {
            return in_use(Field::Container);
        }
        let (mounts, layers, volumes) = self.mounts(mounts)?;
        let mut start = self.start_process(actor, &container, process)?;
        let (id, args) = (start.process, memory::texts(start.args.as_slice())?);
        let terminal = start.stdio.get().terminal.is_some();
        if !self.objects.can_burn() {
            return limit(Field::Container);
        }
        let succeeded = self.objects.succeeded()?;
        let (mounted, first, profile) = (&mounts[..], &start, seccomp);
        let creation = input::Creation {
            container,
            privileged,
            scratch,
            mounts: mounted,
            profile,
            succeeded: &succeeded,
            first,
        };
        let decision =
            self.decide(Point::CreateContainer, &|reason| input::value(reason, process), &|input| {
                input::create_container(input, &creation)
            })?;
        // SECURITY: a profile that was named and decided on is enforced, or nothing runs.
        if seccomp.is_some() && decision.seccomp.is_none() {
            return deny(Point::CreateContainer, policy::Reason::InvalidSeccompProfile);
        }
        let (settings, pod) = self.settings(&decision)?;
        let stdio = decision.allow_stdio == Some(true);
        start.output_waits = decision.output_waits == Some(true);
        let output_waits = start.output_waits;
        narrow(Point::CreateContainer, &decision, stdio, &mut start)?;
        self.make_room(actor);
        self.objects.burn(container);
        let action = CreateContainer { container, scratch, mounts, settings, pod, init: start };
        self.perform(decision.delta, || actor.create_container(Permit::granted(action)))?;
        if let Some(overlay) = self.objects.overlay(&container) {
            (overlay.created, overlay.stdio, overlay.output_waits) = (true, stdio, output_waits);
            (overlay.mounts, overlay.volumes) = (layers, volumes);
        }
        self.objects.processes.push(objects::Process {
            id,
            container,
            init: true,
            args,
            terminal,
            exited: None,
        });
        Ok(Completed::Started(id))
    }

    fn exec_in_container(
        &mut self,
        actor: &mut impl Actor,
        container: &str,
        process: &Process<'_>,
    ) -> Result<Completed, Refusal> {
        let container = ContainerId::parse(container)?;
        // SECURITY (C10): in a container that exists, not in one that policy once admitted.
        if !self.objects.created(&container) {
            return unknown(Field::Container);
        }
        // It would be held still before it executes its program, and the guest with it.
        if self.objects.paused(&container) {
            return in_use(Field::Container);
        }
        let mut start = self.start_process(actor, &container, process)?;
        let (id, args) = (start.process, memory::texts(start.args.as_slice())?);
        let terminal = start.stdio.get().terminal.is_some();
        let decision =
            self.decide(Point::ExecInContainer, &|reason| input::value(reason, process), &|input| {
                input::exec_in_container(input, &container, &start)
            })?;
        // As in the reference, what was decided on standard streams for the container holds for all its processes.
        let (stdio, output_waits) = match self.objects.overlay(&container) {
            Some(overlay) => (overlay.stdio, overlay.output_waits),
            None => (false, false),
        };
        start.output_waits = output_waits;
        narrow(Point::ExecInContainer, &decision, stdio, &mut start)?;
        self.make_room(actor);
        let action = ExecInContainer { container, process: start };
        self.perform(decision.delta, || actor.exec_in_container(Permit::granted(action)))?;
        self.objects.processes.push(objects::Process {
            id,
            container,
            init: false,
            args,
            terminal,
            exited: None,
        });
        Ok(Completed::Started(id))
    }

    fn signal_process(
        &mut self,
        actor: &mut impl Actor,
        container: &str,
        process: u32,
        signal: u8,
    ) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        let signal = Signal::new(signal)?;
        // SECURITY (C11): a number names a process that we started in this container, never just any pid.
        let Some(process) = self.objects.process(&container, process) else { return unknown(Field::Process) };
        if process.exited.is_some() {
            return unknown(Field::Process);
        }
        let (id, init, args) = (process.id, process.init, memory::texts(&process.args)?);
        let decision = self.decide(Point::SignalContainerProcess, &no_value, &|input| {
            input::signal_container_process(input, &container, signal, init, &args)
        })?;
        let action = SignalProcess { process: id, signal };
        self.perform(decision.delta, || actor.signal_process(Permit::granted(action)))
    }

    /// Nothing more is asked of the policy: it has allowed this process a terminal, and how large that is, is as much the
    /// host's to say as what is typed on it.
    fn resize_terminal(
        &mut self,
        actor: &mut impl Actor,
        container: &str,
        process: u32,
        size: wire::WindowSize,
    ) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        let size = WindowSize::new(size)?;
        let id = match self.objects.process(&container, process) {
            Some(process) if process.exited.is_some() => return unknown(Field::Process),
            None => return unknown(Field::Process),
            // SECURITY (C10): no signal, and SIGWINCH is one, reaches a process that was not started on a terminal.
            Some(process) if !process.terminal => return unknown(Field::Stdio),
            Some(process) => process.id,
        };
        let action = ResizeTerminal { process: id, size };
        self.perform(Delta::default(), || actor.resize_terminal(Permit::granted(action)))
    }

    fn shutdown_container(&mut self, actor: &mut impl Actor, container: &str) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        if !self.objects.created(&container) {
            return unknown(Field::Container);
        }
        let decision = self.decide(Point::ShutdownContainer, &no_value, &|input| {
            let id = input.string(container.as_str())?;
            input.object(&[("containerID", id)])
        })?;
        self.perform(decision.delta, || {
            actor.shutdown_container(Permit::granted(ShutdownContainer { container }))
        })?;
        if let Some(overlay) = self.objects.overlay(&container) {
            (overlay.created, overlay.paused) = (false, false);
            (overlay.mounts, overlay.volumes) = (Vec::new(), Vec::new());
        }
        self.objects.processes.retain(|process| process.container != container);
        Ok(())
    }

    fn set_up_network(&mut self, actor: &mut impl Actor, network: &wire::Network<'_>) -> Result<(), Refusal> {
        let network = Network::parse(network)?;
        if self.objects.network {
            return in_use(Field::Network);
        }
        let decision =
            self.decide(Point::HostNetwork, &no_value, &|input| input::network(input, &network))?;
        let action = SetUpNetwork { network };
        self.perform(decision.delta, || actor.set_up_network(Permit::granted(action)))?;
        self.objects.network = true;
        Ok(())
    }

    fn update_container(
        &mut self,
        actor: &mut impl Actor,
        container: &str,
        resources: wire::Resources,
    ) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        let resources = Resources::new(resources)?;
        if !self.objects.created(&container) {
            return unknown(Field::Container);
        }
        let decision = self.decide(Point::UpdateContainer, &no_value, &|input| {
            input::update_container(input, &container, resources)
        })?;
        let action = UpdateContainer { container, resources };
        self.perform(decision.delta, || actor.update_container(Permit::granted(action)))?;
        if let Some(overlay) = self.objects.overlay(&container) {
            overlay.paused = resources.get().paused;
        }
        Ok(())
    }

    /// Decided as properties are: what a container uses is one.
    fn usage(&mut self, actor: &mut impl Actor, container: &str) -> Result<Completed, Refusal> {
        let container = ContainerId::parse(container)?;
        if !self.objects.created(&container) {
            return unknown(Field::Container);
        }
        let decision = self.decide(Point::GetProperties, &no_value, &|input| input.object(&[]))?;
        let usage = self.perform(decision.delta, || actor.usage(Permit::granted(GetUsage { container })))?;
        Ok(Completed::Used(usage))
    }

    fn exec_external(
        &mut self,
        actor: &mut impl Actor,
        args: &[&str],
        env: &[&str],
        working_dir: &str,
    ) -> Result<(), Refusal> {
        let args = Args::parse(args)?;
        let mut env = Env::parse(env)?;
        let working_dir = WorkingDir::parse(working_dir)?;
        let decision = self.decide(Point::ExecExternal, &no_value, &|input| {
            input::exec_external(input, &args, &env, working_dir)
        })?;
        if let Some(kept) = &decision.env {
            keep(&mut env, kept, Point::ExecExternal)?;
        }
        let action = ExecExternal { args, env, working_dir };
        self.perform(decision.delta, || actor.exec_external(Permit::granted(action)))
    }

    fn dump_stacks(&mut self, actor: &mut impl Actor) -> Result<Completed, Refusal> {
        let decision = self.decide(Point::DumpStacks, &no_value, &|input| input.object(&[]))?;
        self.perform(decision.delta, || Ok(()))?;
        let mut stacks = List::new();
        for process in self.objects.processes.iter().filter(|process| process.exited.is_none()) {
            let state = actor.dump_stack(Permit::granted(DumpStack { process: process.id }))?;
            if let Some(state) = state
                && stacks.push(Doing { process: process.id.0, state }).is_err()
            {
                return limit(Field::Process);
            }
        }
        Ok(Completed::Stacks(stacks))
    }

    fn unoffered(&mut self, actor: &mut impl Actor, point: Point, container: &str) -> Result<(), Refusal> {
        let container = ContainerId::parse(container)?;
        if !Point::UNOFFERED.contains(&point) {
            return unknown(Field::Point);
        }
        let decision = self.decide(point, &no_value, &|input| input::unoffered(input, &container))?;
        self.perform(decision.delta, || actor.unoffered(Permit::granted(Unoffered { point })))
    }

    fn list(&mut self) -> Result<Completed, Refusal> {
        let decision = self.decide(Point::GetProperties, &no_value, &|input| input.object(&[]))?;
        self.perform(decision.delta, || Ok(()))?;
        Ok(Completed::Listed { ready: self.ready() })
    }

    fn properties(&self, ready: bool) -> Result<Properties<'_>, Refusal> {
        let objects = &self.objects;
        let processes = objects.processes.iter().map(|process| ProcessProperties {
            process: process.id.0,
            container: process.container.as_str(),
            init: process.init,
            exited: process.exited,
        });
        Ok(Properties {
            devices: listed(objects.devices.iter().map(|device| device.serial.as_str()))?,
            containers: listed(objects.overlays.iter().map(|overlay| overlay.container.as_str()))?,
            processes: listed(processes)?,
            scratch: listed(
                objects.scratch_kinds().map(|(id, kind)| ScratchProperties { scratch: id.as_str(), kind }),
            )?,
            volumes: listed(
                objects
                    .volumes
                    .iter()
                    .map(|volume| VolumeProperties { volume: volume.id.0, generation: volume.generation }),
            )?,
            ready,
        })
    }

    /// The checked form of what is to be mounted in a container, and the layer devices and volumes among it. No side effects.
    fn mounts<'r>(&self, mounts: &[wire::Mount<'r>]) -> Result<Mounts<'r>, Refusal> {
        let mut checked = memory::room(mounts.len())?;
        let (mut layers, mut volumes) = (memory::room(mounts.len())?, memory::room(mounts.len())?);
        for &wire::Mount { source, destination, read_only } in mounts {
            let destination = MountPoint::parse(destination)?;
            let source = match source {
                wire::Source::Directory(name) => Source::Directory(DirectoryName::parse(name)?),
                wire::Source::Layer(serial) => {
                    let Some(device) = self.objects.device(&Serial::parse(serial)?) else {
                        return unknown(Field::Mounts);
                    };
                    if !read_only {
                        return Err(Invalid { field: Field::Mounts, rule: Rule::Range, value: serial }.into());
                    }
                    layers.push(device.slot);
                    Source::Layer(device.slot)
                }
                wire::Source::Volume(id) => {
                    let id = VolumeId(id);
                    if self.objects.volume(&id).is_none() {
                        return unknown(Field::Mounts);
                    }
                    volumes.push(id);
                    Source::Volume(id)
                }
                wire::Source::Attestation => {
                    if !read_only {
                        return Err(Invalid {
                            field: Field::Mounts,
                            rule: Rule::Range,
                            value: destination.as_str(),
                        }
                        .into());
                    }
                    Source::Attestation(self.image.unwrap_or_default())
                }
            };
            checked.push(Mount { source, destination, read_only });
        }
        Ok((checked, layers, volumes))
    }

    /// The checked form of a process, with its user resolved in the container's own files. No side effects.
    fn start_process<'r>(
        &mut self,
        actor: &impl Actor,
        container: &ContainerId,
        process: &'r Process<'_>,
    ) -> Result<StartProcess<'r>, Refusal> {
        let args = Args::parse(&process.args)?;
        let env = Env::parse(&process.env)?;
        let working_dir = WorkingDir::parse(process.working_dir)?;
        let user = UserSpec::parse(process.user)?;
        let umask = Umask::new(process.umask)?;
        let capabilities = CapabilitySets::new(process.capabilities)?;
        let stdio = Stdio::new(process.stdio)?;
        if self.objects.is_full() || self.objects.processes.try_reserve(1).is_err() {
            return limit(Field::Process);
        }
        let Some(id) = self.objects.next_process() else { return limit(Field::Process) };
        let user: User = actor.resolve_user(container, user)?;
        self.user = audit::user_digest(&user).ok_or(OutOfMemory)?;
        let no_new_privileges = process.no_new_privileges;
        Ok(StartProcess {
            process: id,
            args,
            env,
            working_dir,
            user,
            umask,
            capabilities,
            no_new_privileges,
            stdio,
            output_waits: false,
            sealed: self.channels.at_hand(),
        })
    }

    /// What the decision on a new container, which the arena still has, says that the guest gives it.
    fn settings(&self, decision: &Decision) -> Result<(Settings, PodSettings), Refusal> {
        let read = || {
            let view = self.engine.as_ref().ok_or(Unclear)?.view_of(&self.arena);
            let settings = Settings::read(&view, decision.settings, decision.seccomp)?;
            Ok((settings, PodSettings::read(&view, decision.pod)?))
        };
        read().or_else(|Unclear| {
            let (point, how) = (Point::CreateContainer, Denied::Fault);
            let (failed, value) = (List::new(), Excerpt::default());
            refuse(Culprit::Policy, Reason::Denied { point, how, failed, value })
        })
    }

    /// Has a process that has ended forgotten where there is no room for another.
    fn make_room(&mut self, actor: &mut impl Actor) {
        if self.objects.processes.len() >= MAX_PROCESSES
            && let Some(at) = self.objects.oldest_ended()
        {
            actor.forget(self.objects.processes.remove(at).id);
        }
    }

    /// Asks the policy. `value` gives the host's own value of a field, for the refusal.
    fn decide<'v>(
        &mut self,
        point: Point,
        value: &dyn Fn(policy::Reason) -> &'v str,
        input: &dyn Fn(&mut Arena<'_>) -> Result<Value, Fault>,
    ) -> Result<Decision, Refusal> {
        let Some(engine) = &mut self.engine else {
            return refuse(Culprit::Host, Reason::WrongPhase { phase: self.phase });
        };
        self.points |= 1 << point as u32;
        let (how, reasons) = match engine.decide(&mut Arena::new(&mut self.arena), point, input) {
            Ok(decision) => return Ok(decision),
            Err(policy::Refusal::Undefined) => (Denied::Undefined, Default::default()),
            Err(policy::Refusal::Fault(_)) => (Denied::Fault, Default::default()),
            Err(policy::Refusal::Denied(reasons)) => (Denied::No, reasons),
        };
        let mut failed = List::new();
        // Beyond the limit there is nothing more to learn.
        let _ = reasons.iter().try_for_each(|reason| failed.push(reason));
        let value =
            reasons.iter().map(value).find(|value| !value.is_empty()).map(Excerpt::of).unwrap_or_default();
        refuse(Culprit::Policy, Reason::Denied { point, how, failed, value })
    }

    /// Commits, acts, and takes the commit back where acting failed.
    fn perform<T>(&mut self, delta: Delta, act: impl FnOnce() -> Result<T, ActError>) -> Result<T, Refusal> {
        let undo = self.commit(delta)?;
        act().map_err(|error| self.take_back(undo, error))
    }

    /// Not part of [`Self::perform`], of which there is a copy for each action.
    #[inline(never)]
    fn commit(&mut self, delta: Delta) -> Result<Undo, Refusal> {
        let Some(engine) = &mut self.engine else {
            return refuse(Culprit::Host, Reason::WrongPhase { phase: self.phase });
        };
        engine.commit(delta).map_err(|_| OutOfMemory.into())
    }

    /// Takes a commit back whose action failed.
    #[inline(never)]
    fn take_back(&mut self, undo: Undo, error: ActError) -> Refusal {
        let ActError { step, errno, undone } = error;
        // SECURITY (I08): after a failed undo the policy's idea of the guest may be wrong.
        let rolled_back = self.engine.as_mut().is_some_and(|engine| engine.rollback(undo).is_ok());
        let undone = rolled_back && undone;
        if !undone {
            self.phase = Phase::Poisoned;
        }
        ActError { step, errno, undone }.into()
    }
}

/// What is to be mounted in a container, and the layer devices and volumes among it.
type Mounts<'r> = (Vec<Mount<'r>>, Vec<Slot>, Vec<VolumeId>);

/// The two decisions on one request, which take effect together.
fn both(delta: &mut Delta, other: Delta) -> Result<(), Refusal> {
    let memory = Refusal { culprit: Culprit::Guest, reason: Reason::Failed { step: Step::Memory, errno: 0 } };
    delta.append(other).map_err(|_| memory)
}

/// The id of a scratch space has the form of a container's, whose own it may be.
fn scratch_id(text: &str) -> Result<ContainerId, Invalid<'_>> {
    ContainerId::parse(text).map_err(|invalid| Invalid { field: Field::Scratch, ..invalid })
}

fn no_value(_: policy::Reason) -> &'static str {
    ""
}

fn deny<T>(point: Point, reason: policy::Reason) -> Result<T, Refusal> {
    let mut failed = List::new();
    // One fits.
    let _ = failed.push(reason);
    refuse(Culprit::Policy, Reason::Denied { point, how: Denied::No, failed, value: Excerpt::default() })
}

/// Takes away the variables that the policy dropped.
fn keep(env: &mut Env<'_>, kept: &[String], point: Point) -> Result<(), Refusal> {
    env.retain(|variable| kept.iter().any(|keep| keep == variable))?;
    if env.as_slice().len() == kept.len() { Ok(()) } else { deny(point, policy::Reason::InvalidEnvironment) }
}

/// Takes away what the policy dropped. A decision that names more than was asked for, or does not allow the standard
/// streams that were asked for, is a denial: the guest never runs what the host did not ask for either.
fn narrow(
    point: Point,
    decision: &Decision,
    stdio: bool,
    start: &mut StartProcess<'_>,
) -> Result<(), Refusal> {
    let deny = |reason| deny(point, reason);
    if let Some(kept) = &decision.env {
        keep(&mut start.env, kept, point)?;
    }
    if let Some(kept) = &decision.capabilities {
        let asked = start.capabilities.get();
        let sets = Capabilities {
            bounding: named(&kept.bounding, asked.bounding),
            effective: named(&kept.effective, asked.effective),
            inheritable: named(&kept.inheritable, asked.inheritable),
            permitted: named(&kept.permitted, asked.permitted),
            ambient: named(&kept.ambient, asked.ambient),
        };
        match CapabilitySets::new(sets) {
            Ok(sets) => start.capabilities = sets,
            Err(_) => return deny(policy::Reason::InvalidCapabilities),
        }
    }
    if start.stdio.any() && !stdio {
        return deny(policy::Reason::StdioNotAllowed);
    }
    Ok(())
}

/// The capabilities of `asked` that `names` names.
fn named(names: &[String], asked: u64) -> u64 {
    let named = |bit: &usize| names.iter().any(|name| name == CAPABILITY_NAMES[*bit]);
    (0..CAPABILITY_NAMES.len()).filter(named).fold(0, |set, bit| set | 1 << bit) & asked
}

fn listed<T, const N: usize>(elements: impl Iterator<Item = T>) -> Result<List<T, N>, Refusal> {
    let mut list = List::new();
    for element in elements {
        if list.push(element).is_err() {
            return limit(Field::Process);
        }
    }
    Ok(list)
}
