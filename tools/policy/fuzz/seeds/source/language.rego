package language

import rego.v1

limits := {"low": 1, "high": [3, 4], "none": null}

kinds contains kind if some kind in {"a", "b", input.kind}

default level := 0

level := 1 if input.x == "a" else := 2 if input.x[_] == "b=1"

first(text) := split(text, "=")[0] if contains(text, "=")

first(text) := lower(text) if not contains(text, "=")

even := {sprintf("%d", [i]): n | some i, n in [1, 2, 3, 4]; n % 2 == 0}

names := [first(text) | some text in input.x; regex.match(`^[a-z]+(=[0-9]{1,3})?$`, text)]

versions := semver.compare("1.2.3", "1.2.0") + to_number("4")

text := sprintf("%v %d %s", [limits, 7, concat("-", ["a", lower("B")])])

masks := bits.and(6, bits.or(1, 2)) * -1

merged := object.union(limits, {"low": max({1, 5, count(names)})})

tail := substring(trim_prefix(replace("xaybx", "x", "zz"), "zz"), 1, -1)

all := [level, even, versions, masks, text, tail] if {
	every name in names { is_string_like(name) }
	not limits.missing
	"low" in object.keys(merged)
	{1, 2} | {3} == {3, 2, 1}
	{1, 2} & {2} == {2}
	{1, 2} - {2} == {1}
	startswith(tail, "a")
	indexof("abc", "c") == 2
}

is_string_like(x) if endswith(sprintf("%v", [x]), "")
