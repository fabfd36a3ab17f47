# mod_websocket: build, install, demo and checks. `make help` lists the targets.

# cargo and test/run.py do several things at a time by themselves; tests that wait for clocks bear nothing else beside.
.NOTPARALLEL:
.DELETE_ON_ERROR:

# Overrides as users of apache-websocket know them. APACHE_BINDIR names a folder with apxs, httpd and apachectl.
APACHE_BINDIR ?=
APXS ?= $(or $(call in_bindir,apxs),$(shell command -v apxs || command -v apxs2 || echo apxs))
HTTPD ?= $(or $(call in_bindir,httpd apache2),$(shell $(APXS) -q SBINDIR)/$(shell $(APXS) -q PROGNAME))
APACHECTL ?= $(or $(call in_bindir,apachectl apache2ctl),$(shell command -v apachectl || echo apachectl))
TEST_MPM ?= event
DEBUGGER ?= gdb --args
DESTDIR ?=
PREFIX ?= /usr/local
# Also for build.rs.
export APXS
CC = cc
CARGO ?= cargo
RUSTC ?= rustc
OBJCOPY ?= objcopy
PYTHON ?= python3
PORT ?= 8765
# The demo's port for https; empty for none.
TLS_PORT ?= 8764
# The Autobahn cases to run, as the suite writes them, and how the connections are served: WS_TLS=On speaks wss://,
# WS_DETACH=Off keeps them on httpd's threads, and On takes them off prefork's.
CASES ?= *
WS_TLS ?= Off
WS_DETACH ?= Auto
# Of `make bench`: some scenarios, seconds for each contender and round, rounds. PUBLISH=1 writes the tables into docs/.
# Of `make bench-channels` besides: the most subscribers, MiB to publish to those that do not read.
export SCENARIOS SECONDS_EACH ROUNDS PUBLISH LARGEST STALLED_MIB
# How long each fuzz target runs, in seconds.
FUZZ_SECONDS ?= 60
# The same in make check-core.
FUZZ ?= 5
# How long make soak goes on, and that of make check-all on each MPM: 60s, 2m, 1h.
SOAK ?= 5m
# How many attackers are beside it.
ATTACKERS ?=

in_bindir = $(if $(APACHE_BINDIR),$(firstword $(wildcard $(addprefix $(APACHE_BINDIR)/,$(1)))))

B = build
# Where cargo builds.
TARGET = $(or $(CARGO_TARGET_DIR),target)
MODULE = $(B)/mod_websocket.so
# What gdb and valgrind read besides: they look for it where the module is.
SYMBOLS = $(MODULE).debug
EXAMPLES = $(patsubst examples/%.c,$(B)/examples/mod_websocket_%.so,$(wildcard examples/*.c))
RUST_EXAMPLE = $(B)/examples/mod_websocket_echo_rs.so
PLUGINS = $(patsubst test/plugins/%.c,$(B)/plugins/%.so,$(wildcard test/plugins/*.c))
MAN_PAGES = $(B)/man/mod_websocket.8 $(B)/man/websocksy.1
# make install brings those along that have been made, or can be.
CAN_MAKE_MAN = $(shell command -v go-md2man)
VENV = $(B)/venv
PLUGIN_FLAGS = -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -g -Wall -Wextra -Wpedantic -Werror \
	-fPIC -shared -pthread -Iinclude
SERVER = HTTPD='$(HTTPD)' TEST_MPM='$(TEST_MPM)' PORT='$(PORT)' \
	TLS_PORT='$(TLS_PORT)' scripts/server.sh
INSTALLER = HTTPD='$(HTTPD)' DESTDIR='$(DESTDIR)' PREFIX='$(PREFIX)' scripts/install.sh

.PHONY: all
all: module examples $(if $(CAN_MAKE_MAN),man) ## build the module and the example plugins

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / { printf "  %-58s %s\n", $$1, $$2 }' Makefile

.PHONY: module
module: ## build the module, build/mod_websocket.so, and its debug symbols beside it
	$(CARGO) build --release --lib
	@mkdir -p $(B)
	@rm -f $(MODULE) $(SYMBOLS)
	@$(OBJCOPY) --only-keep-debug $(TARGET)/release/libmod_websocket.so $(SYMBOLS)
	@chmod 644 $(SYMBOLS)
	@$(OBJCOPY) --strip-unneeded --add-gnu-debuglink=$(SYMBOLS) $(TARGET)/release/libmod_websocket.so $(MODULE).new
	@mv $(MODULE).new $(MODULE)

# Root may have no cargo: what is built stays as it is for `sudo make install`.
$(MODULE):
	@$(MAKE) --no-print-directory module

.PHONY: examples
examples: $(EXAMPLES) $(RUST_EXAMPLE) ## build the example plugins: build/examples/*.so

$(B)/examples/mod_websocket_%.so: examples/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -o $@ $<

# Cargo would build the whole module for it.
$(RUST_EXAMPLE): examples/echo.rs src/plugin/abi.rs
	@mkdir -p $(@D)
	$(RUSTC) --edition 2024 --crate-type cdylib -O -C strip=debuginfo -o $@ $<

.PHONY: plugins
plugins: $(PLUGINS)

$(B)/plugins/%.so: test/plugins/%.c include/websocket_plugin.h include/websocket_bridge.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -o $@ $<

# The one that looks into httpd's request.
$(B)/plugins/request.so: PLUGIN_FLAGS += -isystem $(shell $(APXS) -q INCLUDEDIR) \
	$(patsubst -I%,-isystem %,$(shell $$($(APXS) -q APR_CONFIG) --includes --cppflags) \
		$(shell $$($(APXS) -q APU_CONFIG) --includes))

.PHONY: setup-demo setup-check
setup-demo setup-check: setup-%:
	@CARGO='$(CARGO)' scripts/setup.sh $*
	@$(if $(filter check,$*),CARGO='$(CARGO)' scripts/deny.sh install)

.PHONY: demo
demo: setup-demo ## install what is missing, build, and run a private httpd with the examples until Ctrl-C
	@$(MAKE) --no-print-directory all
	@$(SERVER) run

.PHONY: install
install: $(MODULE) $(if $(CAN_MAKE_MAN),man) ## install the module, its headers, configuration and manual page (DESTDIR is honoured)
	@$(INSTALLER) module

.PHONY: install-examples
install-examples: $(EXAMPLES) $(RUST_EXAMPLE) ## install the example plugins beside the module
	@$(INSTALLER) examples $(EXAMPLES) $(RUST_EXAMPLE)

.PHONY: install-websocksy
install-websocksy: $(if $(CAN_MAKE_MAN),man) ## install bin/websocksy, which runs the bridge with websocksy's command line (PREFIX=/usr/local)
	@$(INSTALLER) websocksy

.PHONY: uninstall
uninstall: ## remove what these three have installed, but nothing that was changed
	@$(INSTALLER) remove $(EXAMPLES) $(RUST_EXAMPLE)

.PHONY: man
man: $(MAN_PAGES) ## make the manual pages build/man/*; needs go-md2man

$(B)/man/mod_websocket.8: docs/directives.md
$(B)/man/websocksy.1: docs/websocksy.md
$(MAN_PAGES): scripts/man.sh Cargo.toml
	scripts/man.sh $(filter %.md,$^) $@

.PHONY: start stop restart
start stop restart: ## start, stop or restart the system's httpd through apachectl
	$(APACHECTL) $@

.PHONY: start-test-server stop-test-server restart-test-server
start-test-server restart-test-server: all ## start the demo's private httpd in the background
	@$(SERVER) $(@:-test-server=)
stop-test-server: ## stop it
	@$(SERVER) stop

.PHONY: debug
debug: all ## run the test server under DEBUGGER (default: gdb --args)
	@DEBUGGER='$(DEBUGGER)' $(SERVER) debug

$(VENV)/.done: test/requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -r test/requirements.txt
	@touch $@

# JavaScript that tests run in the browser.
$(B)/node/.done: test/package.json
	@mkdir -p $(@D)
	cp $< $(@D)
	npm install --prefix $(@D) --silent --no-audit --no-fund
	@touch $@

.PHONY: check
check: setup-check ## install what is missing and run the tests (20 minutes on a fresh clone and two cores)
	@$(MAKE) --no-print-directory check-code check-core check-server check-cost
	@echo "make check: all passed"

.PHONY: check-all
check-all: setup-check ## before a release: every test in every mode, at full size; long fuzzing and soak tests
	@$(MAKE) --no-print-directory check-code check-core FUZZ=$(FUZZ_SECONDS)
	@$(MAKE) --no-print-directory check-server-all check-cost
	@echo "make check-all: all passed"

.PHONY: check-code
check-code: ## formatting, lints, documentation, dependencies; with and without httpd, and with the oldest Rust that will do
	$(CARGO) fmt --check
	@CARGO='$(CARGO)' scripts/deny.sh
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	@CARGO='$(CARGO)' scripts/oldest-rust.sh
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --document-private-items
	for header in include/*.h; do \
	  for std in c89 c99 c11; do \
	    $(CC) -std=$$std -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c $$header || exit 1; done; \
	  $(CXX) -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ $$header || exit 1; done

.PHONY: check-core
check-core: ## unit and property tests of the core, and each fuzz target for FUZZ seconds
	$(CARGO) test --no-default-features
	$(CARGO) test
	@$(MAKE) --no-print-directory loom
	scripts/fuzz.sh $(FUZZ)

LOOM = RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=target/loom CARGO_PROFILE_RELEASE_LTO=off \
	$(CARGO) test --no-default-features --release --lib
.PHONY: loom
loom: ## every interleaving of what threads agree on without a lock, or by more than one
	$(LOOM) loom_tests -- --list | grep loom_tests >/dev/null
	$(LOOM) loom_tests

# All that runs against a real httpd, several jobs at a time.
RUN_TESTS = HTTPD='$(HTTPD)' $(VENV)/bin/python test/run.py
.PHONY: check-tools
check-tools: all plugins soak-module $(VENV)/.done $(B)/node/.done
	@scripts/exports.sh $(MODULE)
	@autobahn/install.sh

.PHONY: check-server
check-server: check-tools ## the tests against a real httpd, on event, worker and prefork; Autobahn and a soak test on event
	@$(RUN_TESTS) --beside "autobahn=TEST_MPM=event scripts/autobahn.sh" \
	  --beside "soak=TEST_MPM=event $(RUN_SOAK) 30s --attackers 0"

.PHONY: check-server-all
check-server-all: check-tools ## the same at full size; Autobahn in every way of serving, a soak test for SOAK on each MPM
	@$(RUN_TESTS) --all \
	  $(foreach way,$(WAYS),--beside "autobahn-$(way)=$(call served,$(way)) scripts/autobahn.sh") \
	  $(foreach mpm,event worker prefork,--beside "soak-$(mpm)=TEST_MPM=$(mpm) $(RUN_SOAK) $(SOAK) --wait 0")

PYTEST = HTTPD='$(HTTPD)' $(VENV)/bin/python -m pytest test

.PHONY: pytest
pytest: all plugins $(VENV)/.done $(B)/node/.done ## the tests against a real httpd, on TEST_MPM; ARGS='-k name' for some
	TEST_MPM='$(TEST_MPM)' $(PYTEST) $(ARGS)

.PHONY: autobahn
autobahn: all ## run the Autobahn TestSuite on TEST_MPM; WS_TLS=On, WS_DETACH=Off; CASES='7.*' for a part
	@HTTPD='$(HTTPD)' TEST_MPM='$(TEST_MPM)' WS_TLS='$(WS_TLS)' WS_DETACH='$(WS_DETACH)' \
	  scripts/autobahn.sh '$(CASES)'

# The ways in which connections may be served: MPM, WS_TLS, WS_DETACH.
WAYS = event-Off-Auto event-On-Auto event-Off-Off event-On-Off worker-Off-Auto worker-On-Auto worker-Off-Off \
	prefork-Off-On prefork-On-On prefork-Off-Off
word_of = $(word $(2),$(subst -, ,$(1)))
served = TEST_MPM=$(call word_of,$(1),1) WS_TLS=$(call word_of,$(1),2) WS_DETACH=$(call word_of,$(1),3)

.PHONY: bench
bench: all $(VENV)/.done ## measure speed beside others; SCENARIOS=small,16k for a part, SECONDS_EACH=3, ROUNDS=5
	@scripts/setup.sh bench
	$(CARGO) build --release --manifest-path test/bench/Cargo.toml --target-dir test/bench/target
	HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/run.py

.PHONY: bench-idle
bench-idle: all plugins $(VENV)/.done ## measure idle connections: memory, threads, latency
	HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/idle.py

.PHONY: bench-channels
bench-channels: all $(VENV)/.done ## measure channels beside nginx with nchan; LARGEST=10000 subscribers, STALLED_MIB=1024
	@scripts/setup.sh bench-channels
	$(CARGO) build --release --manifest-path test/bench/Cargo.toml --target-dir test/bench/target
	HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/fanout.py

.PHONY: bench-bridge
bench-bridge: all $(VENV)/.done ## measure 1 GiB through the bridge, beside websockify and socat
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r test/bench/requirements.txt
	HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/bridge.py

.PHONY: soak
soak: soak-module $(VENV)/.done ## random conversations beside ATTACKERS under AddressSanitizer on TEST_MPM, for SOAK (60s, 2m, 1h)
	TEST_MPM='$(TEST_MPM)' $(RUN_SOAK) $(SOAK) $(if $(ATTACKERS),--attackers $(ATTACKERS))

RUN_SOAK = HTTPD='$(HTTPD)' CC='$(CC)' WS_MODULE=$(B)/soak/mod_websocket.so \
	WS_EXAMPLES=$(B)/soak WS_PLUGINS=$(B)/soak WS_TEST_ROOT=$(B)/soak-server $(VENV)/bin/python test/soak/soak.py

HOST = $(shell $(RUSTC) -vV | sed -n 's/^host: //p')
SOAK_PLUGINS = $(addprefix $(B)/soak/,mod_websocket_echo.so threads.so probe.so debug.so)

.PHONY: soak-module
soak-module: $(SOAK_PLUGINS)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
	  $(CARGO) build --release --lib --target $(HOST)
	@install -m 755 target/asan/$(HOST)/release/libmod_websocket.so $(B)/soak/mod_websocket.so

$(B)/soak/mod_websocket_%.so: examples/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -fsanitize=address -o $@ $<

$(B)/soak/%.so: test/plugins/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -fsanitize=address -o $@ $<

$(B)/soak/%.so: test/soak/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -fsanitize=address -o $@ $<

.PHONY: check-cost
check-cost: all $(VENV)/.done ## instructions and system calls of an echoed message, against test/bench/cost.json
	@HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/cost.py $(ARGS)

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZ_SECONDS (60)
	scripts/fuzz.sh $(FUZZ_SECONDS)

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
	rm -rf $(B) test/fuzz/target test/bench/target
