"""FineTuneJob.spec.pod and resources: selected fields of the pods, never a whole pod template."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from . import sizes
from .base import ApiModel, Rule, exactly_one
from .fields import (
    ENV_NAME,
    LIST_MAP,
    MAP_KEYS,
    MOUNT_PATH,
    NULLABLE,
    PRESERVE,
    Duration,
    Label,
    Name,
    ObjectName,
    Quantity,
)
from .names import PLAN_DIR

APPARMOR = "container.apparmor.security.beta.kubernetes.io/"
"""Prefix of annotations that replace a container's AppArmor profile."""

SHM = "/dev/shm"
OWN_VOLUMES = "finetune-"

Id = Annotated[int, Field(ge=1, le=2147483647)]


def _gpus_are_whole(limits: dict[str, Any]) -> bool:
    return all(str(amount).isdecimal() for name, amount in limits.items() if name.endswith("/gpu"))


def _paths_differ(volumes: list[Any]) -> bool:
    paths = [volume.get("mountPath") for volume in volumes if isinstance(volume, dict)]
    return all(path not in paths[:index] for index, path in enumerate(paths))


class Resources(ApiModel):
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="Limits per pod, e.g. nvidia.com/gpu: 8."
    )
    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="Requests per pod."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        sizes.short_keys("limits", "requests"),
        Rule(
            cel="!has(self.limits) || self.limits.all(name, !name.endsWith('/gpu') || "
            "type(self.limits[name]) == int || self.limits[name].matches('^[0-9]+$'))",
            message="resources.limits of GPUs must be integers, such as nvidia.com/gpu: 8",
            holds=lambda new, _: _gpus_are_whole(new.get("limits") or {}),
        ),
    )


class SecretKeyRef(ApiModel):
    name: ObjectName
    key: Annotated[str, Field(min_length=1, max_length=253)]


class EnvVar(ApiModel):
    name: str = Field(min_length=1, max_length=256, pattern=ENV_NAME)
    value: str | None = Field(None, max_length=4096)
    secret_key_ref: SecretKeyRef | None = Field(None, description="A key of a Secret in the job's namespace.")

    RULES: ClassVar[tuple[Rule, ...]] = (exactly_one("value", "secretKeyRef", where="pod.env"),)


class ClaimVolume(ApiModel):
    claim_name: ObjectName


class EmptyDirVolume(ApiModel):
    medium: Literal["Memory"] | None = None
    size_limit: Quantity | None = None


class NamedSource(ApiModel):
    name: ObjectName


class Volume(ApiModel):
    name: Name
    mount_path: str = Field(
        min_length=2, max_length=1024, pattern=MOUNT_PATH, description="Path in the trainer container."
    )
    read_only: bool = Field(False)
    persistent_volume_claim: ClaimVolume | None = None
    empty_dir: EmptyDirVolume | None = None
    config_map: NamedSource | None = None
    secret: NamedSource | None = None

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("persistentVolumeClaim", "emptyDir", "configMap", "secret", where="pod.volumes"),
        Rule(
            cel=f"!(self.mountPath in ['{PLAN_DIR}', '{SHM}'])",
            message=f"pod.volumes: {PLAN_DIR} and {SHM} are mounted already: choose another mountPath "
            f"(pod.shmSize sets the size of {SHM})",
            holds=lambda new, _: new.get("mountPath") not in (PLAN_DIR, SHM),
        ),
        Rule(
            cel=f"!self.name.startsWith('{OWN_VOLUMES}')",
            message=f"pod.volumes: names that begin with {OWN_VOLUMES} are the operator's own",
            holds=lambda new, _: not str(new.get("name", "")).startswith(OWN_VOLUMES),
        ),
    )


class ResourceClaim(ApiModel):
    name: Name
    resource_claim_name: ObjectName | None = Field(None, description="Existing claim; all pods share its devices.")
    resource_claim_template_name: ObjectName | None = Field(
        None, description="Template from which each pod gets its own claim."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("resourceClaimName", "resourceClaimTemplateName", where="pod.resourceClaims"),
    )


class Toleration(ApiModel):
    key: str | None = Field(None, max_length=317)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(None, ge=0, le=9007199254740991)


class Pod(ApiModel):
    """Selected fields of the pod template. There is no hostPath, hostNetwork or privileged mode."""

    service_account_name: ObjectName | None = Field(
        None, description="ServiceAccount of the pods, for cloud identities; its API token is never mounted."
    )
    node_selector: Annotated[dict[str, Label], Field(max_length=32)] = Field(default_factory=dict)
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = Field(
        (), json_schema_extra={LIST_MAP: "atomic"}
    )
    affinity: dict[str, Any] | None = Field(
        None, description="Affinity, as in a pod spec.", json_schema_extra={PRESERVE: True}
    )
    priority_class_name: ObjectName | None = None
    runtime_class_name: ObjectName | None = None
    scheduler_name: ObjectName | None = None
    image_pull_secrets: Annotated[tuple[NamedSource, ...], Field(max_length=16)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
    env: Annotated[tuple[EnvVar, ...], Field(max_length=128)] = Field(
        (), json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
    volumes: Annotated[tuple[Volume, ...], Field(max_length=32)] = Field(
        (), description="Volumes, each with its mount path.", json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
    resource_claims: Annotated[tuple[ResourceClaim, ...], Field(max_length=16)] = Field(
        (),
        description="Devices for the trainer by Dynamic Resource Allocation. They need a number in processesPerNode.",
        json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]},
    )
    labels: Annotated[dict[str, Label], Field(max_length=32)] = Field(default_factory=dict)
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    shm_size: Quantity | None = Field(
        None,
        description="Size of /dev/shm. Default and maximum: the memory limit, or the node's memory without a limit.",
    )
    run_as_user: Id | None = Field(
        65532,
        description="User ID, never root. null: assigned by the namespace, as on OpenShift.",
        json_schema_extra={NULLABLE: True},
    )
    run_as_group: Annotated[int, Field(ge=0, le=2147483647)] | None = Field(
        None,
        description="Group ID. Default: the value of runAsUser. null: assigned by the namespace.",
        json_schema_extra={NULLABLE: True},
    )
    fs_group: Id | None = Field(
        65532,
        description="Group ID of mounted volumes. null: assigned by the namespace.",
        json_schema_extra={NULLABLE: True},
    )
    termination_grace_period: Duration = Field(
        "2m", description="Time that a terminating pod has to save a checkpoint."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        sizes.ENV,
        sizes.ANNOTATIONS,
        sizes.short_keys("labels", "annotations", "nodeSelector"),
        Rule(
            cel="!has(self.annotations) || "
            f"self.annotations.all(key, key.size() > {sizes.KEY} || !key.startsWith('{APPARMOR}'))",
            message=f"pod.annotations: {APPARMOR}… would lift the pods' AppArmor profile: remove it",
            holds=lambda new, _: not any(str(key).startswith(APPARMOR) for key in new.get("annotations") or {}),
        ),
        Rule(
            cel="!has(self.volumes) || self.volumes.all(a, self.volumes.exists_one(b, b.mountPath == a.mountPath))",
            message="pod.volumes: two volumes have the same mountPath",
            holds=lambda new, _: _paths_differ(new.get("volumes") or []),
        ),
    )

    @property
    def group(self) -> int | None:
        """The resolved runAsGroup; None: assigned by the namespace."""
        return self.run_as_group if "run_as_group" in self.model_fields_set else self.run_as_user
