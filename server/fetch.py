"""Images from http(s) addresses, for clients that send a link instead of the picture.

Owns connections and their bounds (hops, bytes, seconds, how many at once); which addresses are
allowed is `fetch_policy`'s. Invariant: every hop is resolved once, all its addresses are checked,
and one of those very addresses is dialled: no name is looked up a second time between check and
use. Nothing of the environment (proxies, cookies, credentials) goes out, and refusals do not tell
what is behind a host.
"""

import asyncio
import contextlib
import functools
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx2

from janus_core.errors import ImageInputError, QueueFullError
from server.fetch_policy import Address, FetchPolicy, RefusedError, Target
from server.logs import printable

logger = logging.getLogger(__name__)

MAX_HEADERS = 100
"""Fields in the head of a host's answer; its size is bounded by h11 (100 KB)."""
MAX_ADDRESSES = 3
"""Addresses of one host that are tried before it counts as not answering."""
CONNECT_S = 3.0

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_NUM_RESOLVING_THREADS = 4
_HEADERS = {"accept": "image/*", "accept-encoding": "identity", "user-agent": "janus-serve"}

_UNREACHABLE = "The host of the image's URL cannot be reached from this server."
"""The same for a name that does not exist and for one whose addresses are refused."""

Resolve = Callable[[str, int], Awaitable[Sequence[Address]]]
"""From host and port to addresses; raises OSError."""

Observe = Callable[[str, float], None]
"""Called with `ok`, `refused` or `failed` and the seconds it took."""


class _FailedError(Exception):
    """The host did not deliver the image. `message` is safe to show."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class _Allowance:
    """Bytes that may still be taken in, by all images of a request together."""

    def __init__(self, num_bytes: int) -> None:
        self._left = num_bytes

    def take(self, num_bytes: int) -> None:
        """Raises ImageInputError if no such room is left."""
        self._left -= num_bytes
        if self._left < 0:
            raise ImageInputError(
                "The images of the request are too large together.", code="image_file_too_large"
            )


class Fetcher:
    """Fetches images within a policy. Belongs to one event loop.

    `max_bytes` bounds one image, `timeout_s` the time from its first look-up to its last byte,
    `max_redirects` its hops; `max_at_once` and `max_at_once_per_request` how many are fetched
    together, and `max_pending` how many requests may be fetching or waiting to.
    """

    def __init__(
        self,
        policy: FetchPolicy,
        *,
        max_bytes: int,
        timeout_s: float,
        max_redirects: int,
        max_at_once: int,
        max_at_once_per_request: int,
        max_pending: int,
        observe: Observe,
        on_blocked: Callable[[str], None],
        resolve: Resolve | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._policy = policy
        self._max_bytes = max_bytes
        self._timeout_s = timeout_s
        self._max_redirects = max_redirects
        self._max_at_once_per_request = max_at_once_per_request
        self._max_pending = max_pending
        self._num_pending = 0
        self._observe = observe
        self._on_blocked = on_blocked
        self._threads = ThreadPoolExecutor(_NUM_RESOLVING_THREADS, thread_name_prefix="resolve")
        self._resolve = resolve or functools.partial(_resolve, self._threads)
        self._slots = asyncio.Semaphore(max_at_once)
        if tls is None:
            tls = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            if "https" in policy.schemes:  # loading certificates takes a while
                tls.load_default_certs()
        # A bare transport: no cookies, redirects, proxies or credentials. Connections are not kept:
        # they are pooled by address, and the certificate was checked for one host only.
        self._transport = httpx2.AsyncHTTPTransport(
            verify=tls,
            trust_env=False,
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=0),
        )

    async def fetch_all(
        self, sources: Sequence[tuple[str, str]], *, max_total_bytes: int
    ) -> dict[str, bytes]:
        """The contents of the http(s) URLs among `sources`, pairs of a URL and its field.

        Every URL is checked before the first one is fetched. Raises ImageInputError that names the
        field, QueueFullError.
        """
        params = {url: param for url, param in reversed(sources) if is_remote(url)}
        if not params:
            return {}
        targets = {url: self._target(url, param=param) for url, param in params.items()}
        if self._num_pending >= self._max_pending:
            raise QueueFullError(
                f"{self._num_pending} requests are waiting for images already.", retry_after_s=1.0
            )
        self._num_pending += 1
        allowance = _Allowance(max_total_bytes)
        at_once = asyncio.Semaphore(self._max_at_once_per_request)

        async def fetch(url: str) -> bytes:
            async with at_once, self._slots:
                return await self._fetch(targets[url], allowance, param=params[url])

        try:
            async with asyncio.TaskGroup() as group:
                tasks = {url: group.create_task(fetch(url)) for url in targets}
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            self._num_pending -= 1
        return {url: task.result() for url, task in tasks.items()}

    async def close(self) -> None:
        """Close what is open."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        await self._transport.aclose()

    def _target(self, url: str, *, param: str) -> Target:
        if not self._policy.schemes:
            self._on_blocked("disabled")
            raise ImageInputError(
                "Fetching images from http URLs is not enabled; send a data: URL.",
                param=param,
                code="invalid_image_url",
            )
        try:
            return self._policy.target(url)
        except RefusedError as error:
            self._observe("refused", 0.0)
            self._on_blocked(error.reason)
            raise ImageInputError(error.message, param=param, code="invalid_image_url") from None

    async def _fetch(self, target: Target, allowance: _Allowance, *, param: str) -> bytes:
        """One image, with everything that can go wrong as an ImageInputError for `param`."""
        started, outcome = time.perf_counter(), "failed"
        try:
            async with asyncio.timeout(self._timeout_s):
                data = await self._follow(target, allowance)
            outcome = "ok"
            return data
        except RefusedError as error:
            outcome = "refused"
            self._on_blocked(error.reason)
            raise ImageInputError(error.message, param=param, code="invalid_image_url") from None
        except ImageInputError as error:
            outcome = "refused"
            raise ImageInputError(error.message, param=param, code=error.code) from None
        except (_FailedError, TimeoutError, httpx2.HTTPError, httpx2.InvalidURL, OSError) as error:
            message = (
                error.message
                if isinstance(error, _FailedError)
                else f"The image could not be downloaded within {self._timeout_s:g} s."
                if isinstance(error, TimeoutError | httpx2.TimeoutException)
                else "The image could not be downloaded: the connection failed."
            )
            logger.info("No image from %s: %s", printable(target.host), type(error).__name__)
            raise ImageInputError(message, param=param, code="failed_to_download_image") from None
        finally:
            self._observe(outcome, time.perf_counter() - started)

    async def _follow(self, target: Target, allowance: _Allowance) -> bytes:
        """The image at `target` or where it redirects to."""
        for _ in range(1 + self._max_redirects):
            response = await self._connect(target)
            try:
                if len(response.headers.raw) > MAX_HEADERS:
                    raise _FailedError(
                        f"The image's host answered with more than {MAX_HEADERS} header fields."
                    )
                if response.status_code not in _REDIRECTS or "location" not in response.headers:
                    return await self._read(response, allowance)
                target = self._policy.redirect(target, response.headers["location"])
            finally:
                await response.aclose()
        raise RefusedError(
            f"The image's host redirects more than {self._max_redirects} times.", reason="redirect"
        )

    async def _connect(self, target: Target) -> httpx2.Response:
        """The head of the answer of the first of the host's addresses that answers."""
        *first, last = (await self._addresses(target))[:MAX_ADDRESSES]
        for address in first:
            with contextlib.suppress(httpx2.ConnectError, httpx2.ConnectTimeout):
                return await self._ask(target, address)
        return await self._ask(target, last)

    async def _addresses(self, target: Target) -> list[Address]:
        """All addresses of the host, each of them allowed. The only look-up of the hop."""
        found: Sequence[Address]
        if target.address is not None:
            found = [target.address]
        else:
            try:
                found = await self._resolve(target.host, target.port)
            except OSError:
                found = []
        if not found or not all(map(self._policy.allows, found)):
            why = "has an address that is refused" if found else "has no address"
            logger.info("Refused to fetch an image: %s %s", printable(target.host), why)
            raise RefusedError(_UNREACHABLE, reason="address")
        return list(dict.fromkeys(found))

    async def _ask(self, target: Target, address: Address) -> httpx2.Response:
        """Send the request to `address`, in the name of the host."""
        request = httpx2.Request(
            "GET",
            httpx2.URL(
                scheme=target.scheme,
                host=str(address),
                port=target.port,
                raw_path=target.path.encode("ascii"),
            ),
            headers={"host": target.authority, "connection": "close", **_HEADERS},
            extensions={
                # Also what the certificate is checked against.
                "sni_hostname": target.host,
                "timeout": {
                    "connect": min(CONNECT_S, self._timeout_s),
                    "read": self._timeout_s,
                    "write": self._timeout_s,
                    "pool": self._timeout_s,
                },
            },
        )
        response = await self._transport.handle_async_request(request)
        peer = response.extensions["network_stream"].get_extra_info("server_addr")
        if peer is None or ipaddress.ip_address(peer[0]) != address:
            await response.aclose()
            raise RefusedError(_UNREACHABLE, reason="address")
        return response

    async def _read(self, response: httpx2.Response, allowance: _Allowance) -> bytes:
        """The body of a good answer, up to the limit."""
        if response.status_code != httpx2.codes.OK:
            raise _FailedError(f"The image's host answered with status {response.status_code}.")
        headers = response.headers
        if not headers.get("content-type", "").lower().startswith("image/"):
            raise ImageInputError(
                "What is at the image's URL is not an image.", code="unsupported_image_media_type"
            )
        if headers.get("content-encoding", "identity").lower() != "identity":
            raise _FailedError("The image's host sent it compressed, though not asked to.")
        too_large = ImageInputError(
            f"The image exceeds the limit of {self._max_bytes} bytes.", code="image_file_too_large"
        )
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length) > self._max_bytes:
            raise too_large
        data = bytearray()
        async for chunk in response.aiter_raw():
            allowance.take(len(chunk))
            if len(data) + len(chunk) > self._max_bytes:
                raise too_large
            data += chunk
        if not data:
            raise ImageInputError("The image is empty.", code="empty_image_file")
        return bytes(data)


def is_remote(url: str) -> bool:
    """Whether `url` would have to be fetched."""
    return url[:6].lower().startswith(("http:", "https:"))


async def _resolve(threads: ThreadPoolExecutor, host: str, port: int) -> list[Address]:
    """The system's resolver. Python's own threads for it are left alone: it can hang for long."""
    look_up = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    try:
        found = await asyncio.get_running_loop().run_in_executor(threads, look_up)
    except UnicodeError as error:
        raise OSError("no such host") from error
    return [ipaddress.ip_address(address[0]) for *_, address in found]
