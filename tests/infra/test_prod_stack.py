"""What a prod stack is made of."""

from __future__ import annotations

import json
from hashlib import sha256
from typing import Any

import pulumi
import pulumi_kubernetes as k8s
import pytest
import yaml

from infra.components.kubernetes.app import ControllerPod
from infra.components.kubernetes.objects import as_json
from infra.policy.wire import plain
from tests.support.mocked_stack import ROOT, Deploy, Recorded
from tests.support.provider_answers import DIGEST

POLICY = "kubernetes:networking.k8s.io/v1:NetworkPolicy"
DEPLOYMENT, JOB = "kubernetes:apps/v1:Deployment", "kubernetes:batch/v1:Job"
APP, BOXES = "ci-fixer-sandbox-prod", "ci-fixer-sandbox-prod-sandboxes"
COMPONENT = "app.kubernetes.io/component"
DNS = {"ports": [{"protocol": "UDP", "port": 53}, {"protocol": "TCP", "port": 53}]}
RESOLVERS = [
    {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kube-system"}},
        "podSelector": {"matchLabels": {"k8s-app": "kube-dns"}},
    },
    {"ipBlock": {"cidr": "169.254.20.10/32"}},
]
POSTGRES = [{"protocol": "TCP", "port": 5432}]


def selects(component: str) -> dict[str, Any]:
    """A peer or pods of a component."""
    labels = {"app.kubernetes.io/name": "ci-fixer-sandbox", "app.kubernetes.io/instance": "prod", COMPONENT: component}
    return {"matchLabels": labels}


def space(name: str) -> dict[str, Any]:
    """A peer in a namespace."""
    return {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": name}}}


def policies(recorded: Recorded) -> dict[str, Any]:
    """The spec of each policy, with its namespace."""
    found = {name: recorded.one(POLICY, name) for name in recorded.names(POLICY)}
    return {name: (one["metadata"]["namespace"], one["spec"]) for name, one in found.items()}


def test_the_network_lets_through_what_the_design_says_and_nothing_else(prod: Deploy) -> None:
    found = policies(prod(requesterNamespaces=["apps"], monitoringNamespace="metrics", apiServerCidrs=["10.9.0.1/32"]))
    both = ["Ingress", "Egress"]
    nothing = {"podSelector": {}, "policyTypes": both, "ingress": [], "egress": []}
    to_database = {"to": [{"podSelector": selects("database")}], "ports": POSTGRES}
    api = [{"protocol": "TCP", "port": port} for port in (443, 6443)]
    http = [{"protocol": "TCP", "port": 3000}]
    assert found == {
        "sandboxes-deny-all": (BOXES, nothing),
        "sandboxes-egress": (
            BOXES,
            {
                "podSelector": {"matchLabels": {"network": "egress"}},
                "policyTypes": both,
                "ingress": [],
                "egress": [
                    {
                        "to": [
                            {
                                "ipBlock": {
                                    "cidr": "0.0.0.0/0",
                                    "except": [
                                        "10.0.0.0/8",
                                        "100.64.0.0/10",
                                        "169.254.0.0/16",
                                        "172.16.0.0/12",
                                        "192.168.0.0/16",
                                        "198.18.0.0/15",
                                        "240.0.0.0/4",
                                        "168.63.129.16/32",
                                        "192.0.0.0/24",
                                    ],
                                }
                            }
                        ]
                    },
                    {"to": RESOLVERS, **DNS},
                ],
            },
        ),
        "app-deny-all": (APP, nothing),
        "migration": (
            APP,
            {"podSelector": selects("migration"), "policyTypes": both, "ingress": [], "egress": [DNS, to_database]},
        ),
        "controller": (
            APP,
            {
                "podSelector": selects("controller"),
                "policyTypes": both,
                "ingress": [{"from": [space("apps"), space("metrics")], "ports": http}],
                "egress": [DNS, to_database, {"to": [{"ipBlock": {"cidr": "10.9.0.1/32"}}], "ports": api}],
            },
        ),
        "database": (
            APP,
            {
                "podSelector": selects("database"),
                "policyTypes": both,
                "egress": [],
                "ingress": [
                    {
                        "from": [
                            {"podSelector": selects("controller")},
                            {"podSelector": selects("migration")},
                            space("apps"),
                        ],
                        "ports": POSTGRES,
                    }
                ],
            },
        ),
    }


def test_without_callers_the_controller_lets_nobody_in(prod: Deploy) -> None:
    assert policies(prod())["controller"][1]["ingress"] == []  # an empty `from` would be everybody


def test_the_resolver_is_reached_where_it_is_named(prod: Deploy) -> None:
    found = policies(prod(egressCidrs=["203.0.113.0/24", "dns"]))["sandboxes-egress"][1]["egress"]
    assert found == [{"to": [{"ipBlock": {"cidr": "203.0.113.0/24"}}]}, {"to": RESOLVERS, **DNS}]


def test_a_range_that_is_named_itself_is_reached_and_no_resolver_beside_it(prod: Deploy) -> None:
    (rule,) = policies(prod(egressCidrs=["10.0.0.0/8", "10.1.2.3/32"]))["sandboxes-egress"][1]["egress"]
    assert rule["to"] == [{"ipBlock": {"cidr": "10.0.0.0/8"}}, {"ipBlock": {"cidr": "10.1.2.3/32"}}]
    assert policies(prod(egressCidrs=[]))["sandboxes-egress"][1]["egress"] == []


def test_internal_networks_are_not_reached_through_a_gateway_of_ipv6(prod: Deploy) -> None:
    (rule,) = policies(prod(egressCidrs=["::/0"]))["sandboxes-egress"][1]["egress"]
    (peer,) = rule["to"]
    assert {"fc00::/7", "64:ff9b::a00:0/104", "64:ff9b::c0a8:0/112", "64:ff9b:1::/48"} < set(peer["ipBlock"]["except"])
    assert "10.0.0.0/8" not in peer["ipBlock"]["except"]


def test_the_role_is_the_controllers_own(prod: Deploy) -> None:
    recorded = prod()
    role = recorded.one("kubernetes:rbac.authorization.k8s.io/v1:Role")
    written = yaml.safe_load((ROOT / "controller" / "backends" / "kubernetes" / "role.yaml").read_text())
    assert role["rules"] == written["rules"]
    assert role["metadata"]["namespace"] == BOXES
    binding = recorded.one("kubernetes:rbac.authorization.k8s.io/v1:RoleBinding")
    assert binding["metadata"]["namespace"] == BOXES
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": APP, "namespace": APP}]


def settings_of(recorded: Recorded) -> dict[str, str]:
    """The controllers' variables but for those from secrets."""
    container = recorded.one(DEPLOYMENT)["spec"]["template"]["spec"]["containers"][0]
    assert "envFrom" not in container
    return {one["name"]: one["value"] for one in container["env"] if "value" in one}


def test_a_revision_of_the_deployment_has_its_settings_in_itself(prod: Deploy) -> None:
    recorded = prod(maxRunning=7, jobOptions={"queue": "small"})
    assert recorded.names("kubernetes:core/v1:ConfigMap") == []
    assert settings_of(recorded) == {
        "HTTP_PORT": "3000",
        "SANDBOX_BACKEND": "kubernetes",
        "SANDBOX_IMAGE": f"registry.example/team/ci-fixer-sandbox-sandbox@{DIGEST}",
        "SANDBOX_JOB_OPTIONS": '{"queue": "small"}',
        "SANDBOX_MAX_RUNNING": "7",
        "SANDBOX_NAMESPACE": BOXES,
    }


def test_what_was_changed_by_hand_is_taken_back_and_secrets_keep_their_names(prod: Deploy) -> None:
    provider = prod().one("pulumi:providers:kubernetes")
    assert provider["enablePatchForce"] == provider["enableSecretMutable"] == "true"


def test_other_credentials_are_new_pods_and_a_new_migration(prod: Deploy) -> None:
    recorded = prod()
    told = recorded.one(DEPLOYMENT)["spec"]["template"]["metadata"]["annotations"]
    url = recorded.one("kubernetes:core/v1:Secret", "controller-credentials")["stringData"]["DATABASE_URL"]
    assert told == {"ci-fixer-sandbox/credentials": sha256(url.encode()).hexdigest()[:16]}
    migrating = recorded.one(JOB)["spec"]["template"]["metadata"]["annotations"]
    assert migrating == {"ci-fixer-sandbox/volume": "uid-database-volume"}  # an empty volume is migrated too
    migrations = recorded.one("kubernetes:core/v1:Secret", "migration-credentials")
    assert migrations["immutable"]
    assert "name" not in migrations["metadata"]  # the provider gives each content a name


def test_only_the_migration_is_the_owner(prod: Deploy) -> None:
    recorded = prod()
    migrating, running = (recorded.one(kind)["spec"]["template"]["spec"]["containers"][0] for kind in (JOB, DEPLOYMENT))
    assert migrating["envFrom"] == [{"secretRef": {"name": "migration-credentials-1234567"}}]
    from_controllers = {"name": "controller-credentials-1234567", "key": "DATABASE_URL"}
    assert running["env"][0] == {"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": from_controllers}}
    for name, login in (("migration", "postgres"), ("controller", "sandbox_controller")):
        held = recorded.one("kubernetes:core/v1:Secret", f"{name}-credentials")["stringData"]
        assert held["DATABASE_URL"].startswith(f"postgresql://{login}:")


def test_no_password_is_in_clear(prod: Deploy) -> None:
    recorded = prod(registryUsername="me", registryPassword="hidden", databasePassword="owners")
    seen = json.dumps([[*plain(inputs)] for _, _, inputs in recorded.all()])
    assert [word for word in ("hidden", "owners", "generated-") if word in seen] == []
    assert recorded.secret_outputs == {"database_url", "requester_database_url"}


def test_the_requesters_secret_is_in_each_of_their_namespaces(prod: Deploy) -> None:
    recorded = prod(requesterNamespaces=["one", "two"])
    name = recorded.output("requester_secret_name")
    found = [inputs["metadata"] for _, called, inputs in recorded.all("v1:Secret") if called.startswith("requester-")]
    assert {one["namespace"] for one in found if one["name"] == name} == {APP, "one", "two"}


def test_an_existing_database_is_used_and_none_is_made(prod: Deploy) -> None:
    url = "postgresql://me:p%2Fw@db.example:6432/it?user=me&options=-c%20jit%3Doff"
    recorded = prod(databaseUrl=url, databaseCidrs=["10.1.0.0/16"])
    assert recorded.names("StatefulSet") == recorded.names("PersistentVolumeClaim") == []
    assert "annotations" not in recorded.one(JOB)["spec"]["template"]["metadata"]
    assert recorded.output("database_url") == url
    asked = "postgresql://sandbox_requester:generated-requester-password@db.example:6432/it?options=-c%20jit%3Doff"
    assert recorded.output("requester_database_url") == asked
    assert recorded.output("database_host") == "db.example:6432"
    found = policies(recorded)
    assert "database" not in found
    reach = {"to": [{"ipBlock": {"cidr": "10.1.0.0/16"}}], "ports": [{"protocol": "TCP", "port": 6432}]}
    assert reach in found["controller"][1]["egress"]
    assert recorded.output("example_request").startswith('psql "$(pulumi stack output requester_database_url')


def test_without_a_context_the_one_in_use_is_named_wherever_one_is(prod: Deploy) -> None:
    recorded = prod(kubeContext=None)
    assert recorded.one("pulumi:providers:kubernetes")["context"] == "current"
    assert recorded.output("example_request").startswith("kubectl --context current --namespace")


def test_existing_namespaces_are_left_as_they_are(prod: Deploy) -> None:
    recorded = prod(createNamespaces=False, namespace="mine", sandboxNamespace="theirs")
    assert recorded.names("v1:Namespace") == []
    assert recorded.output("namespace") == "mine"
    assert recorded.output("sandbox_namespace") == "theirs"
    assert recorded.one(DEPLOYMENT)["metadata"]["namespace"] == "mine"


def test_the_clusters_own_name_of_the_registry_is_what_pods_pull_from(prod: Deploy) -> None:
    recorded = prod(registry="outside.example/team", pullRegistry="inside:5000/team")
    assert recorded.one("docker:index/image:Image", "app-image")["imageName"].startswith("outside.example/team/")
    assert recorded.output("app_image") == f"inside:5000/team/ci-fixer-sandbox-app@{DIGEST}"


def test_a_pull_secret_is_given_to_every_pod(prod: Deploy) -> None:
    recorded = prod(imagePullSecret="login")
    for kind in (JOB, DEPLOYMENT, "kubernetes:apps/v1:StatefulSet"):
        assert recorded.one(kind)["spec"]["template"]["spec"]["imagePullSecrets"] == [{"name": "login"}]
    assert json.loads(settings_of(recorded)["SANDBOX_JOB_OPTIONS"]) == {"imagePullSecrets": ["login"]}


def test_quota_and_replicas_are_the_configured_ones(prod: Deploy) -> None:
    recorded = prod(quotaCpu="8", quotaMemory="16Gi", quotaPods=20, replicas=3)
    hard = recorded.one("ResourceQuota")["spec"]["hard"]
    assert hard == {"limits.cpu": "8", "limits.memory": "16Gi", "pods": "20"}
    assert recorded.one(DEPLOYMENT)["spec"]["replicas"] == 3


def test_the_storage_is_the_configured_one(prod: Deploy) -> None:
    claim = prod(storageClass="fast", storageSize="3Gi").one("PersistentVolumeClaim")["spec"]
    assert claim["storageClassName"] == "fast"
    assert claim["resources"] == {"requests": {"storage": "3Gi"}}
    assert "storageClassName" not in prod().one("PersistentVolumeClaim")["spec"]


def test_the_pod_that_drains_has_the_controllers_own_spec_as_the_api_server_takes_it(
    prod: Deploy, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []
    drains = ControllerPod.drains

    def noted(pod: ControllerPod, seconds: int) -> pulumi.Output[Any]:
        spec = drains(pod, seconds)
        spec.apply(found.append)
        return spec

    monkeypatch.setattr(ControllerPod, "drains", noted)
    controllers = prod(imagePullSecret="login", drainSeconds=20).one(DEPLOYMENT)["spec"]["template"]["spec"]
    (drain,) = found
    (draining,), (running,) = drain.pop("containers"), controllers.pop("containers")
    del controllers["topologySpreadConstraints"]
    assert drain == {**controllers, "restartPolicy": "Never"}
    for only in ("ports", "startupProbe", "livenessProbe", "readinessProbe"):
        del running[only]
    assert draining == {**running, "name": "drain", "args": ["drain", "--timeout", "20"]}
    assert {"serviceAccountName", "imagePullSecrets", "securityContext"} <= drain.keys()
    assert {"env", "image", "resources", "securityContext"} <= draining.keys()


async def test_typed_arguments_become_json_wherever_they_are() -> None:
    port = k8s.core.v1.ContainerPortArgs(container_port=1)
    text = await as_json({"a-b_c": (port, [port], {"x_y": port}, None, 1.5, "text")}).future()
    wire = {"containerPort": 1}
    assert text == {"a-b_c": [wire, [wire], {"x_y": wire}, None, 1.5, "text"]}


def test_two_runs_make_the_same(prod: Deploy) -> None:
    first, second = ({name: inputs for _, name, inputs in prod().all()} for _ in range(2))
    assert first == second
