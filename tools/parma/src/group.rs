//! The life of a pod's containers: initial ones one after the other, then all others; probes; starting again what ended.
//!
//! A run of a single image is a pod of one container that is never started again. Who may be started when is the policy's:
//! what is done here is what an honest host does, and the guest refuses everything else.

use crate::pod::{Guest, Scratch, new_container_id};
use crate::workload::{Content, Encrypted, Layer, Workload};
use anyhow::{Context as _, Result, bail, ensure};
use parma_guest::gate::fields::ContainerId;
use parma_guest::wire::{ExitStatus, Resources, Stdio, Stream};
use parma_policy::generate::{ExecProbe, Restart};
use std::collections::VecDeque;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Bytes of a container's output that are kept for `parma logs`, the last ones.
const LOG: usize = 256 << 10;
/// Wait before a container is started again for the first time; twice as long each further time.
const FIRST_WAIT: Duration = Duration::from_secs(1);
/// Longest such wait, and how long a container must run to be forgiven the earlier ends.
const LONGEST_WAIT: Duration = Duration::from_secs(60);
/// How long a container may take to end after SIGKILL.
const KILL_TIMEOUT: Duration = Duration::from_secs(60);
/// The signal that ends a process whatever it does.
const SIGKILL: u8 = 9;

/// Takes what a container writes: its place among the members, the stream, the bytes. After an error nothing more is read.
pub type Sink = Arc<dyn Fn(usize, Stream, &[u8]) -> io::Result<()> + Send + Sync>;

/// What is to be done about one container.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name among the others.
    pub name: String,
    /// Its image, as the user named it.
    pub image: String,
    /// What it is.
    pub workload: Workload,
    /// What is connected to the host.
    pub stdio: Stdio,
    /// Whether the others wait until it has ended well.
    pub initial: bool,
    /// When it is started again.
    pub restart: Restart,
    /// Asked until it succeeds, before the others are.
    pub startup: Option<ExecProbe>,
    /// Says whether it is ready; without, it is when it has started.
    pub readiness: Option<ExecProbe>,
    /// If it fails the container is ended.
    pub liveness: Option<ExecProbe>,
    /// A command for when it has started. If it fails the container is ended.
    pub post_start: Option<Vec<String>>,
    /// A command for before it is asked to stop.
    pub pre_stop: Option<Vec<String>>,
}

impl Member {
    /// The one container of a run of a single image.
    #[must_use]
    pub fn single(name: String, image: String, workload: Workload, stdio: Stdio) -> Self {
        Self {
            name,
            image,
            workload,
            stdio,
            initial: false,
            restart: Restart::Never,
            startup: None,
            readiness: None,
            liveness: None,
            post_start: None,
            pre_stop: None,
        }
    }
}

/// Gives layers that several workloads have the same disk: each layer is mounted once.
pub fn share_layers(workloads: &mut [&mut Workload]) {
    let mut seen: Vec<Layer> = Vec::new();
    for layer in workloads.iter_mut().flat_map(|workload| &mut workload.layers) {
        match seen.iter().find(|other| other.root_hash == layer.root_hash) {
            Some(other) => *layer = other.clone(),
            None => seen.push(layer.clone()),
        }
    }
}

/// The disks of these workloads' layers and read-only volumes, each once.
pub fn distinct_layers<'a>(workloads: impl Iterator<Item = &'a Workload>) -> Vec<&'a Layer> {
    let mut layers: Vec<&Layer> = Vec::new();
    let volumes = |workload: &'a Workload| {
        workload.volumes.iter().filter_map(|volume| match &volume.content {
            Content::Verified(layer) => Some(layer),
            Content::Encrypted(_) => None,
        })
    };
    for layer in workloads.flat_map(|workload| workload.layers.iter().chain(volumes(workload))) {
        if !layers.iter().any(|other| other.serial == layer.serial) {
            layers.push(layer);
        }
    }
    layers
}

/// These workloads' encrypted volumes, each once.
pub fn distinct_volumes<'a>(workloads: impl Iterator<Item = &'a Workload>) -> Vec<&'a Encrypted> {
    let mut volumes: Vec<&Encrypted> = Vec::new();
    for volume in workloads.flat_map(|workload| &workload.volumes) {
        if let Content::Encrypted(volume) = &volume.content
            && !volumes.iter().any(|other| other.id == volume.id)
        {
            volumes.push(volume);
        }
    }
    volumes
}

/// A pod that runs.
pub struct Group {
    /// Its guest.
    pub guest: Arc<Guest>,
    /// Its containers, the initial ones first.
    pub members: Vec<Member>,
    scratch: Option<ContainerId>,
    grace: Duration,
    sink: Sink,
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    stopping: bool,
    /// Messages that came sealed so far, for others to wait for.
    sealed: u64,
    lives: Vec<Life>,
}

/// Where a container is in its life.
#[derive(Default)]
struct Life {
    /// Its id and its first process, once it was created.
    now: Option<(ContainerId, u32)>,
    exit: Option<ExitStatus>,
    restarts: u32,
    ready: bool,
    log: VecDeque<u8>,
}

impl Life {
    fn runs(&self, process: u32) -> bool {
        self.exit.is_none() && self.now.is_some_and(|(_, init)| init == process)
    }
}

/// What can be said of a container from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// Its id, once it was created.
    pub id: Option<ContainerId>,
    /// How it ended, if it has.
    pub exit: Option<ExitStatus>,
    /// How often it was started again.
    pub restarts: u32,
    /// Whether it is to be asked for something.
    pub ready: bool,
}

impl Group {
    /// A pod whose guest has its policy, its layers and, under the id `scratch`, its scratch space. Nothing is started.
    ///
    /// # Errors
    /// There is no container that is not initial.
    pub fn new(
        guest: Arc<Guest>,
        members: Vec<Member>,
        scratch: Option<ContainerId>,
        grace: Duration,
        sink: Sink,
    ) -> Result<Arc<Self>> {
        ensure!(members.iter().any(|member| !member.initial), "there is no container but initial ones");
        let lives = members.iter().map(|_| Life::default()).collect();
        let state = Mutex::new(State { stopping: false, sealed: 0, lives });
        Ok(Arc::new(Self { guest, members, scratch, grace, sink, state, changed: Condvar::new() }))
    }

    /// Mounts what the containers need: each layer once, and the scratch space.
    ///
    /// # Errors
    /// The guest refuses.
    pub fn mount(
        guest: &Guest,
        layers: &[&Layer],
        id: &ContainerId,
        scratch: &Scratch,
    ) -> Result<Option<ContainerId>> {
        for layer in layers {
            guest.mount_layer(layer)?;
        }
        Ok(guest.mount_scratch(id, scratch)?.copied())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every change is complete when the lock is released, even by a panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, index: usize, change: impl FnOnce(&mut Life)) {
        change(&mut self.lock().lives[index]);
        self.changed.notify_all();
    }

    /// Waits so long, or until `over`. Whether it was over.
    fn pause(&self, time: Duration, over: impl Fn(&State) -> bool) -> bool {
        let deadline = Instant::now() + time;
        let mut state = self.lock();
        loop {
            if over(&state) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Tells that the guest has taken a sealed message: it may know more than before.
    pub fn something_came_sealed(&self) {
        self.lock().sealed += 1;
        self.changed.notify_all();
    }

    /// Tries again after each sealed message, until it is done. Whether it was, before the pod was asked to stop.
    ///
    /// # Errors
    /// Those of `attempt`, which gives `None` where it has to wait.
    pub fn after_sealed<T>(&self, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<Option<T>> {
        loop {
            let before = self.lock().sealed;
            if let Some(done) = attempt()? {
                return Ok(Some(done));
            }
            let waits = |state: &mut State| state.sealed == before && !state.stopping;
            let state = self.changed.wait_while(self.lock(), waits);
            if state.unwrap_or_else(PoisonError::into_inner).stopping {
                return Ok(None);
            }
        }
    }

    /// Where each container is, in the order of the members.
    #[must_use]
    pub fn statuses(&self) -> Vec<Status> {
        let status = |life: &Life| Status {
            id: life.now.map(|(id, _)| id),
            exit: life.exit,
            restarts: life.restarts,
            ready: life.ready,
        };
        self.lock().lives.iter().map(status).collect()
    }

    /// The last of what a container wrote, to both streams.
    #[must_use]
    pub fn log(&self, index: usize) -> Vec<u8> {
        self.lock().lives[index].log.iter().copied().collect()
    }

    /// The container of this name; without a name, the only one that is not initial.
    ///
    /// # Errors
    /// There is none of that name, or a name is needed.
    pub fn find(&self, name: Option<&str>) -> Result<usize> {
        let names = || self.members.iter().map(|member| member.name.as_str()).collect::<Vec<_>>().join(", ");
        let place = |wanted: &dyn Fn(&Member) -> bool| self.members.iter().position(wanted);
        match name {
            Some(name) => place(&|member| member.name == name)
                .with_context(|| format!("there is no container {name:?}, but {}", names())),
            None if self.members.iter().filter(|member| !member.initial).count() == 1 => {
                place(&|member| !member.initial).context("no container")
            }
            None => bail!("which container? Name one of {} with -c", names()),
        }
    }

    /// A container's id and first process.
    ///
    /// # Errors
    /// It was not started yet.
    pub fn running(&self, index: usize) -> Result<(ContainerId, u32)> {
        let now = self.lock().lives[index].now;
        now.with_context(|| format!("container {} has not started", self.members[index].name))
    }

    /// Starts a container for the first time or again. Its output goes to the sink and its log until it ends.
    fn start(self: &Arc<Self>, index: usize) -> Result<Started> {
        let member = &self.members[index];
        let (id, container) = (new_container_id()?, &member.workload.container);
        self.guest.mount_overlay(&id, &member.workload.layers, self.scratch.as_ref())?;
        let process = match self.guest.create(&id, &member.workload, member.stdio) {
            Ok(process) => process,
            Err(error) => {
                // The first error says more.
                let _ = self.guest.unmount_overlay(&id);
                return Err(error).with_context(|| format!("container {}", member.name));
            }
        };
        self.change(index, |life| {
            life.now = Some((id, process));
            life.exit = None;
            life.ready = false;
        });
        let limits = container.limits;
        if limits.memory.is_some() || limits.cpu.is_some() {
            let resources = Resources { memory: limits.memory, cpu: limits.cpu, ..Resources::default() };
            self.guest.update(&id, resources)?;
        }
        let mut output = Vec::new();
        for (wanted, stream) in [(member.stdio.stdout, Stream::Stdout), (member.stdio.stderr, Stream::Stderr)]
        {
            if wanted {
                let attached = self.guest.session.attach(process, stream)?;
                output.push(self.carry(index, stream, attached.with_context(|| format!("{stream:?}"))?));
            }
        }
        Ok(Started { id, process, output, at: Instant::now() })
    }

    fn carry(self: &Arc<Self>, index: usize, stream: Stream, mut from: UnixStream) -> JoinHandle<()> {
        let group = self.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 16 << 10];
            loop {
                let bytes = match from.read(&mut buffer) {
                    Ok(0) => return,
                    Ok(count) => &buffer[..count],
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                    Err(_) => return,
                };
                {
                    let log = &mut group.lock().lives[index].log;
                    log.extend(bytes);
                    let excess = log.len().saturating_sub(LOG);
                    log.drain(..excess);
                }
                // Where the output is closed, the rest is dropped: the connection's end tells the guest.
                if (group.sink)(index, stream, bytes).is_err() {
                    return;
                }
            }
        })
    }

    /// Waits until a container has ended and all of its output has arrived.
    fn wait(&self, index: usize, started: &mut Started) -> Result<ExitStatus> {
        let status = self.guest.session.wait(started.process, None)?.context("it has not ended")?;
        for thread in started.output.drain(..) {
            let _ = thread.join();
        }
        self.change(index, |life| {
            life.exit = Some(status);
            life.ready = false;
        });
        Ok(status)
    }

    fn remove(&self, started: &Started) -> Result<()> {
        self.guest.shutdown(&started.id)?;
        self.guest.unmount_overlay(&started.id)
    }

    /// Runs the pod until none of its containers is to be started again. `started` is told once all that are not initial run.
    /// Gives the code of the first that failed, or 0.
    ///
    /// # Errors
    /// The guest refuses a step, or is gone.
    pub fn run(self: &Arc<Self>, started: impl FnOnce(&Self) -> Result<()>) -> Result<u8> {
        for index in (0..self.members.len()).filter(|&index| self.members[index].initial) {
            let code = self.run_initial(index)?;
            if code != 0 || self.lock().stopping {
                return Ok(code);
            }
        }
        let mut running = Vec::new();
        for index in (0..self.members.len()).filter(|&index| !self.members[index].initial) {
            running.push((index, self.start(index)?));
        }
        started(self)?;
        let threads: Vec<_> = running
            .into_iter()
            .map(|(index, first)| {
                let group = self.clone();
                std::thread::spawn(move || group.keep_running(index, first))
            })
            .collect();
        let mut result = Ok(0);
        for thread in threads {
            let code = thread.join().unwrap_or_else(|_| bail!("a thread of this program panicked"));
            result = match (result, code) {
                (Ok(0), code) => code,
                (first, _) => first,
            };
        }
        result
    }

    /// An initial container, again and again until it ends well. It stays, since others may be started only after it.
    fn run_initial(self: &Arc<Self>, index: usize) -> Result<u8> {
        let mut wait = FIRST_WAIT;
        loop {
            let mut started = self.start(index)?;
            let code = self.wait(index, &mut started)?.shell_code();
            let last = code == 0 || self.members[index].restart == Restart::Never;
            if last || self.pause(wait, |state| state.stopping) {
                return Ok(code);
            }
            wait = LONGEST_WAIT.min(2 * wait);
            self.remove(&started)?;
            self.change(index, |life| life.restarts += 1);
        }
    }

    fn keep_running(self: &Arc<Self>, index: usize, first: Started) -> Result<u8> {
        let mut started = first;
        let mut wait = FIRST_WAIT;
        loop {
            let (group, process) = (self.clone(), started.process);
            // It ends with the container, and nobody has to wait for it.
            std::thread::spawn(move || group.look_after(index, process));
            let status = self.wait(index, &mut started)?;
            let again = match self.members[index].restart {
                Restart::Always => true,
                Restart::OnFailure => status != ExitStatus::Code(0),
                Restart::Never => false,
            };
            if started.at.elapsed() > LONGEST_WAIT {
                wait = FIRST_WAIT;
            }
            if !again || self.pause(wait, |state| state.stopping) {
                return Ok(status.shell_code());
            }
            wait = LONGEST_WAIT.min(2 * wait);
            self.remove(&started)?;
            self.change(index, |life| life.restarts += 1);
            started = self.start(index)?;
        }
    }

    /// The handler after the start, then the probes, for as long as this process is the container's first.
    fn look_after(self: Arc<Self>, index: usize, process: u32) {
        let member = &self.members[index];
        let over = |state: &State| state.stopping || !state.lives[index].runs(process);
        if let Some(command) = &member.post_start
            && !self.execute(index, command, None)
        {
            return self.end(index, process, self.grace);
        }
        if let Some(probe) = &member.startup
            && !self.probe(index, process, probe, true, |_| {})
        {
            let gone = over(&self.lock());
            return if gone { drop(self) } else { self.end(index, process, self.grace) };
        }
        let Some(readiness) = member.readiness.clone() else {
            self.change(index, |life| life.ready = life.runs(process));
            return self.keep_alive(index, process);
        };
        let group = self.clone();
        std::thread::spawn(move || group.keep_alive(index, process));
        // Asked for as long as it runs: what is not ready may become so.
        while !over(&self.lock()) {
            self.probe(index, process, &readiness, false, |ready| {
                self.change(index, |life| life.ready = ready && life.runs(process));
            });
        }
    }

    fn keep_alive(&self, index: usize, process: u32) {
        let Some(probe) = &self.members[index].liveness else { return };
        if !self.probe(index, process, probe, false, |_| {})
            && !self.pause(Duration::ZERO, |state| state.stopping || !state.lives[index].runs(process))
        {
            self.end(index, process, self.grace);
        }
    }

    /// Asks until the probe failed too often (false), or, where one success is enough, until it succeeded (true). `told` hears
    /// of each change. False also when the container has ended.
    fn probe(&self, index: usize, process: u32, probe: &ExecProbe, once: bool, told: impl Fn(bool)) -> bool {
        let over = |state: &State| state.stopping || !state.lives[index].runs(process);
        let timeout = Duration::from_secs(probe.timeout.into());
        let mut wait = Duration::from_secs(probe.initial_delay.into());
        let (mut successes, mut failures) = (0, 0);
        loop {
            if self.pause(wait, over) {
                return false;
            }
            wait = Duration::from_secs(probe.period.into());
            if self.execute(index, &probe.command, Some(timeout)) {
                (successes, failures) = (successes + 1, 0);
                if successes == probe.success_threshold {
                    told(true);
                    if once {
                        return true;
                    }
                }
            } else {
                (successes, failures) = (0, failures + 1);
                if failures == probe.failure_threshold {
                    told(false);
                    return false;
                }
            }
        }
    }

    /// Runs a command in a container. Whether it ended with 0, and in time.
    fn execute(&self, index: usize, command: &[String], timeout: Option<Duration>) -> bool {
        let run = || -> Result<bool> {
            let (id, _) = self.running(index)?;
            let container = &self.members[index].workload.container;
            let process = self.guest.exec(&id, container, command, Stdio::default())?;
            match self.guest.session.wait(process, timeout)? {
                Some(status) => Ok(status == ExitStatus::Code(0)),
                None => {
                    self.guest.signal(&id, process, SIGKILL)?;
                    Ok(false)
                }
            }
        };
        run().unwrap_or(false)
    }

    /// Asks a container to end, and ends it when its time is over.
    fn end(&self, index: usize, process: u32, grace: Duration) {
        let member = &self.members[index];
        let Ok((id, _)) = self.running(index) else { return };
        if let Some(command) = &member.pre_stop {
            self.execute(index, command, Some(grace));
        }
        let asked = self.guest.signal(&id, process, member.workload.stop_signal);
        let ended = |timeout| matches!(self.guest.session.wait(process, Some(timeout)), Ok(Some(_)) | Err(_));
        if (asked.is_err() || !ended(grace)) && self.guest.signal(&id, process, SIGKILL).is_ok() {
            ended(KILL_TIMEOUT);
        }
    }

    /// Removes what is left of all containers, so that nothing that they had mounted is in use.
    ///
    /// # Errors
    /// See [`Guest::ask`].
    pub fn shut_down(&self) -> Result<()> {
        for id in self.statuses().iter().filter_map(|status| status.id) {
            self.guest.shutdown(&id)?;
        }
        Ok(())
    }

    /// Ends all containers, each in its time or in `grace`, and starts none again.
    pub fn stop(self: &Arc<Self>, grace: Option<Duration>) {
        let grace = grace.unwrap_or(self.grace);
        self.lock().stopping = true;
        self.changed.notify_all();
        let lives: Vec<_> =
            self.lock().lives.iter().map(|life| life.now.filter(|_| life.exit.is_none())).collect();
        let running = lives.into_iter().enumerate().filter_map(|(index, now)| Some((index, now?.1)));
        let threads: Vec<_> = running
            .map(|(index, process)| {
                let group = self.clone();
                std::thread::spawn(move || group.end(index, process, grace))
            })
            .collect();
        for thread in threads {
            let _ = thread.join();
        }
    }
}

/// One instance of a container.
struct Started {
    id: ContainerId,
    process: u32,
    output: Vec<JoinHandle<()>>,
    at: Instant,
}
