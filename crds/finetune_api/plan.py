"""What one attempt's pods are told: the annotation `finetune.dev/plan`, and the file that local agents read."""

from __future__ import annotations

from pydantic import Field

from .base import ApiModel
from .names import MASTER_PORT
from .spec import FineTuneJobSpec
from .status import Artifact, Evaluation, Progress, ResolvedPlan


class JobIdentity(ApiModel):
    namespace: str
    name: str
    uid: str = Field(description="Names the run in the output folder. Of local runs: made from what they train.")


class RunPlan(ApiModel):
    """One attempt. The same for every node; the node's rank comes from its environment."""

    job: JobIdentity
    attempt: int = Field(1, ge=1)
    nodes: int = Field(1, ge=1)
    processes_per_node: int = Field(1, ge=1)
    master_address: str = "127.0.0.1"
    master_port: int = MASTER_PORT
    grace_seconds: int = Field(120, description="From SIGTERM to SIGKILL.")
    micro_batch_tokens: int | None = Field(
        None, ge=8, description="Instead of the manifest's, after memory ran out. The batch stays what it is."
    )
    skipped_step: int | None = Field(
        None, ge=0, description="Optimizer steps before the one that learns nothing, for its batch was not finite."
    )
    spec: FineTuneJobSpec

    @property
    def world_size(self) -> int:
        return self.nodes * self.processes_per_node

    @property
    def spec_of_attempt(self) -> FineTuneJobSpec:
        """The spec with what this attempt does differently."""
        spec = self.spec.model_copy(update={"nodes": self.nodes})
        if self.micro_batch_tokens is None:
            return spec
        training = spec.training.model_copy(update={"micro_batch_tokens": self.micro_batch_tokens})
        return spec.model_copy(update={"training": training})


class ProgressReport(ApiModel):
    """What the agent of node 0 answers on GET /progress."""

    attempt: int
    phase: str = Field(description="preflight, waiting, loading, evaluating, training, saving, done or failed.")
    progress: Progress = Field(default_factory=Progress)
    plan: ResolvedPlan | None = None
    evaluation: Evaluation | None = None
    artifact: Artifact | None = None
