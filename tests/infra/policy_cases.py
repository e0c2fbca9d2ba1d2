"""What the rules refuse, one fault each, and what they accept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tests.support.provider_answers import DIGEST

OUTPUT = {"4dabf18193072939515e22adb298388d": "d0e6a833031e9bbcd3f4e8bde6ca49a4"}
SECRET = {"4dabf18193072939515e22adb298388d": "1b47061264138c4ac30d75fd1eb44270", "value": "x"}
POD, DEPLOYMENT = "kubernetes:core/v1:Pod", "kubernetes:apps/v1:Deployment"
CRON_JOB = "kubernetes:batch/v1:CronJob"
ROLE = "kubernetes:rbac.authorization.k8s.io/v1:Role"
CLUSTER_ROLE = "kubernetes:rbac.authorization.k8s.io/v1:ClusterRole"
BINDING = "kubernetes:rbac.authorization.k8s.io/v1:RoleBinding"
POLICY, CONTAINER = "kubernetes:networking.k8s.io/v1:NetworkPolicy", "docker:index/container:Container"

CONFINED = {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def container(**more: Any) -> dict[str, Any]:
    """One that no rule refuses; `securityContext` is added to its own."""
    return {
        "name": "it",
        "image": f"r.example/ci-fixer-sandbox-app@{DIGEST}",
        "resources": {"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"cpu": "1", "memory": "1Mi"}},
        "readinessProbe": {"httpGet": {"path": "/", "port": 1}},
        "livenessProbe": {"httpGet": {"path": "/", "port": 1}},
        **more,
        "securityContext": {**CONFINED, **more.get("securityContext", {})},
    }


def pod(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A pod spec that no rule refuses; `securityContext` is added to its own."""
    own = {"runAsNonRoot": True, "runAsUser": 1, "seccompProfile": {"type": "RuntimeDefault"}}
    return {
        "containers": list(containers) or [container()],
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        **more,
        "securityContext": {**own, **more.get("securityContext", {})},
    }


def deployment(*containers: dict[str, Any], **more: Any) -> dict[str, Any]:
    """Its properties."""
    return {"spec": {"template": {"spec": pod(*containers, **more)}}}


def secured(**context: Any) -> dict[str, Any]:
    """A deployment whose container has this in its security context."""
    return deployment(container(securityContext=context))


def role(**rule: Any) -> dict[str, Any]:
    """A Role with one rule."""
    return {"rules": [{"apiGroups": ["batch"], "resources": ["jobs"], "verbs": ["get"], **rule}]}


def binding(role: str = "it", **subject: str) -> dict[str, Any]:
    """A RoleBinding to one subject."""
    return {"roleRef": {"name": role}, "subjects": [{"kind": "ServiceAccount", "name": "it", **subject}]}


def policy(ways: Sequence[str] = ("Ingress", "Egress"), **rules: Any) -> dict[str, Any]:
    """A NetworkPolicy."""
    return {"spec": {"policyTypes": list(ways), **rules}}


def docker(**more: Any) -> dict[str, Any]:
    """A container of Docker that no rule refuses."""
    return {"name": "it", "image": DIGEST, "memory": 1, "healthcheck": {"tests": ["CMD", "true"]}, **more}


OURS, SOME = "r.example/ci-fixer-sandbox-app", {"podSelector": {"matchLabels": {"a": "b"}}}
ACCOUNT, SERVICE = "kubernetes:core/v1:ServiceAccount", "kubernetes:core/v1:Service"
REFUSED: list[tuple[str, str, dict[str, Any]]] = [  # each with one fault, and that in the rule's own words
    (
        "restricted_pods: container it needs runAsNonRoot: true",
        DEPLOYMENT,
        deployment(securityContext={"runAsNonRoot": None}),
    ),
    (
        "restricted_pods: container it needs a seccompProfile",
        DEPLOYMENT,
        deployment(securityContext={"seccompProfile": None}),
    ),
    (
        "restricted_pods: the pod needs the seccomp profile RuntimeDefault",
        DEPLOYMENT,
        deployment(securityContext={"seccompProfile": {"type": "Unconfined"}}),
    ),
    ("restricted_pods: the pod may not run as user 0", DEPLOYMENT, deployment(securityContext={"runAsUser": 0})),
    (
        "restricted_pods: the pod may not be a Windows host process",
        DEPLOYMENT,
        deployment(securityContext={"windowsOptions": {"hostProcess": True}}),
    ),
    (
        "restricted_pods: the sysctl kernel.msgmax is not a safe one",
        DEPLOYMENT,
        deployment(securityContext={"sysctls": [{"name": "kernel.msgmax"}]}),
    ),
    (
        "restricted_pods: the volume n is not of an allowed kind",
        DEPLOYMENT,
        deployment(volumes=[{"name": "n", "nfs": {}}]),
    ),
    ("restricted_pods: container it may not run as user 0", DEPLOYMENT, secured(runAsUser=0)),
    (
        "restricted_pods: container it needs the AppArmor profile RuntimeDefault",
        DEPLOYMENT,
        secured(appArmorProfile={"type": "Unconfined"}),
    ),
    (
        "restricted_pods: container it may not choose that SELinux type",
        DEPLOYMENT,
        secured(seLinuxOptions={"type": "spc_t"}),
    ),
    (
        "restricted_pods: container it may not set SELinux user or role",
        DEPLOYMENT,
        secured(seLinuxOptions={"role": "it"}),
    ),
    (
        "restricted_pods: container it needs allowPrivilegeEscalation: false",
        DEPLOYMENT,
        secured(allowPrivilegeEscalation=None),
    ),
    ("restricted_pods: container it may not be privileged", DEPLOYMENT, secured(privileged=True)),
    (
        "restricted_pods: container it must drop the capability ALL",
        DEPLOYMENT,
        secured(capabilities={"drop": ["KILL"]}),
    ),
    (
        "restricted_pods: container it may add no capability",
        DEPLOYMENT,
        secured(capabilities={"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    ),
    ("restricted_pods: container it may not change procMount", DEPLOYMENT, secured(procMount="Unmasked")),
    (
        "restricted_pods: init container it may not be privileged",
        DEPLOYMENT,
        deployment(initContainers=[container(securityContext={"privileged": True})]),
    ),
    (
        "restricted_pods: debug container it may not be privileged",
        POD,
        {"spec": pod(ephemeralContainers=[container(securityContext={"privileged": True})])},
    ),
    (
        "restricted_pods: container it may not be privileged",
        CRON_JOB,
        {
            "spec": {
                "jobTemplate": {"spec": {"template": {"spec": pod(container(securityContext={"privileged": True}))}}}
            }
        },
    ),
    (
        "read_only_root: container it needs readOnlyRootFilesystem: true, and an emptyDir where it writes",
        DEPLOYMENT,
        secured(readOnlyRootFilesystem=False),
    ),
    (
        "resource_limits: container it needs resources.requests.memory",
        DEPLOYMENT,
        deployment(container(resources={"requests": {"cpu": "1"}, "limits": {"cpu": "1", "memory": "1Mi"}})),
    ),
    (
        "resource_limits: container it needs resources.limits.cpu",
        DEPLOYMENT,
        deployment(container(resources={"requests": {"cpu": "1", "memory": "1Mi"}, "limits": {"memory": "1Mi"}})),
    ),
    ("no_host_access: hostNetwork must be removed", DEPLOYMENT, deployment(hostNetwork=True)),
    ("no_host_access: hostPID must be removed", DEPLOYMENT, deployment(hostPID=True)),
    ("no_host_access: hostIPC must be removed", DEPLOYMENT, deployment(hostIPC=True)),
    (
        "no_host_access: container it takes the node's port 1",
        DEPLOYMENT,
        deployment(container(ports=[{"containerPort": 1, "hostPort": 1}])),
    ),
    (
        "no_host_access: container it mounts a container engine's socket at /run/docker.sock",
        DEPLOYMENT,
        deployment(container(volumeMounts=[{"name": "it", "mountPath": "/run/docker.sock"}])),
    ),
    (
        "no_host_access: container it: preStop names a host",
        DEPLOYMENT,
        deployment(container(lifecycle={"preStop": {"httpGet": {"host": "other", "port": 1}}})),
    ),
    (
        "no_host_access: container it: livenessProbe names a host",
        DEPLOYMENT,
        deployment(container(livenessProbe={"tcpSocket": {"host": "other", "port": 1}})),
    ),
    ("probes: container it needs a readinessProbe", DEPLOYMENT, deployment(container(readinessProbe=None))),
    ("probes: container it needs a livenessProbe", DEPLOYMENT, deployment(container(livenessProbe=None))),
    ("service_links: needs enableServiceLinks: false", DEPLOYMENT, deployment(enableServiceLinks=True)),
    (
        "pinned_images: container it: the image registry:5000/postgres needs a digest or a version's tag",
        CONTAINER,
        docker(image="registry:5000/postgres"),
    ),
    (
        "pinned_images: container it: the image postgres:latest needs a digest or a version's tag",
        CONTAINER,
        docker(image="postgres:latest"),
    ),
    (
        f"exact_images: container it: the image {OURS}:1 needs a digest",
        DEPLOYMENT,
        deployment(container(image=f"{OURS}:1")),
    ),
    (
        "exact_images: container it: the image postgres:15 needs a digest or a full version's tag, like :15.14",
        DEPLOYMENT,
        deployment(container(image="postgres:15")),
    ),
    (
        f"exact_images: container it's SANDBOX_IMAGE: the image {OURS}:1 needs a digest",
        DEPLOYMENT,
        deployment(container(env=[{"name": "SANDBOX_IMAGE", "value": f"{OURS}:1"}])),
    ),
    *(
        (f"no_wildcards: rule 0: {part} may not be *", ROLE, role(**{part: ["*"]}))
        for part in ("apiGroups", "resources", "verbs", "nonResourceURLs")
    ),
    ("least_rights: rule 0: no right on secrets", ROLE, role(resources=["secrets"])),
    ("least_rights: rule 0: no right on pods/exec", ROLE, role(resources=["pods/exec"])),
    ("least_rights: rule 0: no verb escalate", CLUSTER_ROLE, role(verbs=["escalate"])),
    ("narrow_bindings: cluster-admin may not be bound", BINDING, binding("cluster-admin")),
    (
        "narrow_bindings: system:authenticated may have no role",
        BINDING,
        binding(kind="Group", name="system:authenticated"),
    ),
    (
        "narrow_bindings: the service account `default` may have no role: every pod without another runs as it",
        BINDING,
        binding(name="default"),
    ),
    (
        "account_tokens: needs automountServiceAccountToken: false, or true where it uses the API",
        DEPLOYMENT,
        deployment(automountServiceAccountToken=None),
    ),
    (
        "account_tokens: mounts a token, so it needs a serviceAccountName of its own",
        DEPLOYMENT,
        deployment(automountServiceAccountToken=True, serviceAccountName="default"),
    ),
    (
        "account_tokens: needs automountServiceAccountToken: false; a pod that uses the API says true itself",
        ACCOUNT,
        {},
    ),
    (
        "secured_namespaces: needs the label pod-security.kubernetes.io/enforce: restricted, and has None",
        "kubernetes:core/v1:Namespace",
        {"metadata": {"name": "it"}},
    ),
    ("inner_services: needs the type ClusterIP, and has LoadBalancer", SERVICE, {"spec": {"type": "LoadBalancer"}}),
    ("inner_services: externalIPs must be removed", SERVICE, {"spec": {"externalIPs": ["192.0.2.1"]}}),
    ("exact_network_rules: needs policyTypes: what they default to depends on its rules", POLICY, policy([])),
    (
        "exact_network_rules: has egress rules, so its policyTypes need Egress",
        POLICY,
        policy(["Ingress"], egress=[{"to": [SOME]}]),
    ),
    (
        "exact_network_rules: ingress rule 0: the port http must be a number",
        POLICY,
        policy(ingress=[{"from": [SOME], "ports": [{"port": "http"}]}]),
    ),
    (
        "exact_network_rules: ingress rule 0: an empty selector in `from` is every namespace: name one",
        POLICY,
        policy(ingress=[{"from": [{"namespaceSelector": {}}]}]),
    ),
    (
        "exact_network_rules: egress rule 0: without `to` it is open to any address; only port 53 may be",
        POLICY,
        policy(egress=[{"ports": [{"port": 443}]}]),
    ),
    (
        "loopback_ports: the port 1 needs ip: 127.0.0.1, and has 0.0.0.0",
        CONTAINER,
        docker(ports=[{"internal": 1, "external": 1, "ip": "0.0.0.0"}]),
    ),
    ("unprivileged_containers: privileged must be removed", CONTAINER, docker(privileged=True)),
    *(
        (f"unprivileged_containers: {mode} may not be the host's", CONTAINER, docker(**{mode: "host"}))
        for mode in ("networkMode", "pidMode", "ipcMode", "usernsMode")
    ),
    ("unprivileged_containers: devices must be removed", CONTAINER, docker(devices=[{"hostPath": "/dev/kvm"}])),
    (
        "unprivileged_containers: may add no capability SYS_ADMIN",
        CONTAINER,
        docker(capabilities={"adds": ["SYS_ADMIN"]}),
    ),
    (
        "unprivileged_containers: mounts the host's /etc",
        CONTAINER,
        docker(volumes=[{"hostPath": "/etc", "containerPath": "/etc"}]),
    ),
    ("unprivileged_containers: mounts the host's /etc", CONTAINER, docker(mounts=[{"type": "bind", "source": "/etc"}])),
    ("bounded_containers: needs memory", CONTAINER, docker(memory=None)),
    ("checked_containers: needs a healthcheck, or wait: true on its image's own", CONTAINER, docker(healthcheck=None)),
    ("plain_secrets: envs[0] must be a secret", CONTAINER, docker(envs=["POSTGRES_PASSWORD=secret"])),
    ("plain_secrets: envs[0] must be a secret", CONTAINER, docker(envs=["IT=postgresql://me:pw@host/it"])),
    ("plain_secrets: apiToken must be a secret", CONTAINER, docker(apiToken="x")),
    (
        "plain_secrets: container it: API_KEY must be a secret",
        DEPLOYMENT,
        deployment(container(env=[{"name": "API_KEY", "value": "x"}])),
    ),
    ("plain_secrets: apiToken must be a secret", CONTAINER, docker(apiToken={**OUTPUT, "value": "x"})),
    ("plain_secrets: stringData.it must be a secret", "kubernetes:core/v1:Secret", {"stringData": {"it": "x"}}),
]
ACCEPTED: list[tuple[str, dict[str, Any]]] = [
    (DEPLOYMENT, deployment()),
    (POD, {"spec": pod(container(image="postgres:15.14-bookworm"))}),
    (ROLE, role()),
    (BINDING, {"subjects": [{"kind": "ServiceAccount", "name": "it", "namespace": "there"}]}),
    ("kubernetes:core/v1:Service", {"spec": {"ports": [{"port": 1}]}}),
    ("kubernetes:core/v1:Secret", {"stringData": SECRET}),
    (CONTAINER, docker(apiToken={**OUTPUT, "value": "x", "secret": True})),
    (CONTAINER, docker(envs=[SECRET], ports=[{"internal": 1, "external": 1, "ip": "127.0.0.1"}])),
]
