"""Rules on every pod that a resource makes: Pod, Deployment, StatefulSet, DaemonSet, ReplicaSet, Job, CronJob."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.policy.wire import at, objects, strings

TEMPLATE = ("spec", "template", "spec")
PODS = {
    "kubernetes:core/v1:Pod": ("spec",),
    "kubernetes:core/v1:ReplicationController": TEMPLATE,
    "kubernetes:apps/v1:ReplicaSet": TEMPLATE,
    "kubernetes:apps/v1:Deployment": TEMPLATE,
    "kubernetes:apps/v1:StatefulSet": TEMPLATE,
    "kubernetes:apps/v1:DaemonSet": TEMPLATE,
    "kubernetes:batch/v1:Job": TEMPLATE,
    "kubernetes:batch/v1:CronJob": ("spec", "jobTemplate", *TEMPLATE),
}
LONG_RUNNING = {f"kubernetes:apps/v1:{kind}" for kind in ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")}
VOLUMES = {  # that PodSecurity `restricted` allows
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
}
SYSCTLS = {  # that PodSecurity `baseline` takes for safe
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ping_group_range",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.tcp_wmem",
}
CONFINED = ("RuntimeDefault", "Localhost")
SELINUX_TYPES = (None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t")
PROBES = ("livenessProbe", "readinessProbe", "startupProbe")


def pod_of(kind: str, properties: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The pod spec in a resource, None where it makes no pod."""
    return at(properties, *PODS[kind]) or {} if kind in PODS else None


def containers_of(pod: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Every container of a pod with what to call it, init and ephemeral ones too."""
    parts = {"containers": "container", "initContainers": "init container", "ephemeralContainers": "debug container"}
    return [(f"{word} {one.get('name')}", one) for part, word in parts.items() for one in objects(pod, part)]


def restricted_pods(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A pod keeps to PodSecurity `restricted` (Kubernetes Pod Security Standards, all but the host rules)."""
    pod = pod_of(kind, properties)
    if pod is None:
        return []
    found = [f"the volume {one.get('name')} is not of an allowed kind" for one in _odd_volumes(pod)]
    found += [
        f"the sysctl {one.get('name')} is not a safe one"
        for one in objects(pod, "securityContext", "sysctls")
        if one.get("name") not in SYSCTLS
    ]
    found += _context_faults("the pod", at(pod, "securityContext"))
    for name, container in containers_of(pod):
        found += _context_faults(name, at(container, "securityContext"))
        found += _container_faults(name, container, pod)
    return found


def _odd_volumes(pod: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in objects(pod, "volumes") if not set(one) - {"name"} or set(one) - {"name"} - VOLUMES]


def _context_faults(name: str, context: Any) -> list[str]:
    """What neither a pod's nor a container's security context may say."""
    linux = at(context, "seLinuxOptions")
    faults = {
        "may not run as user 0": at(context, "runAsUser") == 0,
        "may not set runAsNonRoot to false": at(context, "runAsNonRoot") is False,
        "needs the AppArmor profile RuntimeDefault": at(context, "appArmorProfile", "type") not in (None, *CONFINED),
        "needs the seccomp profile RuntimeDefault": at(context, "seccompProfile", "type") not in (None, *CONFINED),
        "may not choose that SELinux type": at(linux, "type") not in SELINUX_TYPES,
        "may not set SELinux user or role": bool(at(linux, "user") or at(linux, "role")),
        "may not be a Windows host process": bool(at(context, "windowsOptions", "hostProcess")),
    }
    return [f"{name} {words}" for words, true in faults.items() if true]


def _container_faults(name: str, container: Mapping[str, Any], pod: Mapping[str, Any]) -> list[str]:
    """What each container must say, itself or by its pod."""
    context = at(container, "securityContext")

    def said(*path: str) -> Any:
        own = at(context, *path)
        return at(pod, "securityContext", *path) if own is None else own

    faults = {
        "needs runAsNonRoot: true": said("runAsNonRoot") is not True,
        "needs a seccompProfile": said("seccompProfile", "type") is None,
        "needs allowPrivilegeEscalation: false": at(context, "allowPrivilegeEscalation") is not False,
        "may not be privileged": bool(at(context, "privileged")),
        "must drop the capability ALL": "ALL" not in strings(context, "capabilities", "drop"),
        "may add no capability": bool(set(strings(context, "capabilities", "add")) - {"NET_BIND_SERVICE"}),
        "may not change procMount": at(context, "procMount") not in (None, "Default"),
    }
    return [f"{name} {words}" for words, true in faults.items() if true]


def read_only_root(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container's root file system is read-only (NSA/CISA Kubernetes Hardening Guide: immutable file systems)."""
    return [
        f"{name} needs readOnlyRootFilesystem: true, and an emptyDir where it writes"
        for name, container in containers_of(pod_of(kind, properties) or {})
        if at(container, "securityContext", "readOnlyRootFilesystem") is not True
    ]


def resource_limits(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container has requests and limits of CPU and memory (NSA/CISA: resource policies; our quotas need them)."""
    return [
        f"{name} needs resources.{part}.{what}"
        for name, container in containers_of(pod_of(kind, properties) or {})
        for part in ("requests", "limits")
        for what in ("cpu", "memory")
        if not at(container, "resources", part, what)
    ]


def no_host_access(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A pod reaches nothing of its node (Pod Security Standards `baseline`; our design: no socket in the cluster)."""
    pod = pod_of(kind, properties) or {}
    found = [f"{key} must be removed" for key in ("hostNetwork", "hostPID", "hostIPC") if pod.get(key)]
    found += [
        f"the volume {one.get('name')} mounts the node's {at(one, 'hostPath', 'path')}"
        for one in objects(pod, "volumes")
        if "hostPath" in one
    ]
    for name, container in containers_of(pod):
        found += [f"{name} takes the node's port {one['hostPort']}" for one in _host_ports(container)]
        found += [
            f"{name} mounts a container engine's socket at {one['mountPath']}"
            for one in objects(container, "volumeMounts")
            if str(one.get("mountPath")).endswith((".sock", ".sock/"))
        ]
        found += [f"{name}: {hook} names a host" for hook in _hooks_with_host(container)]
    return found


def _host_ports(container: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [one for one in objects(container, "ports") if one.get("hostPort")]


def _hooks_with_host(container: Mapping[str, Any]) -> list[str]:
    """Probes and lifecycle hooks that make the kubelet connect to an address of the pod's choice."""
    hooks = {name: container.get(name) for name in PROBES}
    hooks |= {name: at(container, "lifecycle", name) for name in ("postStart", "preStop")}
    return [name for name, hook in hooks.items() if at(hook, "httpGet", "host") or at(hook, "tcpSocket", "host")]


def probes(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A container that runs for long has a readiness and a liveness probe (our design; kube-linter no-*-probe)."""
    if kind not in LONG_RUNNING:
        return []
    return [
        f"container {one.get('name')} needs a {probe}"
        for one in objects(pod_of(kind, properties), "containers")
        for probe in ("readinessProbe", "livenessProbe")
        if not one.get(probe)
    ]


def service_links(kind: str, properties: Mapping[str, Any]) -> list[str]:
    """A pod gets no variables of Services (our operations: `SANDBOX_*` ones look like settings and stop the start)."""
    pod = pod_of(kind, properties)
    return ["needs enableServiceLinks: false"] if pod is not None and pod.get("enableServiceLinks") is not False else []
