# sosfs: `make demo` and `make test` each install what they need and run, from a fresh clone.

PYTHON  ?= python3
PREFIX  ?= /usr/local
DESTDIR ?=

VENV    := .venv
BIN     := $(VENV)/bin
# What comes as source without a pyproject.toml is built as all else, which an older pip would only announce.
PIP     := -m pip --disable-pip-version-check install --quiet --use-pep517
LIB     := $(DESTDIR)$(PREFIX)/lib/sosfs
# mount(8) and umount(8) look for their helpers in /sbin only. An install into a home directory has none.
SBIN    := $(if $(filter /usr /usr/local,$(PREFIX)),/sbin,$(PREFIX)/sbin)
UNITS   := $(PREFIX)/lib/systemd/system
# Where a user's manager looks (systemd.unit(5)): below ~/.local it is share.
OWN_UNITS := $(PREFIX)/$(if $(filter /usr /usr/local,$(PREFIX)),lib,share)/systemd/user
SUDO    := $(if $(filter 0,$(shell id -u)),,sudo)

# pyfuse3 is built from its source, hence the headers and the compiler.
RUN_PACKAGES  := fuse3 libfuse3-dev pkg-config gcc python3-dev python3-venv
TEST_PACKAGES := $(RUN_PACKAGES) rsync git sqlite3 restic attr tar systemd systemd-container radosgw ceph-mon ceph-osd \
	ceph-common s3fs prometheus strace borgbackup curl man-db bash-completion zsh fish

.DEFAULT_GOAL := help
.PHONY: help demo test test-unmounted fuzz check docs install install-docs uninstall uninstall-docs deb clean debian-run \
	debian-test

help:
	@echo "make demo       try it: a bucket on a small S3 server, mounted until Ctrl-C"
	@echo "make test       run all tests; with SOSFS_SERVERS=all those that mount on each server"
	@echo "make test-unmounted  those without mounts and servers, for PYTHON=python3.13"
	@echo "make fuzz       kill and break it for hours"
	@echo "make soak       programs on one mount for an hour over a bad server, and whether it grows; MINUTES=10 for less"
	@echo "make mutants    small slips in the code, and whether the tests notice; PART=commits for one part, half an hour"
	@echo "make check      linter, formatter, types"
	@echo "make bench      sosfs beside s3fs and rclone, the README's rows, at most half an hour; run again, it goes on;"
	@echo "                ARGS='--rows all' for all rows, in several runs; make bench-quick: some ten minutes"
	@echo "make bench-readme  write the README's and the manual's tables of what make bench measured"
	@echo "make docs       write the tables of the pages, the man pages and the completion anew"
	@echo "make install    install to PREFIX=$(PREFIX) (DESTDIR is honoured)"
	@echo "make uninstall  remove it again"
	@echo "make deb        a package for this Debian, in dist/"
	@echo "make clean      remove what was built here"

demo: debian-run $(VENV)/.demo
	$(BIN)/python -m sosfs demo $(DIR)

# For who is not root, what needs root is left out and then run with sudo, leaving no files of root's here. 5: nothing
# of that is among what ARGS selects.
test: debian-test $(VENV)/.dev
	$(BIN)/python -m pytest $(AT_ONCE) $(ARGS)
ifneq ($(SUDO),)
	$(SUDO) env PYTHONDONTWRITEBYTECODE=1 HYPOTHESIS_STORAGE_DIRECTORY=/var/tmp/sosfs-hypothesis \
		$(BIN)/python -m pytest $(AT_ONCE) -p no:cacheprovider -m root $(ARGS) || [ $$? -eq 5 ]
endif

AT_ONCE := -n 4 --dist loadfile --no-loadscope-reorder

# Those that need neither a mount nor a server, with another Python: make test-unmounted PYTHON=python3.13
OTHER := build/tests-$(notdir $(PYTHON))
EXTRA ?= dev

.PHONY: .other

.other: debian-run
	$(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/python $(PIP) --editable '.[$(EXTRA)]'

test-unmounted: .other
	SOSFS_MOUNTS=no $(OTHER)/bin/python -m pytest -n 2 --dist loadfile $(ARGS)

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

docs: $(VENV)/.dev
	for page in options exit-codes; do $(BIN)/python -m sosfs options sosfs/docs/$$page.md || exit 1; done
	$(BIN)/python -m tests.support.manual_pages

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
	$(BIN)/python $(PIP) --editable '.[dev]'
	touch $(VENV)/.demo $@

$(VENV)/.demo: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --editable '.[demo]'
	touch $@

# The launchers name the interpreter under PREFIX, not under DESTDIR; -I keeps the caller's directory and
# Python variables out of a program that root runs.
define launcher
	printf '#!/bin/sh\nexec %s/lib/sosfs/bin/python -I -m %s "$$@"\n' '$(PREFIX)' '$(2)' > '$(1)'
	chmod 755 '$(1)'
endef

define unit
	sed 's|/usr/local|$(PREFIX)|' 'systemd/$(1)' > '$(DESTDIR)$(2)/sosfs@.service'
	chmod 644 '$(DESTDIR)$(2)/sosfs@.service'
endef

# Built beside and then swapped: where anything fails, what was installed stays.
install: .writable
	$(call debian,$(RUN_PACKAGES))
	@rm -rf '$(LIB).new' '$(LIB).old'
	@$(MAKE) --no-print-directory .environment || { rm -rf '$(LIB).new'; exit 1; }
	install -d '$(DESTDIR)$(PREFIX)/bin' '$(DESTDIR)$(SBIN)' '$(DESTDIR)$(UNITS)' '$(DESTDIR)$(OWN_UNITS)'
	if [ -e '$(LIB)' ]; then mv '$(LIB)' '$(LIB).old'; fi
	mv '$(LIB).new' '$(LIB)' || { mv '$(LIB).old' '$(LIB)'; exit 1; }
	rm -rf '$(LIB).old'
	$(call launcher,$(DESTDIR)$(PREFIX)/bin/sosfs,sosfs)
	$(call launcher,$(DESTDIR)$(SBIN)/mount.sosfs,sosfs.cli.mount_helper)
	$(call launcher,$(DESTDIR)$(SBIN)/mount.fuse.sosfs,sosfs.cli.mount_helper)
	$(call launcher,$(DESTDIR)$(SBIN)/umount.fuse.sosfs,sosfs.cli.umount_helper)
	$(call unit,sosfs@.service,$(UNITS))
	$(call unit,user/sosfs@.service,$(OWN_UNITS))
	$(MAKE) --no-print-directory install-docs

.PHONY: .writable .environment

.writable:
	@for directory in '$(DESTDIR)$(PREFIX)/lib' '$(DESTDIR)$(SBIN)'; do \
		nearest=$$directory; \
		while [ ! -e "$$nearest" ]; do nearest=$$(dirname "$$nearest"); done; \
		if [ ! -w "$$nearest" ]; then \
			echo "You may not write to $$nearest: run 'sudo make install', or without root 'make install PREFIX=\$$HOME/.local'" >&2; \
			exit 1; \
		fi; \
	done

# Made from a copy: a build leaves files beside its source, which here would be root's in somebody's clone.
.environment:
	$(PYTHON) -m venv '$(LIB).new'
	@copy=$$(mktemp -d) && trap 'rm -rf "$$copy"' EXIT && \
		cp -R pyproject.toml README.md LICENSE sosfs "$$copy" && \
		'$(LIB).new/bin/python' $(PIP) "$$copy"
	find '$(LIB).new/bin' '$(LIB).new/pyvenv.cfg' -type f -exec sed -i 's|$(LIB).new|$(PREFIX)/lib/sosfs|g' {} +
	'$(LIB).new/bin/python' -I -c 'import pyfuse3, pycurl, sosfs.cli.main'

# Man pages and shell completion; the tree below sosfs/docs/share is that below PREFIX/share.
SHARED = $(shell cd sosfs/docs/share && find . -type f)

install-docs:
	for file in $(SHARED); do install -D -m 644 "sosfs/docs/share/$$file" '$(DESTDIR)$(PREFIX)'"/share/$$file" || exit 1; done

uninstall-docs:
	for file in $(SHARED); do rm -f '$(DESTDIR)$(PREFIX)'"/share/$$file"; done

uninstall: uninstall-docs
	rm -rf '$(LIB)'
	rm -f '$(DESTDIR)$(PREFIX)/bin/sosfs'
	rm -f '$(DESTDIR)$(UNITS)/sosfs@.service' '$(DESTDIR)$(OWN_UNITS)/sosfs@.service'
	rm -f '$(DESTDIR)$(SBIN)/mount.sosfs' '$(DESTDIR)$(SBIN)/mount.fuse.sosfs' '$(DESTDIR)$(SBIN)/umount.fuse.sosfs'

# A package for the Debian it is built on: the same tree, with that Debian's own Python. Needs no root.
STAGE := $(CURDIR)/build/deb

deb:
	rm -rf '$(STAGE)'
	$(MAKE) --no-print-directory install DESTDIR='$(STAGE)' PREFIX=/usr SBIN=/usr/sbin PYTHON=/usr/bin/python3
	systemd/deb/deb '$(STAGE)' dist

clean:
	rm -rf $(VENV) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find sosfs tests -name __pycache__ -prune -exec rm -rf {} +

# The results go to build/mutants; a later run goes on. ARGS=--report tells what was found.
.PHONY: mutants

mutants: debian-run $(VENV)/.mutants
	nice $(BIN)/python tests/mutants.py $(PART) $(ARGS)

$(VENV)/.mutants: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --editable '.[mutants]'
	touch $(VENV)/.demo $(VENV)/.dev $@

# The results go to tests/bench/results/SCALE after each round, and a later run of the same code goes on with them; 75: the
# time for one run is over. ARGS="--help" tells what can be chosen. As root the page cache is dropped too.
.PHONY: bench bench-quick bench-readme debian-bench

bench: debian-bench $(VENV)/.bench
	$(BIN)/python -m tests.bench $(ARGS) || [ $$? -eq 75 ]

bench-quick: debian-bench $(VENV)/.bench
	$(BIN)/python -m tests.bench --scale quick $(ARGS) || [ $$? -eq 75 ]

bench-readme: $(VENV)/.bench
	$(BIN)/python -m tests.bench --readme $(ARGS)
	$(MAKE) --no-print-directory docs

debian-bench:
	$(call debian,$(TEST_PACKAGES))

$(VENV)/.bench: pyproject.toml | debian-run
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP) --editable '.[bench]'
	touch $(VENV)/.demo $(VENV)/.dev $@
