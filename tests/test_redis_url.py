"""A stream's URL: what each part means, and that nothing misspelt is ignored."""

from __future__ import annotations

import pytest

from pipeline.errors import StreamError
from pipeline.redis_url import hidden, parse_redis_url
from pipeline.stream import list_lines, open_stream


def test_one_server() -> None:
    """Host, port, user and database; what is left out has Redis' own default."""
    facts = parse_redis_url("redis://bob:p%40ss@line-pc:6380/3")
    assert (facts.kind, facts.hosts, facts.db, facts.tls) == ("server", (("line-pc", 6380),), 3, False)
    assert (facts.username, facts.password) == ("bob", "p@ss")
    assert parse_redis_url("redis://").hosts == (("localhost", 6379),)
    assert parse_redis_url("redis://h?db=2").db == 2
    assert parse_redis_url("rediss://[fe80::1]:7000").hosts == (("fe80::1", 7000),)


def test_socket() -> None:
    """A path is a path, also with signs that an URL must write otherwise."""
    facts = parse_redis_url("unix:///run/a%20b/redis.sock?db=1&password=x")
    assert (facts.kind, facts.path, facts.db, facts.password) == ("socket", "/run/a b/redis.sock", 1, "x")


def test_several_hosts() -> None:
    """A cluster by some of its nodes, sentinels with the service they watch, each with its default port."""
    cluster = parse_redis_url("rediss+cluster://u:p@a:1,b,[::1]:2")
    assert (cluster.kind, cluster.tls) == ("cluster", True)
    assert cluster.hosts == (("a", 1), ("b", 6379), ("::1", 2))
    sentinel = parse_redis_url("redis+sentinel://a,b:7/line?db=4&sentinel_password=s&replicas=1")
    assert (sentinel.hosts, sentinel.service, sentinel.db) == ((("a", 26379), ("b", 7)), "line", 4)
    assert (sentinel.sentinel_user["password"], sentinel.replicas) == ("s", 1)


def test_options_become_what_the_client_knows() -> None:
    """Numbers are numbers, yes is yes."""
    url = "rediss://h?ssl_ca_certs=/ca.pem&ssl_check_hostname=no&socket_timeout=2.5&protocol=3"
    wanted = {"ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False, "socket_timeout": 2.5, "protocol": 3}
    assert parse_redis_url(url).settings == wanted


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("rediss://h?ssl_ca_cert=x", "did you mean 'ssl_ca_certs'"),
        ("redis://h?ssl_ca_certs=x", "unknown option 'ssl_ca_certs'"),
        ("redis://h?decode_responses=true", "known here: "),
        ("redis://h?protocol=4", "option protocol=4: give 2 or 3"),
        ("redis://h?socket_timeout=0.1", "at least 2"),
        ("redis://h?socket_timeout=nan", "give seconds"),
        ("redis://h?replicas=-1", "give a number"),
        ("rediss://h?ssl_check_hostname=maybe", "true or false"),
        ("rediss://h?ssl_cert_reqs=optional", "required or none"),
        ("redis://h?db=1&db=2", "given twice"),
        ("redis://h:70000", "no HOST:PORT"),
        ("redis://h:6379x", "no HOST:PORT"),
        ("redis://a,,b", "no HOST:PORT"),
        ("redis://h/lines", "/lines is no database"),
        ("redis+cluster://h/2", "no databases"),
        ("redis+cluster://h?db=2", "unknown option 'db'"),
        ("redis+sentinel://h", "which service"),
        ("unix://redis.sock", "no host, only a path"),
        ("redis://u:a#b@h", "%23"),
        ("redis+clutser://h", "redis+cluster://"),
        ("http://h", "redis://"),
    ],
)
def test_what_is_wrong_is_said(url: str, says: str) -> None:
    """One line with the word that is wrong and what it may be; never a default in its place."""
    with pytest.raises(StreamError) as refused:
        open_stream(url, "line")
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_two_hosts_of_one_server_are_refused() -> None:
    """Who lists hosts means a cluster or sentinels; the second would be ignored."""
    with pytest.raises(StreamError, match=r"redis\+cluster://"):
        parse_redis_url("redis://a,b")


@pytest.mark.parametrize("url", ["redis://bob:s3cret@h:x", "redis://h?password=s3cret", "http://:s3cret@h"])
def test_passwords_are_never_told(url: str) -> None:
    """Errors show the URL without user and passwords."""
    assert "s3cret" not in hidden(url)
    for ask in (lambda: open_stream(url, "line"), lambda: list_lines(url)):
        with pytest.raises(StreamError) as refused:
            ask()
        assert "s3cret" not in str(refused.value)


def test_password_with_signs_of_an_url_is_hidden_whole() -> None:
    """Even one that should have been written otherwise."""
    assert hidden("redis://bob:s3c/r@et@h:1/0?sentinel_password=t0p&db=1") == (
        "redis://***@h:1/0?sentinel_password=***&db=1"
    )
