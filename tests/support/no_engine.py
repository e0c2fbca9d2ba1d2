"""Takes the machine's engines out of reach of tests that promise to need none."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml
from kubernetes.aio.config import kube_config as aio_kube_config
from kubernetes.config import kube_config

from tests.support.kubeconfig import kubeconfig

NOBODY = "no-engine-in-unit-and-infra-tests"  # stands in the error of a test that asks one
ENGINE = f"unix:///{NOBODY}.sock"
CLUSTER = "http://127.0.0.1:1"  # refuses at once


@contextmanager
def no_engine() -> Iterator[None]:
    """Every way to name an engine or a cluster leads where nothing answers.

    For one test and not for the session: other tests of the same process use the engines that there are.
    """
    with tempfile.TemporaryDirectory(prefix="no-engine-") as directory, pytest.MonkeyPatch.context() as patch:
        file = Path(directory) / "config"
        file.write_text(yaml.safe_dump(kubeconfig(NOBODY, {"server": CLUSTER}, "t")))
        for module in (kube_config, aio_kube_config):  # they read the variable once, when they are imported
            patch.setattr(module, "KUBE_CONFIG_DEFAULT_LOCATION", str(file))
        patch.setenv("KUBECONFIG", str(file))
        patch.setenv("DOCKER_HOST", ENGINE)
        patch.delenv("DOCKER_CONTEXT", raising=False)
        patch.delenv("KUBERNETES_SERVICE_HOST", raising=False)  # in a pod, its own cluster
        yield
