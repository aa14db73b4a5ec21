"""Decides which server a line's commands go to, and what its errors mean; knows no frame and no script's text.

A door leads to the one server that has all keys of a line: the server of the URL, the master that the sentinels
name, or the cluster node that holds the line's slot. It never repeats a command by itself, since frames of an
answer that got lost would be nobody's: after a failover or a moved slot the caller hears StreamDown, and its next
call goes to the new place.
"""

from __future__ import annotations

import re
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, NodesManager
from redis.crc import key_slot
from redis.exceptions import RedisClusterException
from redis.retry import Retry
from redis.sentinel import MasterNotFoundError, Sentinel

from pipeline.errors import StreamDown, StreamError
from pipeline.redis_url import RedisUrl, parse_redis_url

SOCKET_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 5.0
COPIED_MS = 1000  # how long to wait until the replicas that the URL asks for have what was written
PASSING = (  # the client turns some of the server's words into classes of their own …
    redis.ConnectionError,
    redis.TimeoutError,
    redis.exceptions.OutOfMemoryError,
    redis.exceptions.ReadOnlyError,
    redis.exceptions.TryAgainError,
    redis.exceptions.ClusterDownError,
)
PASSING_WORDS = (
    "OOM",
    "READONLY",
    "MISCONF",
    "MASTERDOWN",
    "TRYAGAIN",
    "CLUSTERDOWN",
    "NOREPLICAS",
    "UNBLOCKED",  # of a master that becomes a replica
    "BUSY ",
    "non local key",  # a script that meets its slot on the way to another node
)  # … or not
SCRIPT_REFUSED = re.compile("user executing the script can't|ACL failure in script")  # Redis 6.2, and from 7 on
SCRIPT_NOISE = re.compile(r"Error running script [(]call to f_\w+[)]: |@user_script: ?\d+: |,? ?script: \w+, on @\S+")
TLS_REFUSED = re.compile(r"CERTIFICATE|UNKNOWN_CA|WRONG_VERSION_NUMBER|RECORD_LAYER|PROTOCOL_VERSION|HANDSHAKE_FAILURE")
Answer = TypeVar("Answer")


def open_door(url: str, name: str, key: str = "") -> Door:
    """The way to the server that holds this key; nothing is sent yet. `name` is what the server calls us."""
    facts = parse_redis_url(url)
    name = re.sub(r"[^!-~]", "-", name)  # CLIENT SETNAME takes no spaces
    if facts.tls:
        _check_certificates(facts)
    return ClusterDoor(facts, name, key) if facts.kind == "cluster" else Door(facts, name)


class Door:
    """To one server, or to the master that sentinels name. All may be called from any thread."""

    def __init__(self, facts: RedisUrl, name: str) -> None:
        self._facts = facts
        self._words = _client_words(facts, name)
        self._one = _master(facts, self._words) if facts.kind == "sentinel" else _server(facts, self._words)

    @contextmanager
    def reached(self) -> Iterator[redis.Redis]:
        """The server, with its errors told as ours: what may pass by itself is StreamDown, the rest StreamError."""
        try:
            yield self._server()
        except StreamDown:
            self._look_again()
            raise
        except (redis.RedisError, RedisClusterException) as error:
            told = _told(error, self._facts)
            if isinstance(told, StreamDown):
                self._look_again()
            raise told from error

    def script(self, text: str, writes: bool = True) -> Callable[[Sequence[str], Sequence[Any]], Any]:
        """A Lua script to call with keys and arguments; what it `writes` is copied as often as the URL asks."""
        script = self._one.register_script(text)

        def call(keys: Sequence[str], args: Sequence[Any]) -> Any:
            with self.reached() as server:
                if not (writes and self._facts.replicas):
                    return script(keys=keys, args=args, client=server)
                with server.client() as connection:  # replicas are waited for on the connection that wrote
                    answer = script(keys=keys, args=args, client=connection)
                    self._wait_for_copies(connection)
                    return answer

        return call

    def _wait_for_copies(self, connection: redis.Redis) -> None:
        """Too few copies: a failover could undo what was said, so it is to be said again."""
        wanted = self._facts.replicas
        copies = int(cast(Any, connection.wait(wanted, COPIED_MS)))
        if copies < wanted:
            raise StreamDown(f"Redis cannot take this now: {copies} of the {wanted} replicas asked for have it")

    def ask_each(self, question: Callable[[redis.Redis], list[Answer]]) -> list[Answer]:
        """The answers of every server that holds lines."""
        with self.reached() as server:
            return question(server)

    def close(self) -> None:
        self._one.close()

    def _server(self) -> redis.Redis:
        return self._one

    def _look_again(self) -> None:
        """The sentinels are asked on connecting: a master that became a replica may have kept us connected."""
        if self._facts.kind == "sentinel":
            self._one.connection_pool.disconnect(inuse_connections=False)


class ClusterDoor(Door):
    """To the node of a cluster that holds a key's slot; asks for the map again when it proved wrong."""

    def __init__(self, facts: RedisUrl, name: str, key: str) -> None:
        super().__init__(facts, name)
        self._slot = key_slot(key.encode())
        self._map: NodesManager | None = None
        self._stale, self._lock = False, threading.Lock()

    def ask_each(self, question: Callable[[redis.Redis], list[Answer]]) -> list[Answer]:
        with self.reached():
            nodes = self._known().get_nodes_by_server_type("primary")
            return [answer for node in nodes for answer in question(node.redis_connection)]

    def close(self) -> None:
        super().close()
        with self._lock:
            for node in self._map.nodes_cache.values() if self._map else ():
                if node.redis_connection:
                    node.redis_connection.close()
            self._map = None

    def _server(self) -> redis.Redis:
        found: redis.Redis = self._known().get_node_from_slot(self._slot).redis_connection
        return found

    def _known(self) -> NodesManager:
        with self._lock:
            if self._map is None:
                nodes = [ClusterNode(host, port) for host, port in self._facts.hosts]
                self._map = NodesManager(nodes, require_full_coverage=False, **self._words)
            elif self._stale:
                self._refresh(self._map)
            self._stale = False
            return self._map

    def _refresh(self, known: NodesManager) -> None:
        """By the nodes known now; when none of them answers, the next try starts from those of the URL."""
        try:
            known.initialize()
        except RedisClusterException:
            self._map = None
            raise

    def _look_again(self) -> None:
        self._stale = True


# -------------------------------------------------------------- clients


def _client_words(facts: RedisUrl, name: str) -> dict[str, Any]:
    """The client library's arguments, without an address."""
    words = {"client_name": name, "username": facts.username or None, "password": facts.password or None}
    return {**words, **_connection_words(facts)}


def _connection_words(facts: RedisUrl) -> dict[str, Any]:
    words: dict[str, Any] = {"socket_timeout": SOCKET_TIMEOUT_S, "socket_connect_timeout": CONNECT_TIMEOUT_S}
    if facts.tls:
        words |= {"ssl": True, "ssl_check_hostname": facts.settings.get("ssl_cert_reqs") != "none"}
    return {**words, **facts.settings}


def _server(facts: RedisUrl, words: dict[str, Any]) -> redis.Redis:
    if facts.kind == "socket":
        return redis.Redis(unix_socket_path=facts.path, db=facts.db, retry=_once(), **words)
    host, port = facts.hosts[0]
    return redis.Redis(host=host, port=port, db=facts.db, retry=_once(), **words)


def _master(facts: RedisUrl, words: dict[str, Any]) -> redis.Redis:
    user = {key: value or None for key, value in facts.sentinel_user.items()}
    own = {**_connection_words(facts), **user, "retry": _once()}
    sentinels = _Sentinels(facts.hosts, sentinel_kwargs=own, db=facts.db, retry=_once(), **words)
    master: redis.Redis = sentinels.master_for(facts.service)
    return master


class _Sentinels(Sentinel):
    """Says which of two things it is: no sentinel answers, or none knows a master."""

    def discover_master(self, service_name: str) -> Any:
        try:
            return super().discover_master(service_name)
        except MasterNotFoundError:
            failures = [failure for sentinel in self.sentinels if (failure := _failure(sentinel))]
            if len(failures) == len(self.sentinels):
                raise failures[0] from None
            text = f"no sentinel names a master for {service_name!r} now; is that name in the URL right?"
            raise MasterNotFoundError(text) from None


def _failure(server: redis.Redis) -> redis.RedisError | None:
    try:
        server.ping()
    except redis.RedisError as error:
        return error
    return None


def _once() -> Retry:
    return Retry(NoBackoff(), 0)


def _check_certificates(facts: RedisUrl) -> None:
    """Now, with a word about the file; on the way to the server it would look as if the server were away."""
    words = facts.settings
    context = ssl.create_default_context()
    try:
        if authority := words.get("ssl_ca_certs"):
            context.load_verify_locations(authority)
        if certificate := words.get("ssl_certfile"):
            context.load_cert_chain(certificate, words.get("ssl_keyfile"), words.get("ssl_password", ""))
    except OSError as error:  # of which ssl.SSLError is one
        name = "ssl_certfile or ssl_keyfile" if "ssl_certfile" in words else "ssl_ca_certs"
        raise StreamError(f"stream URL: {name} cannot be used: {error.strerror or error}; give PEM files") from None
    if "ssl_keyfile" in words and "ssl_certfile" not in words:
        raise StreamError("stream URL: ssl_keyfile without ssl_certfile; give both, or one file with both in it")


# -------------------------------------------------------------- errors


def _told(error: Exception, facts: RedisUrl) -> StreamError:
    """Redis' error as ours; what it wraps says more than it does itself."""
    for cause in [*_chain(error)][::-1]:
        if refused := _refusal(cause):
            return StreamError(refused)
    text = SCRIPT_NOISE.sub("", str(error))
    if isinstance(error, redis.exceptions.AskError):  # and MovedError, which is one
        if facts.kind != "cluster":
            return StreamError("this server is part of a cluster: use redis+cluster:// or rediss+cluster://")
        return StreamDown("Redis cannot take this now: the line is moving to another node")
    if isinstance(error, (redis.ConnectionError, redis.TimeoutError, RedisClusterException)):
        return StreamDown(f"Redis cannot be reached: {text}{_tls_doubt(text) if facts.tls else ''}")
    if isinstance(error, PASSING) or any(word in text for word in PASSING_WORDS):
        return StreamDown(f"Redis cannot take this now: {text}")
    return StreamError(f"Redis refuses: {text}")


def _refusal(cause: BaseException) -> str:
    """What to put right, where that is known; '' where it is not."""
    text = SCRIPT_NOISE.sub("", str(cause))
    if isinstance(cause, redis.exceptions.NoPermissionError) or SCRIPT_REFUSED.search(text):
        return f"Redis does not let this user do that: {text}; give it the rights (ACL), or use another"
    if isinstance(cause, redis.AuthenticationError):
        why = "it wants a password" if "HELLO" in text else text.rstrip(".")
        return f"Redis refuses this user: {why}; check user and password in the URL"
    if TLS_REFUSED.search(text):
        return f"no TLS with this server: {re.sub(r' [(]_ssl.*[)]', '', text).rstrip('.')}; {_tls_mend(text)}"
    if "cluster support disabled" in text:
        return "this server is not part of a cluster: use redis:// or rediss://"
    if "unknown command" in text and "SENTINEL" in text:
        return "this server is no sentinel: give the sentinels' addresses, or use redis:// or rediss://"
    return ""


def _tls_mend(text: str) -> str:
    if "mismatch" in text:
        return "use a name that stands in its certificate"
    if "VERIFY_FAILED" in text:
        return "give the authority that signed its certificate: ?ssl_ca_certs=ca.pem"
    if "WRONG_VERSION" in text or "RECORD_LAYER" in text:
        return "it may speak none: use redis:// instead of rediss://"
    return "it may want a certificate of ours: ?ssl_certfile=client.pem&ssl_keyfile=client.key"


def _tls_doubt(text: str) -> str:
    """A server without TLS is silent, and one that wants a certificate hangs up: as if it were away."""
    if "refused" in text:
        return ""
    return " (does it speak TLS at this port? does it want a certificate, ssl_certfile?)"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
