//! The Task service (version 2) of one pod: the table of its containers and processes, and the events about them.
//!
//! A process is created, then started, then has ended; it is forgotten when containerd deletes it. That the guest is gone
//! is the end of all that runs in it, with the code of a process that SIGKILL ended.

use crate::containerd::Containerd;
use crate::network::Network;
use crate::policy;
use crate::spec::{self, Role, Size, Wanted};
use crate::steps::Steps;
use crate::streams::{Places, Streams};
use crate::uvm::{Contents, Uvm};
use anyhow::{Context as _, Result, anyhow, ensure};
use containerd_shim::api;
use containerd_shim::event::Event;
use containerd_shim::protos::cgroups::metrics::{
    CPUStat, CPUUsage, MemoryEntry, MemoryStat, Metrics, PidsStat,
};
use containerd_shim::protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused, TaskResumed,
    TaskStart,
};
use containerd_shim::protos::protobuf::MessageDyn;
use containerd_shim::protos::protobuf::well_known_types::timestamp::Timestamp;
use containerd_shim::protos::ttrpc::{self, Code, context};
use containerd_shim::publisher::RemotePublisher;
use containerd_shim::synchronous::ExitSignal;
use containerd_shim::util::{convert_to_any, read_address, timestamp, write_address};
use containerd_shim::{
    Config, DeleteResponse, Error, Flags, Shim, StartOpts, Task, TtrpcContext, TtrpcResult, socket_address,
    spawn,
};
use oci_spec::runtime::{LinuxResources, Process};
use parma::output::hex;
use parma_guest::gate::fields::ContainerId;
use parma_guest::wire::{self, ExitStatus, List, Mount, Request, Resources, Source, WindowSize};
use parma_layer::oci::Digest;
use parma_vmm::{Reply, escape};
use std::collections::{BTreeMap, HashMap};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The runtime's name.
pub const RUNTIME: &str = "io.containerd.parma.v2";
/// Longest error, in bytes (T07: a guest must not fill the orchestrator's log).
const MAX_ERROR: usize = 2048;
/// How long the output of a process that has ended may take on its way to containerd.
const DRAIN: Duration = Duration::from_secs(10);
/// How long an event may wait for a containerd that is restarted, and between attempts.
const EVENT_TIMEOUT: Duration = Duration::from_secs(120);
const EVENT_RETRY: Duration = Duration::from_millis(500);
const SIGTERM: u32 = 15;
const SIGKILL: u32 = 9;
/// A terminal's size until containerd says another.
const WINDOW: WindowSize = WindowSize { rows: 24, columns: 80 };
/// What a shell gives for a process that SIGKILL ended.
const KILLED: u32 = 137;
/// What a container engine gives for a process that could not be started.
const NOT_STARTED: u32 = 128;
/// What is said of whatever needs a guest that has ended.
const GONE: &str = "the pod's guest is gone: delete the pod";
/// The setting of a policy's entry that makes a root filesystem read-only.
const READ_ONLY: &str = "read_only_root";
/// The first process of a container, among its processes.
const INIT: &str = "";

/// The service, and what starts it.
#[derive(Clone)]
pub struct Service {
    inner: Arc<Inner>,
}

/// An event's topic and content.
type Published = (String, Box<dyn MessageDyn>);

struct Inner {
    namespace: String,
    id: String,
    /// containerd's socket.
    address: String,
    exit: ExitSignal,
    events: Mutex<Option<Sender<Published>>>,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    uvm: Option<Arc<Uvm>>,
    tasks: HashMap<String, Container>,
}

struct Container {
    bundle: String,
    /// What it is in the guest; a sandbox is nothing there.
    member: Option<Arc<Member>>,
    pid: u32,
    processes: HashMap<String, Running>,
    paused: bool,
}

/// What requests about a container need.
struct Member {
    id: ContainerId,
    image_user: String,
    directories: Vec<(String, String, bool)>,
    /// The profile of system calls to ask for.
    profile: Option<[u8; 32]>,
    limits: Resources,
    alone: bool,
}

struct Running {
    spec: Option<Process>,
    places: Places,
    streams: Streams,
    /// Its number in the guest, once it was started.
    process: Option<u32>,
    started: bool,
    /// containerd has said that its input is over, perhaps before it was connected.
    input_closed: bool,
    ended: Option<(u32, Timestamp)>,
}

impl Running {
    fn new(spec: Option<Process>, places: Places) -> Self {
        Self {
            spec,
            places,
            streams: Streams::default(),
            process: None,
            started: false,
            input_closed: false,
            ended: None,
        }
    }
}

/// An error as one line that can steer no terminal (T09).
fn line(error: &anyhow::Error) -> String {
    let text = escape(format!("{error:#}").as_bytes());
    let mut line = text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    if line.len() > MAX_ERROR {
        let end = (0..=MAX_ERROR).rev().find(|&end| line.is_char_boundary(end)).unwrap_or(0);
        line.truncate(end);
        line.push('…');
    }
    line
}

fn status(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
}

fn failed(error: &anyhow::Error) -> ttrpc::Error {
    let line = line(error);
    log::error!("{line}");
    status(Code::FAILED_PRECONDITION, line)
}

fn not_found(what: &str) -> ttrpc::Error {
    status(Code::NOT_FOUND, format!("{}: not found", escape(what.as_bytes())))
}

fn now() -> Timestamp {
    timestamp().unwrap_or_default()
}

impl Shim for Service {
    type T = Self;

    fn new(_: &str, flags: &Flags, _: &mut Config) -> Self {
        Self {
            inner: Arc::new(Inner {
                namespace: flags.namespace.clone(),
                id: flags.id.clone(),
                address: flags.address.clone(),
                exit: ExitSignal::default(),
                events: Mutex::default(),
                state: Mutex::default(),
                changed: Condvar::new(),
            }),
        }
    }

    fn start_shim(&mut self, options: StartOpts) -> Result<String, Error> {
        let role = spec::annotations(Path::new(".")).and_then(|annotations| spec::role(&annotations));
        let address = match role.map_err(|error| Error::Other(line(&error)))? {
            // The sandbox's shim serves all containers of the pod.
            Role::Member(sandbox) => socket_address(&options.address, &options.namespace, &sandbox),
            Role::Alone | Role::Sandbox => {
                let id = options.id.clone();
                spawn(options, &id, Vec::new())?.1
            }
        };
        write_address(&address)?;
        Ok(address)
    }

    fn delete_shim(&mut self) -> Result<DeleteResponse, Error> {
        // The guest went with the shim; what may be left is its machine's directory, and the shim's own socket. A member's
        // address is that of its pod's shim, which lives on.
        parma_vmm::sweep();
        let role = spec::annotations(Path::new(".")).and_then(|annotations| spec::role(&annotations));
        if let (Ok(Role::Alone | Role::Sandbox), Ok(address)) = (role, read_address()) {
            let socket = address.strip_prefix("unix://").unwrap_or(&address);
            if UnixStream::connect(socket).is_err() {
                let _ = std::fs::remove_file(socket);
            }
        }
        let mut response = DeleteResponse::new();
        response.set_exit_status(KILLED);
        response.set_exited_at(timestamp()?);
        Ok(response)
    }

    fn wait(&mut self) {
        self.inner.exit.wait();
    }

    fn create_task_service(&self, publisher: RemotePublisher) -> Self {
        let (sender, events) = channel::<Published>();
        let namespace = self.inner.namespace.clone();
        // One thread, so that events arrive in their order, also where containerd is restarted meanwhile.
        std::thread::spawn(move || {
            let mut publisher = Some(publisher);
            for (topic, event) in events {
                let deadline = Instant::now() + EVENT_TIMEOUT;
                loop {
                    let context = context::with_duration(Duration::from_secs(5));
                    let sent = publisher
                        .as_ref()
                        .is_some_and(|p| p.publish(context, &topic, &namespace, event.clone_box()).is_ok());
                    if sent {
                        break;
                    }
                    if Instant::now() > deadline {
                        log::error!("event {topic} was not taken");
                        break;
                    }
                    std::thread::sleep(EVENT_RETRY);
                    publisher = std::env::var("TTRPC_ADDRESS")
                        .ok()
                        .and_then(|address| RemotePublisher::new(address).ok());
                }
            }
        });
        *self.inner.events.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.clone()
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete when the lock is released, even by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn publish(&self, event: impl Event) {
        let topic = event.topic();
        if let Some(events) = &*self.events.lock().unwrap_or_else(PoisonError::into_inner) {
            // Fails only where the thread is gone, with this process.
            let _ = events.send((topic, Box::new(event)));
        }
    }

    fn uvm(&self) -> Result<Arc<Uvm>> {
        self.lock().uvm.clone().context(GONE)
    }

    /// Launches the pod's guest and watches it.
    fn launch(self: &Arc<Self>, uvm: Uvm) -> Arc<Uvm> {
        let uvm = Arc::new(uvm);
        self.lock().uvm = Some(uvm.clone());
        let (inner, guest) = (self.clone(), uvm.guest.clone());
        std::thread::spawn(move || {
            loop {
                match guest.session.next_exit(None) {
                    Ok(Some((process, how))) => inner.ended(process, how),
                    Ok(None) => {}
                    Err(error) => {
                        log::info!("the guest is gone: {}", line(&error));
                        return inner.stop();
                    }
                }
            }
        });
        uvm
    }

    /// A process has ended. One that nobody knows yet is asked after by whoever starts it.
    fn ended(&self, process: u32, how: ExitStatus) {
        let mut state = self.lock();
        let of = |(id, container): (&String, &Container)| {
            let (exec, _) =
                container.processes.iter().find(|(_, running)| running.process == Some(process))?;
            Some((id.clone(), exec.clone()))
        };
        let Some((id, exec)) = state.tasks.iter().find_map(of) else { return };
        if how == ExitStatus::OutOfMemory {
            self.publish(TaskOOM { container_id: id.clone(), ..Default::default() });
        }
        self.end(&mut state, &id, &exec, how.shell_code().into());
    }

    fn end(&self, state: &mut State, id: &str, exec: &str, code: u32) {
        let Some(container) = state.tasks.get_mut(id) else { return };
        let Some(running) = container.processes.get_mut(exec) else { return };
        if running.ended.is_some() {
            return;
        }
        let at = now();
        running.ended = Some((code, at.clone()));
        running.streams.close_input();
        self.publish(TaskExit {
            container_id: id.to_owned(),
            id: if exec == INIT { id } else { exec }.to_owned(),
            pid: container.pid,
            exit_status: code,
            exited_at: Some(at).into(),
            ..Default::default()
        });
        self.changed.notify_all();
    }

    /// Ends the guest, and with it all that ran. containerd hears of it when nothing of the guest is left: its answer to
    /// the last exit is to end this process.
    fn stop(&self) {
        let uvm = self.lock().uvm.clone();
        if let Some(uvm) = uvm {
            uvm.end();
        }
        let mut state = self.lock();
        state.uvm = None;
        let all = |(id, container): (&String, &Container)| {
            container.processes.keys().map(|exec| (id.clone(), exec.clone())).collect::<Vec<_>>()
        };
        let all: Vec<_> = state.tasks.iter().flat_map(all).collect();
        for (id, exec) in all {
            self.end(&mut state, &id, &exec, KILLED);
        }
    }

    /// As [`Self::stop`], but answers before: a signal is only sent, and the process's end is an event.
    fn begin_to_stop(self: &Arc<Self>) {
        let inner = self.clone();
        std::thread::spawn(move || inner.stop());
    }

    fn create(self: &Arc<Self>, request: &api::CreateTaskRequest) -> Result<u32> {
        let id = request.id();
        ensure!(!self.lock().tasks.contains_key(id), "{id}: exists already");
        let wanted = Wanted::read(Path::new(request.bundle()))?;
        let mut steps = Steps::begin();
        let no_labels = BTreeMap::new();
        let contents = || Contents::of(&Containerd::connect(&self.address, &self.namespace)?, id);
        let network = || match &wanted.network {
            Some(namespace) => Network::tie(namespace, wanted.resolv_conf.as_deref()),
            None => Ok(None),
        };
        let (uvm, member) = match wanted.role {
            Role::Sandbox => {
                let policy = policy::find(&wanted.annotations, &no_labels, &policy::store())?;
                let size = Size::of(&wanted.annotations)?;
                (self.launch(Uvm::launch(policy, &size, &[], network()?, &mut steps)?), None)
            }
            Role::Alone => {
                let size = Size::of(&wanted.annotations)?;
                let contents = contents()?;
                steps.done("image");
                let policy =
                    policy::find(&wanted.annotations, &contents.image.config.labels, &policy::store())?;
                let uvm = self.launch(Uvm::launch(policy, &size, &contents.layers, network()?, &mut steps)?);
                (uvm, Some(contents))
            }
            Role::Member(_) => {
                let found = (self.uvm()?, Some(contents()?));
                steps.done("image");
                found
            }
        };
        let alone = wanted.role == Role::Alone;
        let member = match member {
            None => None,
            Some(contents) => {
                let inside = container_id(id)?;
                ensure!(
                    !wanted.read_only || policy::says(&uvm.policy, READ_ONLY)?,
                    "readOnlyRootFilesystem: the policy makes no root read-only: generate it with --read-only, or from the Pod"
                );
                let named = |hash: &[u8; 32]| policy::says(&uvm.policy, &hex(hash));
                let profile = match wanted.profile {
                    Some(hash) if named(&hash)? => Some(hash),
                    Some(hash) => {
                        // Which filter a container has is for its policy to say.
                        log::warn!(
                            "{id}: the policy has no seccomp profile {}: the guest's own filter",
                            hex(&hash)
                        );
                        None
                    }
                    None => None,
                };
                uvm.assemble(&inside, &contents.layers)?;
                steps.done("root filesystem");
                Some(Arc::new(Member {
                    id: inside,
                    image_user: contents.image.config.user,
                    directories: wanted.directories,
                    profile,
                    limits: limits(wanted.resources.as_ref()),
                    alone,
                }))
            }
        };
        let places = Places {
            stdin: request.stdin().to_owned(),
            stdout: request.stdout().to_owned(),
            stderr: request.stderr().to_owned(),
            terminal: request.terminal().then_some(WINDOW),
        };
        let init = Running::new(Some(wanted.process), places);
        let container = Container {
            bundle: request.bundle().to_owned(),
            member,
            pid: uvm.pid,
            processes: HashMap::from([(INIT.to_owned(), init)]),
            paused: false,
        };
        {
            // In one step with the look at the guest: whoever ends it later ends this container, too.
            let mut state = self.lock();
            ensure!(state.uvm.is_some(), "{GONE}");
            state.tasks.insert(id.to_owned(), container);
        }
        log::info!("{id}: created: {steps}");
        self.publish(TaskCreate {
            container_id: id.to_owned(),
            bundle: request.bundle().to_owned(),
            pid: uvm.pid,
            ..Default::default()
        });
        Ok(uvm.pid)
    }

    fn start(&self, id: &str, exec: &str) -> Result<u32> {
        let (member, spec, places, pid) = {
            let state = self.lock();
            let container = state.tasks.get(id).with_context(|| format!("{id}: not found"))?;
            let running = container.processes.get(exec).with_context(|| format!("{exec}: not found"))?;
            ensure!(!running.started && running.ended.is_none(), "it was started already");
            (container.member.clone(), running.spec.clone(), running.places.clone(), container.pid)
        };
        let mut steps = Steps::begin();
        let (mut process, mut streams) = (None, Streams::default());
        if let (Some(member), Some(spec)) = (&member, &spec) {
            let uvm = self.uvm()?;
            let started = if exec == INIT {
                member.create(&uvm, spec, &places)?
            } else {
                let (env, user) = member.environment_and_user(spec);
                let request = spec::request(spec, &env, &user, places.wanted())?;
                started(&uvm, Request::ExecInContainer { container: member.id.as_str(), process: request })?
            };
            steps.done("process");
            streams = places.connect(uvm.guest.session.connector(), started)?;
            process = Some(started);
            log::info!("{id}: started: {steps}");
        }
        {
            let mut state = self.lock();
            let container = state.tasks.get_mut(id).with_context(|| format!("{id}: not found"))?;
            let running = container.processes.get_mut(exec).context("it was deleted")?;
            (running.process, running.streams, running.started) = (process, streams, true);
            if running.input_closed {
                running.streams.close_input();
            }
            if exec == INIT {
                self.publish(TaskStart { container_id: id.to_owned(), pid, ..Default::default() });
            } else {
                let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
                self.publish(TaskExecStarted { container_id, exec_id, pid, ..Default::default() });
            }
        }
        // It may have ended before anybody knew its number.
        if let (Some(process), Ok(uvm)) = (process, self.uvm())
            && let Ok(Some(how)) = uvm.guest.session.wait(process, Some(Duration::ZERO))
        {
            self.ended(process, how);
        }
        Ok(pid)
    }

    fn kill(self: &Arc<Self>, id: &str, exec: &str, signal: u32) -> TtrpcResult<()> {
        let (member, process) = {
            let mut state = self.lock();
            let container = state.tasks.get(id).ok_or_else(|| not_found(id))?;
            let running = container.processes.get(exec).ok_or_else(|| not_found(exec))?;
            if running.ended.is_some() {
                return Err(status(Code::NOT_FOUND, "process already finished: not found"));
            }
            let (member, process) = (container.member.clone(), running.process);
            if member.is_some() && !running.started {
                self.end(&mut state, id, exec, KILLED);
                return Ok(());
            }
            (member, process)
        };
        let (Some(member), Some(process)) = (member, process) else {
            // The sandbox: the guest is what it is.
            if matches!(signal, SIGTERM | SIGKILL) {
                self.begin_to_stop();
            }
            return Ok(());
        };
        let number = u8::try_from(signal).map_err(|_| status(Code::INVALID_ARGUMENT, "no signal"))?;
        let sent = self.uvm().and_then(|uvm| uvm.guest.signal(&member.id, process, number));
        match sent {
            // A host can always end a guest.
            Err(_) if member.alone && exec == INIT && signal == SIGKILL => {
                self.begin_to_stop();
                Ok(())
            }
            sent => sent.map_err(|error| failed(&error)),
        }
    }

    fn delete(&self, id: &str, exec: &str) -> TtrpcResult<api::DeleteResponse> {
        let deadline = Instant::now() + DRAIN;
        let (member, pid, code, at) = loop {
            let mut state = self.lock();
            let container = state.tasks.get_mut(id).ok_or_else(|| not_found(id))?;
            let (pid, member) = (container.pid, container.member.clone());
            let running = container.processes.get(exec).ok_or_else(|| not_found(exec))?;
            if running.started && running.ended.is_none() {
                return Err(status(Code::FAILED_PRECONDITION, "it still runs: kill it first"));
            }
            if running.streams.drained() || Instant::now() > deadline {
                let (code, at) = running.ended.clone().unwrap_or((0, now()));
                container.processes.remove(exec);
                if exec == INIT {
                    state.tasks.remove(id);
                }
                break (member, pid, code, at);
            }
            drop(state);
            std::thread::sleep(Duration::from_millis(5));
        };
        if exec == INIT {
            match member {
                // What the guest keeps of a container that cannot be removed is gone with the guest.
                Some(member) if !member.alone => {
                    if let Ok(uvm) = self.uvm() {
                        let removed = uvm
                            .guest
                            .shutdown(&member.id)
                            .and_then(|()| uvm.guest.unmount_overlay(&member.id));
                        if let Err(error) = removed {
                            log::warn!("{id}: {}", line(&error));
                        }
                    }
                }
                _ => self.stop(),
            }
            self.publish(TaskDelete {
                container_id: id.to_owned(),
                pid,
                exit_status: code,
                exited_at: Some(at.clone()).into(),
                ..Default::default()
            });
        }
        Ok(api::DeleteResponse { pid, exit_status: code, exited_at: Some(at).into(), ..Default::default() })
    }

    fn member(&self, id: &str) -> TtrpcResult<Option<Arc<Member>>> {
        self.lock().tasks.get(id).map(|container| container.member.clone()).ok_or_else(|| not_found(id))
    }

    fn update(&self, id: &str, change: impl FnOnce(&mut Resources)) -> TtrpcResult<()> {
        let Some(member) = self.member(id)? else { return Ok(()) };
        let mut resources = member.limits;
        resources.paused = self.lock().tasks.get(id).is_some_and(|container| container.paused);
        change(&mut resources);
        self.uvm().and_then(|uvm| uvm.guest.update(&member.id, resources)).map_err(|error| failed(&error))?;
        if let Some(container) = self.lock().tasks.get_mut(id) {
            container.paused = resources.paused;
        }
        Ok(())
    }
}

fn started(uvm: &Uvm, request: Request<'_>) -> Result<u32> {
    match uvm.guest.ask(request)? {
        Reply::Started(process) => Ok(process),
        _ => Err(anyhow!("the guest answered something else than a process")),
    }
}

impl Member {
    fn environment_and_user(&self, spec: &Process) -> (Vec<String>, String) {
        (spec::environment(spec, !self.alone), spec::user(spec, &self.image_user))
    }

    fn create(&self, uvm: &Uvm, spec: &Process, places: &Places) -> Result<u32> {
        let (env, user) = self.environment_and_user(spec);
        let process = spec::request(spec, &env, &user, places.wanted())?;
        let mounts = self.directories.iter().map(|(name, destination, read_only)| Mount {
            source: Source::Directory(name),
            destination,
            read_only: *read_only,
        });
        let mounts = List::from_vec(mounts.collect()).context("more mounts than the guest takes")?;
        let container = self.id.as_str();
        let seccomp = self.profile;
        let request = Request::CreateContainer { container, privileged: false, mounts, seccomp, process };
        let process = started(uvm, request)?;
        if self.limits != Resources::default()
            && let Err(error) = uvm.guest.update(&self.id, self.limits)
        {
            // The refusal says more.
            let _ = uvm.guest.shutdown(&self.id);
            return Err(error);
        }
        Ok(process)
    }
}

/// The guest's name for a container: containerd's, or where that is not one for a guest, its hash.
fn container_id(id: &str) -> Result<ContainerId> {
    ContainerId::parse(id).or_else(|_| {
        ContainerId::parse(&Digest::of(id.as_bytes()).hex()).map_err(|_| anyhow!("a hash is an id"))
    })
}

/// What a container may use at most, as far as the guest can limit it.
fn limits(resources: Option<&LinuxResources>) -> Resources {
    let positive = |number: i64| u64::try_from(number).ok().filter(|&number| number > 0);
    let memory = resources.and_then(|r| r.memory().as_ref()).and_then(|memory| memory.limit());
    let cpu = resources.and_then(|r| r.cpu().as_ref()).and_then(|cpu| {
        let (quota, period) = (positive(cpu.quota()?)?, cpu.period().filter(|&period| period > 0)?);
        u32::try_from(quota.saturating_mul(1000) / period).ok()
    });
    Resources { memory: memory.and_then(positive), cpu, ..Resources::default() }
}

/// What a guest says that a container uses, as control groups version 1 say it.
fn metrics(usage: &wire::Usage) -> Metrics {
    let mut metrics = Metrics::new();
    let memory = MemoryEntry { usage: usage.memory, ..Default::default() };
    metrics.memory = Some(MemoryStat { usage: Some(memory).into(), ..Default::default() }).into();
    let cpu = CPUUsage { total: usage.cpu.saturating_mul(1000), ..Default::default() };
    metrics.cpu = Some(CPUStat { usage: Some(cpu).into(), ..Default::default() }).into();
    metrics.pids = Some(PidsStat { current: usage.processes, ..Default::default() }).into();
    metrics
}

impl Task for Service {
    fn create(
        &self,
        _: &TtrpcContext,
        request: api::CreateTaskRequest,
    ) -> TtrpcResult<api::CreateTaskResponse> {
        let created = self.inner.create(&request);
        if created.is_err() && self.inner.lock().tasks.is_empty() {
            self.inner.stop();
        }
        let pid = created.map_err(|error| failed(&error))?;
        Ok(api::CreateTaskResponse { pid, ..Default::default() })
    }

    fn start(&self, _: &TtrpcContext, request: api::StartRequest) -> TtrpcResult<api::StartResponse> {
        let (id, exec) = (request.id(), request.exec_id());
        let pid = self.inner.start(id, exec).map_err(|error| {
            // It can be deleted now, as one that has run.
            let mut state = self.inner.lock();
            if state.tasks.get(id).and_then(|c| c.processes.get(exec)).is_some_and(|p| !p.started) {
                self.inner.end(&mut state, id, exec, NOT_STARTED);
            }
            failed(&error)
        })?;
        Ok(api::StartResponse { pid, ..Default::default() })
    }

    fn state(&self, _: &TtrpcContext, request: api::StateRequest) -> TtrpcResult<api::StateResponse> {
        let state = self.inner.lock();
        let container = state.tasks.get(request.id()).ok_or_else(|| not_found(request.id()))?;
        let running =
            container.processes.get(request.exec_id()).ok_or_else(|| not_found(request.exec_id()))?;
        let (code, at) = running.ended.clone().unzip();
        let status = match (&running.ended, running.started) {
            (Some(_), _) => api::Status::STOPPED,
            (None, false) => api::Status::CREATED,
            (None, true) if container.paused => api::Status::PAUSED,
            (None, true) => api::Status::RUNNING,
        };
        Ok(api::StateResponse {
            id: request.id().to_owned(),
            exec_id: request.exec_id().to_owned(),
            bundle: container.bundle.clone(),
            pid: container.pid,
            status: status.into(),
            stdin: running.places.stdin.clone(),
            stdout: running.places.stdout.clone(),
            stderr: running.places.stderr.clone(),
            terminal: running.places.terminal.is_some(),
            exit_status: code.unwrap_or_default(),
            exited_at: at.into(),
            ..Default::default()
        })
    }

    fn exec(&self, _: &TtrpcContext, request: api::ExecProcessRequest) -> TtrpcResult<api::Empty> {
        let spec: Process = serde_json::from_slice(&request.spec().value)
            .map_err(|error| status(Code::INVALID_ARGUMENT, format!("no process: {error}")))?;
        let places = Places {
            stdin: request.stdin().to_owned(),
            stdout: request.stdout().to_owned(),
            stderr: request.stderr().to_owned(),
            terminal: request.terminal().then_some(WINDOW),
        };
        let (id, exec) = (request.id(), request.exec_id());
        let mut state = self.inner.lock();
        let container = state.tasks.get_mut(id).ok_or_else(|| not_found(id))?;
        if exec == INIT || container.processes.contains_key(exec) {
            return Err(status(Code::ALREADY_EXISTS, format!("{}: exists already", escape(exec.as_bytes()))));
        }
        container.processes.insert(exec.to_owned(), Running::new(Some(spec), places));
        let (container_id, exec_id) = (id.to_owned(), exec.to_owned());
        self.inner.publish(TaskExecAdded { container_id, exec_id, ..Default::default() });
        Ok(api::Empty::default())
    }

    fn kill(&self, _: &TtrpcContext, request: api::KillRequest) -> TtrpcResult<api::Empty> {
        self.inner.kill(request.id(), request.exec_id(), request.signal())?;
        Ok(api::Empty::default())
    }

    fn wait(&self, _: &TtrpcContext, request: api::WaitRequest) -> TtrpcResult<api::WaitResponse> {
        let mut state = self.inner.lock();
        loop {
            let container = state.tasks.get(request.id()).ok_or_else(|| not_found(request.id()))?;
            let running =
                container.processes.get(request.exec_id()).ok_or_else(|| not_found(request.exec_id()))?;
            if let Some((code, at)) = running.ended.clone() {
                return Ok(api::WaitResponse {
                    exit_status: code,
                    exited_at: Some(at).into(),
                    ..Default::default()
                });
            }
            state = self.inner.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn delete(&self, _: &TtrpcContext, request: api::DeleteRequest) -> TtrpcResult<api::DeleteResponse> {
        self.inner.delete(request.id(), request.exec_id())
    }

    fn pids(&self, _: &TtrpcContext, request: api::PidsRequest) -> TtrpcResult<api::PidsResponse> {
        let state = self.inner.lock();
        let container = state.tasks.get(request.id()).ok_or_else(|| not_found(request.id()))?;
        // Of processes in a guest, the host has one number: the machine's.
        let mut info = containerd_shim::protos::types::task::ProcessInfo::new();
        info.set_pid(container.pid);
        Ok(api::PidsResponse { processes: vec![info], ..Default::default() })
    }

    fn resize_pty(&self, _: &TtrpcContext, request: api::ResizePtyRequest) -> TtrpcResult<api::Empty> {
        let size = |characters: u32| u16::try_from(characters).ok().filter(|&characters| characters > 0);
        let (Some(rows), Some(columns)) = (size(request.height()), size(request.width())) else {
            // A terminal that nobody looks at.
            return Ok(api::Empty::default());
        };
        let size = WindowSize { rows, columns };
        let (member, process) = {
            let mut state = self.inner.lock();
            let container = state.tasks.get_mut(request.id()).ok_or_else(|| not_found(request.id()))?;
            let member = container.member.clone();
            let running =
                container.processes.get_mut(request.exec_id()).ok_or_else(|| not_found(request.exec_id()))?;
            if let Some(terminal) = &mut running.places.terminal {
                *terminal = size;
            }
            (member, running.process.filter(|_| running.ended.is_none()))
        };
        if let (Some(member), Some(process)) = (member, process) {
            let resized = self.inner.uvm().and_then(|uvm| uvm.guest.resize(&member.id, process, size));
            resized.map_err(|error| failed(&error))?;
        }
        Ok(api::Empty::default())
    }

    fn close_io(&self, _: &TtrpcContext, request: api::CloseIORequest) -> TtrpcResult<api::Empty> {
        let mut state = self.inner.lock();
        let container = state.tasks.get_mut(request.id()).ok_or_else(|| not_found(request.id()))?;
        if let Some(running) = container.processes.get_mut(request.exec_id()) {
            running.input_closed = true;
            running.streams.close_input();
        }
        Ok(api::Empty::default())
    }

    fn pause(&self, _: &TtrpcContext, request: api::PauseRequest) -> TtrpcResult<api::Empty> {
        self.inner.update(request.id(), |resources| resources.paused = true)?;
        self.inner.publish(TaskPaused { container_id: request.id().to_owned(), ..Default::default() });
        Ok(api::Empty::default())
    }

    fn resume(&self, _: &TtrpcContext, request: api::ResumeRequest) -> TtrpcResult<api::Empty> {
        self.inner.update(request.id(), |resources| resources.paused = false)?;
        self.inner.publish(TaskResumed { container_id: request.id().to_owned(), ..Default::default() });
        Ok(api::Empty::default())
    }

    fn update(&self, _: &TtrpcContext, request: api::UpdateTaskRequest) -> TtrpcResult<api::Empty> {
        let wanted: LinuxResources = serde_json::from_slice(&request.resources().value)
            .map_err(|error| status(Code::INVALID_ARGUMENT, format!("no resources: {error}")))?;
        let Resources { memory, cpu, .. } = limits(Some(&wanted));
        self.inner.update(request.id(), |resources| {
            resources.memory = memory.or(resources.memory);
            resources.cpu = cpu.or(resources.cpu);
        })?;
        Ok(api::Empty::default())
    }

    fn stats(&self, _: &TtrpcContext, request: api::StatsRequest) -> TtrpcResult<api::StatsResponse> {
        let metrics = match self.inner.member(request.id())? {
            Some(member) => {
                let usage = self.inner.uvm().and_then(|uvm| uvm.guest.usage(&member.id));
                metrics(&usage.map_err(|error| failed(&error))?)
            }
            None => Metrics::new(),
        };
        let stats = convert_to_any(Box::new(metrics))?;
        Ok(api::StatsResponse { stats: Some(stats).into(), ..Default::default() })
    }

    fn connect(&self, _: &TtrpcContext, request: api::ConnectRequest) -> TtrpcResult<api::ConnectResponse> {
        let task_pid = self.inner.lock().tasks.get(request.id()).map_or(0, |container| container.pid);
        let (shim_pid, version) = (std::process::id(), env!("CARGO_PKG_VERSION").to_owned());
        Ok(api::ConnectResponse { shim_pid, task_pid, version, ..Default::default() })
    }

    fn shutdown(&self, _: &TtrpcContext, _: api::ShutdownRequest) -> TtrpcResult<api::Empty> {
        if self.inner.lock().tasks.is_empty() {
            log::info!("{}: no containers left", self.inner.id);
            self.inner.stop();
            self.inner.exit.signal();
        }
        Ok(api::Empty::default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a guest says reaches `kubectl describe` and logs.
    #[test]
    fn t07_an_error_is_one_bounded_line_that_steers_no_terminal() {
        let error = anyhow!("a\r\n\u{1b}]0;title\u{7}\n\nb\u{202e}c\u{9b}2J").context("the guest");
        let shown = line(&error);
        assert!(shown.starts_with("the guest: a") && shown.lines().count() == 1, "{shown}");
        assert!(!shown.chars().any(char::is_control), "{shown:?}");
        let shown = line(&anyhow!("{}", "\u{e9}".repeat(1 << 20)));
        assert!(shown.len() <= MAX_ERROR + '…'.len_utf8());
    }

    /// The node's accounts are made of them.
    #[test]
    fn t06_numbers_of_any_size_are_reported_and_wrap_nowhere() {
        let most = u64::MAX;
        let found = metrics(&wire::Usage { memory: most, cpu: most, processes: most, ..Default::default() });
        assert_eq!((found.memory.usage.usage, found.cpu.usage.total, found.pids.current), (most, most, most));
    }

    /// A guest names processes by numbers of its choice, and may report what nobody started.
    #[test]
    fn t07_an_exit_of_an_unknown_process_ends_nothing() {
        let service = Service::new("", &Flags::default(), &mut Config::default());
        let init = Running { process: Some(1), started: true, ..Running::new(None, Places::default()) };
        let container = Container {
            bundle: String::new(),
            member: None,
            pid: 1,
            processes: HashMap::from([(INIT.to_owned(), init)]),
            paused: false,
        };
        service.inner.lock().tasks.insert("c".to_owned(), container);
        let code = || service.inner.lock().tasks["c"].processes[INIT].ended.clone().map(|(code, _)| code);
        for unknown in [0, 2, u32::MAX] {
            service.inner.ended(unknown, ExitStatus::Code(0));
            assert_eq!(code(), None);
        }
        service.inner.ended(1, ExitStatus::Code(7));
        // Twice: the first counts.
        service.inner.ended(1, ExitStatus::Code(0));
        assert_eq!(code(), Some(7));
    }
}
