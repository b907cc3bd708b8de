"""A Ray cluster on this machine for the tests: a head without CPUs and two nodes; `add` on stdin makes one more."""
# edge: run as a script; it ends with its stdin

from __future__ import annotations

import os
import sys

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"

STORE_BYTES = 80 * 1024 * 1024


def main() -> None:
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES}
    )

    def add() -> None:
        node = cluster.add_node(num_cpus=2, object_store_memory=STORE_BYTES)
        print("CLUSTER", node.all_processes["raylet"][0].process.pid, flush=True)

    print("CLUSTER", cluster.address, flush=True)
    add()
    add()
    for _ in sys.stdin:
        add()
    cluster.shutdown()


if __name__ == "__main__":
    main()
