"""A real Kubernetes on one machine, for tests: built from Go modules, sealed in, gone when the session ends.

Rooms, in the order in which a reader meets them:
    rig.py            `Rig`: what tests hold. Paths, kubeconfigs, `kubectl`, stop and start of one component
    api.py            requests to the API server without kubectl, for what is asked often
    lifecycle.py      up, down, wipe, status; sessions that share one rig, the last one out stops it
    build.py          the table of programs and how each is built, once, into the cache
    machine.py        what this machine lacks, in words that a skipped test can show
    state.py          where things lie, and the ports and secrets that a rig drew when it was made
    process.py        programs by name: started once, found again by pid and start time, stopped by pid only
    pki.py            certificates, tokens and kubeconfigs
    control_plane.py  etcd, kube-apiserver, kube-controller-manager on loopback; needs no root
    node.py           bridge, scheduler, containerd, kubelet, CoreDNS, kube-proxy: pods really run; needs root
    node_config.py    the files that those programs read
    network_policy.py an enforcer of NetworkPolicies on the bridge, for tests that ask for it
    forward.py        a TCP forwarder: the API server's door for pods
    image.py          the hand-made container image
    host_trees.py     the stand-in for an image's content: the host's trees as read-only claims
    s3.py             MinIO: buckets, keys, stores
    kueue.py          a real Kueue, for Jobs that wait in queues
    helm.py           Helm, for the chart
    prometheus.py     a real Prometheus with a given configuration
    alertmanager.py   a real Alertmanager, and a receiver of its webhooks
    audit.py          who asked the API server for what

By hand: `python -m tests.cluster.rig up [--node]`, then `status`, `down`, `wipe`, `build`. Two scopes: the control
plane (integration tests) and the node (cluster tests); one rig serves both."""

from .alertmanager import Alertmanager, Inbox, Notice
from .build import BuildError
from .helm import Helm
from .host_trees import HostTree, apply_host_trees, host_trees, job_volumes, pod_volumes
from .kueue import Kueue
from .lifecycle import down, join, leave, status, up, wipe
from .machine import Missing, missing_for_control_plane, missing_for_node, missing_for_s3
from .prometheus import Prometheus
from .rig import Rig
from .s3 import S3
from .state import NotOursError, RigError

__all__ = [
    "S3",
    "Alertmanager",
    "BuildError",
    "Helm",
    "HostTree",
    "Inbox",
    "Kueue",
    "Missing",
    "NotOursError",
    "Notice",
    "Prometheus",
    "Rig",
    "RigError",
    "apply_host_trees",
    "down",
    "host_trees",
    "job_volumes",
    "join",
    "leave",
    "missing_for_control_plane",
    "missing_for_node",
    "missing_for_s3",
    "pod_volumes",
    "status",
    "up",
    "wipe",
]
