# What the fuzz targets ask: two containers that share their layers and differ in what they allow.
package policy

import rego.v1

api_version := "0.12.0"
framework_version := "0.5.0"

containers := [
	{
		"name": "serve",
		"layers": ["0101010101010101010101010101010101010101010101010101010101010101", "0202020202020202020202020202020202020202020202020202020202020202"],
		"command": ["/bin/serve", "-v"],
		"env_rules": [
			{"pattern": "PATH=/bin", "strategy": "string", "required": true},
			{"pattern": "LEVEL=[0-9]", "strategy": "re2", "required": false},
			{"pattern": "(?i)(FABRIC)_.+=.+", "strategy": "re2", "required": false},
			{"name": "ZONE", "name_strategy": "string", "value": "[a-z]+", "value_strategy": "re2", "required": false},
		],
		"mounts": [{
			"destination": "/data", "type": "bind", "source": "sandbox:///tmp/data[0-9]+",
			"options": ["rbind", "rshared", "rw"],
		}],
		"exec_processes": [{"command": ["/bin/check"], "signals": [2]}],
		"signals": [15, 9],
		"user": {
			"user_idname": {"pattern": "1000", "strategy": "id"},
			"group_idnames": [{"pattern": "use.*", "strategy": "re2"}],
			"umask": "0022",
		},
		"capabilities": {
			"bounding": ["CAP_CHOWN", "CAP_KILL"], "effective": ["CAP_KILL"], "inheritable": [],
			"permitted": ["CAP_KILL"], "ambient": [],
		},
		"seccomp_profile_sha256": "",
		"allow_elevated": false,
		"working_dir": "/srv",
		"allow_stdio_access": true,
		"no_new_privileges": true,
	},
	{
		"name": "privileged",
		"layers": ["0101010101010101010101010101010101010101010101010101010101010101", "0202020202020202020202020202020202020202020202020202020202020202"],
		"command": ["/bin/serve", "-v"],
		"env_rules": [{"pattern": "PATH=/bin", "strategy": "string", "required": false}],
		"mounts": [],
		"exec_processes": [],
		"signals": [],
		"user": {
			"user_idname": {"pattern": "", "strategy": "any"},
			"group_idnames": [{"pattern": "", "strategy": "any"}],
			"umask": "0022",
		},
		"capabilities": null,
		"seccomp_profile_sha256": "",
		"allow_elevated": true,
		"working_dir": "/srv",
		"allow_stdio_access": true,
		"no_new_privileges": false,
	},
]

external_processes := [{
	"command": ["/bin/outside"],
	"working_dir": "/",
	"env_rules": [{"pattern": "PATH=/bin", "strategy": "string", "required": true}],
	"allow_stdio_access": false,
}]

allow_properties_access := true
allow_dump_stacks := false
allow_runtime_logging := true
allow_environment_variable_dropping := true
allow_unencrypted_scratch := false
allow_capability_dropping := true

mount_device := data.framework.mount_device

rw_mount_device := data.framework.rw_mount_device

mount_blockdev := data.framework.mount_blockdev

unmount_device := data.framework.unmount_device

rw_unmount_device := data.framework.rw_unmount_device

unmount_blockdev := data.framework.unmount_blockdev

mount_overlay := data.framework.mount_overlay

unmount_overlay := data.framework.unmount_overlay

create_container := data.framework.create_container

exec_in_container := data.framework.exec_in_container

exec_external := data.framework.exec_external

shutdown_container := data.framework.shutdown_container

signal_container_process := data.framework.signal_container_process

plan9_mount := data.framework.plan9_mount

plan9_unmount := data.framework.plan9_unmount

get_properties := data.framework.get_properties

dump_stacks := data.framework.dump_stacks

runtime_logging := data.framework.runtime_logging

load_fragment := data.framework.load_fragment

scratch_mount := data.framework.scratch_mount

scratch_unmount := data.framework.scratch_unmount

host_network := data.framework.host_network

reason := data.framework.reason
