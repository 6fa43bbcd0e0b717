"""What a server is told of who asks, and that nobody else is told it.

A server gets, in this order: the Hugging Face token, if it is the hub; what the netrc file has for its name.
Looked up for each hop of a redirect: a hub's storage never sees the hub's token. The environment of the
process decides, as it does for proxies: the import reads headers with it, and the daemon of each node that
loads the model reads the bytes with its own.

A URL names neither user nor password: it is kept, and goes to other nodes. Its query may be a signature,
without which a presigned address is none: it is kept with the address of the bytes, and shown nowhere.
"""

from __future__ import annotations

import base64
import netrc
import os
import re
from pathlib import Path
from urllib.parse import SplitResult, quote, urlsplit

from sllmd.core.errors import InvalidRequest, SourceUnavailable

HUB_PREFIX = "hf://"
WHO_ASKS = frozenset({401, 403})
"""What a server answers that wants to know who asks, or does not like it."""
WHO_ASKS_HINT = "for a private model, each node needs HF_TOKEN for the hub, or a netrc file for other servers"
NO_USER_HINT = (
    "put user and password into a netrc file (NETRC) where it is imported and on each node that loads it"
)
HIDDEN = "***"
"""What stands in the place of a query's values."""
_DEFAULT_HUB = "https://huggingface.co"
_SCHEMES = ("http", "https")
_HOST = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^/@?#:]*)(:\d*)?(?=[/?#]|$)")


def hub_url(source: str) -> str:
    """Where ``hf://ORG/NAME[@REVISION]`` lies on the environment's hub. Raises InvalidRequest."""
    path, _, revision = source.removeprefix(HUB_PREFIX).strip("/").partition("@")
    if len([part for part in path.split("/") if part]) != 2:
        raise InvalidRequest(
            f"`{source}` names no model", param="source", hint="write hf://ORG/NAME or hf://ORG/NAME@REVISION"
        )
    return f"{_hub()}/{quote(path)}/resolve/{quote(revision or 'main', safe='')}"


def names_user(url: str) -> bool:
    """Whether ``url`` says who asks, with or without a password, which it must not."""
    scheme, _, rest = url.partition("://")
    return scheme.lower() in _SCHEMES and "@" in rest and _HOST.match(rest) is None


def is_shown(url: str) -> bool:
    """Whether ``url`` is what ``shown_url`` makes of an address, and so none itself."""
    return HIDDEN in re.split("[&=]", url.partition("?")[2])


def shown_url(url: str) -> str:
    """``url`` as anybody may see it: no user, no password, the names in its query without their values.

    All values: signatures and tokens have too many names. What is no URL stays as it is.
    """
    scheme, mark, rest = url.partition("://")
    if scheme.lower() not in _SCHEMES or not mark:
        return url
    if _HOST.match(rest) is None:  # whatever a password consists of
        rest = rest.rpartition("@")[2]
    place, _, query = rest.partition("#")[0].partition("?")
    shown = "&".join(
        f"{name}={HIDDEN}" if equals else HIDDEN for name, equals, _ in map(_pair, query.split("&"))
    )
    return f"{scheme}://{place}?{shown}" if query else f"{scheme}://{place}"


def _pair(part: str) -> tuple[str, str, str]:
    return part.partition("=")


def authorization(server: SplitResult) -> dict[str, str]:
    """The headers that tell ``server`` who asks, mostly none. SourceUnavailable: the netrc file is none."""
    token = _hub_token() if _origin(server) == _origin(urlsplit(_hub())) else None
    if token:
        return {"Authorization": f"Bearer {token}"}
    login = _netrc_login(server.hostname or "")
    return {"Authorization": basic(*login)} if login else {}


def _hub() -> str:
    return os.environ.get("HF_ENDPOINT", _DEFAULT_HUB).rstrip("/")


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)


def _hub_token() -> str | None:
    """HF_TOKEN, else what `hf auth login` left."""
    if token := os.environ.get("HF_TOKEN", "").strip():
        return token
    home = os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "huggingface"
    file = Path(os.environ.get("HF_TOKEN_PATH") or Path(home) / "token").expanduser()
    try:
        return file.read_text().strip() or None
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None  # another user's, or none: the hub says so where it matters


def _netrc_login(host: str) -> tuple[str, str] | None:
    file = Path(os.environ.get("NETRC", "~/.netrc")).expanduser()
    try:
        found = netrc.netrc(str(file)).hosts.get(host)  # its `default` would tell any server that asks
    except (FileNotFoundError, PermissionError, NotADirectoryError):
        return None
    except netrc.NetrcParseError as error:
        raise SourceUnavailable(f"{file} cannot be used: {error}", hint="correct it, or set NETRC") from error
    return (found[0], found[2] or "") if found else None


def basic(user: str, password: str) -> str:
    """The value of a header that tells user and password."""
    return f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"
