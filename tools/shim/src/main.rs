//! `containerd-shim-parma-v2`: containerd starts it for the runtime `io.containerd.parma.v2`.

use containerd_shim::{Config, run};
use parma_shim::service::Service;

fn main() {
    // Children are waited for by whoever started them.
    let config = Config { no_reaper: true, no_sub_reaper: true, ..Config::default() };
    run::<Service>(parma_shim::service::RUNTIME, Some(config));
}
