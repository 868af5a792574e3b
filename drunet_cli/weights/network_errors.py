"""What requests, urllib3, TLS and the operating system raise for a download, in words a user can act on."""

from __future__ import annotations

import errno
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

from drunet_cli.errors import WeightsError, one_line

if TYPE_CHECKING:
    from requests import RequestException


# What is the same a few seconds later: no way to the host, nobody who listens, or a firewall that says no.
_UNREACHABLE: Final = {
    *(errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.EHOSTDOWN, errno.ENETUNREACH, errno.ENETDOWN),
    *(errno.EADDRNOTAVAIL, errno.EACCES, errno.EPERM),
}
_ATTEMPTS_AT_A_SILENT_HOST: Final = 2  # a firewall that drops what is sent looks like a packet that was lost


class AttemptError(Exception):
    """An attempt failed in a way that another one may mend.

    wait_s: how long the server asks to wait. most_attempts: how many make sense at a host that has never answered.
    """

    def __init__(self, reason: str, *, wait_s: float = 0.0, most_attempts: int | None = None) -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.most_attempts = most_attempts


@contextmanager
def network_errors(shown: str, *, silence_s: float | None = None) -> Iterator[None]:
    """Put what requests and urllib3 raise into words: AttemptError where another attempt may help, else WeightsError.

    shown: the URL, as the message begins. silence_s: what a time-out means, by default all the time spent in the block:
    one address of a host is tried after the other, and a proxy or TLS may be what does not answer.
    """
    import ssl

    import requests
    import urllib3.exceptions

    began = time.monotonic()
    try:
        yield
    except requests.ConnectTimeout as error:
        reason = f"could not connect to {_host(error)}: no answer in {time.monotonic() - began:.1f} s"
        raise AttemptError(reason, most_attempts=_ATTEMPTS_AT_A_SILENT_HOST) from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        silent_s = time.monotonic() - began if silence_s is None else silence_s
        raise AttemptError(f"the server was silent for {silent_s:.1f} s") from error
    except requests.exceptions.ConnectionError as error:
        cause = _system_error(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise WeightsError(
                f"{shown}: the TLS certificate of {_host(error)} cannot be trusted: {cause.verify_message}"
            ) from error
        peer = "the proxy" if isinstance(error, requests.exceptions.ProxyError) else _host(error)
        reason = "it does not speak HTTP" if cause is None else cause.strerror or str(cause)
        raise AttemptError(f"could not connect to {peer}: {reason}", most_attempts=_attempts_after(cause)) from error
    except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError) as error:
        raise AttemptError("the connection was cut") from error
    except requests.TooManyRedirects as error:
        raise WeightsError(f"{shown}: the server redirects without end") from error
    except requests.RequestException as error:  # their texts repeat the URL with user and password
        raise WeightsError(f"{shown}: the URL, one that it redirects to, or that of the proxy is not valid") from error
    except OSError as error:  # requests raises it, bare, for a REQUESTS_CA_BUNDLE that does not exist
        raise WeightsError(f"{shown}: {one_line(str(error))}") from error


def _attempts_after(cause: OSError | None) -> int | None:
    is_unreachable = isinstance(cause, socket.gaierror) or (cause is not None and cause.errno in _UNREACHABLE)
    return 1 if is_unreachable else None


def _host(error: RequestException) -> str:
    return (urlsplit(str(error.request.url)).hostname if error.request else None) or "the server"


def _system_error(error: BaseException) -> OSError | None:
    """What the operating system or the TLS library said, out of the exceptions that are wrapped around it."""
    inner = error.__cause__ or error.__context__
    return inner if inner is None or isinstance(inner, OSError) else _system_error(inner)
