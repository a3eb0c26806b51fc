//! OCI images, and the way of a layer from tar to ext4 to dm-verity.
//!
//! * [`oci`] reads an image layout as skopeo, umoci, buildah and docker write it, and checks every digest.
//! * [`mod@build`] turns a layer's tar into the image that the guest mounts, and gives its root hash.
//! * [`verity`] checks such an image against its root hash.
//! * [`volume`] makes and reads encrypted data volumes.
//! * [`pull`] fills an image layout from a registry, from another layout or from what `docker save` writes.
//! * [`credentials`] finds what podman and docker know of a registry.
//! * [`cache`] keeps the images of layers that were converted before.

mod archive;
pub mod build;
pub mod cache;
mod content;
pub mod credentials;
mod ext4;
mod gosort;
pub mod oci;
mod output;
pub mod pull;
mod registry;
pub mod sha256;
mod tar;
mod time;
pub mod verity;
pub mod volume;
mod xattr;

pub use tar::End;
