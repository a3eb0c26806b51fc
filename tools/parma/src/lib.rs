//! The host's side of a container's life, step by step: what `parma run` does, and what tests and demonstrations take
//! apart to play a hostile host.
//!
//! * [`workload`]: an OCI image becomes layers, a container and a policy.
//! * [`pod`]: a guest is booted, given its policy, and asked for one thing after the other.
//! * [`group`]: the containers of a pod live: order, probes, starting again.
//! * [`record`]: what a guest was asked for, beside its own log of it.
//! * [`release`]: owners of keys, who judge a guest before they tell it anything.
//! * [`fragment`]: signing and checking fragments.
//! * [`local`]: how `parma exec`, `ps`, `kill`, `stop` and `connect` reach a `parma run` in another terminal.
//! * [`output`]: files that appear whole or not at all, and text that cannot steer a terminal.

pub mod fragment;
pub mod group;
pub mod local;
pub mod output;
pub mod pod;
pub mod record;
pub mod release;
pub mod workload;
