"""Bad and odd inputs, as data: what an insert must refuse, naming column and rule, and what it must take."""

from __future__ import annotations

import json

MIB = 1 << 20
COMMAND = "command must be 1 to 65,536 bytes"
IMAGE = "image must be an image reference of at most 500 characters"
ENV = "env must be an object of at most 65,536 bytes"
ENV_VALUES = "env values must be strings"
ENV_KEYS = "env keys must match [A-Za-z_][A-Za-z0-9_]*"
CPU = "cpu_millis must be 1 to 256,000"
MEMORY = "memory_mib must be 16 to 1,048,576"
DISK = "disk_mib must be 1 to 1,048,576"
TIMEOUT = "timeout_seconds must be 1 to 604,800"
NETWORK = "network must be none or egress"
TENANT = "tenant must be 1 to 128 bytes"
PRIORITY = "priority must be -32,768 to 32,767"
ATTEMPTS = "max_attempts must be 1 to 100"
KEY = "idempotency_key must be 1 to 255 bytes"
NUMBERS = {
    "cpu_millis": (CPU, 1, 256_000),
    "memory_mib": (MEMORY, 16, 1_048_576),
    "disk_mib": (DISK, 1, 1_048_576),
    "timeout_seconds": (TIMEOUT, 1, 604_800),
    "priority": (PRIORITY, -32_768, 32_767),
    "max_attempts": (ATTEMPTS, 1, 100),
}

REFUSED: list[tuple[str, object, str]] = [  # column, value, and what the error must say
    ("command", "", COMMAND),
    ("command", "x" * 65_537, COMMAND),
    ("command", "€" * 21_846, COMMAND),  # characters are not bytes
    ("command", "x" * 2 * MIB, COMMAND),
    ("command", None, 'null value in column "command"'),
    *(
        ("image", image, IMAGE)
        for image in (
            "",
            " ",
            "a b",
            "-alpine",
            "../alpine",
            "alpine\n",
            "alpine\nlatest",
            "alpine;rm",
            "$(id)",
            "älpine",
            "a'b",
            '"',
            "x" * 501,
        )
    ),
    *(("env", text, ENV) for text in ("[]", '["A"]', '"A=1"', "1", "null", "true", '[{"A": "1"}]')),
    ("env", json.dumps({"A": "x" * 65_536}), ENV),
    ("env", json.dumps({"A": "x" * MIB}), ENV),
    ("env", json.dumps({f"A{number}": "x" for number in range(6000)}), ENV),
    *(
        ("env", text, ENV_VALUES)
        for text in (
            '{"A": 1}',
            '{"A": 3.14159265358979}',
            '{"A": true}',
            '{"A": null}',
            '{"A": {}}',
            '{"A": {"B": "x"}}',
            '{"A": []}',
            '{"A": ["x"]}',
            '{"A": ["x", "y"]}',
            '{"A": [["x"]]}',
            '{"A": "x", "B": 1}',
        )
    ),
    ("env", '{"A": ' + "[" * 1000 + "]" * 1000 + "}", ENV_VALUES),
    *(
        ("env", json.dumps({key: "x"}), ENV_KEYS)
        for key in ("", "1A", "A-B", "A B", "A=B", "A\n", "\nA", "A\nB", "Ä", "a.b", "$A", "A\u200b", "😀", "A\t")
    ),
    ("env", r'{"A\u0000": "x"}', "unsupported Unicode escape sequence"),
    ("env", r'{"A": "x\u0000"}', "unsupported Unicode escape sequence"),
    ("env", r'{"A": "\ud800"}', "invalid input syntax for type json"),
    ("env", "{'A': 'x'}", "invalid input syntax for type json"),
    ("env", None, 'null value in column "env"'),
    *(
        (column, value, rule)
        for column, (rule, low, high) in NUMBERS.items()
        for value in (low - 1, high + 1, -(2**31) - 1, 2**31, 10**18, -(10**18))
    ),
    *((column, None, f'null value in column "{column}"') for column in NUMBERS),
    *(
        (column, value, "bigint")
        for column in NUMBERS
        for value in ("NaN", "Infinity", "1e1", 10**30, "", "0x"[:1] + "y")
    ),
    ("network", "", NETWORK),
    ("network", "None", NETWORK),
    ("network", "host", NETWORK),
    ("network", "egress ", NETWORK),
    ("network", None, 'null value in column "network"'),
    ("tenant", "", TENANT),
    ("tenant", "x" * 129, TENANT),
    ("tenant", "€" * 43, TENANT),
    ("tenant", None, 'null value in column "tenant"'),
    ("idempotency_key", "", KEY),
    ("idempotency_key", "x" * 256, KEY),
    *(("id", value, "uuid") for value in ("", "a,b", "x=y", "../", "a" * 64, "11111111-1111-1111-1111-11111111111-")),
]

TAKEN: list[tuple[str, object]] = [  # column and value
    ("command", "x" * 65_536),
    *(
        ("command", command)
        for command in (
            " ",
            "\n",
            "-c",
            "echo $(HOSTNAME) $$ $(X ${",
            "echo 'a \"b\" `c` \\' ; rm -rf /tmp/x &",
            "\u202egnp.exe \u200b 😀 \x01\x1b[31m\x7f",
            "cat <<E\n%s %(x)s {} {{}}\nE",
        )
    ),
    ("image", None),
    *(
        ("image", image)
        for image in (
            "alpine",
            "localhost:5000/a/b_c:v1.2-3",
            "registry.example.com/team/app@sha256:" + "a" * 64,
            "UPPER/case",
            "x" * 500,
        )
    ),
    ("env", "{}"),
    ("env", json.dumps({"_": "", "A1": "a\nb\t\x7f", "b": "😀 $$ $(X) %s", "PATH": "/x", "LD_PRELOAD": "x"})),
    ("env", json.dumps({"KUBERNETES_SERVICE_HOST": "x", "PGPASSWORD": "x", "A" * 1000: "x"})),
    ("env", '{"A": "1", "A": "2"}'),  # the last one counts, as jsonb has it
    ("env", json.dumps({"A": "x" * 65_000})),
    *((column, value) for column, (_, low, high) in NUMBERS.items() for value in (low, high)),
    ("network", "none"),
    ("network", "egress"),
    ("tenant", "x" * 128),
    ("tenant", 'O\'Brien "x"; drop table sandboxes; --'),
    ("idempotency_key", None),
    ("idempotency_key", "x" * 255),
    ("id", "00000000-0000-0000-0000-000000000000"),
]
