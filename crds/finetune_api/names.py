"""Every name that two rooms must agree on: Kubernetes keys, environment, ports, paths, metrics."""

GROUP = "finetune.dev"
VERSION = "v1alpha1"
API_VERSION = f"{GROUP}/{VERSION}"
KIND = "FineTuneJob"
PLURAL = "finetunejobs"
SINGULAR = "finetunejob"
SHORT_NAME = "ftj"

FIELD_MANAGER = "finetune-operator"
"""Owner of everything that the operator applies."""

MANAGER = f"{GROUP}/finetune-operator"
"""What `spec.managedBy` says of jobs that this operator looks after; so do all that say nothing."""

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
"""On pods that only find out whether there is place for more nodes: see `probe_of`."""

# Kueue's, on an attempt's Job
LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
ANNOTATION_QUEUE_MIN = "kueue.x-k8s.io/job-min-parallelism"
"""So few pods are worth admitting."""
ANNOTATION_QUEUE_SYNC = "kueue.x-k8s.io/job-completions-equal-parallelism"
LABEL_QUEUED_JOB_UID = "kueue.x-k8s.io/job-uid"
"""On the Workload that Kueue makes of a Job."""

# Annotations
ANNOTATION_PLAN = f"{GROUP}/plan"
"""On the pod template: the attempt's RunPlan as JSON, read in the pod through a downwardAPI volume."""

ANNOTATION_PODS = f"{GROUP}/pods"
"""On an attempt's Job: a digest of what the manifest said of its pods. Another one asks for another attempt."""
ANNOTATION_GANG = f"{GROUP}/gang"
"""On an attempt's Job: the way to schedule its pods together that it was made for."""

# Environment of a training pod
ENV_NODE_RANK = "JOB_COMPLETION_INDEX"
"""Node rank: set by the Job controller, and by `finetune run` for its local agents."""
ENV_JOB_NAME = "FINETUNE_JOB_NAME"
ENV_ATTEMPT = "FINETUNE_ATTEMPT"
"""Both for a script of the user's own."""
ENV_RUN_DIR = "FINETUNE_RUN_DIR"
ENV_CACHE = "FINETUNE_CACHE"
ENV_PVC_ROOT = "FINETUNE_PVC_ROOT"
ENV_TERMINATION_LOG = "FINETUNE_TERMINATION_LOG"
"""Places other than a pod's (RUN_DIR, CACHE_DIR, PVC_ROOT, TERMINATION_LOG below): for runs outside of one."""
PREFIX_MODEL = "FINETUNE_MODEL_"
PREFIX_DATA = "FINETUNE_DATA_"
PREFIX_OUTPUT = "FINETUNE_OUTPUT_"
"""A Secret named by `credentials` enters the environment under its section's prefix, so that two buckets may have two
keys of one name. Readers look for PREFIX + NAME first, then for NAME."""

# In the pod
CONTAINER = "trainer"
PLAN_DIR = "/etc/finetune"
PLAN_FILE = "plan.json"
RUN_DIR = "/var/run/finetune"
CACHE_DIR = "/var/cache/finetune"
PVC_ROOT = "/mnt/pvc"
TERMINATION_LOG = "/dev/termination-log"
TERMINATION_LIMIT = 4096
"""Bytes that the kubelet keeps of a container's termination message."""

MASTER_PORT = 29500
AGENT_PORT = 9400
AGENT_PORT_NAME = "metrics"

MAX_NAME_LENGTH = 48
"""Of a FineTuneJob: pods are named `<name>-<attempt>-<index>`, and a host name ends at 63 characters."""


def attempt_name(job: str, attempt: int) -> str:
    """The Job of one attempt: `cardiology-2`."""
    return f"{job}-{attempt}"


def probe_name(job: str, attempt: int) -> str:
    """The Job that looks for more nodes for an attempt: `cardiology-2-probe`."""
    return f"{attempt_name(job, attempt)}-probe"


def probe_of(uid: str, attempt: int) -> str:
    """Value of `LABEL_PROBE`."""
    return f"{uid}.{attempt}"


# Metrics: the operator's, one owner for each name
JOB_INFO = "finetune_job_info"
JOB_PHASE = "finetune_job_phase"
JOB_ATTEMPT = "finetune_job_attempt"
JOB_NODES = "finetune_job_nodes"
JOB_PROGRESS_RATIO = "finetune_job_progress_ratio"
JOB_LOSS = "finetune_job_loss"
JOB_EVAL_LOSS = "finetune_job_eval_loss"
JOB_TOKENS_PER_SECOND = "finetune_job_tokens_per_second"
JOB_ETA_SECONDS = "finetune_job_eta_seconds"
JOB_LAST_PROGRESS_TIMESTAMP = "finetune_job_last_progress_timestamp_seconds"
JOB_NODES_WANTED = "finetune_job_nodes_wanted"
JOB_RESTARTS = "finetune_job_restarts"
JOB_DEADLINE_SECONDS = "finetune_job_deadline_seconds"
JOBS_FINISHED = "finetune_jobs_finished_total"
JOB_FAILURES = "finetune_job_failures_total"
RECONCILE_SECONDS = "finetune_operator_reconcile_duration_seconds"
RECONCILES = "finetune_operator_reconciles_total"
QUEUE_DEPTH = "finetune_operator_queue_depth"
QUEUE_OLDEST_SECONDS = "finetune_operator_queue_oldest_seconds"
API_REQUESTS = "finetune_operator_api_requests_total"
WATCH_AGE_SECONDS = "finetune_operator_watch_age_seconds"
LEADER = "finetune_operator_leader"
OPERATOR_INFO = "finetune_operator_build_info"

# The agent's, in each training pod
TRAIN_STEP = "finetune_train_step"
TRAIN_TOTAL_STEPS = "finetune_train_total_steps"
TRAIN_LOSS = "finetune_train_loss"
TRAIN_EVAL_LOSS = "finetune_train_eval_loss"
TRAIN_LEARNING_RATE = "finetune_train_learning_rate"
TRAIN_GRAD_NORM = "finetune_train_gradient_norm"
TRAIN_TOKENS_PER_SECOND = "finetune_train_tokens_per_second"
TRAIN_TRAINED_TOKENS = "finetune_train_trained_tokens"
TRAIN_EPOCH = "finetune_train_epoch"
TRAIN_LAST_STEP_TIMESTAMP = "finetune_train_last_step_timestamp_seconds"
TRAIN_LAST_CHECKPOINT_TIMESTAMP = "finetune_train_last_checkpoint_timestamp_seconds"
AGENT_UP = "finetune_agent_ranks_alive"
AGENT_PHASE = "finetune_agent_phase"
