"""What an administrator allows jobs to ask for, and what their pods get by default. Pure.

`AdminPolicy` is read from the operator's --policy file (the chart's `policy` values). `violations` lists what a spec
asks for and may not have, and `with_defaults` returns the spec with the administrator's defaults, where the job sets
nothing itself. What a job leaves out is always allowed: the administrator has chosen it.

An image pattern is a name, or a prefix that ends in `*`. A URI prefix ends at a path segment: `s3://corp/a` allows
`s3://corp/a` and `s3://corp/a/b`, not `s3://corp/ab`, and no path with `..` in it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.alias_generators import to_camel

from . import accelerators, uris, yaml_text
from .fields import DNS_LABEL, DNS_NAME, ENV_NAME
from .names import ENV_MODEL_CACHE, ENV_MODEL_CACHE_GIB, MODEL_CACHE_DIR
from .pod import ClaimVolume, EnvVar, NamedSource, Pod, Toleration, Volume
from .rung_pods import for_rung
from .spec import FineTuneJobSpec

CA_VOLUME = "finetune-ca"
CA_DIR = "/etc/finetune/ca"
CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "AWS_CA_BUNDLE")
"""Variables by which TLS libraries find the certificates that they trust instead of their own."""

CACHE_VOLUME = "finetune-models"
REMOTE = ("hf://", "s3://", "gs://", "az://")
"""How URIs of models begin that pods download; the others are read in place."""

URI = re.compile(r"^[a-z0-9]+://")
ELSEWHERE = frozenset({"pod", "resources", "command", "image"})
"""Fields of a spec that contain no URI of a store."""


class Part(BaseModel):
    """Written in camelCase; an unknown key is refused. Frozen."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True, use_attribute_docstrings=True
    )


class PodToleration(Part):
    key: str = ""
    """Taint's key; empty with `operator: Exists` tolerates all."""
    operator: Literal["Exists", "Equal"] = "Equal"
    """How the value is compared."""
    value: str = ""
    """Taint's value."""
    effect: Literal["", "NoSchedule", "PreferNoSchedule", "NoExecute"] = ""
    """Taint's effect; empty matches all."""
    toleration_seconds: Annotated[int, Field(ge=0)] | None = None
    """Seconds after which a NoExecute taint evicts the pod after all."""


class PodDefaults(Part):
    service_account_name: Annotated[str, Field(pattern=f"^$|{DNS_NAME}")] = ""
    """ServiceAccount of pods whose job names none."""
    priority_class_name: Annotated[str, Field(pattern=f"^$|{DNS_NAME}")] = ""
    """PriorityClass of pods whose job names none."""
    runtime_class_name: Annotated[str, Field(pattern=f"^$|{DNS_NAME}")] = ""
    """RuntimeClass of pods whose job names none."""
    scheduler_name: Annotated[str, Field(pattern=f"^$|{DNS_NAME}")] = ""
    """Scheduler of pods whose job names none."""
    node_selector: dict[str, str] = {}
    """Labels of nodes, except those that the job sets itself."""
    tolerations: list[PodToleration] = []
    """Taints that all training pods tolerate."""
    image_pull_secrets: list[Annotated[str, Field(pattern=DNS_NAME)]] = []
    """Names of pull secrets of all training pods, in the namespace of the job."""
    labels: dict[str, str] = {}
    """Labels of training pods, except those that the job sets itself."""
    annotations: dict[str, str] = {}
    """Annotations of training pods, except those that the job sets itself."""
    env: dict[Annotated[str, Field(pattern=ENV_NAME)], str] = {}
    """Environment variables of training pods, except those that the job sets itself (NCCL_SOCKET_IFNAME, say)."""


class TrustedCa(Part):
    config_map: Annotated[str, Field(pattern=f"^$|{DNS_NAME}")] = ""
    """ConfigMap in each job's namespace with certificates (PEM), which replace those of the image. Empty: none."""
    key: Annotated[str, Field(min_length=1)] = "ca.crt"
    """Key of the bundle in it."""


class Proxy(Part):
    http: str = ""
    """HTTP_PROXY of training pods."""
    https: str = ""
    """HTTPS_PROXY of training pods."""
    no_proxy: str = ""
    """NO_PROXY of training pods: hosts and networks that are reached directly, separated by commas."""


class ModelCache(Part):
    """A volume in each job's namespace on which its pods keep remote models."""

    claim: Annotated[str, Field(pattern=f"^$|{DNS_NAME}")] = ""
    """PersistentVolumeClaim in each job's namespace, which all its pods can mount. Empty: no cache."""
    size_gib: Annotated[int, Field(ge=0, le=1 << 20, alias="sizeGiB")] = 0
    """Most GiB of models in it; those used least recently are removed. 0: nine tenths of the volume."""


class Limits(Part):
    """What jobs may ask for, and defaults of their pods. An empty list and a zero restrict nothing."""

    images: list[Annotated[str, Field(min_length=1)]] = []
    """Images that a job may name: names, or prefixes that end in `*`. Empty: all."""
    uri_prefixes: list[Annotated[str, Field(pattern=r"^[a-z0-9]+://")]] = []
    """What the URIs of models, data and outputs may begin with, up to a `/`. Empty: all. Scripts may read anything."""
    runtime_classes: list[str] = []
    """RuntimeClasses that a job may name. Empty: all."""
    service_accounts: list[str] = []
    """ServiceAccounts that a job may name. Empty: all."""
    priority_classes: list[str] = []
    """PriorityClasses that a job may name. Empty: all."""
    max_nodes: Annotated[int, Field(ge=0)] = 0
    """Most nodes of a job. 0: no limit."""
    max_gpus: Annotated[int, Field(ge=0)] = 0
    """Most GPUs of a job, all its nodes together. 0: no limit."""
    pod_defaults: PodDefaults = PodDefaults()
    hub_endpoint: Annotated[str, Field(pattern=r"^(https?://.+)?$")] = ""
    """HF_ENDPOINT of training pods: a mirror of the hub, for hf:// URIs."""
    trusted_ca: TrustedCa = TrustedCa()
    proxy: Proxy = Proxy()


class Settings(Limits):
    """What one policy says."""

    model_cache: ModelCache = ModelCache()


class AdminPolicy(Settings):
    namespaces: dict[Annotated[str, Field(pattern=DNS_LABEL)], Settings] = {}
    """Policies of single namespaces. Each field that is written there replaces the one above."""

    def of(self, namespace: str) -> Settings:
        """The policy of one namespace."""
        own = self.namespaces.get(namespace)
        if own is None:
            return self
        return self.model_copy(update={name: getattr(own, name) for name in own.model_fields_set})


@dataclass(frozen=True, kw_only=True)
class Violation:
    """`path` in the manifest, what is not allowed there, and what its author can do."""

    path: str
    message: str
    hint: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


def read(text: str) -> AdminPolicy:
    """From YAML or JSON. ValueError with one line for each mistake."""
    try:
        return AdminPolicy.model_validate(yaml_text.document(text) or {})
    except yaml_text.YamlError as error:
        raise ValueError(f"not valid YAML: {error}") from None
    except ValidationError as error:
        lines = (f"{'.'.join(map(str, each['loc'])) or 'policy'}: {each['msg']}" for each in error.errors())
        raise ValueError("; ".join(lines)) from None


def load(path: Path) -> AdminPolicy:
    """OSError if the file cannot be read, ValueError if it is not a policy."""
    return read(path.read_text())


def violations(policy: Settings, spec: FineTuneJobSpec) -> tuple[Violation, ...]:
    """All that the spec asks for and may not have, in the order of the manifest."""
    return tuple(_violations(policy, spec))


def _violations(policy: Settings, spec: FineTuneJobSpec) -> Iterator[Violation]:
    for path, uri in uris_of(spec) if policy.uri_prefixes else ():
        if not any(begins_with(uri, prefix) for prefix in policy.uri_prefixes):
            yield Violation(
                path=path, message=f"{uri} is not allowed", hint=f"Use a URI below {_one_of(policy.uri_prefixes)}."
            )
    yield from _too_large(policy, spec, nodes="nodes" if isinstance(spec.nodes, int) else "nodes.max")
    for index, each in enumerate(spec.ladder.overrides):
        where = f"spec.ladder.overrides[{index}]"
        yield from _too_large(policy, for_rung(spec, each.rung), nodes="nodes", where=where)
    if policy.images and spec.image and not any(_matches(spec.image, pattern) for pattern in policy.images):
        hint = f"Use {_one_of(policy.images)}, or remove spec.image to use the default."
        yield Violation(path="spec.image", message=f"{spec.image} is not allowed", hint=hint)
    named = (
        ("serviceAccountName", spec.pod.service_account_name, policy.service_accounts),
        ("priorityClassName", spec.pod.priority_class_name, policy.priority_classes),
        ("runtimeClassName", spec.pod.runtime_class_name, policy.runtime_classes),
    )
    for field, name, allowed in named:
        if allowed and name and name not in allowed:
            hint = f"Use {_one_of(allowed)}, or remove spec.pod.{field} to use the default."
            yield Violation(path=f"spec.pod.{field}", message=f"{name} is not allowed", hint=hint)


def _too_large(policy: Settings, spec: FineTuneJobSpec, *, nodes: str, where: str = "spec") -> Iterator[Violation]:
    """By the number of its nodes or GPUs. where: of the job, or of a rung with pods of its own."""
    if policy.max_nodes and spec.max_nodes > policy.max_nodes:
        message = f"{spec.max_nodes} nodes are more than the {policy.max_nodes} that a job may have"
        yield Violation(path=f"{where}.{nodes}", message=message, hint=f"Use at most {policy.max_nodes} nodes.")
    if policy.max_gpus and (wanted := gpus(spec)) > policy.max_gpus:
        message = f"{wanted} GPUs on {spec.max_nodes} nodes are more than the {policy.max_gpus} that a job may have"
        hint = f"Use at most {policy.max_gpus} GPUs on all nodes together."
        yield Violation(path=f"{where}.resources.limits", message=message, hint=hint)


def uris_of(spec: FineTuneJobSpec) -> Iterator[tuple[str, str]]:
    """Path and text of each URI of a store, wherever the spec has one: a field that is added later is found too."""
    for name, field in type(spec).model_fields.items():
        key = field.alias or name
        if key not in ELSEWHERE:
            yield from _uris(getattr(spec, name), f"spec.{key}")


def _uris(node: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, str) and URI.match(node):
        yield path, node
    elif isinstance(node, BaseModel):
        for name, field in type(node).model_fields.items():
            yield from _uris(getattr(node, name), f"{path}.{field.alias or name}")
    elif isinstance(node, Mapping):
        for key, each in node.items():
            yield from _uris(each, f"{path}.{key}")
    elif isinstance(node, (tuple, list)):
        for index, each in enumerate(node):
            yield from _uris(each, f"{path}[{index}]")


def begins_with(uri: str, prefix: str) -> bool:
    """Whether a URI is the prefix, or continues after it with a new segment of its path."""
    if re.search(r"(^|/)\.\.(/|$)", uri.partition("://")[2]):
        return False
    return uri == prefix.rstrip("/") or uri.startswith(f"{prefix.removesuffix('/')}/")


def gpus(spec: FineTuneJobSpec) -> int:
    """Devices of all nodes: whole GPUs, slices and other accelerators, and one a process for claims of devices."""
    wanted = [
        int(str(amount))
        for name, amount in spec.resources.limits.items()
        if (name.endswith(accelerators.WHOLE) or re.search(accelerators.OTHERS, name)) and str(amount).isdecimal()
    ]
    claimed = spec.processes if spec.pod.resource_claims else 0
    return spec.max_nodes * (sum(wanted) + claimed)


def with_defaults(policy: Settings, spec: FineTuneJobSpec) -> FineTuneJobSpec:
    """The spec as its pods get it. The job's own settings win; tolerations and pull secrets are added to them."""
    pod = _cached(policy.model_cache, spec, _pod(policy, spec.pod))
    return spec if pod is spec.pod else spec.model_copy(update={"pod": pod})


def _cached(cache: ModelCache, spec: FineTuneJobSpec, pod: Pod) -> Pod:
    """The volume for models, if the trainer downloads one. A job opts out by an empty variable; one that uses the claim
    or the path for something else keeps it for that."""
    model = spec.given_model.uri if spec.given_model and spec.command is None else ""
    if not cache.claim or not model.startswith(REMOTE) or cache.claim in _claims(spec, pod):
        return pod
    theirs = {variable.name for variable in pod.env}
    if ENV_MODEL_CACHE in theirs or MODEL_CACHE_DIR in {volume.mount_path for volume in pod.volumes}:
        return pod
    claim = ClaimVolume(claim_name=cache.claim)
    volume = Volume(name=CACHE_VOLUME, mount_path=MODEL_CACHE_DIR, persistent_volume_claim=claim)
    wanted = {ENV_MODEL_CACHE: MODEL_CACHE_DIR}
    wanted |= {ENV_MODEL_CACHE_GIB: str(cache.size_gib)} if cache.size_gib else {}
    more = tuple(EnvVar(name=name, value=value) for name, value in wanted.items() if name not in theirs)
    return pod.model_copy(update={"volumes": (*pod.volumes, volume), "env": (*pod.env, *more)})


def _claims(spec: FineTuneJobSpec, pod: Pod) -> set[str]:
    """Claims that the pods mount already; two volumes of one claim keep a pod from starting on some storage."""
    named = {uris.parse(uri).authority for _, uri in uris_of(spec) if uri.startswith("pvc://")}
    mounted = {each.persistent_volume_claim.claim_name for each in pod.volumes if each.persistent_volume_claim}
    return named | mounted


def _pod(policy: Settings, pod: Pod) -> Pod:
    given = policy.pod_defaults
    changes: dict[str, Any] = {}
    for name in ("service_account_name", "priority_class_name", "runtime_class_name", "scheduler_name"):
        if getattr(pod, name) is None and (value := getattr(given, name)):
            changes[name] = value
    for name in ("node_selector", "labels", "annotations"):
        if more := {key: value for key, value in getattr(given, name).items() if key not in getattr(pod, name)}:
            changes[name] = {**more, **getattr(pod, name)}
    tolerations = [_toleration(each) for each in given.tolerations]
    if missing := tuple(each for each in tolerations if each not in pod.tolerations):
        changes["tolerations"] = (*pod.tolerations, *missing)
    known = {secret.name for secret in pod.image_pull_secrets}
    if secrets := tuple(NamedSource(name=name) for name in given.image_pull_secrets if name not in known):
        changes["image_pull_secrets"] = (*pod.image_pull_secrets, *secrets)
    changes |= _environment(policy, pod)
    return pod.model_copy(update=changes) if changes else pod


def _environment(policy: Settings, pod: Pod) -> dict[str, Any]:
    """Variables that the job does not set itself, and the volume of the certificates that they name."""
    changes: dict[str, Any] = {}
    ca, wanted = policy.trusted_ca, dict(_variables(policy))
    if ca.config_map and CA_DIR not in {volume.mount_path for volume in pod.volumes}:
        source = NamedSource(name=ca.config_map)
        volume = Volume(name=CA_VOLUME, mount_path=CA_DIR, read_only=True, config_map=source)
        changes["volumes"] = (*pod.volumes, volume)
    theirs = {variable.name for variable in pod.env}
    if more := tuple(EnvVar(name=name, value=value) for name, value in wanted.items() if name not in theirs):
        changes["env"] = (*pod.env, *more)
    return changes


def _variables(policy: Settings) -> Iterable[tuple[str, str]]:
    if policy.hub_endpoint:
        yield "HF_ENDPOINT", policy.hub_endpoint
    for name in CA_VARIABLES if policy.trusted_ca.config_map else ():
        yield name, f"{CA_DIR}/{policy.trusted_ca.key}"
    proxy = policy.proxy
    for name, value in (("HTTP_PROXY", proxy.http), ("HTTPS_PROXY", proxy.https), ("NO_PROXY", proxy.no_proxy)):
        if value:
            yield name, value
            yield name.lower(), value  # curl reads only this one
    yield from policy.pod_defaults.env.items()


def _toleration(given: PodToleration) -> Toleration:
    return Toleration.model_validate(
        {key: value for key, value in given.model_dump(by_alias=True).items() if value not in ("", None)}
    )


def _matches(image: str, pattern: str) -> bool:
    return image.startswith(pattern[:-1]) if pattern.endswith("*") else image == pattern


def _one_of(allowed: Iterable[str]) -> str:
    return " or ".join(allowed)
