"""Which URLs and addresses images may be fetched from: tables of attacks, and of what must work."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.fetch_policy import (
    FetchPolicy,
    RefusedError,
    is_public,
    parse_domains,
    parse_networks,
    parse_url,
)

ANYWHERE = FetchPolicy(frozenset({"http", "https"}))


@pytest.mark.parametrize(
    ("url", "host", "port", "path"),
    [
        ("https://example.com/cat.png", "example.com", 443, "/cat.png"),
        (
            "HTTPS://Example.COM:8443/Cat.PNG?size=1&x=%20#top",
            "example.com",
            8443,
            "/Cat.PNG?size=1&x=%20",
        ),
        ("http://example.com", "example.com", 80, "/"),
        ("http://1.1.1.1#@127.0.0.1/", "1.1.1.1", 80, "/"),
        ("https://example.com?x", "example.com", 443, "/?x"),
        ("https://a_b.example.com/@user/1.png", "a_b.example.com", 443, "/@user/1.png"),
        ("https://8.8.8.8/x", "8.8.8.8", 443, "/x"),
        ("https://[2001:4860:4860:0::8888]:444/x", "2001:4860:4860::8888", 444, "/x"),
        ("https://example.com/Zürich", "example.com", 443, "/Z%C3%BCrich"),
        ("https://xn--bcher-kva.example/x", "xn--bcher-kva.example", 443, "/x"),
    ],
)
def test_a_url_has_one_reading(url: str, host: str, port: int, path: str):
    target = parse_url(url)
    assert (target.host, target.port, target.path) == (host, port, path)
    assert parse_url(target.url) == target


@pytest.mark.parametrize(
    "url",
    [
        # Read differently by different parsers.
        "http://127.0.0.1:6666\\@1.1.1.1/",
        "http://1.1.1.1\\@127.0.0.1/",
        "http://1.1.1.1 &@127.0.0.1/",
        "http://127.0.0.1\t@1.1.1.1/",
        "http://1.1.1.1\n/",
        "http://a@@b/",
        "http://a%2f@b/",
        "http://a%00b/",
        "http://ⓛocalhost/",
        "http://①②⑦.⓪.⓪.①/",
        "http://example。com/",
        "http://example.com./",
        "http://example..com/",
        "http://.example.com/",
        "http:///x",
        "http://[::1%25lo]/",
        "http://[::ffff:7f00:1/",
        "http://[fe80::1%eth0]/",
        "http://[v1.x]/",
        "http://[1.2.3.4]/",
        # Addresses in notations that resolvers accept.
        "http://2130706433/",
        "http://0x7f000001/",
        "http://0x7f.0.0.1/",
        "http://0177.0.0.1/",
        "http://127.1/",
        "http://0/",
        "http://127.0.0.1.1/",
        "http://example.0x/",
        "http://1.2.3.999/",
        # Credentials, ports, schemes, paths.
        "https://user:secret@example.com/",
        "https://user@example.com/",
        "https://@example.com/",
        "https://example.com:0/",
        "https://example.com:65536/",
        "https://example.com:/",
        "https://example.com:\uff18\uff10/",
        "file:///etc/passwd",
        "file://localhost/etc/passwd",
        "gopher://example.com/",
        "ftp://example.com/",
        "/etc/passwd",
        "../../x.png",
        "//example.com/x",
        "https:/example.com",
        "https:example.com",
        "javascript:alert(1)",
        "",
        "https://example.com/ x",
        "https://example.com/x\r\nHost: evil",
        "https://example.com/\ud800",
        " https://example.com/",
        "https://" + "a" * 64 + ".com/",
        "https://" + ".".join(["abcdefg"] * 40),
        "https://example.com/" + "x" * 9000,
    ],
)
def test_what_can_be_read_twice_is_refused(url: str):
    with pytest.raises(RefusedError):
        ANYWHERE.target(url)


@given(st.text("https:/@[]\\.%#?0x17ab \t①-", max_size=24))
def test_whatever_is_accepted_is_plain(rest: str):
    """Only letters, digits and dots come out as a host, and never a shortened address."""
    try:
        target = parse_url(f"http://{rest}")
    except RefusedError:
        return
    assert set(target.host) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-_:")
    assert target.address is not None or not target.host.split(".")[-1].isdigit()
    assert target.path.isascii()
    assert target.path.isprintable()
    assert " " not in target.path


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1",
        "127.255.255.254",
        "0.0.0.0",
        "0.1.2.3",
        "10.0.0.5",
        "172.16.0.1",
        "192.168.1.1",
        "169.254.169.254",
        "100.64.0.1",
        "100.100.100.200",
        "192.0.0.192",
        "192.0.2.1",
        "192.88.99.1",
        "198.18.0.1",
        "198.51.100.7",
        "203.0.113.9",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
        "168.63.129.16",
        "::",
        "::1",
        "::127.0.0.1",
        "::ffff:127.0.0.1",
        "::ffff:10.0.0.1",
        "::ffff:8.8.8.8",
        "::ffff:0:127.0.0.1",
        "64:ff9b::7f00:1",
        "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::7f00:1",
        "100::1",
        "2001::1",
        "2001:db8::1",
        "2002:7f00:1::",
        "2002:a9fe:a9fe::",
        "2001:20::1",
        "3fff::1",
        "5f00::1",
        "fc00::1",
        "fd00:ec2::254",
        "fd20:ce::254",
        "fe80::1",
        "fe80::1%eth0",
        "fec0::1",
        "ff02::1",
        "4000::1",
    ],
)
def test_special_addresses_are_refused(address: str):
    assert not ANYWHERE.allows(ipaddress.ip_address(address))


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "1.1.1.1", "192.0.1.1", "223.255.255.254", "2001:4860:4860::8888", "2a00::1"],
)
def test_ordinary_addresses_are_public(address: str):
    assert is_public(ipaddress.ip_address(address))


@given(st.ip_addresses(v=6))
def test_no_ipv6_address_outside_of_global_unicast_is_public(address: ipaddress.IPv6Address):
    assert is_public(address) <= (0x2000 <= int(address) >> 112 < 0x4000)


def test_networks_are_exceptions_but_not_for_metadata():
    policy = FetchPolicy(
        frozenset({"http"}), networks=parse_networks("10.1.0.0/16, 169.254.0.0/16,fd00::/8")
    )
    allowed = ("10.1.2.3", "169.254.1.1", "fd12::1", "8.8.8.8")
    refused = ("10.2.0.1", "169.254.169.254", "fd00:ec2::254", "::ffff:10.1.2.3")
    assert all(policy.allows(ipaddress.ip_address(address)) for address in allowed)
    assert not any(policy.allows(ipaddress.ip_address(address)) for address in refused)


@pytest.mark.parametrize("text", ["10.0.0.0/40", "10.0.0.1/8", "intranet"])
def test_networks_are_in_cidr_notation(text: str):
    with pytest.raises(ValueError, match=r"does not appear|has host bits set"):
        parse_networks(text)


def test_domains_narrow():
    policy = FetchPolicy(
        frozenset({"https"}), domains=parse_domains("Example.com, *.pictures.example")
    )
    for host in ("example.com", "EXAMPLE.com", "a.pictures.example", "a.b.pictures.example"):
        policy.target(f"https://{host}/")
    for host in ("www.example.com", "pictures.example", "notpictures.example", "example.com.evil"):
        with pytest.raises(RefusedError, match="not fetched from this host"):
            policy.target(f"https://{host}/")
    with pytest.raises(ValueError, match="host names"):
        parse_domains("https://example.com")


@pytest.mark.parametrize("port", [22, 25, 53, 445, 1023])
def test_ports_of_other_protocols_are_refused(port: int):
    with pytest.raises(RefusedError, match=f"port {port}"):
        ANYWHERE.target(f"https://example.com:{port}/")
    ANYWHERE.target("https://example.com:1024/")


def test_https_only():
    with pytest.raises(RefusedError, match="from https URLs only"):
        FetchPolicy(frozenset({"https"})).target("http://example.com/")


@pytest.mark.parametrize(
    ("location", "url"),
    [
        ("/b.png", "https://example.com:8443/b.png"),
        ("b.png?x#y", "https://example.com:8443/a/b.png?x"),
        ("//cdn.example/b", "https://cdn.example/b"),
        ("https://cdn.example/b", "https://cdn.example/b"),
        ("", "https://example.com:8443/a/x"),
    ],
)
def test_redirects_are_resolved(location: str, url: str):
    target = ANYWHERE.target("https://example.com:8443/a/x")
    assert ANYWHERE.redirect(target, location).url == url


@pytest.mark.parametrize(
    "location",
    [
        "http://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "//user@cdn.example/",
        "https://a\\@b/",
        "https://cdn.example/\tx",
        "https://[::1",
        "//127.1/",
        "data:image/png;base64,AAAA",
        "https://cdn.example:22/",
    ],
)
def test_redirects_are_checked(location: str):
    target = ANYWHERE.target("https://example.com/")
    with pytest.raises(RefusedError):
        ANYWHERE.redirect(target, location)
