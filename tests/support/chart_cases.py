"""What the chart's values make: an object of the rendered chart, a place in it, and what is to be found there, for each
values file of charts/finetune-operator/ci."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finetune-operator"
NAME = "finetune-operator"
CRD = "CustomResourceDefinition/finetunejobs.finetune.dev"
RIGHTS = yaml.safe_load((ROOT / "operator" / "rbac.yaml").read_text())["rules"]
GANGS = yaml.safe_load((ROOT / "operator" / "rbac-gang.yaml").read_text())["rules"]
NETWORK = yaml.safe_load((ROOT / "operator" / "rbac-network.yaml").read_text())["rules"]
LEADER = yaml.safe_load((ROOT / "operator" / "rbac-leader.yaml").read_text())["rules"]
DASHBOARDS = {name: {f"finetune-{name}.json": (CHART / "dashboards" / f"finetune-{name}.json").read_text().strip()}
              for name in ("fleet", "run")}  # fmt: skip

ABSENT = "(absent)"
POD = f"Deployment/{NAME}", "spec template spec"
CONTAINER = f"Deployment/{NAME}", "spec template spec containers 0"
A, B = "sha256:" + "a" * 64, "sha256:" + "b" * 64

Expected = tuple[str, str, Any]  # object, path of keys in it, value there


def pod(path: str, value: Any, *, name: str = NAME) -> Expected:
    return f"Deployment/{name}", f"spec template spec {path}".strip(), value


def container(path: str, value: Any, *, name: str = NAME) -> Expected:
    return pod(f"containers 0 {path}", value, name=name)


def option(name: str, value: str | None, *, deployment: str = NAME) -> Expected:
    """Value of an argument of the operator; None where it is not given."""
    return f"Deployment/{deployment}", f"--{name}", value


CASES: dict[str, list[Expected]] = {
    "default": [
        (CRD, "metadata annotations helm.sh/resource-policy", "keep"),
        (CRD, "spec versions 0 served", True),
        (f"ClusterRole/{NAME}", "rules", RIGHTS),
        (f"ClusterRole/{NAME}", "metadata labels app.kubernetes.io/managed-by", "Helm"),
        (f"ClusterRoleBinding/{NAME}", "roleRef kind", "ClusterRole"),
        (f"ClusterRoleBinding/{NAME}", "subjects", [{"kind": "ServiceAccount", "name": NAME, "namespace": NAME}]),
        (f"Role/{NAME}-leader", "rules", LEADER),
        (f"RoleBinding/{NAME}-leader", "subjects 0 name", NAME),
        ("ClusterRole/finetunejobs-edit", "metadata labels rbac.authorization.k8s.io/aggregate-to-edit", "true"),
        ("ClusterRole/finetunejobs-view", "rules 0 verbs", ["get", "list", "watch"]),
        (f"ServiceAccount/{NAME}", "automountServiceAccountToken", False),
        (f"Deployment/{NAME}", "spec replicas", 2),
        (f"Deployment/{NAME}", "spec strategy rollingUpdate", {"maxUnavailable": 0, "maxSurge": 1}),
        pod("serviceAccountName", NAME),
        pod("automountServiceAccountToken", True),
        pod("enableServiceLinks", False),
        pod(
            "securityContext", {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}}
        ),
        pod("imagePullSecrets", ABSENT),
        pod("priorityClassName", ABSENT),
        pod("volumes", ABSENT),
        pod("topologySpreadConstraints 0 topologyKey", "kubernetes.io/hostname"),
        pod("topologySpreadConstraints 1 whenUnsatisfiable", "ScheduleAnyway"),
        container("image", "finetune-operator:0.1.0"),
        container("securityContext readOnlyRootFilesystem", True),
        container("securityContext allowPrivilegeEscalation", False),
        container("securityContext capabilities", {"drop": ["ALL"]}),
        container("livenessProbe httpGet", {"path": "/healthz", "port": "http", "scheme": "HTTP"}),
        container("readinessProbe httpGet path", "/readyz"),
        container("resources limits", {"memory": "512Mi"}),
        option("all-namespaces", ""),
        option("namespace", None),
        option("leader-elect", ""),
        option("lease-name", NAME),
        option("default-image", "finetune-trainer:0.1.0"),
        option("listen", ":8080"),
        option("job-network-policy", None),
        option("tls-cert", None),
        (f"Service/{NAME}", "spec ports 0 port", 8080),
        (f"PodDisruptionBudget/{NAME}", "spec maxUnavailable", 1),
        (f"ServiceMonitor/{NAME}", "", ABSENT),
        (f"PodMonitor/{NAME}-jobs", "", ABSENT),
        (f"PrometheusRule/{NAME}", "", ABSENT),
        (f"ConfigMap/{NAME}-fleet", "", ABSENT),
        (f"NetworkPolicy/{NAME}", "", ABSENT),
        (f"ConfigMap/{NAME}-policy", "", ABSENT),
        (f"ValidatingAdmissionPolicy/{NAME}.{NAME}.finetune.dev", "", ABSENT),
        option("policy", None),
    ],
    "namespaced": [
        (CRD, "", ABSENT),
        ("Role/team-a/finetune-operator", "rules", RIGHTS),
        ("Role/team-b/finetune-operator", "rules", RIGHTS),
        ("RoleBinding/team-b/finetune-operator", "roleRef kind", "Role"),
        ("RoleBinding/team-b/finetune-operator", "subjects 0 namespace", NAME),
        ("ClusterRole/finetunejobs-edit", "", ABSENT),
        (f"Role/{NAME}-leader", "rules 0 resourceNames", [NAME]),
        option("all-namespaces", None),
        option("namespace", "team-a,team-b"),
        (f"PodMonitor/{NAME}-jobs", "spec namespaceSelector", {"matchNames": ["team-a", "team-b"]}),
    ],
    "digests": [
        container("image", f"registry.example:5000/ml/finetune-operator@{A}"),
        container("imagePullPolicy", "Always"),
        option("default-image", f"registry.example:5000/ml/finetune-trainer:12.8@{B}"),
        pod("imagePullSecrets", [{"name": "registry"}]),
    ],
    "openshift": [
        pod("securityContext runAsUser", ABSENT),
        pod("securityContext runAsNonRoot", True),
        ("ClusterRole/finetunejobs-edit", "", ABSENT),
        (f"ClusterRole/{NAME}", "rules", RIGHTS),
    ],
    "monitoring": [
        (f"ServiceMonitor/{NAME}", "metadata labels release", "prometheus"),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 interval", "15s"),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 scrapeTimeout", "5s"),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 honorLabels", True),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 scheme", ABSENT),
        (f"ServiceMonitor/{NAME}", "spec namespaceSelector matchNames", [NAME]),
        (f"PodMonitor/{NAME}-jobs", "spec namespaceSelector", {"any": True}),
        (f"PodMonitor/{NAME}-jobs", "spec podMetricsEndpoints 0 port", "metrics"),
        (f"PodMonitor/{NAME}-jobs", "spec selector matchLabels", {"app.kubernetes.io/name": "finetune-job"}),
        (f"PrometheusRule/{NAME}", "metadata labels release", "prometheus"),
        (f"PrometheusRule/{NAME}", "spec groups 0 name", NAME),
        (f"ConfigMap/{NAME}-fleet", "metadata labels grafana_dashboard", "1"),
        (f"ConfigMap/{NAME}-run", "metadata annotations grafana_folder", "ML"),
        (f"ConfigMap/{NAME}-fleet", "data", DASHBOARDS["fleet"]),
        (f"ConfigMap/{NAME}-run", "data", DASHBOARDS["run"]),
    ],
    "tls": [
        container("livenessProbe httpGet scheme", "HTTPS"),
        container("readinessProbe httpGet scheme", "HTTPS"),
        container("volumeMounts 0", {"name": "metrics-tls", "mountPath": "/etc/finetune/tls", "readOnly": True}),
        pod("volumes 1", {"name": "metrics-token", "secret": {"secretName": "metrics-token"}}),
        option("tls-cert", "/etc/finetune/tls/tls.crt"),
        option("tls-key", "/etc/finetune/tls/tls.key"),
        option("metrics-token-file", "/etc/finetune/token/bearer"),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 scheme", "https"),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 tlsConfig serverName", f"{NAME}.{NAME}.svc"),
        (
            f"ServiceMonitor/{NAME}",
            "spec endpoints 0 authorization credentials",
            {"name": "metrics-token", "key": "bearer"},
        ),
    ],
    "self-signed": [
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 tlsConfig", {"insecureSkipVerify": True}),
        (f"ServiceMonitor/{NAME}", "spec endpoints 0 authorization", ABSENT),
    ],
    "network-policy": [
        (f"ClusterRole/{NAME}", "rules", [*RIGHTS, *NETWORK]),
        option(
            "job-network-policy",
            '[{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"finetune-operator"}},"podSelector":'
            '{"matchLabels":{"app.kubernetes.io/instance":"finetune-operator","app.kubernetes.io/name":'
            '"finetune-operator"}}},{"namespaceSelector":{"matchLabels":{"kubernetes.io/metadata.name":"monitoring"}}}]',
        ),
        (f"NetworkPolicy/{NAME}", "spec policyTypes", ["Ingress", "Egress"]),
        (f"NetworkPolicy/{NAME}", "spec ingress 0 ports 0 port", "http"),
        (
            f"NetworkPolicy/{NAME}",
            "spec ingress 0 from 0 namespaceSelector matchLabels",
            {"kubernetes.io/metadata.name": "monitoring"},
        ),
        (f"NetworkPolicy/{NAME}", "spec egress 1 ports", [{"port": 16443, "protocol": "TCP"}]),
        (f"NetworkPolicy/{NAME}", "spec egress 2 ports", [{"port": 9400, "protocol": "TCP"}]),
    ],
    "identity": [
        (
            "ServiceAccount/finetune",
            "metadata annotations eks.amazonaws.com/role-arn",
            "arn:aws:iam::111122223333:role/finetune",
        ),
        pod("serviceAccountName", "finetune"),
        (f"ClusterRoleBinding/{NAME}", "subjects 0 name", "finetune"),
        (f"RoleBinding/{NAME}-leader", "subjects 0 name", "finetune"),
    ],
    "own-rights": [
        (f"ServiceAccount/{NAME}", "", ABSENT),
        (f"ClusterRole/{NAME}", "", ABSENT),
        (f"ClusterRoleBinding/{NAME}", "", ABSENT),
        (f"Role/{NAME}-leader", "", ABSENT),
        pod("serviceAccountName", "prepared"),
    ],
    "scheduling": [
        (f"Deployment/{NAME}", "spec replicas", 3),
        pod("priorityClassName", "system-cluster-critical"),
        pod("nodeSelector", {"node-role.kubernetes.io/infra": ""}),
        pod("tolerations 0 effect", "NoSchedule"),
        pod("affinity podAntiAffinity preferredDuringSchedulingIgnoredDuringExecution 0 weight", 1),
        pod("topologySpreadConstraints", [{"maxSkew": 1, "topologyKey": "rack", "whenUnsatisfiable": "DoNotSchedule"}]),
        container("resources requests", {"cpu": 1, "memory": "1Gi"}),
        container("resources limits cpu", 2.5),
    ],
    "single": [
        (CRD, "metadata annotations", ABSENT),
        (f"Deployment/{NAME}", "spec replicas", 1),
        (f"PodDisruptionBudget/{NAME}", "", ABSENT),
        option("log-level", "debug"),
        option("log-format", "json"),
    ],
    "extras": [
        (f"Service/{NAME}", "metadata labels cost-centre", "4711"),
        (f"Deployment/{NAME}", "spec selector matchLabels cost-centre", ABSENT),
        (f"Deployment/{NAME}", "spec template metadata labels cost-centre", "4711"),
        (f"Deployment/{NAME}", "spec template metadata labels sidecar.istio.io/inject", "false"),
        (f"Deployment/{NAME}", "spec template metadata annotations", {"example.com/checksum": "1"}),
        (f"ClusterRole/{NAME}", "rules", [*RIGHTS, *GANGS]),
        (f"PodDisruptionBudget/{NAME}", "", ABSENT),
        container("env 0", {"name": "SSL_CERT_FILE", "value": "/etc/corp/ca.pem"}),
        container("env 1 valueFrom fieldRef fieldPath", "spec.nodeName"),
        container("volumeMounts", [{"name": "corp-ca", "mountPath": "/etc/corp", "readOnly": True}]),
        pod("volumes", [{"name": "corp-ca", "configMap": {"name": "corp-ca"}}]),
        option("trainer-command", "nice -n 5 finetune agent"),
        option("workers", "64"),
        option("grow-after", "1200000"),
        option(
            "gpu-prices", '{"currency":"EUR","perGpuHour":[{"nodeSelector":{"gpu":"h100"},"price":2.5},{"price":1}]}'
        ),
        option("lease-seconds", "30"),
    ],
    "model-cache": [
        ("PersistentVolumeClaim/team-a/models", "spec accessModes", ["ReadWriteMany"]),
        ("PersistentVolumeClaim/team-a/models", "spec storageClassName", ""),
        ("PersistentVolumeClaim/team-a/models", "spec volumeName", f"{NAME}-models-team-a"),
        ("PersistentVolumeClaim/team-b/models", "spec resources requests storage", "800Gi"),
        (f"PersistentVolume/{NAME}-models-team-b", "spec local path", "/mnt/models/team-b"),
        (f"PersistentVolume/{NAME}-models-team-b", "spec claimRef", {"namespace": "team-b", "name": "models"}),
        (f"PersistentVolume/{NAME}-models-team-b", "spec persistentVolumeReclaimPolicy", "Retain"),
        (
            f"PersistentVolume/{NAME}-models-team-a",
            "spec nodeAffinity required nodeSelectorTerms 0 matchExpressions",
            [
                {"key": "kubernetes.io/os", "operator": "In", "values": ["linux"]},
                {"key": "pool", "operator": "In", "values": ["gpu"]},
            ],
        ),
        option("policy", "/etc/finetune/policy/policy.json"),
    ],
    "model-cache-class": [
        ("PersistentVolumeClaim/team-a/models", "spec storageClassName", "nfs"),
        ("PersistentVolumeClaim/team-a/models", "spec volumeName", ABSENT),
        ("PersistentVolumeClaim/team-a/models", "spec accessModes", ["ReadWriteMany"]),
        ("PersistentVolumeClaim/team-a/models", "spec resources requests storage", "500Gi"),
        (f"PersistentVolume/{NAME}-models-team-a", "", ABSENT),
        (
            f"ConfigMap/{NAME}-policy",
            "data",
            {"policy.json": '{"namespaces":{"team-a":{"modelCache":{"claim":"models","sizeGiB":0}}}}'},
        ),
    ],
    "model-cache-everywhere": [
        ("PersistentVolumeClaim/models", "", ABSENT),
        (
            f"ConfigMap/{NAME}-policy",
            "data",
            {"policy.json": '{"modelCache":{"claim":"models","sizeGiB":300},"namespaces":{"small":{"modelCache":{}}}}'},
        ),
    ],
    "policy": [
        (f"ConfigMap/{NAME}-policy", "metadata namespace", NAME),
        option("policy", "/etc/finetune/policy/policy.json"),
        container("volumeMounts 0", {"name": "policy", "mountPath": "/etc/finetune/policy", "readOnly": True}),
        pod("volumes 0 configMap name", f"{NAME}-policy"),
        (f"Deployment/{NAME}", "spec template metadata annotations finetune.dev/policy", "0e236ce353866a9d"),
        (f"ValidatingAdmissionPolicy/{NAME}.{NAME}.finetune.dev", "spec failurePolicy", "Fail"),
        (
            f"ValidatingAdmissionPolicy/{NAME}.{NAME}.finetune.dev",
            "spec validations 1 expression",
            "variables.nodes <= 16",
        ),
        (
            f"ValidatingAdmissionPolicy/research.{NAME}.{NAME}.finetune.dev",
            "spec validations 1 expression",
            "variables.nodes <= 64",
        ),
        (
            f"ValidatingAdmissionPolicyBinding/{NAME}.{NAME}.finetune.dev",
            "spec matchResources namespaceSelector matchExpressions 0 values",
            ["research"],
        ),
        (
            f"ValidatingAdmissionPolicyBinding/research.{NAME}.{NAME}.finetune.dev",
            "spec matchResources namespaceSelector matchExpressions 0 operator",
            "In",
        ),
        (f"ValidatingAdmissionPolicyBinding/research.{NAME}.{NAME}.finetune.dev", "spec validationActions", ["Deny"]),
    ],
    "names": [
        ("Deployment/tuner", "spec selector matchLabels app.kubernetes.io/name", "tune"),
        ("Service/tuner", "spec selector app.kubernetes.io/name", "tune"),
        ("Role/tuner-leader", "rules 0 resourceNames", ["tuner"]),
        option("lease-name", "tuner", deployment="tuner"),
        (f"ClusterRoleBinding/{NAME}", "subjects 0 name", "tuner"),
    ],
}
