"""Whether the target answers: asked before anything is made."""

from __future__ import annotations

import asyncio
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pulumi
import urllib3
import yaml
from kubernetes import client
from kubernetes import config as kubeconfig

from controller.backends.docker_engine import Engine
from controller.errors import NotNow
from infra.config import Config

SECONDS = 10  # for an answer


class PreflightError(pulumi.RunError):
    """Something that the stack needs does not answer; the message says what, and what to do."""


def preflight(config: Config) -> None:
    """Asks the Docker engine, where one is needed, and the cluster. Raises PreflightError."""
    if config.target == "docker" or config.builds:
        with ThreadPoolExecutor(1) as thread:  # Pulumi runs the program inside an event loop
            thread.submit(asyncio.run, _engine()).result()
    if config.target == "docker" and config.docker_socket is not None:
        _socket(config, config.docker_socket)
    if config.target == "kubernetes":
        _cluster(config)


async def _engine() -> None:
    engine = Engine(None)
    try:
        async with asyncio.timeout(SECONDS):
            await engine.json("GET", "version")
    except TimeoutError as error:
        raise PreflightError(
            f"the Docker engine gave no answer in {SECONDS} s: start it, or set DOCKER_HOST"
        ) from error
    except NotNow as error:
        raise PreflightError(f"images are built and run by a Docker engine: {error}") from error
    finally:
        await engine.close()


def _socket(config: Config, path: str) -> None:
    """An engine would make a directory of a socket that is not there, and mount that."""
    host = os.environ.get("DOCKER_HOST", "unix://")
    if not host.startswith("unix://"):
        if config.docker_socket_group is None:
            words = f"is missing: the group of {path} there, as a number, which nobody can see from here"
            raise PreflightError(f"the Docker engine is at {host}, and {config.project}:dockerSocketGroup {words}")
    elif sys.platform == "linux" and not Path(path).is_socket():
        words = "takes the engine's socket, or nothing for no socket"
        raise PreflightError(f"there is no socket {path}: {config.project}:dockerSocket {words}")


def _cluster(config: Config) -> None:
    try:
        api = kubeconfig.new_client_from_config(context=config.kube_context)
    except (kubeconfig.ConfigException, yaml.YAMLError, OSError, TypeError, ValueError, KeyError) as error:
        advice = f"set KUBECONFIG to a kubeconfig, and {config.project}:kubeContext to a context of it"
        raise PreflightError(f"no cluster is configured: {' '.join(str(error).split())}; {advice}") from error
    api.configuration.retries = False
    where = f"the cluster at {api.configuration.host} (context {config.kube_context or 'in use'})"
    wanted = [] if config.create_namespaces else [config.namespace, config.sandbox_namespace]
    for namespace in [None, *wanted, *config.requester_namespaces]:
        _ask(api, where, namespace)


def _ask(api: client.ApiClient, where: str, namespace: str | None) -> None:
    try:
        if namespace is None:
            client.VersionApi(api).get_code(_request_timeout=SECONDS)
        else:
            client.CoreV1Api(api).read_namespace(namespace, _request_timeout=SECONDS)
    except client.ApiException as error:
        if namespace is None or error.status != 404:
            raise PreflightError(f"{where} refuses: {error.reason}; check the context's user") from error
        raise PreflightError(f"{where} has no namespace {namespace}: create it first") from error
    except (urllib3.exceptions.HTTPError, OSError) as error:
        raise PreflightError(f"{where} does not answer: {error}; start it, or name another kubeContext") from error
