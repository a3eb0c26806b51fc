//! The shim under CRI, as the kubelet speaks it: two containers in one pod.
//!
//! The messages are the fields in use of `runtime.v1` (`cri-api/pkg/apis/runtime/v1/api.proto`).

mod common;

use common::{GATEWAY, IMAGE, Node, shims, until};
use hyper_util::rt::TokioIo;
use parma::workload::{ANNOTATION, Policy};
use parma_policy::generate::{GenerateOptions, policy_of};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use tokio::net::UnixStream;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::transport::{Endpoint, Uri};
use tonic_prost::ProstCodec;

/// The node's namespace.
const NODE: i32 = 2;
/// The pod's own.
const POD: i32 = 0;
const EXITED: i32 = 2;

#[derive(Clone, PartialEq, prost::Message)]
struct Metadata {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    uid: String,
    #[prost(string, tag = "3")]
    namespace: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct NamespaceOption {
    #[prost(int32, tag = "1")]
    network: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxSecurity {
    #[prost(message, optional, tag = "1")]
    namespaces: Option<NamespaceOption>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxSandbox {
    #[prost(message, optional, tag = "2")]
    security: Option<SandboxSecurity>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Dns {
    #[prost(string, repeated, tag = "1")]
    servers: Vec<String>,
    #[prost(string, repeated, tag = "2")]
    searches: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Sandbox {
    #[prost(message, optional, tag = "1")]
    metadata: Option<Metadata>,
    #[prost(string, tag = "3")]
    log_directory: String,
    #[prost(message, optional, tag = "4")]
    dns: Option<Dns>,
    #[prost(map = "string, string", tag = "7")]
    annotations: HashMap<String, String>,
    #[prost(message, optional, tag = "8")]
    linux: Option<LinuxSandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct RunSandbox {
    #[prost(message, optional, tag = "1")]
    config: Option<Sandbox>,
    #[prost(string, tag = "2")]
    handler: String,
}

/// A request or a reply that is an id.
#[derive(Clone, PartialEq, prost::Message)]
struct Id {
    #[prost(string, tag = "1")]
    id: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ContainerSecurity {
    #[prost(message, optional, tag = "3")]
    namespaces: Option<NamespaceOption>,
    #[prost(bool, tag = "11")]
    no_new_privs: bool,
}

#[derive(Clone, PartialEq, prost::Message)]
struct LinuxContainer {
    #[prost(message, optional, tag = "2")]
    security: Option<ContainerSecurity>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Container {
    #[prost(message, optional, tag = "1")]
    metadata: Option<ContainerName>,
    #[prost(message, optional, tag = "2")]
    image: Option<Id>,
    #[prost(string, repeated, tag = "3")]
    command: Vec<String>,
    #[prost(string, tag = "11")]
    log_path: String,
    #[prost(message, optional, tag = "15")]
    linux: Option<LinuxContainer>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct CreateContainer {
    #[prost(string, tag = "1")]
    sandbox: String,
    #[prost(message, optional, tag = "2")]
    config: Option<Container>,
    #[prost(message, optional, tag = "3")]
    sandbox_config: Option<Sandbox>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecSync {
    #[prost(string, tag = "1")]
    id: String,
    #[prost(string, repeated, tag = "2")]
    command: Vec<String>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StopContainer {
    #[prost(string, tag = "1")]
    id: String,
    /// Seconds between the stop signal and SIGKILL.
    #[prost(int64, tag = "2")]
    timeout: i64,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExecSynced {
    #[prost(bytes = "vec", tag = "1")]
    stdout: Vec<u8>,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct StatusOf {
    #[prost(message, optional, tag = "1")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(int32, tag = "3")]
    state: i32,
    #[prost(int32, tag = "7")]
    code: i32,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxStatusOf {
    #[prost(message, optional, tag = "1")]
    status: Option<SandboxStatus>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxStatus {
    #[prost(message, optional, tag = "5")]
    network: Option<SandboxNetwork>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct SandboxNetwork {
    #[prost(string, tag = "1")]
    ip: String,
}

/// The kubelet's end of CRI.
struct Kubelet {
    runtime: tokio::runtime::Runtime,
    channel: tonic::transport::Channel,
}

impl Kubelet {
    fn connect(node: &Node) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let socket = node.dir.path().join("socket");
        let connector = tower::service_fn(move |_: Uri| {
            let socket = socket.clone();
            async move { UnixStream::connect(socket).await.map(TokioIo::new) }
        });
        let channel =
            runtime.block_on(Endpoint::from_static("http://cri").connect_with_connector(connector)).unwrap();
        Self { runtime, channel }
    }

    fn ask<Q, A>(&self, method: &'static str, question: Q) -> Result<A, tonic::Status>
    where
        Q: prost::Message + Default + 'static,
        A: prost::Message + Default + 'static,
    {
        let path = format!("/runtime.v1.RuntimeService/{method}").parse::<PathAndQuery>().unwrap();
        self.runtime.block_on(async {
            let mut grpc = tonic::client::Grpc::new(self.channel.clone());
            grpc.ready().await.unwrap();
            let reply =
                grpc.unary(tonic::Request::new(question), path, ProstCodec::<Q, A>::default()).await?;
            Ok(reply.into_inner())
        })
    }

    fn done<Q>(&self, method: &'static str, question: Q)
    where
        Q: prost::Message + Default + 'static,
    {
        self.ask::<Q, ()>(method, question).unwrap();
    }

    fn status(&self, id: &str) -> Status {
        let asked = self.ask::<_, StatusOf>("ContainerStatus", Id { id: id.to_owned() });
        asked.unwrap().status.unwrap()
    }
}

#[test]
fn two_containers_of_a_pod_share_a_guest() {
    let Some(node) = Node::start() else { return };
    let kubelet = Kubelet::connect(&node);
    // The node serves a page, which the first container gets before it serves one itself.
    let listener = node.on_network(|| TcpListener::bind("0.0.0.0:0")).unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = std::thread::spawn(move || {
        let (mut connection, peer) = listener.accept().unwrap();
        connection.write_all(b"HTTP/1.0 200 OK\r\n\r\nfrom the node\n").unwrap();
        peer.ip().to_string()
    });
    let one = format!("wget -qO- http://{GATEWAY}:{port}/; echo from one; exec httpd -f -p 80 -h /etc");
    let commands = [["sh", "-c", one.as_str()], ["sh", "-c", "hostname; exit 5"]];
    let names = ["one", "two"];
    let exec = ["hostname"].map(str::to_owned).to_vec();
    let containers = [0, 1].map(|index| {
        let options = GenerateOptions {
            name: Some(names[index].to_owned()),
            exec: vec![exec.clone()],
            network: true,
            ..GenerateOptions::default()
        };
        node.container(&commands[index], options)
    });
    let policy = Policy::compile("pod.rego", &policy_of(&containers).unwrap()).unwrap();
    let logs = node.dir.path().join("logs");
    std::fs::create_dir(&logs).unwrap();
    let sandbox_of = |name: &str, policy: &str| Sandbox {
        metadata: Some(Metadata { name: name.into(), uid: format!("u-{name}"), namespace: "test".into() }),
        log_directory: logs.display().to_string(),
        dns: Some(Dns { servers: vec![GATEWAY.into()], searches: vec!["ns.svc.cluster.test".into()] }),
        annotations: HashMap::from([(ANNOTATION.to_owned(), policy.to_owned())]),
        linux: Some(LinuxSandbox {
            security: Some(SandboxSecurity { namespaces: Some(NamespaceOption { network: POD }) }),
        }),
    };

    // A pod without a policy, or with a wrong one, does not start, and the kubelet's event says in a line what to do.
    let mut without = sandbox_of("without", "");
    without.annotations.clear();
    let mut node_network = sandbox_of("node", &policy.annotation());
    node_network.linux = Some(LinuxSandbox {
        security: Some(SandboxSecurity { namespaces: Some(NamespaceOption { network: NODE }) }),
    });
    for (config, says) in [
        (node_network, "parma.dev/network: none"),
        (without, "policy generate --annotation"),
        (sandbox_of("path", "/etc/passwd"), ANNOTATION),
        (sandbox_of("none", "cm9vdA=="), ANNOTATION),
    ] {
        let run = RunSandbox { config: Some(config), handler: "parma".into() };
        let refused = kubelet.ask::<_, Id>("RunPodSandbox", run).unwrap_err();
        assert!(refused.message().contains(says), "{refused}");
        assert_eq!(refused.message().lines().count(), 1, "{refused}");
    }
    node.until_nothing_is_left();

    let config = sandbox_of("pod", &policy.annotation());
    let run = RunSandbox { config: Some(config.clone()), handler: "parma".into() };
    let sandbox = kubelet.ask::<_, Id>("RunPodSandbox", run);
    let sandbox = sandbox.unwrap_or_else(|error| panic!("{error}\n{}", node.log())).id;
    let socket = node.dir.path().join("socket").display().to_string();
    assert_eq!(shims(&socket).len(), 1);
    let ids = [0, 1].map(|index| {
        let container = Container {
            metadata: Some(ContainerName { name: names[index].into() }),
            image: Some(Id { id: IMAGE.into() }),
            command: commands[index].map(str::to_owned).to_vec(),
            log_path: format!("{}.log", names[index]),
            linux: Some(LinuxContainer {
                security: Some(ContainerSecurity {
                    namespaces: Some(NamespaceOption { network: POD }),
                    no_new_privs: true,
                }),
            }),
        };
        let create = CreateContainer {
            sandbox: sandbox.clone(),
            config: Some(container),
            sandbox_config: Some(config.clone()),
        };
        let id = kubelet.ask::<_, Id>("CreateContainer", create).unwrap().id;
        let started = kubelet.ask::<_, ()>("StartContainer", Id { id: id.clone() });
        started.unwrap_or_else(|error| panic!("{error}\n{}", node.log()));
        id
    });
    // One shim and so one guest; what they write is in the kubelet's logs.
    assert_eq!(shims(&socket).len(), 1);
    until("the second has ended", || kubelet.status(&ids[1]).state == EXITED);
    assert_eq!(kubelet.status(&ids[1]).code, 5);
    let log = |name: &str| std::fs::read_to_string(logs.join(format!("{name}.log"))).unwrap_or_default();
    until("the first has written", || log("one").contains("stdout F from one"));
    until("the second has written", || log("two").contains("stdout F "));
    let ask = ExecSync { id: ids[0].clone(), command: exec };
    let name: ExecSynced = kubelet.ask("ExecSync", ask).unwrap();
    assert_eq!(name.code, 0);
    let name = String::from_utf8(name.stdout).unwrap();
    assert!(log("two").trim_end().ends_with(name.trim_end()), "{name} {}", log("two"));

    // The pod has the network that CNI made for it, in both directions, and the names.
    let status = kubelet.ask::<_, SandboxStatusOf>("PodSandboxStatus", Id { id: sandbox.clone() }).unwrap();
    let ip = status.status.unwrap().network.unwrap().ip;
    assert_eq!(asked.join().unwrap(), ip);
    assert!(log("one").contains("stdout F from the node"), "{}", log("one"));
    let get = |path: &str| {
        let mut connection = TcpStream::connect((ip.as_str(), 80))?;
        connection.write_all(format!("GET /{path} HTTP/1.0\r\n\r\n").as_bytes())?;
        let mut page = String::new();
        connection.read_to_string(&mut page).map(|_| page)
    };
    until("the container serves", || node.on_network(|| get("hosts").is_ok_and(|page| page.contains(&ip))));
    let page = node.on_network(|| get("resolv.conf")).unwrap();
    assert!(page.contains(&format!("nameserver {GATEWAY}\nsearch ns.svc.cluster.test\n")), "{page}");

    // A container is stopped and removed without the others; the pod with what is left in it.
    kubelet.done("StopContainer", StopContainer { id: ids[0].clone(), timeout: 0 });
    assert_eq!(kubelet.status(&ids[0]).code, 137);
    kubelet.done("RemoveContainer", Id { id: ids[1].clone() });
    kubelet.done("StopPodSandbox", Id { id: sandbox.clone() });
    assert_eq!(kubelet.status(&ids[0]).state, EXITED);
    kubelet.done("RemovePodSandbox", Id { id: sandbox });
    node.until_nothing_is_left();
}
