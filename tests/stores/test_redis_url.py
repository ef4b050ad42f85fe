from __future__ import annotations

import pytest

from memoryos_server.stores.redis_client import socket_url
from memoryos_server.stores.redis_url import Endpoint, parse


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://store", Endpoint(hosts=(("store", 6379),))),
        ("redis://store:7000/3", Endpoint(hosts=(("store", 7000),), database=3)),
        ("redis://store/", Endpoint(hosts=(("store", 6379),))),
        ("redis://[::1]:7000", Endpoint(hosts=(("::1", 7000),))),
        ("redis://[fe80::1]", Endpoint(hosts=(("fe80::1", 6379),))),
        ("rediss://:p%40ss@store", Endpoint(hosts=(("store", 6379),), password="p@ss", tls=True)),
        ("redis://app:s3cret@store", Endpoint(hosts=(("store", 6379),), username="app", password="s3cret")),
        ("unix:///run/valkey.sock?db=2", Endpoint(socket="/run/valkey.sock", database=2, timeout=5.0)),
        (
            "redis+sentinel://app:pw@a,b:7000/mymaster/1",
            Endpoint("sentinel", (("a", 26379), ("b", 7000)), "", "mymaster", 1, "app", "pw"),
        ),
        (
            "rediss+cluster://:pw@a:1,b:2,[::1]:3",
            Endpoint("cluster", (("a", 1), ("b", 2), ("::1", 3)), password="pw", tls=True),
        ),
    ],
)
def test_parse_when_a_url_has_a_known_form_then_says_what_it_means(url: str, expected: Endpoint) -> None:
    assert parse(url) == expected


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("store:6379", "scheme"),
        ("http://:hunter2@store", "scheme"),
        ("redis+ring://:hunter2@store", "scheme"),
        ("redis://:hunter2@a,b", "several hosts"),
        ("redis://:hunter2@", "host"),
        ("redis://:hunter2@store:port", "host"),
        ("redis://:hunter2@store:70000", "host"),
        ("redis://:hunter2@::1:6379", "host"),
        ("redis://:hunter2@store/zero", "number of a database"),
        ("redis://:hunter2@store/0/1", "number of a database"),
        ("redis://:hunter2@store?timeout=1", "query"),
        ("redis://:hunter2@store#1", "#"),
        ("redis+sentinel://:hunter2@a,b", "service"),
        ("redis+cluster://:hunter2@a/1", "database 0"),
        ("unix://", "socket"),
        ("unix:///a?timeout=1", "socket"),
        ("redis://:hunter2@[::1", "URL"),
    ],
)
def test_parse_when_a_url_has_no_known_form_then_says_what_is_wrong_and_no_password(url: str, says: str) -> None:
    with pytest.raises(ValueError, match=r".") as raised:
        parse(url)
    assert says in str(raised.value)
    assert "hunter2" not in str(raised.value)


def test_parse_when_a_socket_has_odd_characters_then_is_what_socket_url_was_given() -> None:
    assert parse(socket_url("/run/a b?c#d")).socket == "/run/a b?c#d"


@pytest.mark.parametrize(
    "url", ["redis://u:hunter2@a:1/2", "rediss+sentinel://u:hunter2@a:1,b:2/m", "rediss+cluster://u:hunter2@a:1"]
)
def test_str_when_an_endpoint_is_shown_then_nobody_is_named(url: str) -> None:
    endpoint = parse(url)
    assert str(endpoint) == url.replace("u:hunter2@", "")
    assert "hunter2" not in repr(endpoint)
