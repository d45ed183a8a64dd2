"""What the pods of a job look like: typed leaves, never a whole pod template."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from .base import ApiModel, Rule
from .fields import (
    ENV_NAME,
    LIST_MAP,
    MAP_KEYS,
    MOUNT_PATH,
    PRESERVE,
    Duration,
    Label,
    Name,
    ObjectName,
    Quantity,
)
from .rules import exactly_one


def _gpus_are_whole(limits: dict[str, Any]) -> bool:
    return all(str(amount).isdecimal() for name, amount in limits.items() if name.endswith("/gpu"))


class Resources(ApiModel):
    limits: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="Of each pod, e.g. nvidia.com/gpu: 8."
    )
    requests: Annotated[dict[str, Quantity], Field(max_length=16)] = Field(
        default_factory=dict, description="Of each pod."
    )

    RULES: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.limits) || self.limits.all(name, !name.endsWith('/gpu') || "
            "type(self.limits[name]) == int || self.limits[name].matches('^[0-9]+$'))",
            message="resources.limits of GPUs must be whole numbers, such as nvidia.com/gpu: 8",
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
    mount_path: str = Field(min_length=2, max_length=1024, pattern=MOUNT_PATH, description="Where the trainer sees it.")
    read_only: bool = Field(False)
    persistent_volume_claim: ClaimVolume | None = None
    empty_dir: EmptyDirVolume | None = None
    config_map: NamedSource | None = None
    secret: NamedSource | None = None

    RULES: ClassVar[tuple[Rule, ...]] = (
        exactly_one("persistentVolumeClaim", "emptyDir", "configMap", "secret", where="pod.volumes"),
    )


class Toleration(ApiModel):
    key: str | None = Field(None, max_length=317)
    operator: Literal["Exists", "Equal"] | None = None
    value: str | None = Field(None, max_length=63)
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: int | None = Field(None, ge=0, le=9007199254740991)


class Pod(ApiModel):
    """Typed leaves of the pod, never a whole template: hostPath, hostNetwork and friends cannot be written."""

    service_account_name: ObjectName | None = Field(
        None, description="For cloud identities; its API token is never mounted."
    )
    node_selector: Annotated[dict[str, Label], Field(max_length=32)] = Field(default_factory=dict)
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = Field(
        (), json_schema_extra={LIST_MAP: "atomic"}
    )
    affinity: dict[str, Any] | None = Field(None, description="As in a pod.", json_schema_extra={PRESERVE: True})
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
        (), description="Volume and mount in one.", json_schema_extra={LIST_MAP: "map", MAP_KEYS: ["name"]}
    )
    labels: Annotated[dict[str, Label], Field(max_length=32)] = Field(default_factory=dict)
    annotations: Annotated[dict[str, Annotated[str, Field(max_length=4096)]], Field(max_length=32)] = Field(
        default_factory=dict
    )
    shm_size: Quantity | None = Field(
        None, description="Of /dev/shm. Default, and at most: the memory limit; without one, what the node has."
    )
    run_as_user: int = Field(65532, ge=1, le=2147483647, description="Never root.")
    fs_group: int = Field(65532, ge=1, le=2147483647, description="Group of mounted volumes.")
    termination_grace_period: Duration = Field("2m", description="Time for a checkpoint when a pod must go.")
