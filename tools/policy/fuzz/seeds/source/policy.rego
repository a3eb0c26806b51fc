package policy

framework_version := "0.5.0"

containers := [{"layers": ["aa"], "command": ["x"], "env_rules": [{"pattern": "A=.*", "strategy": "re2"}]}]

mount_device := data.framework.mount_device

get_properties := {"allowed": data.metadata.operatingsystem[os] == "linux"}
