//! containerd's shim: runs the containers of containerd and of Kubernetes in a guest, each pod in one of its own.
//!
//! [`service::Service`] is the Task service that containerd calls; [`uvm::Uvm`] is the pod's guest, which ends with this
//! process, however that ends; [`spec`] and [`policy`] read what the orchestrator wants; [`containerd`] fetches images; [`network`] ties
//! the pod's network to the guest.
//! What a guest says is bounded and escaped before anybody sees it (T07, T09).

pub mod containerd;
pub mod network;
pub mod policy;
pub mod service;
pub mod spec;
pub mod steps;
pub mod streams;
pub mod uvm;
