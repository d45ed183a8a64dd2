"""The Service of a FineTuneJob and the Indexed Job of one attempt. Pure: spec in, objects out.

Pods satisfy the `restricted` Pod Security Standard and carry no API token. What a pod must know is the plan, an
annotation on the pod template that a downwardAPI volume shows as a file: attempt and configuration cannot part.
"""

from __future__ import annotations

import hashlib
import hmac
from typing import Any

from finetune_api import durations, names, uris
from finetune_api.data import Credentials
from finetune_api.plan import JobIdentity, RunPlan
from finetune_api.pod import APPARMOR, SHM, EnvVar, Volume
from finetune_api.pod import Pod as PodSpec
from finetune_api.rung_pods import UnavailableRung
from finetune_api.spec import FineTuneJobSpec

from .gangs import Gang, GroupObject, Members
from .kube.resources import Resource
from .state.observe import Defaults
from .state.prices import price_of
from .state.views import ChildJob, JobView

WRITABLE: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("finetune-tmp", "/tmp", {}),
    ("finetune-run", names.RUN_DIR, {}),
    ("finetune-cache", names.CACHE_DIR, {}),
)
"""The root file system is read-only; these are not."""

READINESS = {
    "httpGet": {"path": "/healthz", "port": names.AGENT_PORT_NAME},
    "periodSeconds": 30,
    "timeoutSeconds": 10,
    "failureThreshold": 3,
}
"""The kubelet asks the agent too, and by another path than the operator: see policies.deadline. Nothing waits for a pod
to be ready, since the Service publishes the addresses of all."""

NAME_LABELS = {names.LABEL_NAME: names.APP_NAME, names.LABEL_MANAGED_BY: names.FIELD_MANAGER}


def service(job: JobView) -> dict[str, Any]:
    """Gives each pod of the gang a name in DNS, also before it is ready: see names.pod_address."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(job, job.name, {}),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {names.LABEL_JOB: job.name, names.LABEL_UID: job.uid},
            "ports": [
                {"name": names.AGENT_PORT_NAME, "port": names.AGENT_PORT, "targetPort": names.AGENT_PORT_NAME},
                {"name": "master", "port": names.MASTER_PORT, "targetPort": names.MASTER_PORT},
            ],
        },
    }


def attempt_job(
    job: JobView,
    spec: FineTuneJobSpec,
    *,
    attempt: int,
    nodes: int | None = None,
    defaults: Defaults,
    micro_batch_tokens: int | None = None,
    skipped_step: int | None = None,
    gang: Gang | None = None,
    rung: str | None = None,
    whole: FineTuneJobSpec | None = None,
    unavailable: UnavailableRung | None = None,
) -> dict[str, Any]:
    """One gang, by default of all the nodes that the job may have. Nothing inside it restarts anything: a failed pod
    fails the Job, and the next is our decision. rung: whose pods these are, where `spec` is that of a rung; `whole` is
    the job's then, by which the pods know those of the other rungs."""
    nodes = nodes or spec.max_nodes
    own = {names.LABEL_ATTEMPT: str(attempt)}
    queue = {names.LABEL_QUEUE: spec.queue_name} if spec.queue_name else {}
    notes = {names.ANNOTATION_PODS: job.pods_digest, names.ANNOTATION_PODS_ORDERED: job.pods_digest_ordered}
    if queue and spec.min_nodes < nodes:
        notes |= {names.ANNOTATION_QUEUE_MIN: str(spec.min_nodes), names.ANNOTATION_QUEUE_SYNC: "true"}
    token, nonce = (_secret(defaults.key, what, job.uid, str(attempt)) for what in ("token", "nonce"))
    notes |= {names.ANNOTATION_AGENT: f"{token}.{nonce}"}
    changed: dict[str, Any] = {"micro_batch_tokens": micro_batch_tokens, "skipped_step": skipped_step}
    changed |= {"token": token, "nonce": nonce, "pods_of": rung, "unavailable_rung": unavailable}
    if whole is not None:
        changed["spec"] = whole.model_copy(update={"pod": PodSpec()})
    if spec.continue_from is not None:
        changed["uri_prefixes"] = tuple(defaults.policy.of(job.namespace).uri_prefixes) or None
    if spec.method.is_auto:
        changed["price"] = price_of(defaults.prices, spec)
    plan = run_plan(job, spec, attempt=attempt, nodes=nodes).model_copy(update=changed)
    made: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata(job, names.attempt_name(job.name, attempt), {**own, **queue}) | {"annotations": notes},
        "spec": {
            **({"suspend": True} if queue else {}),
            "completionMode": "Indexed",
            "completions": nodes,
            "parallelism": nodes,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": {**spec.pod.labels, **_labels(job), **own},
                    "annotations": {
                        **_annotations(spec),
                        names.ANNOTATION_PLAN: plan.model_dump_json(by_alias=True, exclude_none=True),
                    },
                },
                "spec": pod_spec(job.name, spec, defaults=defaults, grace_seconds=plan.grace_seconds),
            },
        },
    }
    if gang is not None:
        made["metadata"]["annotations"][names.ANNOTATION_GANG] = gang.name
        gang.mark(made, _members(job, spec, names.attempt_name(job.name, attempt), nodes))
    return made


def _members(job: JobView, spec: FineTuneJobSpec, name: str, nodes: int) -> Members:
    return Members(
        namespace=job.namespace,
        name=name,
        pods=min(nodes, spec.min_nodes),
        seconds=durations.seconds(spec.deadlines.startup),
        labels=spec.pod.labels,
    )


def pod_group(
    job: JobView, spec: FineTuneJobSpec, child: ChildJob, *, group: GroupObject, kind: Resource
) -> dict[str, Any]:
    """What the pods of an attempt's Job wait for together, at least spec.nodes.min of them. It goes with the Job."""
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": child.name, "uid": child.uid}
    meta = metadata(job, child.name, {names.LABEL_ATTEMPT: str(child.attempt)})
    return {
        "apiVersion": kind.api_version,
        "kind": kind.kind,
        "metadata": {**meta, "ownerReferences": [owner]},
        "spec": group.spec(_members(job, spec, child.name, child.nodes)),
    }


def probe_job(
    job: JobView, spec: FineTuneJobSpec, *, attempt: int, pods: int, defaults: Defaults, seconds: int
) -> dict[str, Any]:
    """Pods that ask the scheduler whether the attempt could have so many more: all that decides on a node is as in the
    attempt's own, and they do nothing. One that has got a node keeps it for so many seconds."""
    own = {names.LABEL_PROBE: names.probe_of(job.uid, attempt)}
    pod = pod_spec(job.name, spec, defaults=defaults, grace_seconds=1)
    keep = ("image", "resources", "securityContext")
    idle = {key: pod["containers"][0][key] for key in keep}
    idle |= {"name": "probe", "command": ["sleep", str(seconds)]}
    labels = {**NAME_LABELS, names.LABEL_JOB: job.name, **own}
    known = metadata(job, names.probe_name(job.name, attempt), {})
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {**known, "labels": labels},
        "spec": {
            "completions": pods,
            "parallelism": pods,
            "backoffLimit": 0,
            "template": {
                "metadata": {"labels": {**spec.pod.labels, **labels}, "annotations": _annotations(spec)},
                "spec": {**pod, "containers": [idle]},
            },
        },
    }


def run_plan(job: JobView, spec: FineTuneJobSpec, *, attempt: int, nodes: int) -> RunPlan:
    """What every pod of the attempt reads. The pod's own settings are left out: it cannot see them, nor need to."""
    return RunPlan(
        job=JobIdentity(namespace=job.namespace, name=job.name, uid=job.uid),
        attempt=attempt,
        nodes=nodes,
        processes_per_node=spec.processes,
        master_address=names.pod_address(job.namespace, job.name, attempt, 0),
        grace_seconds=durations.seconds(spec.pod.termination_grace_period),
        spec=spec.model_copy(update={"pod": PodSpec()}),
    )


def pod_spec(subdomain: str, spec: FineTuneJobSpec, *, defaults: Defaults, grace_seconds: int) -> dict[str, Any]:
    pod = spec.pod
    volumes, mounts = _volumes(spec)
    optional = {
        "serviceAccountName": pod.service_account_name,
        "nodeSelector": dict(pod.node_selector),
        "tolerations": [toleration.to_json() for toleration in pod.tolerations],
        "affinity": pod.affinity,
        "priorityClassName": pod.priority_class_name,
        "runtimeClassName": pod.runtime_class_name,
        "schedulerName": pod.scheduler_name,
        "imagePullSecrets": [secret.to_json() for secret in pod.image_pull_secrets],
        "resourceClaims": [claim.to_json() for claim in pod.resource_claims],
    }
    ids = {"runAsUser": pod.run_as_user, "runAsGroup": pod.group, "fsGroup": pod.fs_group}
    resources = spec.resources.to_json()
    if pod.resource_claims:
        resources["claims"] = [{"name": claim.name} for claim in pod.resource_claims]
    return {
        "restartPolicy": "Never",
        "subdomain": subdomain,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": grace_seconds,
        "securityContext": {
            "runAsNonRoot": True,
            **{name: number for name, number in ids.items() if number is not None},
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [
            {
                "name": names.CONTAINER,
                "image": spec.image or defaults.image,
                "command": list(defaults.trainer_command),
                "env": _environment(pod.env),
                "envFrom": _secrets(spec),
                "resources": resources,
                "ports": [{"name": names.AGENT_PORT_NAME, "containerPort": names.AGENT_PORT}],
                "volumeMounts": mounts,
                "readinessProbe": READINESS,
                "terminationMessagePath": names.TERMINATION_LOG,
                "terminationMessagePolicy": "FallbackToLogsOnError",
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
            }
        ],
        "volumes": volumes,
        **{name: value for name, value in optional.items() if value},
    }


def _environment(extra: tuple[EnvVar, ...]) -> list[dict[str, Any]]:
    """The operator's variables, except those that the user sets. Each costs the API server a third of a millisecond in
    the life of a pod, so what the trainer knows by itself is not set."""
    theirs = {variable.name for variable in extra}
    env: list[dict[str, Any]] = [] if "HOME" in theirs else [{"name": "HOME", "value": "/tmp"}]
    for variable in extra:
        if variable.secret_key_ref is not None:
            env.append({"name": variable.name, "valueFrom": {"secretKeyRef": variable.secret_key_ref.to_json()}})
        else:
            env.append({"name": variable.name, "value": variable.value or ""})
    return env


def _secrets(spec: FineTuneJobSpec) -> list[dict[str, Any]]:
    sections: tuple[tuple[str, Credentials | None], ...] = (
        (names.PREFIX_MODEL, spec.given_model.credentials if spec.given_model else None),
        (names.PREFIX_DATA, spec.given_data.credentials if spec.given_data else None),
        (names.PREFIX_OUTPUT, spec.given_output.credentials if spec.given_output else None),
    )
    return [
        {"prefix": prefix, "secretRef": {"name": credentials.secret_name}}
        for prefix, credentials in sections
        if credentials is not None
    ]


def _volumes(spec: FineTuneJobSpec) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Volumes of the pod and mounts of its container."""
    plan = {"path": names.PLAN_FILE, "fieldRef": {"fieldPath": f"metadata.annotations['{names.ANNOTATION_PLAN}']"}}
    memory: dict[str, Any] = {"medium": "Memory"}
    if spec.pod.shm_size is not None:
        memory["sizeLimit"] = spec.pod.shm_size
    volumes: list[dict[str, Any]] = [
        {"name": "finetune-plan", "downwardAPI": {"items": [plan]}},
        {"name": "finetune-shm", "emptyDir": memory},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "finetune-plan", "mountPath": names.PLAN_DIR, "readOnly": True},
        {"name": "finetune-shm", "mountPath": SHM},
    ]
    for name, path, source in WRITABLE:
        if path not in {volume.mount_path for volume in spec.pod.volumes}:
            volumes.append({"name": name, "emptyDir": source})
            mounts.append({"name": name, "mountPath": path})
    for index, (claim, writable) in enumerate(claims(spec).items()):
        volumes.append({"name": f"finetune-claim-{index}", "persistentVolumeClaim": {"claimName": claim}})
        mount = {"name": f"finetune-claim-{index}", "mountPath": f"{names.PVC_ROOT}/{claim}"}
        mounts.append(mount if writable else {**mount, "readOnly": True})
    for volume in spec.pod.volumes:
        volumes.append({"name": volume.name, **_source(volume)})
        mount = {"name": volume.name, "mountPath": volume.mount_path}
        mounts.append({**mount, "readOnly": True} if volume.read_only else mount)
    return volumes, mounts


def claims(spec: FineTuneJobSpec) -> dict[str, bool]:
    """Claims named by pvc:// URIs, in order; True where the output goes, the others are only read."""
    read = [spec.given_model.uri] if spec.given_model else []
    if (data := spec.given_data) is not None:
        read += [source.uri for source in data.train]
        read += [each.uri for each in (data.validation, data.test, data.general, *data.slices) if each and each.uri]
        read += [uri] if (uri := spec.replay_uri) else []
    read += [each.uri for each in spec.evaluation.references]
    read += spec.given_output.switch_test if spec.given_output else ()
    read += [uri] if (uri := spec.continue_from) else []
    written = [spec.given_output.uri] if spec.given_output else []
    found: dict[str, bool] = {}
    for text, writable in [*((uri, False) for uri in read), *((uri, True) for uri in written)]:
        if text.startswith("pvc://"):
            claim = uris.parse(text).authority
            found[claim] = found.get(claim, False) or writable
    return found


def _source(volume: Volume) -> dict[str, Any]:
    if volume.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": volume.persistent_volume_claim.to_json()}
    if volume.config_map is not None:
        return {"configMap": {"name": volume.config_map.name}}
    if volume.secret is not None:
        return {"secret": {"secretName": volume.secret.name}}
    return {"emptyDir": volume.empty_dir.to_json() if volume.empty_dir else {}}


def _secret(key: bytes, *of: str) -> str:
    """The same for the same attempt, so that a decision stays a function of what was observed; it is secret."""
    return hmac.new(key, "/".join(of).encode(), hashlib.sha256).hexdigest()[:32]


def _labels(job: JobView) -> dict[str, str]:
    return {**NAME_LABELS, names.LABEL_JOB: job.name, names.LABEL_UID: job.uid}


def _annotations(spec: FineTuneJobSpec) -> dict[str, str]:
    """The user's, less those that lift the AppArmor profile: the CRD refuses them, and an older one did not."""
    return {key: value for key, value in spec.pod.annotations.items() if not key.startswith(APPARMOR)}


def metadata(job: JobView, name: str, labels: dict[str, str]) -> dict[str, Any]:
    """Of an object that goes with the FineTuneJob."""
    return {
        "name": name,
        "namespace": job.namespace,
        "labels": {**_labels(job), **labels},
        "ownerReferences": [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": job.name,
                "uid": job.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ],
    }
