package patterns

rules := [
	{"pattern": "A=[0-9]+|B=2", "strategy": "re2"},
	{"pattern": "(?i)(FABRIC)_.+=.+", "strategy": "re2"},
	{"pattern": "C=1", "strategy": "string"},
	{"pattern": "\\Qa.b\\E\\d{2,4}", "strategy": "re2"},
]

matches(rule, text) { rule.strategy == "string"; rule.pattern == text }

matches(rule, text) { rule.strategy == "re2"; regex.match(concat("", ["^(?:", rule.pattern, ")$"]), text) }

allowed(text) { some rule in rules; matches(rule, text) }

asked := [text | text := input.x[_]; allowed(text)]

refused[text] { text := input.x[_]; not allowed(text) }

choice = x { x := input.y.z } else = "none" { true }
