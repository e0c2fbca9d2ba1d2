"""What the real providers add to a resource's inputs, as far as the program reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DIGEST = "sha256:" + "0123456789abcdef" * 4


def answers(token: str, name: str, inputs: Mapping[str, Any], suffix: object) -> dict[str, Any]:
    """By type token and name, from inputs in clear; `suffix` is what ends a name that a provider chose."""
    match token:
        case "docker:index/image:Image":
            repository = str(inputs.get("imageName", "")).rpartition(":")[0]
            return {"repoDigest": DIGEST if inputs.get("skipPush") else f"{repository}@{DIGEST}"}
        case "docker:index/remoteImage:RemoteImage":
            return {"imageId": DIGEST}
        case "pulumi:index:Stash":
            return {"output": inputs["input"]}
        case "random:index/randomPassword:RandomPassword":
            return {"result": f"generated-{name}"}
    if token.startswith("kubernetes:") and "metadata" in inputs:
        added = {"name": f"{name}-{suffix}", "uid": f"uid-{name}", "generation": int(str(suffix))}
        return {"metadata": {**added, **inputs["metadata"]}}
    return {}
