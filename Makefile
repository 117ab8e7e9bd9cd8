# `make demo` and `make test` are all that a new user needs; both build .venv first.
PYTHON ?= python3.11
VENV := .venv
COMPILED := .venv-compiled
BIN := $(VENV)/bin
STAMP := $(VENV)/.stamp

.PHONY: env compiled demo test test-slow browser vip-tools screenshot lint lock clean
.PHONY: bench bench-gossip bench-memory bench-mesh bench-ops bench-spool

env: $(STAMP)

# The lock names every package with its hashes; the project itself is installed editable beside it.
$(STAMP): requirements.lock pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes -r requirements.lock
	$(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	touch $(STAMP)

# The same program with its hot modules compiled (hatch_build.py), in an environment of its own: the
# sources stay as they are and run interpreted. Needs a C compiler.
compiled: env
	rm -rf $(COMPILED) && $(PYTHON) -m venv $(COMPILED)
	$(COMPILED)/bin/python -m pip install --quiet --require-hashes -r requirements.lock
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=true $(COMPILED)/bin/python -m pip install --quiet --no-deps \
		--no-build-isolation .
	$(COMPILED)/bin/egressd --version

demo: env
	$(BIN)/egressd demo $(if $(HOLD),--hold)

lint: env
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Two processes side by side, a file's tests in one of them: half of the time is waiting for nodes.
test: lint vip-tools
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-slow: env browser vip-tools
	$(BIN)/pytest -m slow

# The dashboard's tests need Chromium. As root it is installed from Debian; else they are skipped,
# with the reason printed.
browser:
	@if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ]; then apt-get update -qq && \
		apt-get install -y --no-install-recommends chromium chromium-driver fonts-dejavu-core; \
	else echo "chromium or chromium-driver is missing: run \`make browser\` as root"; fi

# The virtual addresses' tests need keepalived and root: likewise. It never fails: what cannot be
# installed is said here, and again where the tests are skipped.
vip-tools: env
	PYTHONPATH=tests $(BIN)/python -m bench.packages keepalived nft ip curl

# README's pictures of the dashboard, from a demo that runs a minute for it.
screenshot: env browser
	PYTHONPATH=tests $(BIN)/python -m e2e.screenshot

# Beside HAProxy, nginx, Squid and mitmproxy; as root it installs from Debian what is missing.
# ARGS="--https --json FILE" and others: see tests/bench/NOTES.md.
bench: compiled
	PYTHONPATH=tests $(BIN)/python -m bench.run $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m bench.admission
	PYTHONPATH=tests $(BIN)/python -m bench.pacing

# What egressd holds in memory, each figure beside its target; 20,000 open files must be allowed.
bench-memory: env
	PYTHONPATH=tests $(BIN)/python -m bench.memory $(ARGS)

# What gossip costs a node of eight, with a thousand keys, beside its targets.
bench-gossip: env
	PYTHONPATH=tests $(BIN)/python -m bench.gossip $(ARGS)

# The mesh's promises on real processes, beside egressd's other ways, HAProxy peers, a static split and
# Redis; 34 minutes. As root loss and cuts are nftables' in a network namespace of its own, else a
# relay's. ARGS="--rounds 1 --nodes 3 --rows partition pause": see tests/bench/mesh/NOTES.md.
bench-mesh: env
	PYTHONPATH=tests $(BIN)/python -m bench.mesh.run $(ARGS)

# The start, and a reload of 10,000 routes under load.
bench-ops: env
	PYTHONPATH=tests $(BIN)/python -m bench.ops $(ARGS)
	PYTHONPATH=tests $(BIN)/python -m bench.metrics

# How fast requests are accepted durably, against its target of 2,000/s.
bench-spool: env
	PYTHONPATH=tests $(BIN)/python -m bench.spool $(ARGS)

# Rewrites the lock from pyproject.toml for every platform that Python 3.11 and later runs on.
lock: env
	$(BIN)/uv pip compile --quiet --universal --generate-hashes --no-emit-index-url \
		--no-header --all-extras --group dev --upgrade pyproject.toml -o requirements.lock

clean:
	rm -rf $(VENV) $(COMPILED) .mypy_cache .ruff_cache .pytest_cache .hypothesis
