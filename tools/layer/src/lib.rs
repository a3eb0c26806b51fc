//! OCI images, and the way of a layer from tar to ext4 to dm-verity.
//!
//! * [`oci`] reads an image layout as skopeo, umoci, buildah and docker write it, and checks every digest.
//! * [`mod@build`] turns a layer's tar into the image that the guest mounts, and gives its root hash.
//! * [`cache`] keeps the images of layers that were converted before.

pub mod build;
pub mod cache;
mod ext4;
mod gosort;
pub mod oci;
mod tar;
mod time;
mod verity;
mod xattr;

pub use tar::End;
