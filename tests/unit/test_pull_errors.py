"""Words of engines about pulls, as they came: for good, or worth another try."""

from __future__ import annotations

import pytest

from controller.backends.pull_errors import is_permanent_pull_error

IMAGE = "localhost:5001/denied/not-found:1"  # its own name says nothing

FOR_GOOD = {
    "no login": 'Head "http://localhost:5001/v2/denied/not-found/manifests/1": no basic auth credentials',
    "wrong password": "unauthorized: authentication required",
    "wrong password, 20.10": 'Get "http://localhost:5001/v2/": unauthorized: authentication required',
    "no such tag": f"manifest for {IMAGE} not found: manifest unknown: manifest unknown",
    "no right": "pull access denied for x, repository does not exist or may require 'docker login': denied: requested"
    " access to the resource is denied",
    "forbidden": "unexpected status from HEAD request to https://r/v2/x/manifests/1: 403 Forbidden",
    "containerd without a login": f'failed to resolve reference "{IMAGE}": pull access denied, repository does not'
    " exist or may require authorization: server message: insufficient_scope: authorization failed",
    "no basic auth, containerd": f'failed to authorize: failed to fetch anonymous token: "{IMAGE}": 401 Unauthorized',
    "other architecture": "no matching manifest for linux/arm64/v8 in the manifest list entries",
    "other system": 'image operating system "windows" cannot be used on this platform',
    "unknown authority": 'Get "https://r/v2/": x509: certificate signed by unknown authority',
    "plain HTTP": 'Get "https://r/v2/": http: server gave HTTP response to HTTPS client',
}
NOT_YET = {
    "rate limit": "toomanyrequests: You have reached your unauthenticated pull rate limit. https://www.docker.com/x",
    "rate limit with a denial": "denied: too many requests: 429",
    "nobody listens": 'Get "http://localhost:5001/v2/": dial tcp 127.0.0.1:5001: connect: connection refused',
    "no such host": 'Get "https://r/v2/": dial tcp: lookup r on 10.0.0.1:53: no such host',
    "silence": 'Get "https://r/v2/": net/http: request canceled (Client.Timeout exceeded while awaiting headers)',
    "handshake": "net/http: TLS handshake timeout",
    "server's fault": "received unexpected HTTP status: 503 Service Unavailable",
    "full disk": "failed to register layer: write /usr/lib/x: no space left on device",
    "its name": f"failed to do request: Head https://{IMAGE}: EOF",
}


@pytest.mark.parametrize("words", FOR_GOOD.values(), ids=FOR_GOOD)
def test_no_such_image_and_no_right_to_it_are_for_good(words: str) -> None:
    assert is_permanent_pull_error(words, IMAGE)


@pytest.mark.parametrize("words", NOT_YET.values(), ids=NOT_YET)
def test_what_may_pass_is_worth_another_try(words: str) -> None:
    assert not is_permanent_pull_error(words, IMAGE)
