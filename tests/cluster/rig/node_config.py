"""The files that the node's programs read: containerd, its network, kubelet, CoreDNS, kube-proxy.

Sealed: pods have addresses of their own on the bridge and no default route; CoreDNS answers NXDOMAIN for every name
that is not the cluster's; a Service address that nothing translates dies on the bridge."""

from __future__ import annotations

import json

from . import image
from .control_plane import SERVICE_NETWORK
from .pki import BRIDGE_ADDRESS
from .state import Paths, State

BRIDGE = "rig0"
NODE = "rig"
POD_NETWORK = "10.244.0.0/16"
POD_RANGE = ("10.244.1.1", "10.244.99.254")


def containerd(paths: Paths) -> str:
    folder, socket = paths.state / "ctd", paths.containerd_socket
    return f"""\
version = 3
root = '{folder / "root"}'
state = '{folder / "state"}'
[grpc]
address = '{socket}'
[ttrpc]
address = '{socket}.ttrpc'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = '{image.PAUSE}'
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true  # a root without CAP_SYS_RESOURCE may not lower it, and then no sandbox would start
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['{paths.bin / "cni"}']
conf_dir = '{paths.state / "cni"}'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = '{paths.bin / "runc"}'
SystemdCgroup = false
"""


def network(paths: Paths) -> str:
    first, last = POD_RANGE
    addresses = {
        "type": "host-local",
        "ranges": [[{"subnet": POD_NETWORK, "rangeStart": first, "rangeEnd": last}]],
        "routes": [{"dst": SERVICE_NETWORK}],
        "dataDir": str(paths.state / "cni" / "ipam"),
    }
    bridge = {
        "type": "bridge",
        "bridge": BRIDGE,
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": addresses,
    }
    return json.dumps({"cniVersion": "1.0.0", "name": "rig", "plugins": [bridge]})


def kubelet(paths: Paths, state: State) -> str:
    config = {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "address": BRIDGE_ADDRESS,
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": False},
            "x509": {"clientCAFile": str(paths.pki / "ca.crt")},
        },
        "authorization": {"mode": "AlwaysAllow"},  # of those whom the rig's authority vouches for
        "healthzBindAddress": "127.0.0.1",
        "healthzPort": state.ports["kubelet_health"],
        "cgroupDriver": "cgroupfs",
        "failCgroupV1": False,
        "failSwapOn": False,
        "containerRuntimeEndpoint": f"unix://{paths.containerd_socket}",
        "clusterDNS": [BRIDGE_ADDRESS],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "evictionHard": {"memory.available": "50Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
        "localStorageCapacityIsolation": False,
        "imageMinimumGCAge": "1000h",
        "imageGCHighThresholdPercent": 100,
        "imageGCLowThresholdPercent": 99,
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "10s",
    }
    return json.dumps(config, indent=1)


def dns(paths: Paths, state: State) -> str:
    """Three servers, since the template plugin runs before the others of its server whatever the order in the file."""
    return f"""\
cluster.local:53 in-addr.arpa:53 {{
    bind {BRIDGE_ADDRESS}
    errors
    ready 127.0.0.1:{state.ports["dns_ready"]}
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {paths.kubeconfig("rig:dns")} rig
        pods insecure
        ttl 1
    }}
}}
rig:53 {{
    bind {BRIDGE_ADDRESS}
    hosts {{
        {BRIDGE_ADDRESS} s3.rig
        ttl 5
    }}
}}
.:53 {{
    bind {BRIDGE_ADDRESS}
    template ANY ANY . {{
        rcode NXDOMAIN
    }}
}}
"""


def proxy(paths: Paths, state: State) -> str:
    config = {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "bindAddress": BRIDGE_ADDRESS,
        "mode": "nftables",
        "clusterCIDR": POD_NETWORK,
        "hostnameOverride": NODE,
        "healthzBindAddress": f"127.0.0.1:{state.ports['proxy_health']}",
        "metricsBindAddress": f"127.0.0.1:{state.ports['proxy_metrics']}",
        "nodePortAddresses": ["127.0.0.0/8"],
        "clientConnection": {"kubeconfig": str(paths.kubeconfig("rig:proxy"))},
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }
    return json.dumps(config, indent=1)
