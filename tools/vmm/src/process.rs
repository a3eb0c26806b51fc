//! Child processes that cannot outlive this one.
#![allow(unsafe_code)]

use crate::text::escape;
use anyhow::{Context as _, Result, anyhow};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::process::{
    Pid, PidfdFlags, Signal, getpid, getppid, pidfd_open, set_parent_process_death_signal,
};
use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{LazyLock, mpsc};
use std::time::Duration;

/// Most bytes of a log that an error repeats.
const TAIL: u64 = 4096;

/// A child, killed when dropped and when this process dies.
pub struct Process {
    name: &'static str,
    child: Child,
    pidfd: OwnedFd,
    log: PathBuf,
}

impl Process {
    /// Starts `command`, its output going to `log`. `inherit` are the descriptors that it gets under their own numbers.
    ///
    /// It is in a process group of its own, so that a terminal's Ctrl-C does not reach it.
    ///
    /// # Errors
    /// The program cannot be started; `remedy` is then part of the error.
    pub fn spawn(
        name: &'static str,
        mut command: Command,
        inherit: Vec<OwnedFd>,
        log: &Path,
        remedy: &str,
    ) -> Result<Self> {
        let output = File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        let error = output.try_clone()?;
        command.stdin(Stdio::null()).stdout(output).stderr(error).process_group(0);
        let program = command.get_program().display().to_string();
        let child = start(command, inherit).with_context(|| format!("cannot start {program}: {remedy}"))?;
        let pid = Pid::from_child(&child);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).context("pidfd_open")?;
        Ok(Self { name, child, pidfd, log: log.to_owned() })
    }

    /// Its number.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Processor time that it has used (proc_pid_stat(5), fields 14 and 15, in hundredths of a second).
    ///
    /// # Errors
    /// It has ended.
    pub fn cpu_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").context("a process has a name")?;
        let ticks = fields.split(' ').skip(11).take(2).map(str::parse::<u64>).sum::<Result<u64, _>>()?;
        Ok(Duration::from_millis(10 * ticks))
    }

    /// Waits until it has ended or this much time is over; gives its status once it has ended.
    pub fn wait(&mut self, timeout: Duration) -> Result<Option<ExitStatus>> {
        if let Some(status) = self.child.try_wait()? {
            return Ok(Some(status));
        }
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN)];
        match poll(&mut fds, Some(&timeout.try_into().context("a timeout too long")?)) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(self.child.try_wait()?),
            Err(error) => Err(error).context("poll"),
        }
    }

    /// The error that says it ended, and what it had to say.
    pub fn ended(&self, status: ExitStatus) -> anyhow::Error {
        anyhow!("{} ended with {status}\n{}", self.name, self.tail())
    }

    /// The end of its output, safe to show.
    pub fn tail(&self) -> String {
        tail(&self.log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only where it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The end of a file, safe to show; empty where it cannot be read.
pub fn tail(path: &Path) -> String {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        let start = file.metadata()?.len().saturating_sub(TAIL);
        file.seek(SeekFrom::Start(start))?;
        let mut bytes = Vec::new();
        file.take(TAIL).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    escape(&read().unwrap_or_default())
}

/// What the launcher thread is asked.
struct Order {
    command: Command,
    inherit: Vec<OwnedFd>,
    answer: mpsc::Sender<io::Result<Child>>,
}

/// The thread that starts all children. "Parent" in PR_SET_PDEATHSIG is the thread that forked, not its process: a
/// child started by, say, a test's thread would die with that thread.
static LAUNCHER: LazyLock<mpsc::Sender<Order>> = LazyLock::new(|| {
    let (sender, orders) = mpsc::channel::<Order>();
    std::thread::spawn(move || {
        for Order { mut command, inherit, answer } in orders {
            // The receiver waits; where it does not, the child is dropped and goes on until this process ends.
            let _ = answer.send(command.spawn());
            drop(inherit);
        }
    });
    sender
});

fn start(mut command: Command, inherit: Vec<OwnedFd>) -> io::Result<Child> {
    use std::os::fd::{AsRawFd as _, BorrowedFd};
    let parent = getpid();
    let numbers: Vec<_> = inherit.iter().map(OwnedFd::as_raw_fd).collect();
    let prepare = move || {
        set_parent_process_death_signal(Some(Signal::KILL))?;
        if getppid() != Some(parent) {
            // The parent died before the line above.
            return Err(io::Error::other("the parent is gone"));
        }
        for &number in &numbers {
            // SAFETY: the launcher holds `inherit`, whose numbers these are, until after the fork, and the child's
            // table is a copy of its parent's.
            let fd = unsafe { BorrowedFd::borrow_raw(number) };
            fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec only async-signal-safe operations are allowed: `prepare` makes three kinds of system
    // calls through rustix, which calls the kernel directly, and allocates only on the path that abandons the child.
    unsafe { command.pre_exec(prepare) };
    let (answer, child) = mpsc::channel();
    let gone = || io::Error::other("the launcher thread is gone");
    LAUNCHER.send(Order { command, inherit, answer }).map_err(|_| gone())?;
    child.recv().map_err(|_| gone())?
}
