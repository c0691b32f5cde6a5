from __future__ import annotations

import pytest
from ansible.module_utils.netmend.parse import ingress_nginx

# The forms of the controller's own log: its log-format-upstream, nginx's errors, klog.
LOG = r"""
2026-11-22T04:50:00.000000000+00:00 stdout F 10.0.0.5 - - [22/Nov/2026:04:50:00 +0000] "GET /old HTTP/1.1" 504 160 "-" "curl" 80 15.0 [shop-web-80] [] 10.42.2.7:8080 0 5.0 504 a
2026-11-22T05:00:00.123456789+00:00 stdout F 10.0.0.5 - - [22/Nov/2026:05:00:00 +0000] "GET /?token=hunter2 HTTP/1.1" 200 615 "-" "curl/8.5 \x22x\x22" 80 0.004 [shop-web-80] [] 10.42.1.5:8080 615 0.004 200 b
2026-11-22T05:00:01.123456789Z stderr F 2026/11/22 05:00:01 [error] 30#30: *7 upstream timed out (110: Operation timed out) while connecting to upstream, client: 10.0.0.5, server: shop.example, request: "GET / HTTP/1.1", upstream: "http://10.42.2.7:8080/", host: "shop.example"
2026-11-22T06:00:01.000000000+01:00 stderr F 2026/11/22 05:00:01 [error] 30#30: *7 upstream timed out (110: Operation timed out) while connecting to upstream, client: 10.0.0.5, server: shop.example, request: "GET / HTTP/1.1", upstream: "http://10.42.2.7:8080/", host: "shop.example"
2026-11-22T05:00:02.000000000Z stderr F 2026/11/22 05:00:02 [error] 30#30: *8 connect() failed (111: Connection refused) while connecting to upstream, client: 10.0.0.5, server: shop.example, request: "GET / HTTP/1.1", upstream: "http://10.42.1.5:8080/", host: "shop.example"
2026-11-22T05:00:15.000000000Z stdout F 10.0.0.5 - - [22/Nov/2026:05:00:15 +0000] "GET / HTTP/1.1" 504 160 "-" "curl" 80 15.003 [shop-web-80] [] 10.42.2.7:8080, 10.42.2.7:8080, 10.42.1.5:8080 0, 0, 0 5.001, 5.001, 5.001 504, 504, 502 c
2026-11-22T05:00:16.000000000Z stdout F 10.0.0.5 - - [22/Nov/2026:05:00:16 +0000] "GET / HTTP/1.1" 503 190 "-" "-" 80 0.000 [shop-api-http] [] - - - - d
2026-11-22T05:00:17.000000000Z stderr F W1122 05:00:17.000000       7 controller.go:1225] Service "shop/api" does not have any active Endpoint.
not of a container
"""  # noqa: E501  as they are
SINCE = 1795323600.0  # 2026-11-22 05:00:00 UTC


def test_a_log_is_counted_from_a_moment_on_whatever_zone_it_is_written_in() -> None:
    counted = ingress_nginx.log(LOG.splitlines(), SINCE)
    assert counted == {
        "answers": {"shop-web-80": {"200": 1, "504": 1}, "shop-api-http": {"503": 1}},
        "tries": {"10.42.1.5:8080": 2, "10.42.2.7:8080": 2},
        "failures": {
            "10.42.2.7:8080": {"upstream timed out (110: Operation timed out) while connecting to upstream": 2},
            "10.42.1.5:8080": {"connect() failed (111: Connection refused) while connecting to upstream": 1},
        },
    }
    assert "hunter2" not in str(counted)


def test_where_the_format_is_another_one_errors_are_counted_all_the_same() -> None:
    other = LOG.replace("[shop-web-80] []", "upstream=shop-web-80")
    counted = ingress_nginx.log(other.splitlines(), SINCE)
    assert set(counted["answers"]) == {"shop-api-http"}
    assert sum(sum(kinds.values()) for kinds in counted["failures"].values()) == 3


def test_the_list_of_endpoints_by_upstream() -> None:
    text = (
        '[{"name": "shop-web-80", "port": 80, "endpoints": [{"address": "10.42.1.5", "port": "8080"}]},'
        ' {"name": "shop-api-http", "port": "http", "endpoints": null}, {"name": "upstream-default-backend"}]'
    )
    assert ingress_nginx.backends(text) == {
        "shop-web-80": ["10.42.1.5:8080"],
        "shop-api-http": [],
        "upstream-default-backend": [],
    }


@pytest.mark.parametrize(("text", "why"), [("", "Expecting value"), ("<html>", "Expecting value"), ("{}", "no list")])
def test_what_is_no_list_is_an_error(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        ingress_nginx.backends(text)
