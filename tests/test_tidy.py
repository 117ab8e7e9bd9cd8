"""The house's rules, as tests: floors, doors, sizes, and what the hot path may not do.

CONTRIBUTING.md says why each rule is there. A rule that needs an exception gets it here, by name,
with its reason beside it.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SOURCES = sorted([*ROOT.glob("gateway/**/*.py"), *ROOT.glob("peers/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))

# The longest prefix of a module's name decides its room; rooms of one floor do not see each other.
ROOM_FLOOR = {
    "gateway.errors": 0,
    "gateway.clock": 0,
    "gateway.build": 0,
    "gateway.h1": 1,
    "gateway.limits": 1,
    "gateway.waiting": 1,
    "gateway.breaker": 1,
    "gateway.conf": 2,
    "gateway.routes": 2,
    "gateway.proxy": 3,
    "gateway.connectors": 3,
    "gateway.admin": 4,
    "gateway.mesh": 4,
    "gateway.accesslog": 4,
    "gateway.spool": 4,
    "gateway": 5,
}
COMPOSITION = 5  # its modules put each other together
# The dialers make the pool's connections, of whatever kind, and those of HTTP/2 are their own.
EXCEPTIONS = {
    ("gateway.connectors", f"gateway.proxy.{module}")
    for module in ("deadlines", "exchange", "flow", "graph", "pool", "relay", "tunnel", "upstream")
}

PURE = ("gateway.h1", "gateway.limits", "gateway.waiting", "gateway.breaker", "gateway.conf",
        "gateway.routes", "gateway.errors", "gateway.build", "gateway.spool.bounded_json",
        "gateway.spool.envelope", "gateway.spool.lanes", "gateway.spool.letters",
        "gateway.spool.marks", "gateway.spool.outcomes", "gateway.spool.partitions",
        "gateway.spool.record", "peers.core")  # fmt: skip
IMPURE_MODULES = {"asyncio", "socket", "time", "random", "logging", "selectors", "threading"}
PEERS_MAY = {"peers", "msgpack", "cryptography"}

# Each third-party name has one door.
DOORS = {
    "aiokafka": ("gateway/connectors/kafka_link.py", "gateway/connectors/kafka_tail.py"),
    "hiredis": ("gateway/connectors/redis_store.py",),
    "httptools": ("gateway/h1/codec_httptools.py",),
    "h11": ("gateway/h1/codec_h11.py",),
    "httpcore": ("gateway/connectors/relay_httpcore.py",),
    "h2": ("gateway/connectors/relay_httpcore.py",),
    "msgpack": ("peers/core/wire.py",),
    "cryptography": ("peers/core/keyring.py", "gateway/connectors/"),
    "pydantic": ("gateway/conf/",),
    "pydantic_core": ("gateway/conf/",),
    "starlette": ("gateway/admin/",),
    "uvicorn": ("gateway/admin/",),
    "prometheus_client": ("gateway/admin/",),
    "click": ("gateway/cli.py", "gateway/ctl/", "gateway/plan.py", "gateway/demo/"),
    "rich": ("gateway/cli.py", "gateway/ctl/", "gateway/plan.py", "gateway/demo/"),
    "matplotlib": ("gateway/plan.py",),
    "uvloop": ("gateway/cli.py", "gateway/worker.py", "gateway/demo/"),
    "structlog": ("gateway/process.py",),
    "http_sf": ("gateway/breaker/",),
}

# What runs per request or per chunk: no task, future, timer or coroutine, no text formatting.
HOT = [
    "gateway/routes.py",
    "gateway/proxy/admission.py",
    "gateway/proxy/central.py",
    "gateway/proxy/downstream.py",
    "gateway/proxy/exchange.py",
    "gateway/proxy/histogram.py",
    "gateway/proxy/keys.py",
    "gateway/proxy/record.py",
    "gateway/proxy/relay.py",
    "gateway/proxy/upstream.py",
    "gateway/limits/central.py",
    "gateway/limits/wrapped.py",
    "gateway/limits/gcra.py",
    "gateway/limits/policy.py",
    "gateway/h1/codec_httptools.py",
    "gateway/h1/dates.py",
    "gateway/h1/encode.py",
    "gateway/h1/forward.py",
    "peers/core/counters.py",
    "peers/core/exact.py",
    "peers/core/leases.py",
    "peers/core/ledger.py",
    "peers/core/rows.py",
    "gateway/h1/chunked.py",
    "gateway/h1/framer.py",
    "gateway/h1/guard.py",
    "gateway/h1/names.py",
    "gateway/proxy/response.py",
    "gateway/proxy/targets.py",
    "gateway/proxy/tunnel.py",
]
HOT_BANNED_CALLS = {
    "create_task",
    "ensure_future",
    "call_later",
    "call_at",
    "create_future",
    "Future",
    "Event",
}

FILE_LINES_MAX = 600
FUNCTION_LINES_MAX = 70


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path: Path) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, and where; relative imports do not occur (checked)."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import"
            assert node.module is not None
            yield node.module, node.lineno
            if node.module in ("gateway", "gateway.proxy", "gateway.h1", "gateway.conf"):
                for alias in node.names:
                    yield f"{node.module}.{alias.name}", node.lineno


def room_of(module: str) -> str:
    fitting = [room for room in ROOM_FLOOR if module == room or module.startswith(room + ".")]
    return max(fitting, key=len)


def test_imports_go_downward() -> None:
    faults = []
    for path in SOURCES:
        module = module_of(path)
        if not module.startswith("gateway"):
            continue
        room = room_of(module)
        for imported, line in imports_of(path):
            if not imported.startswith("gateway.") or imported == "gateway":
                continue
            target = room_of(imported)
            down = ROOM_FLOOR[target] < ROOM_FLOOR[room]
            same = target == room or ROOM_FLOOR[room] == COMPOSITION
            if not (down or same or (room, imported) in EXCEPTIONS):
                faults.append(f"{path.relative_to(ROOT)}:{line}: {room} imports {imported}")
    assert not faults, "\n".join(faults)


def test_pure_rooms_import_nothing_that_acts() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: imports {imported}"
        for path in SOURCES
        if module_of(path).startswith(PURE)
        for imported, line in imports_of(path)
        if imported.split(".")[0] in IMPURE_MODULES
    ]
    assert not faults, "\n".join(faults)


def test_peers_stand_alone() -> None:
    faults = []
    for path in SOURCES:
        module = module_of(path)
        if not module.startswith("peers"):
            continue
        for imported, line in imports_of(path):
            top = imported.split(".")[0]
            if top not in sys.stdlib_module_names and top not in PEERS_MAY:
                faults.append(f"{path.relative_to(ROOT)}:{line}: imports {imported}")
            if top == "asyncio" and module != "peers.driver":
                faults.append(f"{path.relative_to(ROOT)}:{line}: asyncio outside the driver")
    assert not faults, "\n".join(faults)


def test_each_library_has_one_door() -> None:
    faults = []
    for path in SOURCES:
        name = str(path.relative_to(ROOT))
        for imported, line in imports_of(path):
            top = imported.split(".")[0]
            if top in sys.stdlib_module_names or top in ("gateway", "peers"):
                continue
            if top not in DOORS:
                faults.append(f"{name}:{line}: {top} has no door")
            elif not name.startswith(DOORS[top]):
                faults.append(f"{name}:{line}: {top} comes in by {DOORS[top]} only")
    assert not faults, "\n".join(faults)


def test_only_composition_knows_the_driver_and_signals() -> None:
    faults = [
        f"{path.relative_to(ROOT)}:{line}: imports {imported}"
        for path in SOURCES
        if module_of(path).startswith("gateway") and ROOM_FLOOR[room_of(module_of(path))] < 5
        for imported, line in imports_of(path)
        if imported in ("peers.driver", "signal")
    ]
    assert not faults, "\n".join(faults)


def test_only_the_clock_reads_time() -> None:
    pattern = re.compile(r"\b(time\.(time|monotonic|perf_counter)\w*\(|datetime\.now\()")
    faults = []
    for path in SOURCES:
        if module_of(path) in ("gateway.clock", "peers.driver", "peers.sim"):
            continue
        faults += [
            f"{path.relative_to(ROOT)}: imports {imported}"
            for imported, _ in imports_of(path)
            if imported == "time"
        ]
        if pattern.search(path.read_text()):
            faults.append(f"{path.relative_to(ROOT)}: reads the clock")
    assert not faults, "\n".join(faults)


@pytest.mark.parametrize("name", HOT)
def test_hot_path_makes_no_tasks(name: str) -> None:
    path = ROOT / name
    faults = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.AsyncFunctionDef | ast.Await):
            faults.append(f"{name}:{node.lineno}: a coroutine")
        elif isinstance(node, ast.Call):
            function = node.func
            called = getattr(function, "attr", getattr(function, "id", ""))
            if called in HOT_BANNED_CALLS:
                faults.append(f"{name}:{node.lineno}: {called}()")
    assert not faults, "\n".join(faults)


def test_sizes() -> None:
    faults = []
    for path in [*SOURCES, *TESTS]:
        name = str(path.relative_to(ROOT))
        text = path.read_text()
        lines = text.count("\n")
        if lines > FILE_LINES_MAX:
            faults.append(f"{name}: {lines} lines")
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > FUNCTION_LINES_MAX:
                    faults.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
    assert not faults, "\n".join(faults)


def test_modules_say_why_they_are_there() -> None:
    silent = [
        str(path.relative_to(ROOT))
        for path in SOURCES
        if not ast.get_docstring(ast.parse(path.read_text()))
    ]
    assert not silent, silent


def test_top_level_folders_are_the_users() -> None:
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if tracked.returncode:
        pytest.skip("not a git checkout")
    folders = {line.split("/")[0] for line in tracked.stdout.splitlines() if "/" in line}
    assert folders <= {"gateway", "peers", "conf", "tests", "systemd", ".ci"}


def test_cold_libraries_are_imported_late() -> None:
    program = (
        "import sys, gateway.proxy.downstream, gateway.server;"
        "cold = {'starlette','uvicorn','prometheus_client','httpcore','click','hiredis',"
        "'aiokafka'};"
        "print(sorted(cold & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_nothing_is_left_to_do() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|NotImplementedError\(\)|HACK)\b")
    here = Path(__file__)
    faults = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()}"
        for path in [*SOURCES, *TESTS]
        if path != here
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if marks.search(line)
    ]
    assert not faults, "\n".join(faults)
