# The enforcement framework: one rule for each thing that the host may ask of the guest.
#
# A policy is data (its containers and flags) and aliases such as
#
#     mount_device := data.framework.mount_device
#
# The guest asks `data.policy.<point>` with the request as `input` and its own memory of earlier decisions
# as `data.metadata`. The answer is `{"allowed": bool, ...}`; `metadata` lists what the guest has to remember
# if it allows and the action succeeds. What no rule allows is denied: every point's default says so.
#
# How to read it. First the tools and what is fixed by the policy alone, then a section for each point, in
# the order in which a container meets them, then the reasons of denials.
#
# The rule behind all rules: a request is allowed only if *one* entry of the policy allows every field of
# it. `data.metadata.matches[id]` holds the entries that a container may still turn out to be; each
# decision keeps those that allow all of the request, and denies if none is left.
#
# docs/policy-framework.md has the input of each point, the metadata, and the differences to other
# implementations (D1 to D12), which are referred to here by those names.
package framework

import rego.v1

version := "0.5.0"

# --- Tools ----------------------------------------------------------------------------------------------

# Patterns are regular expressions in RE2's syntax and match the whole string, never a part of it (D2).
# The first line makes an expression that is none by itself, such as "a)|(?:b", match nothing. The compiler
# knows the second line's form and anchors the parsed expression instead of its text.
whole_match(pattern, value) if {
	regex.match(pattern, "") in {true, false}
	regex.match(concat("", ["^(?:", pattern, ")$"]), value)
}

# The same items, in any order.
same_items(these, those) if {
	these == those
} else if {
	count(these) == count(those)
	every item in these { item in those }
	every item in those { item in these }
}

# Operations on the guest's memory.
add(map, key, value) := {"name": map, "action": "add", "key": key, "value": value}

update(map, key, value) := {"name": map, "action": "update", "key": key, "value": value}

remove(map, key) := {"name": map, "action": "remove", "key": key}

# --- What the policy fixes ------------------------------------------------------------------------------
# Nothing here depends on a request or on the guest's memory: the compiler evaluates it once.

policy_version := data.policy.framework_version

policy_version := data.policy.framework_svn

# Every layer of every container, and every read-only data volume: what may be attached as a read-only device.
known_layers := container_layers | data_volumes

container_layers := {layer |
	some container in data.policy.containers
	some layer in container.layers
}

data_volumes := {substring(mount.source, count(verity_prefix), -1) |
	some container in data.policy.containers
	some mount in container.mounts
	startswith(mount.source, verity_prefix)
}

# Before the root hash of a read-only data volume, as the source of a mount.
verity_prefix := "verity://"

# Before the id of a read-write one, which says what key opens it.
volume_prefix := "volume://"

known_volumes := {substring(mount.source, count(volume_prefix), -1) |
	some container in data.policy.containers
	some mount in container.mounts
	startswith(mount.source, volume_prefix)
}

# The containers of the policy, complete. A policy for an older framework gets that version's meaning of
# fields which it could not know; a policy without a version, or for a newer framework, has no containers.
default candidates := []

candidates := data.policy.containers if semver.compare(policy_version, version) == 0

candidates := [completed(container, policy_version) | some container in data.policy.containers] if {
	semver.compare(policy_version, version) < 0
}

# The containers by their layers, these from the top as an overlay is mounted; a policy lists them from the bottom.
candidates_by_layers := {layers: entries |
	some container in candidates
	layers := from_top(container.layers)
	count(layers) == count(container.layers)
	entries := [entry | some entry in candidates; entry.layers == container.layers]
}

from_top(layers) := [layers[(count(layers) - i) - 1] | some i, _ in layers]

default external_processes := []

external_processes := data.policy.external_processes if semver.compare(policy_version, version) <= 0

env_dropping if data.policy.allow_environment_variable_dropping == true

capability_dropping if {
	data.policy.allow_capability_dropping == true
	not older(policy_version, "0.2.2")
}

older(than, introduced) if semver.compare(than, introduced) < 0

# An entry as it was meant when its policy or fragment, of version `as_of`, was written.
completed(container, as_of) := {
	"command": container.command,
	"env_rules": container.env_rules,
	"layers": container.layers,
	"mounts": container.mounts,
	"working_dir": container.working_dir,
	"exec_processes": container.exec_processes,
	"allow_elevated": container.allow_elevated,
	"allow_stdio_access": container.allow_stdio_access,
	"no_new_privileges": no_new_privileges_of(container, as_of),
	"user": user_of(container, as_of),
	"capabilities": capabilities_of(container, as_of),
	"seccomp_profile_sha256": seccomp_of(container, as_of),
	"signals": signals_of(container, as_of),
}

no_new_privileges_of(container, as_of) := container.no_new_privileges if not older(as_of, "0.2.0")

no_new_privileges_of(_, as_of) := false if older(as_of, "0.2.0")

user_of(container, as_of) := container.user if not older(as_of, "0.2.1")

user_of(_, as_of) := user if {
	older(as_of, "0.2.1")
	anyone := {"pattern": "", "strategy": "any"}
	user := {"umask": "0022", "user_idname": anyone, "group_idnames": [anyone]}
}

capabilities_of(container, as_of) := container.capabilities if not older(as_of, "0.2.2")

capabilities_of(_, as_of) := null if older(as_of, "0.2.2")

seccomp_of(container, as_of) := container.seccomp_profile_sha256 if not older(as_of, "0.2.3")

seccomp_of(_, as_of) := "" if older(as_of, "0.2.3")

signals_of(container, as_of) := container.signals if not older(as_of, "0.4.1")

signals_of(container, as_of) := array.concat(container.signals, [9, 15]) if older(as_of, "0.4.1")

# --- Devices: layers, read-only, under dm-verity --------------------------------------------------------

device_path := "/run/mounts/scsi/m[0-9]+"

default mount_device := {"allowed": false}

mount_device := {"allowed": true, "metadata": [add("devices", input.target, input.deviceHash)]} if {
	device_ok
	not panic_on_corruption
}

mount_device := {
	"allowed": true,
	"panic_on_corruption": true,
	"metadata": [add("devices", input.target, input.deviceHash)],
} if {
	device_ok
	panic_on_corruption
}

device_ok if {
	device_target_free
	layer_known(input.deviceHash)
	device_path_ok
}

layer_known(hash) if hash in known_layers

layer_known(hash) if {
	extensible
	some container in added("containers")
	hash in container.layers
}

# A block that does not match its root hash ends the machine; otherwise it is an error for its reader.
panic_on_corruption if data.policy.panic_on_corruption == true

device_target_free if {
	not data.metadata.devices[input.target]
	not data.metadata.rw_devices[input.target]
}

# The guest names the pattern that it derives paths by; a pattern is never taken from a request.
device_path_ok if {
	input.mountPathRegex == device_path
	whole_match(device_path, input.target)
}

default unmount_device := {"allowed": false}

unmount_device := {"allowed": true, "metadata": [remove("devices", input.unmountTarget)]} if {
	data.metadata.devices[input.unmountTarget]
}

# --- Devices: scratch space, writable -------------------------------------------------------------------

rw_device_path := "/run/gcs/c/[0-9a-fA-F]{64}"

default rw_mount_device := {"allowed": false}

rw_mount_device := {"allowed": true, "metadata": [add("rw_devices", input.target, true)]} if {
	device_target_free
	encryption_ok
	input.ensureFilesystem == true
	input.filesystem in {"ext4", "xfs"}
	rw_device_path_ok
	scratch_size_ok
	rollback_protection_ok
}

encryption_ok if input.encrypted == true

encryption_ok if data.policy.allow_unencrypted_scratch == true

# A data volume: encrypted by a key that its owner releases, not made here.
rw_mount_device := {"allowed": true, "metadata": [add("rw_devices", input.target, true)]} if {
	device_target_free
	input.encrypted == true
	input.filesystem == "ext4"
	input.mountPathRegex == concat("", [volume_path, "[0-9a-f]{64}"])
	input.target == concat("", [volume_path, input.volume])
	input.volume in known_volumes
}

volume_path := "/run/mounts/volumes/"

# A limit that is no number allows nothing.
scratch_size_ok if not data.policy.max_scratch_size

scratch_size_ok if data.policy.max_scratch_size - input.size >= 0

# Other guests than ours do not say; ours always does.
rollback_protection_ok if not input.rollbackProtection == false

rollback_protection_ok if data.policy.allow_scratch_rollback == true

# Space in the guest's memory instead of on a disk.
scratch_memory_ok if not input.memory == true

scratch_memory_ok if data.policy.allow_memory_scratch == true

rw_device_path_ok if {
	input.mountPathRegex == rw_device_path
	whole_match(rw_device_path, input.target)
}

default rw_unmount_device := {"allowed": false}

rw_unmount_device := {"allowed": true, "metadata": [remove("rw_devices", input.unmountTarget)]} if {
	data.metadata.rw_devices[input.unmountTarget]
}

# --- Devices without dm-verity: never -------------------------------------------------------------------

mount_blockdev := {"allowed": false}

unmount_blockdev := {"allowed": false}

# --- Scratch space of a container's overlay -------------------------------------------------------------

default scratch_mount := {"allowed": false}

scratch_mount := {
	"allowed": true,
	"metadata": [add("scratch_mounts", input.target, {"encrypted": input.encrypted})],
} if {
	not data.metadata.scratch_mounts[input.target]
	encryption_ok
	scratch_memory_ok
}

default scratch_unmount := {"allowed": false}

scratch_unmount := {"allowed": true, "metadata": [remove("scratch_mounts", input.unmountTarget)]} if {
	data.metadata.scratch_mounts[input.unmountTarget]
}

# --- Overlays: a container's root filesystem ------------------------------------------------------------

default mount_overlay := {"allowed": false}

mount_overlay := {
	"allowed": true,
	"metadata": [
		add("matches", input.containerID, containers),
		add("overlayTargets", input.target, true),
	],
} if {
	not id_used
	not data.metadata.overlayTargets[input.target]
	containers := overlay_entries
}

# An id serves one container (D12): it is taken while it has an overlay or runs, and burned once it ran. Without the
# second, a burned id with a new overlay would pass for the container that is over.
id_used if data.metadata.matches[input.containerID]

id_used if data.metadata.started[input.containerID]

# The containers that have exactly the layers that are mounted, in their order.
overlay_entries := candidates_by_layers[mounted_layers] if not extensible

overlay_entries := entries if {
	extensible
	layers := mounted_layers
	others := [container | some container in added("containers"); from_top(container.layers) == layers]
	entries := [entry |
		some container in array.concat(policy_entries(layers), others)
		some entry in on_platform(container)
	]
	count(entries) > 0
}

policy_entries(layers) := candidates_by_layers[layers]

policy_entries(layers) := [] if not candidates_by_layers[layers]

mounted_layers := layers if {
	layers := [data.metadata.devices[path] | some path in input.layerPaths]
	count(layers) == count(input.layerPaths)
}

default unmount_overlay := {"allowed": false}

unmount_overlay := {"allowed": true, "metadata": [remove("overlayTargets", input.unmountTarget)]} if {
	data.metadata.overlayTargets[input.unmountTarget]
}

# --- Starting a container -------------------------------------------------------------------------------

default create_container := {"allowed": false}

# The id is burned: `started` is never removed. The guest itself burns it if the creation then fails (D12).
create_container := with_settings(containers, object.union(answer, waiting(containers))) if {
	not data.metadata.started[input.containerID]
	input.devices == []
	fitting := [container |
		some container in data.metadata.matches[input.containerID]
		container.command == input.argList
		container.working_dir == input.workingDir
		user_ok(container.user)
		privileged_ok(container)
		no_new_privileges_ok(container)
		terminal_ok(container)
		container.seccomp_profile_sha256 == input.seccompProfileSHA256
		mounts_ok(container)
	]
	offers := environments(fitting)
	env_list := environment_of(offers)
	equipped := [container | some container in fitting; equips(offers, container.env_rules, env_list)]
	caps_list := capabilities_for(equipped, input.privileged)
	containers := [container |
		some container in equipped
		capabilities_ok(allowed_capabilities(container, input.privileged), caps_list)
		turn_ok(container)
		instances_ok(container)
	]
	allow_stdio_access := containers[0].allow_stdio_access
	every container in containers { container.allow_stdio_access == allow_stdio_access }
	answer := {
		"allowed": true,
		"env_list": env_list,
		"caps_list": caps_list,
		"allow_stdio_access": allow_stdio_access,
		"metadata": created(containers),
	}
}

# Whether output that nobody reads waits for a reader, and the process with it. Where the entries that are left disagree,
# nothing is started.
waiting(_) := {} if not waits

waiting(containers) := {} if {
	waits
	every container in containers { object.get(container, "output_waits", false) == false }
}

waiting(containers) := {"output_waits": true} if {
	waits
	every container in containers { container.output_waits == true }
}

waits if {
	some container in candidates
	container.output_waits == true
}

waits if extensible

created(containers) := [
	update("matches", input.containerID, containers),
	add("started", input.containerID, {"privileged": input.privileged}),
] if not obliging

created(containers) := [
	update("matches", input.containerID, containers),
	add("started", input.containerID, {"privileged": input.privileged}),
	add("instances", input.containerID, name),
] if {
	obliging
	name := common_name(containers)
}

# --- What the guest gives a container by itself ------------------------------------------------------------
# What no request names: `settings` of an entry, and the policy's `pod`, for all containers. `seccomp` has, by the hash of
# its profile, each filter of system calls that the policy carries. The guest denies what it does not understand of them.

configuring if {
	some container in candidates
	"settings" in object.keys(container)
}

configuring if data.policy.pod

configuring if data.policy.seccomp

configuring if extensible

with_settings(_, answer) := answer if not configuring

# Nobody chose between entries that say different things.
with_settings(containers, answer) := object.union(object.union(answer, {"settings": settings}), shared_settings) if {
	configuring
	settings := object.get(containers[0], "settings", {})
	every container in containers { object.get(container, "settings", {}) == settings }
}

shared_settings := object.union(pod_settings, profile)

default pod_settings := {}

pod_settings := {"pod": data.policy.pod}

default profile := {}

profile := {"seccomp": data.policy.seccomp[input.seccompProfileSHA256]}

# --- What entries oblige to -----------------------------------------------------------------------------
# An entry may have a `name` and say `after: [names]` (these containers must be running when it is created),
# `after_success: [names]` (and the first process of one of each has ended with 0), `required: true` (the guest is not ready without it) and `max_instances: n` (it is created at most so often
# until power-off). "Running" means created and not shut down. `metadata.instances[id]` is the name of the entry
# that a container was created from; it is never removed. A policy without such entries has none of this.

obliging if {
	some container in candidates
	obliges(container)
}

obliges(container) if count(container.after) > 0

obliges(container) if count(container.after_success) > 0

obliges(container) if required(container)

obliges(container) if "max_instances" in object.keys(container)

# Whatever is not false counts, so that a value of another type does not go unnoticed.
required(container) if {
	"required" in object.keys(container)
	container.required != false
}

# Nobody could count afterwards what a container was if the entries that are left had different names.
common_name(containers) := name if {
	names := {object.get(container, "name", "") | some container in containers}
	count(names) == 1
	some name in names
}

running(name) if {
	name != ""
	some id, instance in data.metadata.instances
	instance == name
	data.metadata.matches[id]
}

turn_ok(_) if not obliging

turn_ok(container) if {
	obliging
	every name in object.get(container, "after", []) { running(name) }
	every name in object.get(container, "after_success", []) { succeeded(name) }
}

# The guest says which containers have done their work and are not shut down.
succeeded(name) if {
	name != ""
	some id in input.succeeded
	data.metadata.instances[id] == name
	data.metadata.matches[id]
}

instances_ok(_) if not obliging

instances_ok(container) if {
	obliging
	not "max_instances" in object.keys(container)
}

# A limit that is no number allows nothing. Entries without a name are counted together.
instances_ok(container) if {
	obliging
	own := object.get(container, "name", "")
	container.max_instances - count([id | some id, name in data.metadata.instances; name == own]) > 0
}

# Whether every container that is required is running. The guest asks before it says that it is ready, and
# before a secret is released to it.
ready := {"allowed": all_running} if {
	obliging
	names := {object.get(container, "name", "") |
		some container in array.concat(candidates, added("containers"))
		required(container)
	}
	all_running := count([name | some name in names; not running(name)]) == 0
}

# --- Another process in a running container -------------------------------------------------------------

default exec_in_container := {"allowed": false}

exec_in_container := {
	"allowed": true,
	"env_list": env_list,
	"caps_list": caps_list,
	"metadata": [update("matches", input.containerID, containers)],
} if {
	privileged := data.metadata.started[input.containerID].privileged
	fitting := [container |
		some container in data.metadata.matches[input.containerID]
		exec_command_ok(container)
		container.working_dir == input.workingDir
		user_ok(container.user)
		no_new_privileges_ok(container)
		terminal_ok(container)
	]
	offers := environments(fitting)
	env_list := environment_of(offers)
	equipped := [container | some container in fitting; equips(offers, container.env_rules, env_list)]
	caps_list := capabilities_for(equipped, privileged)
	containers := [container |
		some container in equipped
		capabilities_ok(allowed_capabilities(container, privileged), caps_list)
	]
	count(containers) > 0
}

exec_command_ok(container) if {
	some process in container.exec_processes
	process.command == input.argList
}

# --- A process of the guest itself, outside every container ---------------------------------------------

default exec_external := {"allowed": false}

exec_external := {
	"allowed": true,
	"env_list": env_list,
	"allow_stdio_access": allow_stdio_access,
} if {
	fitting := [process |
		some process in all_external_processes
		process.command == input.argList
		process.working_dir == input.workingDir
	]
	offers := environments(fitting)
	env_list := environment_of(offers)
	processes := [process | some process in fitting; equips(offers, process.env_rules, env_list)]
	allow_stdio_access := processes[0].allow_stdio_access
	every process in processes { process.allow_stdio_access == allow_stdio_access }
}

all_external_processes := external_processes if not extensible

all_external_processes := array.concat(external_processes, added("external_processes")) if extensible

# --- Signals --------------------------------------------------------------------------------------------

default signal_container_process := {"allowed": false}

signal_container_process := {
	"allowed": true,
	"metadata": [update("matches", input.containerID, containers)],
} if {
	data.metadata.started[input.containerID]
	containers := [container |
		some container in data.metadata.matches[input.containerID]
		signal_ok(container)
	]
	count(containers) > 0
}

signal_ok(container) if {
	input.isInitProcess == true
	input.signal in container.signals
}

signal_ok(container) if {
	input.isInitProcess == false
	some process in container.exec_processes
	process.command == input.argList
	input.signal in process.signals
}

# --- What a container may use, and whether it is held still ------------------------------------------------
# An entry may have `resources: {"memory": {"least": n, "most": n}, "cpu": …, "processes": …}` in bytes, thousandths of a
# processor and processes, and `allow_pause`. Of what it does not name the container has what the guest gives to all.

default update_container := {"allowed": false}

update_container := {
	"allowed": true,
	"metadata": [update("matches", input.containerID, containers)],
} if {
	data.metadata.started[input.containerID]
	containers := [container |
		some container in data.metadata.matches[input.containerID]
		resources_ok(container)
		pause_ok(container)
	]
	count(containers) > 0
}

resources_ok(container) if {
	limits := object.get(container, "resources", {})
	limit_ok(limits, "memory", input.memory)
	limit_ok(limits, "cpu", input.cpu)
	limit_ok(limits, "processes", input.processes)
}

limit_ok(limits, name, limit) if {
	limit == null
	not limits[name]
}

# A limit that is no number is within nothing.
limit_ok(limits, name, limit) if {
	limit - limits[name].least >= 0
	limits[name].most - limit >= 0
}

pause_ok(_) if input.paused == false

pause_ok(container) if container.allow_pause == true

# --- The end of a container -----------------------------------------------------------------------------

default shutdown_container := {"allowed": false}

shutdown_container := {"allowed": true, "metadata": [remove("matches", input.containerID)]} if {
	data.metadata.started[input.containerID]
}

# --- Host directories (Plan 9) --------------------------------------------------------------------------

plan9_path := "/mounts/m[0-9]+"

default plan9_mount := {"allowed": false}

plan9_mount := {"allowed": true, "metadata": [add("p9mounts", input.target, id)]} if {
	not data.metadata.p9mounts[input.target]
	some id, _ in data.metadata.matches
	plan9_path_ok(id)
}

plan9_path_ok(id) if {
	input.mountPathPrefix == plan9_path
	home := concat("/", [input.rootPrefix, id])
	startswith(input.target, home)
	whole_match(plan9_path, substring(input.target, count(home), -1))
}

default plan9_unmount := {"allowed": false}

plan9_unmount := {"allowed": true, "metadata": [remove("p9mounts", input.unmountTarget)]} if {
	data.metadata.p9mounts[input.unmountTarget]
}

# --- Looking into the guest -----------------------------------------------------------------------------

default get_properties := {"allowed": false}

get_properties := {"allowed": true} if data.policy.allow_properties_access == true

default dump_stacks := {"allowed": false}

dump_stacks := {"allowed": true} if data.policy.allow_dump_stacks == true

default runtime_logging := {"allowed": false}

runtime_logging := {"allowed": true} if data.policy.allow_runtime_logging == true

default host_network := {"allowed": false}

host_network := {"allowed": true} if data.policy.allow_host_network == true

# --- Additions to the policy ----------------------------------------------------------------------------
# The policy may name fragments, by issuer and feed, and say what kinds of entries each may add. A fragment is
# data: its entries join those of the policy, and no rule of it is ever asked.
#
# The guest asks twice. First with what the signed header says (`input.fragment_loaded` is false), and only if that
# is allowed does it look at the content; then with the content, `input.fragment`.

kinds := {"containers", "fragments", "external_processes", "platform_rules"}

default policy_fragments := []

policy_fragments := data.policy.fragments if semver.compare(policy_version, version) <= 0

default policy_platform_rules := []

policy_platform_rules := data.policy.platform_rules if semver.compare(policy_version, version) == 0

# Whether anything can be added, which is known when the policy is compiled.
extensible if count(policy_fragments) > 0

extensible if count(policy_platform_rules) > 0

# The entries of this kind that fragments have added.
added(kind) := [entry |
	extensible
	some issuer in data.metadata.issuers
	some feed in issuer.feeds
	some fragment in feed
	some entry in fragment[kind]
]

# What the platform adds to every container: a copy of it for each of its rules.
on_platform(container) := [container] if count(platform_rules) == 0

on_platform(container) := [entry |
	some rule in platform_rules
	more := {
		"env_rules": array.concat(container.env_rules, object.get(rule, "env_rules", [])),
		"mounts": array.concat(container.mounts, object.get(rule, "mounts", [])),
	}
	entry := object.union(container, more)
] if {
	count(platform_rules) > 0
}

platform_rules := array.concat(policy_platform_rules, added("platform_rules"))

# Fragments that are named by the policy, by one of its fragments that may include fragments, or by one of those;
# no deeper (F06).
named_fragments := (own | second) | third if {
	own := {fragment | some fragment in policy_fragments}
	second := named_by(own)
	third := named_by(second)
}

named_by(fragments) := {named |
	some fragment in fragments
	some loaded in data.metadata.issuers[fragment.issuer].feeds[fragment.feed]
	some named in loaded.fragments
}

# Of these, the ones that the header is for: same issuer, same feed, an SVN that is not too low. Receipts of
# transparency ledgers are not looked at, so a fragment that needs one is not welcome (F08).
welcome := [fragment |
	some fragment in named_fragments
	fragment.issuer == input.issuer
	fragment.feed == input.feed
	header_svn_ok(fragment.minimum_svn)
	object.get(fragment, "required_receipts", []) == []
]

header_svn_ok(_) if input.has_header_svn == false

header_svn_ok(minimum) if {
	input.has_header_svn == true
	svn_ok(input.header_svn, minimum)
}

# Either both are versions of three numbers or both are numbers; "10" is more than "9" (F03).
svn_ok(svn, minimum) if {
	semver.is_valid(svn)
	semver.is_valid(minimum)
	semver.compare(svn, minimum) >= 0
}

svn_ok(svn, minimum) if number_of(svn) >= number_of(minimum)

number_of(svn) := to_number(svn) if not semver.is_valid(svn)

default load_fragment := {"allowed": false}

load_fragment := {"allowed": true, "parameters": parameters} if {
	input.fragment_loaded == false
	fragments := welcome
	count(fragments) > 0
	parameters := [fragment.parameters | some fragment in fragments]
}

load_fragment := {
	"allowed": true,
	"add_module": false,
	"metadata": [update("issuers", input.issuer, {"feeds": object.union(issuer_feeds, feed)})],
} if {
	input.fragment_loaded == true
	fragments := [fragment | some fragment in welcome; content_svn_ok(fragment.minimum_svn)]
	count(fragments) > 0
	content_version_ok
	obligations_known
	entries := {kind: content_entries(kind) |
		some fragment in fragments
		some kind in fragment.includes
		kind in kinds
	}
	feed := {input.feed: array.concat([entries], feed_fragments)}
}

default issuer_feeds := {}

issuer_feeds := data.metadata.issuers[input.issuer].feeds

default feed_fragments := []

feed_fragments := data.metadata.issuers[input.issuer].feeds[input.feed]

# An SVN in the content as well must be the same number as the header's.
content_svn_ok(_) if {
	input.has_header_svn == true
	not "svn" in object.keys(input.fragment)
}

content_svn_ok(_) if {
	input.has_header_svn == true
	number_of(input.fragment.svn) == input.header_svn
}

content_svn_ok(minimum) if {
	input.has_header_svn == false
	svn_ok(input.fragment.svn, minimum)
}

content_version := input.fragment.framework_version

content_version := input.fragment.framework_svn

# A fragment of a version that is unknown here, or without one, has no entries: it is denied.
content_entries(kind) := object.get(input.fragment, kind, []) if semver.compare(content_version, version) == 0

content_entries("containers") := containers if {
	semver.compare(content_version, version) < 0
	containers := [completed(container, content_version) |
		some container in object.get(input.fragment, "containers", [])
	]
}

content_entries(kind) := object.get(input.fragment, kind, []) if {
	semver.compare(content_version, version) < 0
	kind in {"fragments", "external_processes"}
}

content_entries("platform_rules") := [] if semver.compare(content_version, version) < 0

# Instances are counted from the start or not at all.
obligations_known if obliging

obligations_known if {
	not obliging
	count([container | some container in object.get(input.fragment, "containers", []); obliges(container)]) == 0
}

load_transparency_trust_list := {"allowed": false}

# --- Windows: not this guest ----------------------------------------------------------------------------

mount_cims := {"allowed": false}

registry_changes := {"allowed": false}

log_provider := {"allowed": false}

# --- Who a process runs as ------------------------------------------------------------------------------

user_ok(user) if {
	user.umask == input.umask
	identity_ok(user)
}

identity_ok(user) if {
	id_name_ok(user.user_idname, input.user)
	every group in input.groups {
		some idname in user.group_idnames
		id_name_ok(idname, group)
	}
}

id_name_ok(idname, _) if idname.strategy == "any"

id_name_ok(idname, who) if {
	idname.strategy == "id"
	idname.pattern == who.id
}

id_name_ok(idname, who) if {
	idname.strategy == "name"
	idname.pattern == who.name
}

id_name_ok(idname, who) if {
	idname.strategy == "re2"
	whole_match(idname.pattern, who.name)
}

privileged_ok(_) if input.privileged == false

privileged_ok(container) if elevated(container, input.privileged)

elevated(container, privileged) if {
	privileged == true
	container.allow_elevated == true
}

no_new_privileges_ok(container) if container.no_new_privileges == false

no_new_privileges_ok(container) if {
	container.no_new_privileges == true
	input.noNewPrivileges == true
}

# The keys of a terminal send signals to what runs on it, whatever `signals` says. So it is allowed by itself.
terminal_ok(_) if not input.terminal == true

terminal_ok(container) if container.allow_terminal == true

# --- Environment ----------------------------------------------------------------------------------------

# The environment of the process, in the order of the request (D7): as asked or, where the policy lets
# variables be dropped, what the most generous of the entries allows. Two entries that are equally
# generous and allow different variables leave it undefined, which denies: nobody chose between them.
environment_of(_) := input.envList if not env_dropping

environment_of(offers) := environment if {
	env_dropping
	count(offers) == 1
	some environment in offers
} else := environment if {
	env_dropping
	kept := {variables | some variables in offers}
	most := max({count(variables) | some variables in kept})
	largest := [variables | some variables in kept; count(variables) == most]
	count(largest) == 1
	environment := largest[0]
}

# What each list of rules allows of the variables that are asked for, where the others may be dropped.
environments(_) := {} if not env_dropping

environments(entries) := {entry.env_rules: variables |
	some entry in entries
	variables := allowed_variables(entry.env_rules)
} if {
	env_dropping
}

allowed_variables(rules) := input.envList if {
	all_allowed(rules, input.envList)
} else := [variable |
	some variable in input.envList
	variable_allowed(rules, variable)
]

all_allowed(rules, environment) if {
	every variable in environment { variable_allowed(rules, variable) }
}

variable_allowed(rules, variable) if {
	some rule in rules
	variable_matches(rule, variable)
}

# Whether an entry's rules allow the environment. Where variables are dropped it is the largest that any rules offer,
# so what allows all of it offers the same and no more.
equips(_, rules, environment) if {
	not env_dropping
	all_allowed(rules, environment)
	environment_ok(rules, environment)
}

equips(offers, rules, environment) if {
	env_dropping
	offers[rules] == environment
	environment_ok(rules, environment)
}

# What is asked of an environment beyond that each of its variables is allowed.
environment_ok(rules, environment) if {
	every required in required_rules(rules) {
		some variable in environment
		variable_matches(required, variable)
	}
	names_ok(rules, environment)
}

required_rules(rules) := [rule | some rule in rules; rule.required]

# A name occurs once (D7), unless the policy spells out each variable that shares it.
names_ok(_, environment) if {
	count({name | some variable in environment; name := split(variable, "=")[0]}) == count(environment)
}

names_ok(rules, environment) if {
	count({variable | some variable in environment}) == count(environment)
	every variable in environment { name_ok(rules, environment, variable) }
}

name_ok(_, environment, variable) if {
	count([other | some other in environment; name_of(other) == name_of(variable)]) == 1
}

name_ok(rules, _, variable) if {
	some rule in rules
	rule.strategy == "string"
	rule.pattern == variable
}

name_of(variable) := split(variable, "=")[0]

# A rule speaks about the whole "NAME=value", or about name and value apart, or in both ways.
variable_matches(rule, variable) if text_matches(rule.strategy, rule.pattern, variable)

variable_matches(rule, variable) if {
	equals := indexof(variable, "=")
	equals >= 0
	text_matches(rule.name_strategy, rule.name, substring(variable, 0, equals))
	text_matches(rule.value_strategy, rule.value, substring(variable, equals + 1, -1))
}

text_matches("string", pattern, text) if pattern == text

text_matches("re2", pattern, text) if whole_match(pattern, text)

# --- Capabilities ---------------------------------------------------------------------------------------

capability_sets := {"bounding", "effective", "inheritable", "permitted", "ambient"}

# What an entry of the policy allows. `null` stands for the usual set of a container, or of a privileged one.
allowed_capabilities(container, _) := container.capabilities if container.capabilities != null

allowed_capabilities(container, privileged) := {
	"bounding": data.defaultPrivilegedCapabilities,
	"effective": data.defaultPrivilegedCapabilities,
	"inheritable": data.defaultPrivilegedCapabilities,
	"permitted": data.defaultPrivilegedCapabilities,
	"ambient": [],
} if {
	container.capabilities == null
	elevated(container, privileged)
}

allowed_capabilities(container, privileged) := {
	"bounding": data.defaultUnprivilegedCapabilities,
	"effective": data.defaultUnprivilegedCapabilities,
	"inheritable": [],
	"permitted": data.defaultUnprivilegedCapabilities,
	"ambient": [],
} if {
	container.capabilities == null
	not elevated(container, privileged)
}

# The capabilities of the process: as asked or, where the policy lets them be dropped, what the most
# generous of the entries allows, chosen as for the environment.
capabilities_for(_, _) := input.capabilities if not capability_dropping

capabilities_for(containers, privileged) := capabilities if {
	capability_dropping
	kept := {sets |
		some container in containers
		sets := kept_capabilities(allowed_capabilities(container, privileged))
	}
	capabilities := most_sets(kept)
}

most_sets(kept) := sets if {
	count(kept) == 1
	some sets in kept
} else := sets if {
	most := max({capability_count(sets) | some sets in kept})
	largest := [sets | some sets in kept; capability_count(sets) == most]
	count(largest) == 1
	sets := largest[0]
}

asked_sets := {name: asked |
	some name in capability_sets
	asked := {capability | some capability in input.capabilities[name]}
}

kept_capabilities(allowed) := asked_sets if {
	asked_sets == listed_sets(allowed)
} else := {name: kept |
	some name in capability_sets
	kept := {capability | some capability in input.capabilities[name]; capability in allowed[name]}
}

# What lists allow, as sets; undefined if one of them names anything twice.
listed_sets(allowed) := sets if {
	sets := {name: listed | some name in capability_sets; listed := {capability | some capability in allowed[name]}}
	every name in capability_sets { count(sets[name]) == count(allowed[name]) }
}

capability_count(sets) := (privileges + count(sets.inheritable)) + count(sets.ambient) if {
	privileges := (count(sets.bounding) + count(sets.effective)) + count(sets.permitted)
}

capabilities_ok(allowed, capabilities) if {
	capability_dropping
	capabilities == listed_sets(allowed)
}

capabilities_ok(allowed, capabilities) if {
	every name in capability_sets { same_items(capabilities[name], allowed[name]) }
}

# --- Mounts ---------------------------------------------------------------------------------------------

# Every mount that is asked for is allowed; none has to be asked for.
mounts_ok(container) if {
	every mount in input.mounts { mount_ok(container, mount) }
}

mount_ok(container, mount) if {
	some constraint in by_destination(container.mounts)[mount.destination]
	mount_fits(constraint, mount)
}

mount_ok(_, mount) if {
	some constraint in data.defaultMounts
	mount_matches(constraint, mount)
}

mount_ok(container, mount) if {
	container.allow_elevated == true
	some constraint in data.privilegedMounts
	mount_matches(constraint, mount)
}

# The container that holds a pod's namespaces may have a writable /sys.
mount_ok(_, mount) if {
	input.isSandboxContainer == true
	mount.type == "sysfs"
	mount.source == "sysfs"
	mount.destination == "/sys"
	same_items(mount.options, ["nosuid", "noexec", "nodev", "rw"])
}

by_destination(constraints) := {destination: these |
	destinations := {constraint.destination | some constraint in constraints}
	some destination in destinations
	these := [constraint | some constraint in constraints; constraint.destination == destination]
}

mount_matches(constraint, mount) if {
	constraint.destination == mount.destination
	mount_fits(constraint, mount)
}

mount_fits(constraint, mount) if {
	constraint.type == mount.type
	mount.destination != ""
	same_items(constraint.options, mount.options)
	source_ok(constraint.source, mount.source)
}

source_ok(constraint, source) if constraint == source

# "sandbox://" and "hugepages://" stand for directories that only the guest knows. What follows is a pattern
# for the path below, so that a directory's name is never read as a part of a pattern.
source_ok(constraint, source) if below(constraint, data.sandboxPrefix, source, input.sandboxDir)

source_ok(constraint, source) if below(constraint, data.hugePagesPrefix, source, input.hugePagesDir)

source_ok(constraint, source) if {
	startswith(constraint, data.plan9Prefix)
	data.metadata.p9mounts[source] == input.containerID
}

# A read-only data volume is named by its root hash, wherever it is mounted.
source_ok(constraint, source) if {
	startswith(constraint, verity_prefix)
	data.metadata.devices[source] == substring(constraint, count(verity_prefix), -1)
}

source_ok(constraint, source) if {
	startswith(constraint, volume_prefix)
	source == concat("", [volume_path, substring(constraint, count(volume_prefix), -1)])
	data.metadata.rw_devices[source]
}

below(constraint, prefix, source, directory) if {
	startswith(constraint, prefix)
	startswith(source, directory)
	whole_match(substring(constraint, count(prefix), -1), substring(source, count(directory), -1))
}

# --- Reasons of a denial --------------------------------------------------------------------------------
# Asked only after a denial, with `input.rule` naming the point. The texts are fixed, the guest passes on only
# those that it knows; nothing of the policy and nothing of the request is ever part of one (D11). A reason names
# a check that no entry passes by itself. An empty list means that each check has an entry that passes it but
# no single entry passes all, or that the entries which do disagree about the process that is to be started.

reason := {"errors": errors}

errors contains "framework_version is missing" if not policy_version

errors contains "framework_version is newer than the framework" if semver.compare(policy_version, version) > 0

errors contains "api_version is missing" if {
	not data.policy.api_version
	not data.policy.api_svn
}

errors contains "not supported" if {
	input.rule in {
		"mount_blockdev", "unmount_blockdev", "load_transparency_trust_list",
		"mount_cims", "registry_changes", "log_provider",
	}
}

errors contains "device already mounted" if {
	input.rule in {"mount_device", "rw_mount_device"}
	not device_target_free
}

errors contains "invalid device hash" if {
	input.rule == "mount_device"
	not layer_known(input.deviceHash)
}

errors contains "invalid device path" if {
	input.rule == "mount_device"
	not device_path_ok
}

errors contains "invalid device path" if {
	input.rule == "rw_mount_device"
	not input.volume
	not rw_device_path_ok
}

errors contains "volume not allowed" if {
	input.rule == "rw_mount_device"
	input.volume
	not input.volume in known_volumes
}

errors contains "device not mounted" if {
	input.rule == "unmount_device"
	not data.metadata.devices[input.unmountTarget]
}

errors contains "device not mounted" if {
	input.rule == "rw_unmount_device"
	not data.metadata.rw_devices[input.unmountTarget]
}

errors contains "invalid filesystem" if {
	input.rule == "rw_mount_device"
	not input.filesystem in {"ext4", "xfs"}
}

errors contains "filesystem not ensured" if {
	input.rule == "rw_mount_device"
	not input.volume
	not input.ensureFilesystem
}

errors contains "unencrypted scratch not allowed" if {
	input.rule in {"rw_mount_device", "scratch_mount"}
	not encryption_ok
}

errors contains "scratch in memory not allowed" if {
	input.rule == "scratch_mount"
	not scratch_memory_ok
}

errors contains "scratch too large" if {
	input.rule == "rw_mount_device"
	not input.volume
	not scratch_size_ok
}

errors contains "scratch without rollback protection not allowed" if {
	input.rule == "rw_mount_device"
	not input.volume
	not rollback_protection_ok
}

errors contains "scratch already mounted" if {
	input.rule == "scratch_mount"
	data.metadata.scratch_mounts[input.target]
}

errors contains "scratch not mounted" if {
	input.rule == "scratch_unmount"
	not data.metadata.scratch_mounts[input.unmountTarget]
}

errors contains "container id already used" if {
	input.rule == "mount_overlay"
	id_used
}

errors contains "overlay already mounted" if {
	input.rule == "mount_overlay"
	data.metadata.overlayTargets[input.target]
}

errors contains "invalid layers" if {
	input.rule == "mount_overlay"
	not overlay_entries
}

errors contains "overlay not mounted" if {
	input.rule == "unmount_overlay"
	not data.metadata.overlayTargets[input.unmountTarget]
}

errors contains "container already started" if {
	input.rule == "create_container"
	data.metadata.started[input.containerID]
}

errors contains "container has no overlay" if {
	input.rule == "create_container"
	not data.metadata.matches[input.containerID]
}

errors contains "container not started" if {
	input.rule in {"exec_in_container", "signal_container_process", "shutdown_container", "update_container"}
	not data.metadata.started[input.containerID]
}

# The points that start a process in a container.
process_request if input.rule in {"create_container", "exec_in_container"}

# The entries that the container of the request may still be.
default possible := []

possible := data.metadata.matches[input.containerID]

errors contains "invalid command" if {
	input.rule == "create_container"
	count([container | some container in possible; container.command == input.argList]) == 0
}

errors contains "invalid command" if {
	input.rule == "exec_in_container"
	count([container | some container in possible; exec_command_ok(container)]) == 0
}

errors contains "invalid command" if {
	input.rule == "exec_external"
	count([process | some process in all_external_processes; process.command == input.argList]) == 0
}

errors contains "invalid working directory" if {
	process_request
	count([container | some container in possible; container.working_dir == input.workingDir]) == 0
}

errors contains "invalid working directory" if {
	input.rule == "exec_external"
	count([process | some process in all_external_processes; process.working_dir == input.workingDir]) == 0
}

errors contains "invalid environment" if {
	process_request
	count([container | some container in possible; own_environment_ok(container)]) == 0
}

errors contains "invalid environment" if {
	input.rule == "exec_external"
	count([process | some process in all_external_processes; own_environment_ok(process)]) == 0
}

own_environment_ok(entry) if {
	not env_dropping
	equips({}, entry.env_rules, input.envList)
}

own_environment_ok(entry) if {
	env_dropping
	environment_ok(entry.env_rules, allowed_variables(entry.env_rules))
}

errors contains "invalid user" if {
	process_request
	count([container | some container in possible; identity_ok(container.user)]) == 0
}

errors contains "invalid umask" if {
	process_request
	count([container | some container in possible; container.user.umask == input.umask]) == 0
}

errors contains "invalid capabilities" if {
	process_request
	not capability_dropping
	count([container | some container in possible; own_capabilities_ok(container)]) == 0
}

own_capabilities_ok(container) if {
	input.rule == "create_container"
	capabilities_ok(allowed_capabilities(container, input.privileged), input.capabilities)
}

own_capabilities_ok(container) if {
	input.rule == "exec_in_container"
	privileged := data.metadata.started[input.containerID].privileged
	capabilities_ok(allowed_capabilities(container, privileged), input.capabilities)
}

errors contains "no_new_privileges is required" if {
	process_request
	count([container | some container in possible; no_new_privileges_ok(container)]) == 0
}

errors contains "terminal not allowed" if {
	process_request
	count([container | some container in possible; terminal_ok(container)]) == 0
}

errors contains "privileged container not allowed" if {
	input.rule == "create_container"
	count([container | some container in possible; privileged_ok(container)]) == 0
}

errors contains "invalid seccomp profile" if {
	input.rule == "create_container"
	hash := input.seccompProfileSHA256
	count([container | some container in possible; container.seccomp_profile_sha256 == hash]) == 0
}

errors contains "invalid mount list" if {
	input.rule == "create_container"
	count([container | some container in possible; mounts_ok(container)]) == 0
}

errors contains "devices not allowed" if {
	input.rule == "create_container"
	input.devices != []
}

errors contains "invalid signal" if {
	input.rule == "signal_container_process"
	count([container | some container in possible; signal_ok(container)]) == 0
}

errors contains "resources not allowed" if {
	input.rule == "update_container"
	count([container | some container in possible; resources_ok(container)]) == 0
}

errors contains "pause not allowed" if {
	input.rule == "update_container"
	count([container | some container in possible; pause_ok(container)]) == 0
}

errors contains "an earlier container is not running" if {
	input.rule == "create_container"
	obliging
	count([container | some container in possible; turn_ok(container)]) == 0
}

errors contains "too many instances" if {
	input.rule == "create_container"
	obliging
	count([container | some container in possible; instances_ok(container)]) == 0
}

errors contains "invalid fragment issuer" if {
	input.rule == "load_fragment"
	count([fragment | some fragment in named_fragments; fragment.issuer == input.issuer]) == 0
}

errors contains "invalid fragment feed" if {
	input.rule == "load_fragment"
	count([fragment | some fragment in named_fragments; fragment.feed == input.feed]) == 0
}

errors contains "invalid fragment svn" if {
	input.rule == "load_fragment"
	count([fragment | some fragment in named_fragments; fragment_svn_ok(fragment.minimum_svn)]) == 0
}

fragment_svn_ok(minimum) if {
	input.fragment_loaded == false
	header_svn_ok(minimum)
}

fragment_svn_ok(minimum) if {
	input.fragment_loaded == true
	header_svn_ok(minimum)
	content_svn_ok(minimum)
}

errors contains "receipt is missing" if {
	input.rule == "load_fragment"
	count([fragment |
		some fragment in named_fragments
		object.get(fragment, "required_receipts", []) == []
	]) == 0
}

errors contains "invalid fragment version" if {
	input.rule == "load_fragment"
	input.fragment_loaded == true
	not content_version_ok
}

content_version_ok if semver.compare(content_version, version) <= 0

errors contains "obligations not in the policy" if {
	input.rule == "load_fragment"
	input.fragment_loaded == true
	not obligations_known
}

errors contains "share already mounted" if {
	input.rule == "plan9_mount"
	data.metadata.p9mounts[input.target]
}

errors contains "invalid share path" if {
	input.rule == "plan9_mount"
	count([id | some id, _ in data.metadata.matches; plan9_path_ok(id)]) == 0
}

errors contains "share not mounted" if {
	input.rule == "plan9_unmount"
	not data.metadata.p9mounts[input.unmountTarget]
}

errors contains "properties not allowed" if {
	input.rule == "get_properties"
	not data.policy.allow_properties_access == true
}

errors contains "stacks not allowed" if {
	input.rule == "dump_stacks"
	not data.policy.allow_dump_stacks == true
}

errors contains "logging not allowed" if {
	input.rule == "runtime_logging"
	not data.policy.allow_runtime_logging == true
}

errors contains "host network not allowed" if {
	input.rule == "host_network"
	not data.policy.allow_host_network == true
}
