//! `parma connect` and `parma audit`: the owner of a guest, and the host that carries what they say to each other.

use super::attest::replay;
use super::evidence::{self, EMULATED, Expectations, read};
use super::run::VolumeKey;
use super::streams::{Output, streams};
use anyhow::{Context as _, Result, anyhow, bail, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use clap::{Args, Subcommand};
use parma::local::{Answer, Client, Question};
use parma::output;
use parma::release::{Carrier as _, Channel, Shown, done};
use parma_guest::wire::{Order, Reply, Request, Stdio, Stream, frame};
use parma_kms::channel::Offer;
use parma_kms::history::Log;
use parma_kms::stream::{Reader, Writer};
use parma_vmm::Refused;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};

/// Reach a running guest end to end: its report is judged, and then only it can read what is said
///
/// The host that runs the guest carries sealed messages and sealed streams: it can cut them off, and neither read nor change them.
/// Nothing is allowed that the policy does not allow the host. The run may be on another machine: carry its socket here, and
/// give its path.
#[derive(Args)]
#[command(after_help = "Examples:
  parma connect web --policy p.bin --measurement 51068107cdc7… exec -- psql -c 'select 1'
  parma connect web --policy p.bin --measurement 51068107cdc7… secret token token.txt
  parma connect web --policy p.bin --measurement 51068107cdc7… audit -o log.json
From elsewhere:
  ssh -N -L ./web.sock:/run/user/1000/parma/web/control host &
  parma connect ./web.sock --policy p.bin --measurement 51068107cdc7… key data.key")]
pub struct Arguments {
    /// The name of the run, or the path of its socket, with a slash in it
    run: String,
    #[command(flatten)]
    expectations: Expectations,
    /// Add what is asked here to this file, sealed requests being unreadable in the guest's log: `audit` takes it
    #[arg(long, value_name = "FILE")]
    orders: Option<PathBuf>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Start a process in a container; its streams are sealed
    Exec {
        /// The container, where there are several
        #[arg(short, long)]
        container: Option<String>,
        /// Connect standard input
        #[arg(short, long)]
        interactive: bool,
        /// Let the process's output steer this terminal
        #[arg(long)]
        raw: bool,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<String>,
    },
    /// Deliver a secret to a container that has the attestation directory: it appears as secrets/NAME there
    Secret {
        /// The container, where there are several
        #[arg(short, long)]
        container: Option<String>,
        /// Its name
        name: String,
        /// What is in it; - is standard input
        file: PathBuf,
    },
    /// Release the key of an encrypted volume, for which `parma run --await-keys` waits
    Key {
        /// The key: 32 bytes or 64 hexadecimal digits; and the least generation that is accepted
        #[arg(value_name = "FILE[@GENERATION]", value_parser = VolumeKey::parse)]
        key: VolumeKey,
    },
    /// Read the guest's log, play it again, and see that every decision follows from the policy
    Audit {
        /// Keep the log in this file, for `parma attest verify --audit`
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Print a JSON object: passed, emulated, items: [{check, outcome, detail}]
        #[arg(long)]
        json: bool,
    },
}

/// Fetch a guest's log and the report that vouches for it, to be judged by `parma attest verify --audit`
///
/// Nothing of it is believed here: what the host leaves out or changes is found when the log is judged. Exits with 1 if the host
/// has no log that leads to what the guest's report says.
#[derive(Args)]
#[command(after_help = "Example:
  parma audit web -o log.json
  parma attest verify --audit log.json --policy p.bin --measurement 51068107cdc7…")]
pub struct Audit {
    /// The name of the run, or the path of its socket, with a slash in it
    run: String,
    /// Where to write it [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// What `parma connect --orders` kept of sealed requests
    #[arg(long, value_name = "FILE")]
    orders: Option<PathBuf>,
}

/// Runs `audit`.
pub fn audit(arguments: Audit) -> Result<ExitCode> {
    let mut run = Client::reach(&arguments.run)?;
    let offer = Offer::new()?;
    let (nonce, key) = offer.parts();
    let answered = run.open_channel(nonce, &key)?;
    let shown = Shown { nonce, key, opened: answered.opened, certificates: answered.certificates };
    let mut log = run.log(&shown)?;
    with_orders(&mut log, arguments.orders.as_deref())?;
    match &arguments.output {
        Some(path) => write(path, &log)?,
        None => println!("{}", serde_json::to_string(&log)?),
    }
    Ok(ExitCode::SUCCESS)
}

fn write(path: &Path, log: &Log) -> Result<()> {
    output::write(path, &serde_json::to_vec(log)?)
}

/// Runs `connect`.
pub fn main(arguments: Arguments) -> Result<ExitCode> {
    let owner = arguments.expectations.owner()?;
    let mut owned = Owned {
        channel: owner.channel(Client::reach(&arguments.run)?)?,
        orders: arguments.orders.as_deref(),
        run: &arguments.run,
    };
    if owned.channel.list.emulated {
        eprintln!("parma: {EMULATED}");
    }
    match &arguments.command {
        Command::Exec { container, interactive, raw, command } => {
            owned.exec(container.as_deref(), *interactive, *raw, command)
        }
        Command::Secret { container, name, file } => {
            let content = if file == Path::new("-") {
                let mut content = Vec::new();
                io::stdin().lock().take(1 << 20).read_to_end(&mut content).context("standard input")?;
                content
            } else {
                read(file)?
            };
            let question = Question::Identify { container: container.clone() };
            let Answer::Identified { id } = owned.channel.carrier().ask(&question)? else {
                bail!("an unexpected answer")
            };
            let order = Order::Secret { container: &id, name, content: &content };
            owned.channel.order(&order, done)?.0.context("the guest did not take the secret")?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Key { key } => {
            owned.channel.release(&key.read()?, key.least_generation)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Audit { output, json } => {
            let policy = arguments.expectations.policy_image()?;
            let log = owned.log()?;
            if let Some(path) = output {
                write(path, &log)?;
            }
            let list = replay(&owner, &log, &policy)?;
            let text = if *json { evidence::json(&list) } else { evidence::lines(&list) };
            io::stdout().write_all(text.as_bytes()).context("cannot write to standard output")?;
            Ok(if list.passed() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
    }
}

/// A guest that was judged.
struct Owned<'a> {
    channel: Channel<Client>,
    orders: Option<&'a Path>,
    run: &'a str,
}

impl Owned<'_> {
    /// Has the guest do something that its policy decides, and keeps what it was.
    fn request<T>(&mut self, request: Request<'_>, take: impl FnOnce(Reply<'_>) -> Option<T>) -> Result<T> {
        let order = Order::Request(request);
        let (result, sealed) = self.channel.order(&order, take)?;
        // A refusal is a decision, too.
        if let Some(path) = self.orders {
            keep(path, &sealed, &order)?;
        }
        Ok(result?)
    }

    fn exec(
        &mut self,
        container: Option<&str>,
        interactive: bool,
        raw: bool,
        args: &[String],
    ) -> Result<ExitCode> {
        let stdio = streams(interactive, false);
        let question =
            Question::Draft { container: container.map(str::to_owned), args: args.to_vec(), stdio };
        let Answer::Draft { request } = self.channel.carrier().ask(&question)? else {
            bail!("an unexpected answer")
        };
        let request =
            frame::decode::<Request<'_>>(&request.0).map_err(|_| anyhow!("the host's draft is none"))?;
        // What the host adds to a command (whose it is, where, with which variables) the policy decides; the command is ours.
        let is_ours = matches!(&request, Request::ExecInContainer { process, .. }
            if process.stdio == stdio && process.args.iter().eq(args.iter()));
        ensure!(is_ours, "the host's draft is of another command");
        let process = self.request(request, |reply| match reply {
            Reply::Started { process } => Some(process),
            _ => None,
        })?;
        let threads = self.connect(process, stdio, raw)?;
        for thread in threads {
            thread.join().map_err(|_| anyhow!("a thread of this program panicked"))??;
        }
        let Answer::Exited { code } = self.channel.carrier().ask(&Question::Wait { process })? else {
            bail!("an unexpected answer")
        };
        // That, the host said.
        let told = self.request(Request::GetProperties, |reply| match reply {
            Reply::Properties(properties) => {
                let mut processes = properties.processes.iter();
                Some(processes.find(|state| state.process == process).and_then(|state| state.exited))
            }
            _ => None,
        });
        match told {
            Ok(Some(status)) => Ok(ExitCode::from(status.shell_code())),
            Ok(None) => bail!("the host says that the process has ended with {code}, and the guest does not"),
            Err(error) if error.is::<Refused>() => {
                eprintln!(
                    "parma: the exit code {code} is what the host says; the guest does not tell it: {error}"
                );
                Ok(ExitCode::from(code))
            }
            Err(error) => Err(error),
        }
    }

    /// Connects this program's streams with sealed ones.
    fn connect(
        &self,
        process: u32,
        stdio: Stdio,
        raw: bool,
    ) -> Result<Vec<std::thread::JoinHandle<io::Result<()>>>> {
        let exporter = self.channel.exporter();
        let attach = |stream| Client::reach(self.run)?.attach(process, stream);
        if stdio.stdin {
            let (_, sink) = attach(Stream::Stdin)?;
            let mut sink = Writer::new(&exporter, process, sink).context("no memory")?;
            // Not waited for: it may be blocked in a read when the process is over.
            std::thread::spawn(move || {
                // Without the last record the process sees no end, which is right where this one failed.
                if io::copy(&mut io::stdin().lock(), &mut sink).is_ok() {
                    let _ = sink.finish();
                }
            });
        }
        let output = Arc::new(Mutex::new(Output::new(None, raw)));
        let mut threads = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let (from, _) = attach(stream)?;
            let mut from = Reader::new(&exporter, process, stream, from).context("no memory")?;
            let output = output.clone();
            threads.push(std::thread::spawn(move || -> io::Result<()> {
                let mut buffer = [0; 16 << 10];
                loop {
                    let count = from.read(&mut buffer)?;
                    if count == 0 {
                        return Ok(());
                    }
                    output.lock().unwrap_or_else(PoisonError::into_inner).write(stream, &buffer[..count])?;
                }
            }));
        }
        Ok(threads)
    }

    /// The log: what the guest still has of it comes sealed from there, the requests and what is older from the host.
    fn log(&mut self) -> Result<Log> {
        let shown = self.channel.shown.clone();
        let mut log = self.channel.carrier().log(&shown)?;
        with_orders(&mut log, self.orders)?;
        let mut first = 1;
        loop {
            let excerpt = self.request(Request::ReadAudit { first }, |reply| match reply {
                Reply::Audit(excerpt) => Some(excerpt),
                _ => None,
            })?;
            for entry in excerpt.entries.iter() {
                let at = usize::try_from(entry.sequence).ok().and_then(|number| number.checked_sub(1));
                // What came after the report is not in the log.
                if let Some(line) = at.and_then(|at| log.entries.get(at)) {
                    ensure!(
                        line.entry()? == *entry,
                        "entry {} is another one in the guest than the host says",
                        entry.sequence
                    );
                }
            }
            match excerpt.entries.last() {
                Some(last) if (last.sequence as usize) < log.entries.len() => first = last.sequence + 1,
                _ => return Ok(log),
            }
        }
    }
}

/// A sealed request as the host saw it, and what was in it.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    request: String,
    order: String,
}

fn keep(path: &Path, request: &[u8], order: &Order<'_>) -> Result<()> {
    let order = frame::encode(order).ok().context("too long")?.split_off(frame::HEADER);
    let kept = Kept { request: STANDARD.encode(request), order: STANDARD.encode(order) };
    let line = serde_json::to_string(&kept)? + "\n";
    let file = File::options().append(true).create(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(line.as_bytes()))
        .with_context(|| format!("cannot write to {}", path.display()))
}

/// Adds what was in sealed requests.
fn with_orders(log: &mut Log, path: Option<&Path>) -> Result<()> {
    let Some(path) = path.filter(|path| path.exists()) else { return Ok(()) };
    let text = String::from_utf8(read(path)?).with_context(|| path.display().to_string())?;
    for line in text.lines() {
        let Kept { request, order } =
            serde_json::from_str(line).with_context(|| format!("{}: a line is malformed", path.display()))?;
        for line in log.entries.iter_mut().filter(|line| line.request == request) {
            line.order = Some(order.clone());
        }
    }
    Ok(())
}
