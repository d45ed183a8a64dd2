"""The chart's values as models: names, types, defaults and what each is for.

tools/chart.py writes values.yaml, values.schema.json and the table of the chart's README from `Values`. Unknown keys
are refused. A mapping of Kubernetes' own (affinity, say) is passed through, and the API server judges it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from finetune_api.admin_policy import Limits, PodToleration, Settings
from finetune_api.admin_policy import ModelCache as CacheSettings

Label = Annotated[str, Field(pattern=r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$")]
"""A name that Kubernetes takes for a namespace."""
Strings = dict[str, str]
Objects = dict[str, Any]
Duration = Annotated[str, Field(pattern=r"^([0-9]+(ms|s|m|h|d|w|y))+$")]


class Part(BaseModel):
    """Written in camelCase; an unknown key is refused."""

    model_config = ConfigDict(
        extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class Image(Part):
    repository: Annotated[str, Field(min_length=1)]
    """Registry and name of the image."""
    tag: str = ""
    """Tag. Empty: the chart's appVersion, or no tag where a digest is given."""
    digest: Annotated[str, Field(pattern=r"^(sha256:[a-f0-9]{64})?$")] = ""
    """Digest, as in `sha256:…`. It wins over the tag."""


class OperatorImage(Image):
    repository: Annotated[str, Field(min_length=1)] = "finetune-operator"
    """Registry and name of the operator's image."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the kubelet pulls it."""


class TrainerImage(Image):
    repository: Annotated[str, Field(min_length=1)] = "finetune-trainer"
    """Registry and name of the trainer's image."""


class Trainer(Part):
    image: TrainerImage = TrainerImage()
    command: Annotated[str, Field(min_length=1)] = "finetune agent"
    """What a training pod runs, as a shell would split it."""


class SecretName(Part):
    name: Annotated[str, Field(min_length=1)]
    """Name of a Secret in the release's namespace."""


class Crds(Part):
    enabled: bool = True
    """Install and upgrade the CustomResourceDefinition with the release."""
    keep: bool = True
    """Keep it, and with it all FineTuneJobs, when the release is uninstalled."""


class LeaderElection(Part):
    lease_seconds: Annotated[int, Field(ge=3)] = 13
    """Seconds after which a silent leader is replaced."""


class EnvironmentVariable(Part):
    name: Annotated[str, Field(min_length=1)]
    """Name of the variable."""
    value: str | None = None
    """Its value."""
    value_from: Objects | None = None
    """Where else its value comes from, as in a pod."""


class Volume(Part):
    name: Label
    """Name of the volume."""
    config_map: Objects | None = None
    """As in a pod."""
    secret: Objects | None = None
    """As in a pod."""
    projected: Objects | None = None
    """As in a pod."""
    empty_dir: Objects | None = None
    """As in a pod."""
    persistent_volume_claim: Objects | None = None
    """As in a pod."""


class VolumeMount(Part):
    name: Label
    """Name of the volume."""
    mount_path: Annotated[str, Field(pattern=r"^/")]
    """Where it appears in the container."""
    sub_path: str | None = None
    """Path inside the volume."""
    read_only: bool | None = None
    """Whether the container may not write to it."""


class Resources(Part):
    requests: dict[str, str | int | float] = {"cpu": "100m", "memory": "128Mi"}
    """Requests of the operator's container."""
    limits: dict[str, str | int | float] = {"memory": "512Mi"}
    """Limits of the operator's container."""


class DisruptionBudget(Part):
    enabled: bool = True
    """Keep all but one replica running while nodes are drained. Without effect with one replica."""


class Operator(Part):
    image: OperatorImage = OperatorImage()
    replicas: Annotated[int, Field(ge=1)] = 2
    """Replicas, of which one acts: the one that holds the Lease."""
    leader_election: LeaderElection = LeaderElection()
    workers: Annotated[int, Field(ge=1)] = 32
    """Jobs that are reconciled concurrently."""
    grow_after_seconds: Annotated[float, Field(ge=0)] = 300
    """Seconds that an elastic job runs with fewer nodes before it looks for more."""
    log_level: Literal["debug", "info", "warning"] = "info"
    """Least severity that is logged."""
    log_format: Literal["text", "json"] = "text"
    """Format of the log: text, or JSON with one object a line."""
    resources: Resources = Resources()
    run_as_user: Annotated[int, Field(ge=1)] | None = 65532
    """User of the container. null leaves the choice to the namespace, as OpenShift asks for."""
    pod_labels: Strings = {}
    """More labels of the operator's pods."""
    pod_annotations: Strings = {}
    """Annotations of the operator's pods."""
    node_selector: Strings = {}
    """Labels of nodes on which the operator may run."""
    tolerations: list[PodToleration] = []
    """Taints that the operator tolerates."""
    affinity: Objects = {}
    """Affinity of the operator's pods, as in a pod."""
    topology_spread_constraints: list[Objects] = []
    """Replaces the default, which prefers different nodes and zones for the replicas."""
    priority_class_name: str = ""
    """PriorityClass of the operator's pods."""
    env: list[EnvironmentVariable] = []
    """More environment variables."""
    volumes: list[Volume] = []
    """More volumes."""
    volume_mounts: list[VolumeMount] = []
    """Where the container mounts them."""
    pod_disruption_budget: DisruptionBudget = DisruptionBudget()


class ServiceAccount(Part):
    create: bool = True
    """Create the operator's ServiceAccount."""
    name: str = ""
    """Its name. Empty: the release's full name, or `default` where it is not created."""
    annotations: Strings = {}
    """Annotations, for instance of a cloud's workload identity."""


class Rbac(Part):
    create: bool = True
    """Create roles and bindings of the operator: operator/rbac.yaml and rbac-leader.yaml."""
    gangs: bool = False
    """Also allow what gang scheduling and Kueue need: operator/rbac-gang.yaml."""
    aggregate: bool = True
    """Add FineTuneJobs to the cluster roles view, edit and admin. Without effect where `namespaces` is set."""


class Tls(Part):
    secret_name: str = ""
    """Secret of type kubernetes.io/tls: serve metrics and probes with its tls.crt and tls.key. Empty: plain HTTP."""
    insecure_skip_verify: bool = False
    """ServiceMonitor: do not verify the certificate. Otherwise it is verified with ca.crt of the Secret."""


class Token(Part):
    secret_name: str = ""
    """Secret with the token that /metrics asks for. Empty: none is asked for."""
    key: Annotated[str, Field(min_length=1)] = "token"
    """Key of the token in it."""


class Monitor(Part):
    enabled: bool = False
    """Create it. The Prometheus Operator's CustomResourceDefinitions must be installed."""
    labels: Strings = {}
    """More labels, by which a Prometheus selects it (often `release`)."""
    interval: Duration = "30s"
    """Scrape interval."""
    scrape_timeout: Duration = "10s"
    """Scrape timeout."""


class AlertOverride(Part):
    enabled: bool = True
    """false leaves the alert out."""
    for_: Annotated[Duration, Field(alias="for")] = "0s"
    """How long the condition must hold."""
    severity: Literal["critical", "warning", "info"] = "warning"
    """Value of the label severity."""
    labels: Strings = {}
    """More labels, for routing."""
    parameters: dict[str, int | float | Duration] = {}
    """The alert's thresholds by name: numbers or durations."""


class Rules(Part):
    enabled: bool = False
    """Create a PrometheusRule with the alerts of rules/. The Prometheus Operator's definitions must be installed."""
    labels: Strings = {}
    """More labels, by which a Prometheus selects it (often `release`)."""
    alert_labels: Strings = {}
    """Labels of every alert, for routing."""
    runbook_url_prefix: str = ""
    """What goes in front of the alerts' runbook_url, which is a path in this repository; with a final slash."""
    training_pods_scraped: bool = False
    """Alerts on training pods' own metrics are left out unless metrics.podMonitor is enabled, or this is true."""
    alerts: dict[str, AlertOverride] = {}
    """Overrides by name of the alert: enabled, for, severity, labels, parameters."""


class Dashboards(Part):
    enabled: bool = False
    """Create a ConfigMap for each dashboard of dashboards/, for the sidecar of Grafana's chart."""
    labels: Strings = {"grafana_dashboard": "1"}
    """Labels by which Grafana's sidecar finds them."""
    annotations: Strings = {}
    """Annotations, for instance `grafana_folder`."""


class Metrics(Part):
    tls: Tls = Tls()
    token: Token = Token()
    service_monitor: Monitor = Monitor()
    """Scrapes the operator."""
    pod_monitor: Monitor = Monitor()
    """Scrapes the training pods."""
    prometheus_rule: Rules = Rules()
    dashboard: Dashboards = Dashboards()


class JobNetworkPolicies(Part):
    enabled: bool = False
    """Make a NetworkPolicy for each job: its pods are reached by each other alone, and their metrics by the operator
    and `metricsFrom`. Adds operator/rbac-network.yaml to the operator's rights."""
    metrics_from: list[Objects] = []
    """Peers that may read the metrics of training pods, as in a NetworkPolicy. Empty: the operator alone."""


class NetworkPolicy(Part):
    enabled: bool = False
    """Restrict the operator's traffic to DNS, the API server, training pods, and scrapes."""
    metrics_from: list[Objects] = []
    """Peers that may scrape the operator, as in a NetworkPolicy. Empty: all."""
    api_server_ports: list[Annotated[int, Field(ge=1, le=65535)]] = [443, 6443]
    """Ports on which the API server may be reached."""
    jobs: JobNetworkPolicies = JobNetworkPolicies()


class Admission(Part):
    enabled: bool = False
    """Also refuse such jobs at creation, by a ValidatingAdmissionPolicy. Installing it needs rights on the cluster."""


class Policy(Limits):
    namespaces: dict[Label, Settings] = Field(default_factory=dict)
    """Policies of single namespaces. Each field that is written there replaces the one above."""
    admission: Admission = Admission()


class CacheClaims(Part):
    enabled: bool = False
    """Make the claim in each namespace of `modelCache.namespaces`. Uninstalling deletes it, with the models in it."""
    storage_class_name: str = ""
    """StorageClass of the claims. Empty: the cluster's default. Without effect with `nodePath`."""
    access_mode: Literal["ReadWriteMany", "ReadWriteOnce"] = "ReadWriteMany"
    """ReadWriteOnce is for clusters of one node: pods of other nodes cannot mount it."""
    node_path: Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)*$")] = ""
    """Folder of every node that keeps a cache of its own, in which each namespace's folder exists. It becomes a local
    PersistentVolume for each namespace. Installing those needs rights on the cluster. Empty: the StorageClass's."""
    node_selector: Strings = {"kubernetes.io/os": "linux"}
    """Labels of the nodes that have `nodePath`. Pods with the cache run on no others."""


class ModelCache(CacheSettings):
    namespaces: list[Label] = Field(default_factory=list)
    """Namespaces whose jobs use the cache, each with a claim of its own. Empty: all that have jobs."""
    create: CacheClaims = CacheClaims()


class GpuPrice(Part):
    price: Annotated[float, Field(ge=0, le=1e6)]
    """Price of an hour of one GPU."""
    resource: str = ""
    """Resource that it applies to, such as nvidia.com/gpu. Empty: any."""
    node_selector: Strings = {}
    """Labels that pod.nodeSelector of a job must have, such as nvidia.com/gpu.product."""


class Prices(Part):
    currency: Annotated[str, Field(pattern=r"^[A-Za-z]{1,16}$")] = "USD"
    """Currency of the prices."""
    per_gpu_hour: list[GpuPrice] = []
    """Prices of GPU hours, for status.usage of jobs. The first entry that fits a job applies. Empty: no cost."""


class Test(Part):
    """`helm test` trains a model of 0.2 million parameters, which it makes itself, to its artifact."""

    claim: str = ""
    """Existing claim in the test's namespace for model, data and artifact. Empty: one of 1 GiB is made and deleted."""
    storage_class_name: str = ""
    """StorageClass of the claim that is made. Empty: the cluster's default."""
    timeout_seconds: Annotated[int, Field(ge=30)] = 600
    """Seconds in which the job must be complete, images pulled."""
    python: Annotated[str, Field(min_length=1)] = "python"
    """Python of the trainer's image."""
    job_pod: Objects = {}
    """More fields of the test job's spec.pod."""
    volumes: list[Volume] = []
    """More volumes of the test's own pod."""
    volume_mounts: list[VolumeMount] = []
    """Where it mounts them."""


class Values(Part):
    name_override: Annotated[str, Field(pattern=r"^([a-z]([-a-z0-9]{0,50}[a-z0-9])?)?$")] = ""
    """Replaces the chart's name in the names of objects."""
    fullname_override: Annotated[str, Field(pattern=r"^([a-z]([-a-z0-9]{0,50}[a-z0-9])?)?$")] = ""
    """Replaces release and chart name in the names of objects."""
    namespaces: list[Label] = []
    """Namespaces to watch, with a Role in each and no ClusterRole at all. Empty: all namespaces of the cluster."""
    common_labels: Strings = {}
    """Labels of all objects."""
    image_pull_secrets: list[SecretName] = []
    """Pull secrets of the operator's pods."""
    crds: Crds = Crds()
    operator: Operator = Operator()
    trainer: Trainer = Trainer()
    prices: Prices = Prices()
    service_account: ServiceAccount = ServiceAccount()
    rbac: Rbac = Rbac()
    policy: Policy = Policy()
    model_cache: ModelCache = ModelCache()
    metrics: Metrics = Metrics()
    network_policy: NetworkPolicy = NetworkPolicy()
    test: Test = Test()
