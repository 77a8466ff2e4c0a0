# sosfs: `make demo` and `make test` each install what they need and run, from a fresh clone.

PYTHON  ?= python3
PREFIX  ?= /usr/local
DESTDIR ?=

VENV    := .venv
BIN     := $(VENV)/bin
LIB     := $(DESTDIR)$(PREFIX)/lib/sosfs
# mount(8) and umount(8) look for their helpers in /sbin only. An install into a home directory has none.
SBIN    := $(if $(filter /usr /usr/local,$(PREFIX)),/sbin,$(PREFIX)/sbin)
UNITS   := $(PREFIX)/lib/systemd/system
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)

# pyfuse3 is built from its source, hence the headers and the compiler.
RUN_PACKAGES  := fuse3 libfuse3-dev pkg-config gcc python3-dev python3-venv
TEST_PACKAGES := $(RUN_PACKAGES) rsync git sqlite3 restic attr tar systemd radosgw ceph-mon ceph-osd ceph-common s3fs

.DEFAULT_GOAL := help
.PHONY: help demo test fuzz check options install uninstall clean debian-run debian-test

help:
	@echo "make demo       try it: a bucket on a small S3 server, mounted until Ctrl-C"
	@echo "make test       run all tests; with SOSFS_SERVERS=all those that mount on each server"
	@echo "make fuzz       kill and break it for hours"
	@echo "make soak       programs on one mount for an hour over a bad server, and whether it grows; MINUTES=10 for less"
	@echo "make mutants    small slips in the code, and whether the tests notice; PART=commits for one part, half an hour"
	@echo "make check      linter, formatter, types"
	@echo "make bench      sosfs beside s3fs and rclone, hours; make bench-quick: some ten minutes"
	@echo "make options    write the option table of the README anew"
	@echo "make install    install to PREFIX=$(PREFIX) (DESTDIR is honoured)"
	@echo "make uninstall  remove it again"
	@echo "make clean      remove what was built here"

demo: debian-run $(VENV)/.demo
	$(BIN)/python -m sosfs demo $(DIR)

test: debian-test $(VENV)/.dev
	$(BIN)/python -m pytest -n 4 --dist loadfile --no-loadscope-reorder $(ARGS)

# The same tests as in `make test`, many more rounds, with other dice each time.
fuzz: debian-test $(VENV)/.dev
	SOSFS_CRASH_ROUNDS=300 SOSFS_CRASH_SEED=$$(date +%s) SOSFS_MODEL_EXAMPLES=3000 \
	SOSFS_FUZZ_RUNS=5000 SOSFS_FUZZ_SEED=$$(date +%s) \
		$(BIN)/python -m pytest -n 2 --timeout 7200 tests/recovery/test_crash.py tests/whole/test_model.py tests/whole/test_turmoil.py $(ARGS)

.PHONY: soak
MINUTES ?= 60

soak: debian-test $(VENV)/.dev
	$(BIN)/python -m tests.whole.soak $(MINUTES) $(ARGS)

check: debian-run $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

options: $(VENV)/.demo
	$(BIN)/python -m sosfs options README.md

# Asks for nothing where all is there; elsewhere than on Debian says what to install.
define debian
	@missing=; \
	if ! command -v dpkg-query >/dev/null; then \
		echo "This is no Debian: see to it that you have the like of: $(1)"; exit 0; \
	fi; \
	for package in $(1); do \
		dpkg-query -W -f='$${Status}' $$package 2>/dev/null | grep -q 'ok installed' || missing="$$missing $$package"; \
	done; \
	if [ -n "$$missing" ]; then \
		echo "Installing$$missing"; \
		$(SUDO) apt-get update -q && \
		$(SUDO) env DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends $$missing; \
	fi
endef

debian-run:
	$(call debian,$(RUN_PACKAGES))

debian-test:
	$(call debian,$(TEST_PACKAGES))

# The stamps say for which pyproject.toml the packages were installed. `dev` holds all that `demo` does.
$(VENV)/.dev: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $(VENV)/.demo $@

$(VENV)/.demo: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[demo]'
	touch $@

# The launchers name the interpreter under PREFIX, not under DESTDIR; -I keeps the caller's directory and
# Python variables out of a program that root runs.
define launcher
	printf '#!/bin/sh\nexec %s/lib/sosfs/bin/python -I -m %s "$$@"\n' '$(PREFIX)' '$(2)' > '$(1)'
	chmod 755 '$(1)'
endef

install:
	$(call debian,$(RUN_PACKAGES))
	$(PYTHON) -m venv --clear '$(LIB)'
	'$(LIB)/bin/python' -m pip install --quiet .
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(SBIN)' '$(DESTDIR)$(UNITS)'
	$(call launcher,$(DESTDIR)$(PREFIX)/bin/sosfs,sosfs)
	$(call launcher,$(DESTDIR)$(SBIN)/mount.sosfs,sosfs.cli.mount_helper)
	$(call launcher,$(DESTDIR)$(SBIN)/umount.fuse.sosfs,sosfs.cli.umount_helper)
	sed 's|/usr/local|$(PREFIX)|' systemd/sosfs@.service > '$(DESTDIR)$(UNITS)/sosfs@.service'
	chmod 644 '$(DESTDIR)$(UNITS)/sosfs@.service'

uninstall:
	rm -rf '$(LIB)'
	rm -f '$(DESTDIR)$(PREFIX)/bin/sosfs' '$(DESTDIR)$(UNITS)/sosfs@.service'
	rm -f '$(DESTDIR)$(SBIN)/mount.sosfs' '$(DESTDIR)$(SBIN)/umount.fuse.sosfs'

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find sosfs tests -name __pycache__ -prune -exec rm -rf {} +

# The results go to build/mutants; a later run goes on. ARGS=--report tells what was found.
.PHONY: mutants

mutants: debian-run $(VENV)/.mutants
	nice $(BIN)/python tests/mutants.py $(PART) $(ARGS)

$(VENV)/.mutants: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[mutants]'
	touch $(VENV)/.demo $(VENV)/.dev $@

# The results go to tests/bench/results. ARGS="--help" tells what can be chosen. As root the page cache is dropped too.
.PHONY: bench bench-quick debian-bench

bench: debian-bench $(VENV)/.bench
	$(BIN)/python -m tests.bench $(ARGS)

bench-quick: debian-bench $(VENV)/.bench
	$(BIN)/python -m tests.bench --scale quick $(ARGS)

debian-bench:
	$(call debian,$(TEST_PACKAGES))

$(VENV)/.bench: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[bench]'
	touch $(VENV)/.demo $(VENV)/.dev $@
