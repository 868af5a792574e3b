"""HTML pages that open from a file: one page, which loads nothing from anywhere, with its style and script in it.

A page NAME is made of three files beside the module that fills it: NAME.html.j2 (a template), NAME.css and NAME.js.
"""

import base64
import hashlib
from importlib.resources import files
from typing import Any

import jinja2

import drunet_cli
from drunet_cli.brats import volume_digits
from drunet_cli.errors import one_line


def render_page(package: str, page: str, /, **values: Any) -> bytes:
    """The page as UTF-8; equal values give equal bytes.

    package: where its three files lie, such as "drunet_cli.report". values: what the template names, beside `style`, `script`,
    their digests for the page's security policy, and the `version` of drunet. Every value is escaped and folded to one line,
    but for those that are marked as HTML.
    """
    folder = files(package)
    template, style, script = (folder.joinpath(f"{page}{suffix}").read_text("utf-8") for suffix in (".html.j2", ".css", ".js"))
    environment = jinja2.Environment(
        autoescape=True, finalize=_folded, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}  # modalities have an order
    environment.filters["millilitres"] = volume_digits
    environment.filters["fixed"] = lambda number: f"{number:.1f}"
    rendered = environment.from_string(template).render(
        style=style,
        script=script,
        style_digest=_digest(style),
        script_digest=_digest(script),
        version=drunet_cli.__version__,
        **values,
    )
    return rendered.encode()


def _folded(value: object) -> object:
    """A value as one line: names of files may hold anything. Text that is HTML already stays as it is."""
    return value if hasattr(value, "__html__") else one_line(str(value))


def _digest(source: str) -> str:
    """How the page's security policy names the one script, or style, that it allows."""
    return f"sha256-{base64.b64encode(hashlib.sha256(source.encode()).digest()).decode()}"
