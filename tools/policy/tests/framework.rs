//! The framework's decisions, one scenario a promise: the honest sequence, and each field that can be wrong.

mod common;

use common::{Guest, Oracle};
use serde_json::json;

/// A policy of one layer.
const ONE_LAYER: &str = r#"package policy
api_version := "0.12.0"
framework_version := "0.5.0"
containers := [{"layers": ["aa"]}]
mount_device := data.framework.mount_device
reason := data.framework.reason
"#;

#[test]
fn a_layer_of_the_policy_is_mounted_and_no_other() {
    let mut guest = Guest::new(Oracle::new(ONE_LAYER));
    let request = |hash| json!({"target": "/run/mounts/scsi/m1", "mountPathRegex": "/run/mounts/scsi/m[0-9]+", "deviceHash": hash});
    assert_eq!(guest.ask("mount_device", &request("ab")).denied(), ["invalid device hash"]);
    guest.ask("mount_device", &request("aa")).allowed();
    assert_eq!(guest.metadata, json!({"devices": {"/run/mounts/scsi/m1": "aa"}}));
}
