"""What docs/stacks.md says of a stack's objects is true of them."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from tests.support.mocked_stack import ROOT, Deploy

SECTION = (ROOT / "docs" / "stacks.md").read_text().split("\n## Metrics\n")[1].split("\n## ")[0]
BLOCKS = [yaml.safe_load(block) for block in SECTION.split("\n\n") if block.startswith("    ")]


def labels(written: str) -> dict[str, str]:
    """A label selector as text, such as `a=b,c=d`."""
    return dict(one.split("=") for one in written.split(","))


@pytest.fixture
def prod_seen(prod: Deploy) -> dict[str, Any]:
    """The objects that the document's examples speak of."""
    recorded = prod(monitoringNamespace="monitoring")
    pod = recorded.one("apps/v1:Deployment")["spec"]["template"]
    return {
        "namespace": recorded.output("namespace"),
        "labels": pod["metadata"]["labels"],
        "ports": pod["spec"]["containers"][0]["ports"],
        "service": recorded.one("core/v1:Service", "controller-service"),
        "policy": recorded.one("NetworkPolicy", "controller")["spec"],
    }


def test_the_scrape_configuration_finds_every_controller_and_nothing_else(prod_seen: dict[str, Any]) -> None:
    job = BLOCKS[1]["scrape_configs"][0]
    (found,) = job["kubernetes_sd_configs"]
    assert found["namespaces"]["names"] == [prod_seen["namespace"]]
    (selector,) = found["selectors"]
    assert labels(selector["label"]).items() <= prod_seen["labels"].items()
    assert "app.kubernetes.io/component" in labels(selector["label"])
    kept = next(one for one in job["relabel_configs"] if one["action"] == "keep")
    assert kept["regex"] == prod_seen["ports"][0]["name"]


def test_the_pod_monitor_and_a_service_monitor_find_every_controller(prod_seen: dict[str, Any]) -> None:
    spec = BLOCKS[2]["spec"]
    assert spec["namespaceSelector"]["matchNames"] == [prod_seen["namespace"]]
    assert spec["selector"]["matchLabels"].items() <= prod_seen["labels"].items()
    (endpoint,) = spec["podMetricsEndpoints"]
    assert endpoint == {"port": prod_seen["ports"][0]["name"], "path": "/metrics"}
    service = prod_seen["service"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert [one["name"] for one in service["spec"]["ports"]] == [endpoint["port"]]


def test_the_namespace_of_the_examples_gets_through_to_the_port_that_they_scrape(prod_seen: dict[str, Any]) -> None:
    (rule,) = prod_seen["policy"]["ingress"]
    monitoring = BLOCKS[2]["metadata"]["namespace"]
    assert {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": monitoring}}} in rule["from"]
    assert rule["ports"] == [{"protocol": "TCP", "port": prod_seen["ports"][0]["containerPort"]}]


def test_the_example_for_dev_scrapes_the_port_of_its_output(dev: Deploy) -> None:
    (target,) = BLOCKS[0]["scrape_configs"][0]["static_configs"][0]["targets"]
    assert dev().output("metrics_url") == f"http://{target}/metrics"
