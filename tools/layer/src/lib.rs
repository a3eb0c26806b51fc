//! OCI images, and the way of a layer from tar to ext4 to dm-verity.
//!
//! * [`oci`] reads an image layout as skopeo, umoci, buildah and docker write it, and checks every digest.

pub mod oci;
