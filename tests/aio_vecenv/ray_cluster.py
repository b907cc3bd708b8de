"""A Ray cluster on this machine for the tests: a head without CPUs and two nodes; stdin: `add` one more, `settle`."""
# edge: run as a script; it ends with its stdin

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import Any

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_memory_monitor_refresh_ms"] = "0"  # noqa: SIM112  it would end hosts where other tests need memory

STORE_BYTES = 80 * 1024 * 1024
START_S = 120.0  # for a node, on a machine that has other things to do


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}
    )

    def raylet(node: Any) -> subprocess.Popen[bytes]:
        process: subprocess.Popen[bytes] = node.all_processes["raylet"][0].process
        return process

    def add() -> None:
        node = cluster.add_node(wait=False, num_cpus=2, object_store_memory=STORE_BYTES)
        cluster._wait_for_node(node, START_S)
        print("CLUSTER", raylet(node).pid, flush=True)

    def settle() -> None:
        living = sum(raylet(node).poll() is None for node in cluster.list_all_nodes())
        while sum(node["Alive"] for node in cluster.global_state.node_table()) != living:
            time.sleep(0.05)
        print("CLUSTER settled", flush=True)

    print("CLUSTER", cluster.address, flush=True)
    add()
    add()
    for line in sys.stdin:
        {"add": add, "settle": settle}[line.strip()]()
    cluster.shutdown()


if __name__ == "__main__":
    main()
