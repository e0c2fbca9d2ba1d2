"""Whether the target answers: asked before anything is made."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor

import pulumi
import urllib3
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
    if config.target == "kubernetes":
        _cluster(config)


async def _engine() -> None:
    engine = Engine(None)
    try:
        await engine.json("GET", "version")
    except NotNow as error:
        raise PreflightError(f"images are built and run by a Docker engine: {error}") from error
    finally:
        await engine.close()


def _cluster(config: Config) -> None:
    try:
        api = kubeconfig.new_client_from_config(context=config.kube_context)
    except kubeconfig.ConfigException as error:
        advice = f"set KUBECONFIG to a kubeconfig, and {config.project}:kubeContext to a context of it"
        raise PreflightError(f"no cluster is configured: {error}; {advice}") from error
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
