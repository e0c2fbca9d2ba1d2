"""Reads the registry logins of the Docker command line on this host, for pulls by the engine."""

from __future__ import annotations

import asyncio
import base64
import binascii
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from controller.errors import SandboxError

HELPER_SECONDS = 20.0  # a helper may ask a cloud for a token
HUB = "docker.io"
HUB_KEY = f"https://index.{HUB}/v1/"  # the key of Docker Hub's login in the configuration
TOKEN_USER = "<token>"  # the user name that says that the secret is an identity token
HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")  # of `docker-credential-…`


class LoginError(SandboxError):
    """A login cannot be read."""


def registry_of(image: str) -> str:
    """The registry that an image reference names: a host, with its port where it has one."""
    host, slash, _ = image.partition("/")
    if not slash or not ("." in host or ":" in host or host == "localhost"):
        return HUB
    return HUB if host in (f"index.{HUB}", f"registry-1.{HUB}") else host


async def registry_auth(image: str, helper_seconds: float = HELPER_SECONDS) -> str | None:
    """The header X-Registry-Auth for a pull of that image, or None without a login. Reads the files at each call.

    `helper_seconds`: for a credential helper's answer. Raises LoginError, which contains nothing of the files' content.
    """
    registry = registry_of(image)
    key = HUB_KEY if registry == HUB else registry
    config = _config()
    helpers = config.get("credHelpers")
    helper = (helpers.get(key) if isinstance(helpers, Mapping) else None) or config.get("credsStore")
    login = await _from_helper(str(helper), key, helper_seconds) if helper else _from_file(config, key)
    if not login:
        return None
    text = json.dumps({**login, "serveraddress": key})
    return base64.urlsafe_b64encode(text.encode()).decode()


def config_file() -> Path:
    """The command line's configuration file of this process's user."""
    directory = os.environ.get("DOCKER_CONFIG")
    return (Path(directory) if directory else Path(os.path.expanduser("~")) / ".docker") / "config.json"


def _config() -> Mapping[str, Any]:
    path = config_file()
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise LoginError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise LoginError(f"{path} is not JSON") from error
    if not isinstance(found, dict):
        raise LoginError(f"{path} is not a JSON object")
    return found


def _from_file(config: Mapping[str, Any], key: str) -> dict[str, str]:
    auths = config.get("auths")
    entries: Mapping[str, Any] = auths if isinstance(auths, Mapping) else {}
    hosts = {_host(each): entry for each, entry in entries.items()}  # older entries are URLs
    entry = entries.get(key) or hosts.get(_host(key))
    if not isinstance(entry, Mapping):
        return {}
    names = ("username", "password", "identitytoken", "registrytoken")
    login = {name: str(entry[name]) for name in names if entry.get(name)}
    if entry.get("auth"):
        try:
            user, colon, password = base64.b64decode(str(entry["auth"])).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise LoginError(f"the login of {_host(key)} in {config_file()} is not base64 of USER:PASSWORD") from None
        login |= {"username": user, "password": password.rstrip("\0")}
    return login


def _host(key: str) -> str:
    """The host of a registry's key, which may be a URL."""
    return re.sub(r"^https?://", "", key).partition("/")[0]


async def _from_helper(helper: str, key: str, seconds: float) -> dict[str, str]:
    program = f"docker-credential-{helper}"
    if not HELPER.fullmatch(helper):
        raise LoginError(f"{config_file()} names a credential helper that is not the name of a program")
    try:
        process = await asyncio.create_subprocess_exec(
            program,
            "get",
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
    except OSError as error:
        raise LoginError(f"{program}, which {config_file()} names, cannot be run: {error.strerror}") from error
    try:
        async with asyncio.timeout(seconds):
            said, _ = await process.communicate(key.encode())
    except TimeoutError as error:
        raise LoginError(f"{program} does not answer") from error
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if process.returncode:
        if b"credentials not found" in said:  # the helpers' message for no login
            return {}
        raise LoginError(f"{program} ended with {process.returncode}")
    try:
        found = json.loads(said)
        user, secret = str(found["Username"]), str(found["Secret"])
    except (ValueError, KeyError, TypeError):
        raise LoginError(f"the answer of {program} is not a login") from None
    return {"identitytoken": secret} if user == TOKEN_USER else {"username": user, "password": secret}
