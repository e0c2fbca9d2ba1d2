"""The Roles that the document tells people to ask for."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import dedent
from typing import Any

import yaml


def documented_roles(file: Path) -> Mapping[bool, Sequence[Mapping[str, Any]]]:
    """The Roles of the document's section Rights, by whether the stack makes its namespaces."""
    section = file.read_text().partition("\n## Rights\n")[2].partition("\n## ")[0]
    blocks = [dedent(block) for block in re.findall(r"^    apiVersion: rbac.*?(?=^\S)", section + "\nend", re.M | re.S)]
    given, made = ([one for one in yaml.safe_load_all(block) if one] for block in blocks)
    return {False: given, True: made}
