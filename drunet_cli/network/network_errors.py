"""What requests, urllib3, TLS and the operating system raise for a download, in words a user can act on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from drunet_cli.errors import WeightsError, one_line

if TYPE_CHECKING:
    from requests import RequestException


class AttemptError(Exception):
    """An attempt failed in a way that another one may mend; wait_s: how long the server asks to wait."""

    def __init__(self, reason: str, *, wait_s: float = 0.0) -> None:
        super().__init__(reason)
        self.wait_s = wait_s


@contextmanager
def network_errors(shown: str, *, connect_timeout_s: float, read_timeout_s: float) -> Iterator[None]:
    """Put what requests and urllib3 raise into words: AttemptError where another attempt may help, else WeightsError.

    shown: the URL, as the message begins.
    """
    import ssl

    import requests
    import urllib3.exceptions

    try:
        yield
    except requests.ConnectTimeout as error:
        raise AttemptError(f"could not connect to {_host(error)}: timed out after {connect_timeout_s:g} s") from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError) as error:
        raise AttemptError(f"timed out after {read_timeout_s:g} s") from error
    except requests.exceptions.ConnectionError as error:
        cause = _system_error(error)
        if isinstance(cause, ssl.SSLCertVerificationError):
            raise WeightsError(
                f"{shown}: the TLS certificate of {_host(error)} cannot be trusted: {cause.verify_message}"
            ) from error
        peer = "the proxy" if isinstance(error, requests.exceptions.ProxyError) else _host(error)
        reason = "it does not speak HTTP" if cause is None else cause.strerror or str(cause)
        raise AttemptError(f"could not connect to {peer}: {reason}") from error
    except (requests.exceptions.ChunkedEncodingError, urllib3.exceptions.HTTPError) as error:
        raise AttemptError("the connection was cut") from error
    except requests.TooManyRedirects as error:
        raise WeightsError(f"{shown}: the server redirects without end") from error
    except requests.RequestException as error:  # their texts repeat the URL with user and password
        raise WeightsError(f"{shown}: the URL, one that it redirects to, or that of the proxy is not valid") from error
    except OSError as error:  # requests raises it, bare, for a REQUESTS_CA_BUNDLE that does not exist
        raise WeightsError(f"{shown}: {one_line(str(error))}") from error


def _host(error: RequestException) -> str:
    return (urlsplit(str(error.request.url)).hostname if error.request else None) or "the server"


def _system_error(error: BaseException) -> OSError | None:
    """What the operating system or the TLS library said, out of the exceptions that are wrapped around it."""
    inner = error.__cause__ or error.__context__
    return inner if inner is None or isinstance(inner, OSError) else _system_error(inner)
