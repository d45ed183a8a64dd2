"""The rig's node is a real one: pods of the strictest kind run the checkout's Python, find each other and reach S3."""

from __future__ import annotations

import ipaddress
import time
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.rig import S3, HostTree, Rig, apply_host_trees, host_trees
from tests.cluster.rig.control_plane import SERVICE_NETWORK
from tests.cluster.rig.host_trees import IMAGE, restricted_pod

CHECKOUT = Path(__file__).parents[2]
PYTHON = str(CHECKOUT / ".venv" / "bin" / "python")
ALL_REDUCE = """
import os, torch, torch.distributed as dist
from obstore.store import S3Store
assert os.getuid() != 0, "root"
dist.init_process_group("gloo")
x = torch.full((4,), float(dist.get_rank() + 1))
dist.all_reduce(x)
print("rank", dist.get_rank(), "sum", x.tolist(), flush=True)
if dist.get_rank() == 0:
    store = S3Store(os.environ["BUCKET"], virtual_hosted_style_request=False, client_options={"allow_http": True})
    store.put("sum.txt", str(x.tolist()).encode())
dist.barrier()
dist.destroy_process_group()
os._exit(0)  # how an interpreter with torch in it is taken apart is not what is tested
"""
START = """
import os, socket, sys, time
for attempt in range(600):
    try: socket.gethostbyname("gang-0.gang"); break
    except OSError: time.sleep(0.1)
run = ["--nnodes", "2", "--nproc-per-node", "1", "--master-addr", "gang-0.gang", "--master-port", "29500"]
os.execv(sys.executable, [sys.executable, "-m", "torch.distributed.run", *run,
                          "--node-rank", os.environ["JOB_COMPLETION_INDEX"], "/code/all_reduce.py"])
"""
SEALED = """
import os, socket
mounts = {fields[1]: fields[3].split(",") for fields in map(str.split, open("/proc/mounts"))}
assert "ro" in mounts["/usr"], mounts["/usr"]
routes = [line.split()[1] for line in list(open("/proc/net/route"))[1:]]
assert "00000000" not in routes, f"a way out of the machine: {routes}"
try: socket.create_connection((os.environ["NOBODYS_SERVICE"], 80), 3)
except OSError as error: print("a Service that is not there:", error)
else: raise SystemExit("something answers for a Service that is not there")
try: socket.gethostbyname("outside.invalid")
except OSError as error: print("a name of the outside:", error)
else: raise SystemExit("a name of the outside")
socket.create_connection(("kubernetes.default", 443), 10).close()
import finetune_api
print("the checkout's code:", finetune_api.__file__)
"""


@pytest.fixture
def trees(cluster: Rig, restricted_namespace: str) -> tuple[HostTree, ...]:
    """The host's trees, claimed in the test's namespace."""
    found = host_trees(CHECKOUT)
    apply_host_trees(cluster, restricted_namespace, found)
    return found


def job(name: str, spec: dict[str, Any], *, pods: int) -> dict[str, Any]:
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name},
        "spec": {
            "completions": pods,
            "parallelism": pods,
            "completionMode": "Indexed",
            "backoffLimit": 0,
            "template": {"spec": {**spec, "subdomain": name}},
        },
    }


def config_map(**files: str) -> dict[str, Any]:
    data = {f"{name}.py": text for name, text in files.items()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code"}, "data": data}


def finish(rig: Rig, namespace: str, name: str) -> str:
    """Waits for the Job's end and returns its pods' logs; a failed Job fails the test with them."""

    def ended() -> str | None:
        job = rig.read(f"/apis/batch/v1/namespaces/{namespace}/jobs/{name}")
        conditions = job.get("status", {}).get("conditions", [])
        true = {condition["type"] for condition in conditions if condition["status"] == "True"}
        return next((word for word in ("Complete", "Failed") if word in true), None)

    deadline = time.monotonic() + 300
    while not (end := ended()) and time.monotonic() < deadline:
        time.sleep(0.3)
    selector = f"batch.kubernetes.io/job-name={name}"
    logs = rig.kubectl("logs", "-n", namespace, "-l", selector, "--prefix", "--tail=100", check=False)
    if end != "Complete":
        logs += rig.kubectl("describe", "pods", "-n", namespace, "-l", selector, check=False)
    assert end == "Complete", logs
    return logs


def test_two_restricted_pods_reduce_over_gloo_and_write_to_s3(
    cluster: Rig, restricted_namespace: str, trees: tuple[HostTree, ...], s3: S3
) -> None:
    bucket = s3.bucket("gang")
    env = {**s3.environment, "BUCKET": bucket, "OMP_NUM_THREADS": "1"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "gang"},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {"batch.kubernetes.io/job-name": "gang"},
        },
    }
    gang = job("gang", restricted_pod(trees, [PYTHON, "/code/start.py"], env=env), pods=2)
    code = config_map(start=START, all_reduce=ALL_REDUCE)
    cluster.apply([service, code, gang], namespace=restricted_namespace)
    finish(cluster, restricted_namespace, "gang")
    assert s3.store(bucket).get("sum.txt").bytes() == b"[3.0, 3.0, 3.0, 3.0]"


def test_a_pod_is_sealed_in_and_sees_the_host_read_only(
    cluster: Rig, restricted_namespace: str, trees: tuple[HostTree, ...]
) -> None:
    nobodys = str(ipaddress.ip_network(SERVICE_NETWORK)[-2])
    pod = restricted_pod(trees, [PYTHON, "/code/sealed.py"], env={"NOBODYS_SERVICE": nobodys})
    sealed = job("sealed", pod, pods=1)
    cluster.apply([config_map(sealed=SEALED), sealed], namespace=restricted_namespace)
    assert str(CHECKOUT) in finish(cluster, restricted_namespace, "sealed")


def test_a_fake_namespace_stays_fake_beside_a_node(cluster: Rig, namespace: str) -> None:
    spec = {"restartPolicy": "Never", "containers": [{"name": "node", "image": IMAGE}]}
    cluster.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "idle"}, "spec": spec}, namespace=namespace)
    time.sleep(1)
    assert cluster.get("pod", "idle", "-n", namespace)["spec"].get("nodeName") is None


def test_objects_in_s3_outlive_an_outage(cluster: Rig, s3: S3) -> None:
    store = s3.store(s3.bucket())
    store.put("a", b"1")
    with cluster.outage("minio", kill=True):
        assert cluster.pid("minio") is None
    assert store.get("a").bytes() == b"1"
