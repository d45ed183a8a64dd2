"""Names shared by several packages: Kubernetes keys, environment variables, ports, paths."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT_NAME = "ftj"

FIELD_MANAGER = "finetune-operator"
"""Field manager of everything that the operator applies."""

MANAGER = f"{GROUP}/finetune-operator"
"""Value of `spec.managedBy` for jobs that this operator manages; it also manages jobs without a value."""

# Labels on every child object
LABEL_JOB = f"{GROUP}/job-name"
LABEL_UID = f"{GROUP}/job-uid"
LABEL_ATTEMPT = f"{GROUP}/attempt"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
LABEL_NAME = "app.kubernetes.io/name"
APP_NAME = "finetune-job"
LABEL_COMPLETION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Set by the Job controller; the node rank."""

LABEL_PROBE = f"{GROUP}/probe"
"""On the idle pods of a capacity check, which tests whether more nodes can be scheduled: see `probe_of`."""

# Kueue's, on an attempt's Job
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
ANNOTATION_QUEUE_MIN = "kueue.x-k8s.io/job-min-parallelism"
"""Minimum number of pods that Kueue may admit."""
ANNOTATION_QUEUE_SYNC = "kueue.x-k8s.io/job-completions-equal-parallelism"
LABEL_QUEUED_JOB_UID = "kueue.x-k8s.io/job-uid"
"""On the Workload that Kueue makes of a Job."""

# Annotations
ANNOTATION_PLAN = f"{GROUP}/plan"
"""On the pod template: the attempt's RunPlan as JSON, read in the pod through a downwardAPI volume."""

ANNOTATION_PODS = f"{GROUP}/pods-digest"
"""On an attempt's Job: digest of the pod-related fields of the manifest. A different digest requires a new attempt."""
ANNOTATION_PODS_ORDERED = f"{GROUP}/pods"
"""The same for older versions of the operator, which do not know the other annotation. It depends on list order."""
ANNOTATION_GANG = f"{GROUP}/gang"
"""On an attempt's Job: the gang scheduling mode that it was created for."""
ANNOTATION_AGENT = f"{GROUP}/agent"
"""On an attempt's Job: token and nonce of its plan, `<token>.<nonce>`, which authenticate operator and agent."""

# Environment of a training pod
ENV_NODE_RANK = "JOB_COMPLETION_INDEX"
"""Node rank: set by the Job controller, and by `finetune run` for its local agents."""
ENV_JOB_NAME = "FINETUNE_JOB_NAME"
ENV_ATTEMPT = "FINETUNE_ATTEMPT"
"""Both are for custom scripts."""
ENV_RUN_DIR = "FINETUNE_RUN_DIR"
ENV_CACHE = "FINETUNE_CACHE"
ENV_PVC_ROOT = "FINETUNE_PVC_ROOT"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
"""Paths that replace those of a pod (RUN_DIR, CACHE_DIR, PVC_ROOT, TERMINATION_LOG below) for runs outside a pod."""
ENV_MODEL_CACHE = "FINETUNE_SHARED_MODELS"
"""Folder of a cache of remote models that several runs share. Unset or empty: none."""
ENV_MODEL_CACHE_GIB = "FINETUNE_SHARED_MODELS_GIB"
"""Its bound in GiB. Unset or 0: nine tenths of its volume."""
ENV_MODEL_CACHE_NOTES = "FINETUNE_SHARED_MODELS_NOTES"
"""Folder in which the processes of one agent leave notes about the cache: see store.shared_leases."""
ENV_TRACKER_SECONDS = "FINETUNE_TRACKER_SECONDS"
"""How many seconds a finished run waits for its trackers at most; a failed attempt waits for a sixth of it."""
PREFIX_MODEL = "FINETUNE_MODEL_"
PREFIX_DATA = "FINETUNE_DATA_"
PREFIX_OUTPUT = "FINETUNE_OUTPUT_"
"""The keys of a Secret named by `credentials` get its section's prefix in the environment, so that two buckets can have
different keys of the same name. Readers look for PREFIX + NAME first, then for NAME."""

# In the pod
CONTAINER = "trainer"
PLAN_DIR = "/etc/finetune"
PLAN_FILE = "plan.json"
RUN_DIR = "/var/run/finetune"
CACHE_DIR = "/var/cache/finetune"
MODEL_CACHE_DIR = "/var/cache/finetune-models"
"""Where the operator mounts the shared cache of models."""
PVC_ROOT = "/mnt/pvc"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096
"""Maximum size in bytes of a container's termination message, a limit of the kubelet."""

MASTER_PORT = 29500
AGENT_PORT = 9400
AGENT_PORT_NAME = "metrics"

MAX_NAME_LENGTH = 48
"""Maximum length of a FineTuneJob's name: pods are named `<name>-<attempt>-<index>`, host names have 63 characters."""


def attempt_name(job: str, attempt: int) -> str:
    """Name of the Job of an attempt: `cardiology-2`."""
    return f"{job}-{attempt}"


def pod_address(namespace: str, job: str, attempt: int, index: int) -> str:
    """The DNS name of a pod of an attempt: `cardiology-2-0.cardiology.team.svc`. A name without its namespace could be
    resolved by a search domain of the pod, to a foreign namespace that has the name of the job."""
    return f"{attempt_name(job, attempt)}-{index}.{job}.{namespace}.svc"


def probe_name(job: str, attempt: int) -> str:
    """Name of the Job that checks the capacity for more nodes: `cardiology-2-probe`."""
    return f"{attempt_name(job, attempt)}-probe"


def probe_of(uid: str, attempt: int) -> str:
    """Value of the label `LABEL_PROBE`."""
    return f"{uid}.{attempt}"
