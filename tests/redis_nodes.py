"""Real Redis servers for tests, singly, as a cluster or under a sentinel; on ports of this machine only."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import redis
from conftest import wait_until
from redis.crc import key_slot

from pipeline.redis_binary import find_server

SLOTS = 16384
DURABLE = ("--appendonly", "yes")
BUS = 10_000  # a cluster node also listens this far above its port


def free_port() -> int:
    """A port that is free, and the one beside it that a cluster node needs too."""
    while True:
        with socket.socket() as one, socket.socket() as other:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1])
            with suppress(OSError, OverflowError):
                other.bind(("127.0.0.1", port + BUS))
                return port


class Node:
    """A server process that can be killed and started again on its data."""

    def __init__(self, folder: Path, options: Sequence[str] = (), port: int = 0) -> None:
        self.folder, self.port = folder, port or free_port()
        folder.mkdir(parents=True, exist_ok=True)
        self.address = f"127.0.0.1:{self.port}"
        base = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(folder), "--save", ""]
        self._command = [str(find_server()[0]), *base, *options]
        self._process: subprocess.Popen[bytes] | None = None

    def client(self, **words: object) -> redis.Redis:
        return redis.Redis(port=self.port, **words)  # type: ignore[arg-type]

    def start(self) -> None:
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(self._command, stdout=log, stderr=log)
        wait_until(self._up)

    def kill(self) -> None:
        assert self._process
        self._process.kill()
        self._process.wait(20)

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self.kill()

    def _up(self) -> bool:
        try:
            with self.client() as client:
                return bool(client.ping())
        except redis.AuthenticationError:
            return True
        except redis.RedisError:
            return False


# -------------------------------------------------------------- a cluster


@contextmanager
def cluster(folder: Path, nodes: int = 3, options: Sequence[str] = DURABLE) -> Iterator[list[Node]]:
    """Masters that share the slots evenly; each line they serve goes on while another node is away."""
    words = ["--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no"]
    with ExitStack() as stack:
        found = [stack.enter_context(Node(folder / f"node{i}", [*words, *options])) for i in range(nodes)]
        for number, node in enumerate(found):
            with node.client() as client:
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
                first, last = number * SLOTS // nodes, (number + 1) * SLOTS // nodes
                client.execute_command("CLUSTER ADDSLOTS", *range(first, last))
                client.execute_command("CLUSTER MEET", "127.0.0.1", found[0].port)
        wait_until(lambda: all(_agrees(node, nodes) for node in found), 30)
        yield found


def _agrees(node: Node, nodes: int) -> bool:
    with node.client() as client:
        slots = client.execute_command("CLUSTER SLOTS")
        info = client.execute_command("CLUSTER INFO")
    return len(slots) == nodes and info["cluster_state"] == "ok"


def slot_of(line: str) -> int:
    return key_slot(f"aoi:{{{line}}}:frames".encode())


def owner_of(nodes: Sequence[Node], line: str) -> Node:
    """The node that holds this line's slot while slots are shared as at the start."""
    return nodes[slot_of(line) * len(nodes) // SLOTS]


def line_on(nodes: Sequence[Node], node: Node, stem: str) -> str:
    """A line name that lands on this node."""
    return next(name for i in range(1000) if owner_of(nodes, name := f"{stem}-{i}") is node)


class Move:
    """A slot on its way from one node to another, step by step."""

    def __init__(self, nodes: Sequence[Node], line: str, source: Node, target: Node) -> None:
        self.nodes, self.slot, self.source, self.target = nodes, slot_of(line), source, target
        self.ids = {node: node.client().execute_command("CLUSTER MYID").decode() for node in nodes}

    def begin(self) -> None:
        self._say(self.target, "IMPORTING", self.ids[self.source])
        self._say(self.source, "MIGRATING", self.ids[self.target])

    def carry(self, most: int = 1000) -> int:
        """So many of its keys at most; how many went."""
        with self.source.client() as client:
            keys = client.execute_command("CLUSTER GETKEYSINSLOT", self.slot, most)
            if keys:
                client.execute_command("MIGRATE", "127.0.0.1", self.target.port, "", 0, 10_000, "KEYS", *keys)
        return len(keys)

    def end(self) -> None:
        while self.carry():
            pass
        for node in (self.target, self.source, *self.nodes):
            self._say(node, "NODE", self.ids[self.target])

    def _say(self, node: Node, *words: str) -> None:
        with node.client() as client:
            client.execute_command("CLUSTER SETSLOT", self.slot, *words)


# -------------------------------------------------------------- a master, a replica and a sentinel

SERVICE = "aoi"


class Watched:
    """A master and a replica under one sentinel."""

    def __init__(self, folder: Path) -> None:
        self.master = Node(folder / "one", DURABLE)
        follow = ("--replicaof", "127.0.0.1", str(self.master.port), "--repl-diskless-sync-delay", "0")
        self.replica = Node(folder / "two", (*DURABLE, *follow))
        self.sentinel = _sentinel(folder / "sentinel", self.master.port)
        self.url = f"redis+sentinel://{self.sentinel.address}/{SERVICE}"

    def named_port(self) -> int:
        """Where the sentinel says the master is."""
        with self.sentinel.client() as client:
            return int(client.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", SERVICE)[1])

    def fail_over(self) -> None:
        """Both live; the old master takes writes until the sentinel makes it a replica, some seconds later."""
        with self.sentinel.client() as client:
            client.execute_command("SENTINEL FAILOVER", SERVICE)
        wait_until(lambda: self.named_port() == self.replica.port)

    def make_replica(self) -> None:
        """The old master, as the sentinel would in its own time."""
        with self.master.client() as client:
            client.replicaof("127.0.0.1", str(self.replica.port))


@contextmanager
def watched(folder: Path) -> Iterator[Watched]:
    found = Watched(folder)
    with found.master, found.replica, found.sentinel:
        wait_until(lambda: copies(found.master) == 1)
        wait_until(lambda: _sees_replica(found.sentinel))
        yield found


def copies(node: Node) -> int:
    """Replicas that are in step with this master."""
    with node.client() as client:
        facts = client.info("replication")
    return sum(facts[key]["state"] == "online" for key in facts if key.startswith("slave") and key[5:].isdigit())


def _sees_replica(sentinel: Node) -> bool:
    with sentinel.client() as client:
        replicas = client.sentinel_slaves(SERVICE)
    return len(replicas) == 1 and not replicas[0]["is_disconnected"]


def _sentinel(folder: Path, master_port: int) -> Node:
    folder.mkdir(parents=True)
    words = [f"monitor {SERVICE} 127.0.0.1 {master_port} 1", f"down-after-milliseconds {SERVICE} 1000"]
    words += [f"failover-timeout {SERVICE} 2000"]
    port = free_port()
    own = [f"port {port}", "bind 127.0.0.1", f"dir {folder}"]
    conf = folder / "sentinel.conf"
    conf.write_text("\n".join([*own, *(f"sentinel {word}" for word in words)]) + "\n")
    node = Node(folder, port=port)
    node._command = [str(find_server()[0]), str(conf), "--sentinel"]
    return node
