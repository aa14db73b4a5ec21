"""One URL for every kind of Redis, on real servers: a cluster, sentinels, TLS, users; and what a failover costs."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from conftest import make_frame, wait_until
from line_processes import AOI, LineProcesses, finished, status
from redis_nodes import SERVICE, Move, Node, Watched, cluster, copies, line_on, owner_of, watched
from tls_proxy import Authority, TlsProxy

from pipeline.errors import Exit, StreamDown, StreamError
from pipeline.messages import Verdict
from pipeline.stream import Delivery, Settlement, Stream, list_lines, open_stream

pytestmark = pytest.mark.usefixtures("redis_url")  # skips where there is no server


def verdict_for(delivery: Delivery) -> tuple[Delivery, Verdict]:
    return delivery, Verdict(frame=delivery.frame.without_pixels(), judgement="OK", reason="")


def settled(stream: Stream) -> list[Settlement]:
    """Takes one frame and settles it."""
    return stream.settle([verdict_for(delivery) for delivery in stream.take(1)])


def patiently(stream: Stream, sequence: int) -> None:
    """Offers as a producer does: again and again until the stream has it."""
    wait_until(lambda: offered(stream, sequence), 30)


def offered(stream: Stream, sequence: int) -> bool:
    with suppress(StreamDown):
        return stream.offer([make_frame(sequence)]) == 1
    return False


# -------------------------------------------------------------- Redis Cluster


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Node]]:
    with cluster(tmp_path_factory.mktemp("cluster")) as found:
        yield found


def url_of(nodes: list[Node]) -> str:
    return "redis+cluster://" + ",".join(node.address for node in nodes)


def test_two_lines_on_two_nodes_of_a_cluster(nodes: list[Node], line: str, tmp_path: Path) -> None:
    """Lines shard over the nodes; each is produced to and worked on by its own processes, `status` lists both."""
    url, total = url_of(nodes), 60
    lines = [line_on(nodes, nodes[0], line), line_on(nodes, nodes[2], line)]
    first, second = (LineProcesses(tmp_path, url, name) for name in lines)
    with first, second:
        producers = [processes.produce(total) for processes in (first, second)]
        workers = [processes.work() for processes in (first, second)]
        for processes in (first, second):
            processes.verdicts(total)
        assert [finished(producer) for producer in producers]
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
            finished(worker)
    told = status(url)
    assert [told[name]["settled"] for name in lines] == [total, total]
    for name, node in zip(lines, (nodes[0], nodes[2]), strict=True):
        assert [key for key in keys(node) if name in key], "its keys are on another node"


def keys(node: Node) -> list[str]:
    with node.client() as client:
        return [key.decode() for key in client.keys("aoi:*")]


def test_cluster_is_found_by_the_nodes_that_live(nodes: list[Node], line: str) -> None:
    """One dead address in the URL does no harm; with none that lives the stream is away."""
    stream = open_stream(f"redis+cluster://127.0.0.1:1,{nodes[1].address}", line, "w")
    assert stream.offer([make_frame(0)]) == 1
    with pytest.raises(StreamDown, match="cannot be reached"):
        open_stream("redis+cluster://127.0.0.1:1,127.0.0.1:2", line).audit()


def test_cluster_node_killed_and_started_again(nodes: list[Node], line: str, tmp_path: Path) -> None:
    """Its lines wait until it is back on its data, other nodes' lines go on; no frame is lost or judged twice."""
    url, total = url_of(nodes), 400
    here, other = line_on(nodes, nodes[1], line), line_on(nodes, nodes[0], line)
    with LineProcesses(tmp_path, url, here) as processes:
        producer, worker = processes.produce(total, "--rate", "150"), processes.work()
        wait_until(lambda: processes.audit().settled > 20, 30)
        nodes[1].kill()
        try:
            beside = open_stream(url, other, "w")
            patiently(beside, 0)
            wait_until(lambda: patient_settle(beside))
            with pytest.raises(StreamDown):
                open_stream(url, here).audit()
        finally:
            nodes[1].start()
        processes.verdicts(total)
        finished(producer)
        worker.send_signal(signal.SIGTERM)
        finished(worker)


def patient_settle(stream: Stream) -> bool:
    with suppress(StreamDown):
        return settled(stream) == [Settlement.PUBLISHED]
    return False


def test_slot_moved_while_its_line_runs(nodes: list[Node], line: str, tmp_path: Path) -> None:
    """Key by key from node to node under a producer and a worker: they wait meanwhile, then follow; nothing is lost."""
    url, total = url_of(nodes), 400
    name = line_on(nodes, nodes[2], line)
    with LineProcesses(tmp_path, url, name) as processes:
        producer, worker = processes.produce(total, "--rate", "200"), processes.work()
        wait_until(lambda: processes.audit().settled > 20, 30)
        move = Move(nodes, name, nodes[2], nodes[0])
        move.begin()
        while move.carry(1):  # one key at a time: scripts meet every mixture of here and there
            with suppress(StreamDown):
                open_stream(url, name).audit()
        move.end()
        before = processes.audit().settled
        processes.verdicts(total)
        assert before < total, "the move must come in the middle"
        finished(producer)
        worker.send_signal(signal.SIGTERM)
        finished(worker)
    assert not [key for key in keys(nodes[2]) if name in key]


def test_client_follows_a_slot_that_moved_before(nodes: list[Node], line: str) -> None:
    """A client whose map is old hears that the line is elsewhere, says StreamDown once, and its next call arrives."""
    name = line_on(nodes, nodes[0], line)
    stream = open_stream(url_of(nodes), name, "w")
    assert stream.offer([make_frame(0)]) == 1
    move = Move(nodes, name, nodes[0], nodes[1])
    move.begin()
    move.end()
    with pytest.raises(StreamDown, match="moving to another node"):
        stream.offer([make_frame(1)])
    assert stream.offer([make_frame(1)]) == 1
    assert settled(stream) == [Settlement.PUBLISHED]
    assert stream.audit().outstanding == 1


def test_cluster_and_single_server_are_not_confused(nodes: list[Node], line: str, tmp_path: Path) -> None:
    """Either URL for the other kind of server says which one to use."""
    elsewhere = line_on(nodes, nodes[1], line)
    with pytest.raises(StreamError, match=r"use redis\+cluster://") as refused:
        open_stream(f"redis://{nodes[0].address}", elsewhere).offer([make_frame(0)])
    assert not isinstance(refused.value, StreamDown)
    with Node(tmp_path) as single:
        for scheme in ("redis+cluster", "redis+sentinel"):
            with pytest.raises(StreamError, match="use redis://") as refused:
                open_stream(f"{scheme}://{single.address}/{'' if 'cluster' in scheme else SERVICE}", line).audit()
            assert not isinstance(refused.value, StreamDown)


def test_a_nodes_own_line_is_where_its_slot_is(nodes: list[Node]) -> None:
    """What the other tests rest on."""
    name = line_on(nodes, nodes[2], "where")
    assert owner_of(nodes, name) is nodes[2]
    stream = open_stream(url_of(nodes), name)
    stream.offer([make_frame(0)])
    assert [key for key in keys(nodes[2]) if name in key]
    assert name in list_lines(url_of(nodes))


# -------------------------------------------------------------- Sentinel


@pytest.fixture
def watch(tmp_path: Path) -> Iterator[Watched]:
    with watched(tmp_path) as found:
        yield found


def test_failover_under_producer_and_worker(watch: Watched, line: str, tmp_path: Path) -> None:
    """The master is killed, the replica takes over: with `replicas=1` every acknowledged frame has one verdict.

    Frames are acknowledged only while a replica is in step, so the line waits until the old master is back as one.
    """
    total, url = 400, f"{watch.url}?replicas=1"
    with LineProcesses(tmp_path, url, line) as processes:
        producer, worker = processes.produce(total, "--rate", "150"), processes.work()
        wait_until(lambda: processes.audit().settled > 20, 30)
        watch.master.kill()
        wait_until(lambda: watch.named_port() == watch.replica.port, 30)
        assert 0 < processes.audit().settled < total, "the failover must come in the middle"
        watch.master.start()
        watch.make_replica()
        verdicts = processes.verdicts(total)
        finished(producer)
        worker.send_signal(signal.SIGTERM)
        finished(worker)
        assert not processes.audit().gaps
    assert sorted(verdict.frame.sequence for verdict in verdicts) == list(range(total))


def test_without_a_replica_nothing_is_acknowledged(watch: Watched, line: str) -> None:
    """`replicas=1`: what only the master has is no answer; said again with a replica there, it counts once."""
    stream, plain = open_stream(f"{watch.url}?replicas=1", line, "w"), open_stream(watch.url, line)
    assert stream.offer([make_frame(0)]) == 1
    watch.replica.kill()
    with pytest.raises(StreamDown, match="0 of the 1 replicas"):
        stream.offer([make_frame(1)])
    with pytest.raises(StreamDown, match="0 of the 1 replicas"):
        settled(stream)
    audit = stream.audit()
    assert (audit.offered, audit.settled, audit.holds) == (2, 1, True), "looking needs no replica"
    assert plain.offer([make_frame(2)]) == 1, "who asks for no copies is not held up"
    watch.replica.start()
    wait_until(lambda: copies(watch.master) == 1)
    patiently(stream, 3)
    assert stream.offer([make_frame(1), make_frame(3)]) == 2
    assert stream.audit().offered == 4


def test_what_a_failover_without_copies_loses_shows_as_a_gap(watch: Watched, line: str) -> None:
    """Replication runs behind: acknowledged frames that no replica had are gone, and the ledger says which."""
    stream = open_stream(watch.url, line, "w")
    assert stream.offer([make_frame(i) for i in range(3)]) == 3
    wait_until(lambda: in_step(watch))
    with watch.replica.client() as client:  # the link breaks
        client.config_set("masterauth", "none")
        client.replicaof("127.0.0.1", "1")
    assert stream.offer([make_frame(i) for i in range(3, 6)]) == 3
    watch.master.kill()
    with watch.replica.client() as client:
        client.replicaof("NO", "ONE")
    heir = open_stream(f"redis://{watch.replica.address}", line, "w")
    assert heir.offer([make_frame(6)]) == 1
    audit = heir.audit()
    assert (audit.offered, list(audit.gaps), audit.holds) == (4, [("cam-s", 3, 5)], True)


def in_step(watch: Watched) -> bool:
    with watch.master.client() as client:
        facts = client.info("replication")
    return bool(facts["slave0"]["offset"] == facts["master_repl_offset"])


def test_forced_failover_is_followed(watch: Watched, line: str) -> None:
    """A replica is made master while both live: the old one, which has lost its replica, is left at once.

    Its writes are lost when the sentinel makes it a replica, some seconds later; `replicas=1` acknowledges none.
    """
    stream = open_stream(f"{watch.url}?replicas=1", line, "w")
    assert stream.offer([make_frame(0)]) == 1
    watch.fail_over()
    with pytest.raises(StreamDown):
        stream.offer([make_frame(1)])
    assert stream.audit().offered == 1
    with watch.replica.client() as client:
        assert "aoi-w" in [row["name"] for row in client.client_list()]
    watch.make_replica()
    patiently(stream, 1)
    assert open_stream(f"redis://{watch.replica.address}", line).audit().offered == 2


def test_sentinels_that_know_nothing_or_are_away(watch: Watched, line: str) -> None:
    """A wrong service name and sentinels that are away are told apart, each in one line."""
    with pytest.raises(StreamDown, match="no sentinel names a master for 'nix'"):
        open_stream(f"redis+sentinel://{watch.sentinel.address}/nix", line).audit()
    with pytest.raises(StreamDown, match="Connection refused"):
        open_stream(f"redis+sentinel://127.0.0.1:1/{SERVICE}", line).audit()
    assert list_lines(f"redis+sentinel://127.0.0.1:1,{watch.sentinel.address}/{SERVICE}") == []


# -------------------------------------------------------------- TLS


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "authority")


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Node]:
    with Node(tmp_path / "server") as found:
        yield found


def test_tls_from_end_to_end(server: Node, authority: Authority, line: str, tmp_path: Path) -> None:
    """With the right authority producer and worker speak TLS, and every frame is judged."""
    with TlsProxy(server.port, authority.server_side("localhost")) as proxy:
        url = f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={authority.file}"
        with LineProcesses(tmp_path, url, line) as processes:
            worker = processes.work()
            finished(processes.produce(30))
            processes.verdicts(30)
            worker.send_signal(signal.SIGTERM)
            finished(worker)


def test_tls_that_cannot_be_trusted_is_refused(server: Node, authority: Authority, line: str, tmp_path: Path) -> None:
    """Another authority, no authority, a name that is not in the certificate: refused for good, and said why."""
    other = Authority(tmp_path / "other")
    with TlsProxy(server.port, authority.server_side("localhost")) as proxy:
        here = f"rediss://localhost:{proxy.port}/0"
        assert "give the authority" in refusal(f"{here}?ssl_ca_certs={other.file}", line)
        assert "give the authority" in refusal(here, line)
        by_address = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={authority.file}"
        assert "name that stands in its certificate" in refusal(by_address, line)
        assert open_stream(f"{by_address}&ssl_check_hostname=false", line).offer([make_frame(0)]) == 1
        assert open_stream(f"{here}?ssl_cert_reqs=none", line).offer([make_frame(0)]) == 1


def refusal(url: str, line: str) -> str:
    with pytest.raises(StreamError) as refused:
        open_stream(url, line).audit()
    assert not isinstance(refused.value, StreamDown), f"would be tried again for ever: {refused.value}"
    return str(refused.value)


def test_client_certificates(server: Node, authority: Authority, line: str, tmp_path: Path) -> None:
    """A server that wants one gets in who has one of its authority, and tells others what they lack."""
    other = Authority(tmp_path / "other")
    with TlsProxy(server.port, authority.server_side("localhost", wants_client=True)) as proxy:
        here = f"rediss://localhost:{proxy.port}/0?ssl_ca_certs={authority.file}"
        own, foreign = authority.issue("worker1.line"), other.issue("worker2.line")
        assert open_stream(f"{here}&ssl_certfile={own}&ssl_keyfile={own}", line).offer([make_frame(0)]) == 1
        for url in (here, f"{here}&ssl_certfile={foreign}"):
            with pytest.raises(StreamError, match="ssl_certfile"):
                open_stream(url, line).audit()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("ssl_ca_certs=/nowhere.pem", "ssl_ca_certs cannot be used: No such file"),
        ("ssl_ca_certs={empty}", "ssl_ca_certs cannot be used"),
        ("ssl_certfile={empty}", "ssl_certfile or ssl_keyfile cannot be used"),
        ("ssl_keyfile={empty}", "without ssl_certfile"),
    ],
)
def test_unusable_certificate_files(options: str, says: str, line: str, tmp_path: Path) -> None:
    """Seen when the stream is opened; not taken for a server that is away."""
    (empty := tmp_path / "empty.pem").touch()
    with pytest.raises(StreamError, match=says):
        open_stream(f"rediss://localhost/0?{options.format(empty=empty)}", line)


# -------------------------------------------------------------- users


USERS = """\
user default off
user line on >s3cret ~aoi:* +@all
user viewer on >v ~aoi:* +@read +@connection +info
"""


def test_user_of_an_access_list(tmp_path: Path, line: str) -> None:
    """A user with rights works; a wrong or missing password ends a command with STREAM and one line; so do rights."""
    (users := tmp_path / "users.acl").write_text(USERS)
    with Node(tmp_path / "server", ["--aclfile", str(users)]) as node:
        assert open_stream(f"redis://line:s3cret@{node.address}", line).offer([make_frame(0)]) == 1
        assert "check user and password" in refusal(f"redis://{node.address}", line)
        with pytest.raises(StreamError, match="let this user do that"):
            open_stream(f"redis://viewer:v@{node.address}", line).offer([make_frame(1)])
        words = [*AOI, "produce", "panel:", "--frames", "1", "--url", f"redis://line:wr0ng@{node.address}"]
        run = subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)
    assert run.returncode == Exit.STREAM
    assert "check user and password" in run.stderr
    assert run.stderr.count("\n") == 1
    assert "wr0ng" not in run.stderr
