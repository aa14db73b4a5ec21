"""What a stream's URL says, checked word by word, so that nothing misspelt is ignored; opens nothing.

    redis://USER:PASSWORD@HOST:PORT/DB            one server; rediss:// with TLS, unix:///PATH?db=DB for a socket
    redis+cluster://USER:PASSWORD@HOST:PORT,…     Redis Cluster, by some of its nodes
    redis+sentinel://USER:PASSWORD@HOST:PORT,…/SERVICE?db=DB   the master that these sentinels name

What it must not know: the client library, lines, frames.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

from pipeline.errors import StreamError

Kind = Literal["server", "socket", "cluster", "sentinel"]
KINDS: Mapping[str, Kind] = {
    "redis": "server",
    "rediss": "server",
    "unix": "socket",
    "redis+cluster": "cluster",
    "rediss+cluster": "cluster",
    "redis+sentinel": "sentinel",
    "rediss+sentinel": "sentinel",
}
PORTS = {"sentinel": 26379}
PORT = 6379
SHORTEST_TIMEOUT_S = 2.0  # a read may wait for one second for a frame


@dataclass(frozen=True)
class RedisUrl:
    """Where the server is and how to speak to it. `settings` are the client's words for the rest."""

    kind: Kind
    hosts: tuple[tuple[str, int], ...] = ()
    path: str = ""  # of a socket
    service: str = ""  # of sentinels
    db: int = 0
    tls: bool = False
    replicas: int = 0  # that must have what is written before it counts as written
    username: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    settings: Mapping[str, Any] = field(default_factory=dict, repr=False)
    sentinel_user: Mapping[str, str] = field(default_factory=dict, repr=False)


def hidden(url: str) -> str:
    """The URL as it may be shown: without user and passwords."""
    place, mark, query = url.partition("?")
    if "@" in query and "@" not in place:  # the question mark may stand in a password
        place, mark, query = url, "", ""
    user, at, rest = place.rpartition("@")  # a password may hold any sign, and the scheme be forgotten
    scheme = user.partition("//")[0] + "//" if "//" in user else ""
    place = f"{scheme}***@{rest}" if at else place
    return place + mark + re.sub(r"(password=)[^&]*", r"\1***", query)


def parse_redis_url(url: str) -> RedisUrl:
    """Raises StreamError with the word that is wrong and what it may be."""
    try:
        return _parsed(_split(url))
    except ValueError as error:
        raise StreamError(f"stream URL {hidden(url)!r}: {error}") from None


def _split(url: str) -> SplitResult:
    """The URL's parts; what is said of one that falls apart in the wrong places must not quote them."""
    encode = "in user and password write / ? # [ ] @ as %2F %3F %23 %5B %5D %40"
    try:
        parts = urlsplit(url)
    except ValueError:
        raise ValueError(encode) from None
    misplaced = parts.path + parts.fragment + ("" if "@" in parts.netloc else parts.query)
    if "@" in misplaced and parts.scheme != "unix":
        raise ValueError(encode)
    return parts


def _parsed(parts: SplitResult) -> RedisUrl:
    if parts.scheme not in KINDS:
        raise ValueError(f"use {', '.join(f'{scheme}://' for scheme in KINDS)}")
    if parts.fragment:
        raise ValueError("a # in a user, password or path must be written %23")
    kind, tls = KINDS[parts.scheme], parts.scheme.startswith("rediss")
    found = _options(parts.query, _known(kind, tls))
    user, _, place = parts.netloc.rpartition("@")
    name, _, password = user.partition(":")
    hosts = _hosts(place, PORTS.get(kind, PORT)) if kind != "socket" else ()
    if kind == "server" and len(hosts) > 1:
        raise ValueError("several hosts are a cluster, redis+cluster://, or sentinels, redis+sentinel://")
    if kind == "socket" and (place or len(parts.path) < 2):
        raise ValueError("a socket has no host, only a path: unix:///run/redis/redis.sock")
    return RedisUrl(
        kind=kind,
        hosts=hosts,
        path=unquote(parts.path) if kind == "socket" else "",
        service=_service(parts.path) if kind == "sentinel" else "",
        db=found.pop("db", 0) or (_database(parts.path, kind) if kind in ("server", "cluster") else 0),
        tls=tls,
        replicas=found.pop("replicas", 0),
        username=found.pop("username", "") or unquote(name),
        password=found.pop("password", "") or unquote(password),
        sentinel_user={key: found.pop(f"sentinel_{key}", "") for key in ("username", "password")},
        settings=found,
    )


def _hosts(place: str, port: int) -> tuple[tuple[str, int], ...]:
    return tuple(_host(word, port) for word in place.split(",")) if place else (("localhost", port),)


def _host(word: str, default: int) -> tuple[str, int]:
    told = re.fullmatch(r"(?:\[([0-9A-Fa-f:.%]+)\]|([^:\[\]]+))(?::(\d+))?", word)
    port = int(told[3] or default) if told else 0
    if not told or not 0 < port < 65536:
        raise ValueError(f"{word!r} is no HOST:PORT; several are separated by commas, an IPv6 address stands in []")
    return unquote(told[1] or told[2]), port


def _database(path: str, kind: Kind) -> int:
    word = path.strip("/")
    if not word.isdigit() and word:
        raise ValueError(f"/{word} is no database; give its number, such as /0")
    if kind == "cluster" and int(word or 0):
        raise ValueError("a cluster has no databases; leave the number away")
    return int(word or 0)


def _service(path: str) -> str:
    service = unquote(path.strip("/"))
    if not service:
        raise ValueError("say which service the sentinels watch: redis+sentinel://HOST:26379/SERVICE")
    return service


# -------------------------------------------------------------- options after the question mark


def _options(query: str, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known here: {', '.join(known)}"
            raise ValueError(f"unknown option {name!r}; {hint}")
        if name in found:
            raise ValueError(f"option {name!r} is given twice")
        try:
            found[name] = known[name](value)
        except ValueError as error:
            shown = "" if "password" in name else f"={value}"
            raise ValueError(f"option {name}{shown}: {error}") from None
    return found


def _known(kind: Kind, tls: bool) -> dict[str, Callable[[str], Any]]:
    known: dict[str, Callable[[str], Any]] = {"replicas": _count, **TIMES, "protocol": _protocol}
    if kind != "cluster":
        known["db"] = _count
    if kind == "socket":
        known |= {"username": str, "password": str}
    if kind == "sentinel":
        known |= {"sentinel_username": str, "sentinel_password": str}
    return {**known, **TLS} if tls else known


def _count(word: str) -> int:
    if not word.isdigit():
        raise ValueError("give a number from 0")
    return int(word)


def _protocol(word: str) -> int:
    if word not in ("2", "3"):
        raise ValueError("give 2 or 3")
    return int(word)


def _seconds(word: str) -> float:
    told = re.fullmatch(r"\d+(\.\d+)?", word)
    if not told or float(word) < SHORTEST_TIMEOUT_S:
        raise ValueError(f"give seconds, at least {SHORTEST_TIMEOUT_S:g}")
    return float(word)


def _yes(word: str) -> bool:
    try:
        return {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}[word.lower()]
    except KeyError:
        raise ValueError("give true or false") from None


def _verify(word: str) -> str:
    if word not in ("required", "none"):
        raise ValueError("give required or none")
    return word


TIMES: Mapping[str, Callable[[str], Any]] = {"socket_timeout": _seconds, "socket_connect_timeout": _seconds}
TLS: Mapping[str, Callable[[str], Any]] = {
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_password": str,
    "ssl_check_hostname": _yes,
    "ssl_cert_reqs": _verify,
}
