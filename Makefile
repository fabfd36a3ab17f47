# mod_websocket: build, install, demo and checks. `make help` lists the targets.

# Overrides as users of apache-websocket know them. APACHE_BINDIR names a folder with apxs, httpd and apachectl.
APACHE_BINDIR ?=
APXS ?= $(or $(call in_bindir,apxs),$(shell command -v apxs || command -v apxs2 || echo apxs))
HTTPD ?= $(or $(call in_bindir,httpd apache2),$(shell $(APXS) -q SBINDIR)/$(shell $(APXS) -q PROGNAME))
APACHECTL ?= $(or $(call in_bindir,apachectl apache2ctl),$(shell command -v apachectl || echo apachectl))
TEST_MPM ?= event
DEBUGGER ?= gdb --args
DESTDIR ?=
PREFIX ?= /usr/local
CC = cc
CARGO ?= cargo
PYTHON ?= python3
PORT ?= 8765
# The demo's port for https; empty for none.
TLS_PORT ?= 8764
# The Autobahn cases to run, as the suite writes them, and where the connections live: WS_TLS=On speaks wss://,
# WS_DETACH=Off keeps them on httpd's threads, and On takes them off prefork's.
CASES ?= *
WS_TLS ?= Off
WS_DETACH ?= Auto
# Of `make bench`: some scenarios, seconds for each contender and round, rounds.
export SCENARIOS SECONDS_EACH ROUNDS
# How long each fuzz target runs, in seconds.
FUZZ_SECONDS ?= 600
# How long the churn of make soak goes on: 60s, 2m, 1h.
SOAK ?= 2m

in_bindir = $(if $(APACHE_BINDIR),$(firstword $(wildcard $(addprefix $(APACHE_BINDIR)/,$(1)))))

B = build
MODULE = $(B)/mod_websocket.so
EXAMPLES = $(patsubst examples/%.c,$(B)/examples/mod_websocket_%.so,$(wildcard examples/*.c))
RUST_EXAMPLE = $(B)/examples/mod_websocket_echo_rs.so
PLUGINS = $(patsubst test/plugins/%.c,$(B)/plugins/%.so,$(wildcard test/plugins/*.c))
VENV = $(B)/venv
PLUGIN_FLAGS = -std=c99 -D_POSIX_C_SOURCE=200809L -O2 -g -Wall -Wextra -Wpedantic -Werror \
	-fPIC -shared -pthread -Iinclude
SERVER = APXS='$(APXS)' HTTPD='$(HTTPD)' TEST_MPM='$(TEST_MPM)' PORT='$(PORT)' \
	TLS_PORT='$(TLS_PORT)' scripts/server.sh
INSTALL_DIR = $(DESTDIR)$(shell $(APXS) -q LIBEXECDIR)
MODS_AVAILABLE = $(shell $(APXS) -q SYSCONFDIR)/mods-available

.PHONY: all
all: module examples ## build the module and the example plugins

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z][a-z -]*:.*## / { printf "  %-58s %s\n", $$1, $$2 }' Makefile

.PHONY: module
module: ## build the module: build/mod_websocket.so
	APXS='$(APXS)' $(CARGO) build --release --lib
	@mkdir -p $(B)
	@install -m 755 target/release/libmod_websocket.so $(MODULE)

# Root may have no cargo: what is built stays as it is for `sudo make install`.
$(MODULE):
	@$(MAKE) --no-print-directory module

.PHONY: examples
examples: $(EXAMPLES) $(RUST_EXAMPLE) ## build the example plugins: build/examples/*.so

$(B)/examples/mod_websocket_%.so: examples/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -o $@ $<

$(RUST_EXAMPLE): examples/echo.rs src/plugin/abi.rs
	@mkdir -p $(@D)
	$(CARGO) build --release --no-default-features --example mod_websocket_echo_rs
	install -m 755 target/release/examples/libmod_websocket_echo_rs.so $@

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
	@scripts/setup.sh $*

.PHONY: demo
demo: setup-demo ## install what is missing, build, and run a private httpd with the examples until Ctrl-C
	@$(MAKE) --no-print-directory all
	@$(SERVER) run

.PHONY: install
install: $(MODULE) ## install the module, its headers and its configuration (DESTDIR is honoured)
	install -D -m 644 $(MODULE) $(INSTALL_DIR)/mod_websocket.so
	ln -sf mod_websocket.so $(INSTALL_DIR)/mod_websocket_draft76.so
	for header in include/*.h; do \
	  install -D -m 644 $$header $(DESTDIR)$(shell $(APXS) -q INCLUDEDIR)/$${header##*/} || exit 1; done
	@if [ -d '$(MODS_AVAILABLE)' ]; then \
	  for file in websocket.load websocket.conf websocket_draft76.load; do \
	    if [ -e '$(DESTDIR)$(MODS_AVAILABLE)'/$$file ]; then echo "kept: $(MODS_AVAILABLE)/$$file"; \
	    else install -D -m 644 conf/$$file '$(DESTDIR)$(MODS_AVAILABLE)'/$$file; fi; \
	  done; \
	  echo "now: a2enmod websocket, then restart apache2"; \
	else echo "now: add 'LoadModule websocket_module modules/mod_websocket.so' to httpd.conf (see conf/)"; fi

.PHONY: install-examples
install-examples: $(EXAMPLES) $(RUST_EXAMPLE) ## install the example plugins beside the module
	for file in $(EXAMPLES) $(RUST_EXAMPLE); do \
	  install -D -m 644 $$file $(INSTALL_DIR)/$${file##*/} || exit 1; done

.PHONY: install-websocksy
install-websocksy: ## install bin/websocksy, which runs the bridge with websocksy's command line (PREFIX=/usr/local)
	install -d $(DESTDIR)$(PREFIX)/bin
	sed -e 's|@HTTPD@|$(HTTPD)|' -e 's|@MODULES@|$(shell $(APXS) -q LIBEXECDIR)|' \
	  -e 's|@MODULE@|$(shell $(APXS) -q LIBEXECDIR)/mod_websocket.so|' scripts/websocksy >$(DESTDIR)$(PREFIX)/bin/websocksy
	chmod 755 $(DESTDIR)$(PREFIX)/bin/websocksy

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
check: setup-check ## install what is missing and run every test
	@$(MAKE) --no-print-directory check-code check-core check-server check-soak check-cost check-autobahn
	@echo "make check: all passed"

.PHONY: check-code
check-code: ## formatting, lints and documentation, with and without httpd, and with the oldest Rust that will do
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets -- -D warnings
	$(CARGO) clippy --all-targets --no-default-features -- -D warnings
	@CARGO='$(CARGO)' scripts/oldest-rust.sh
	RUSTDOCFLAGS='-D warnings' $(CARGO) doc --no-deps --document-private-items
	for header in include/*.h; do \
	  for std in c89 c99 c11; do \
	    $(CC) -std=$$std -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c $$header || exit 1; done; \
	  $(CXX) -Wall -Wextra -Wpedantic -Werror -fsyntax-only -x c++ $$header || exit 1; done

.PHONY: check-core
check-core: ## unit and property tests of the core, and each fuzz target for a few seconds
	$(CARGO) test --no-default-features
	$(CARGO) test
	@$(MAKE) --no-print-directory loom
	scripts/fuzz.sh 10

.PHONY: loom
loom: ## every interleaving of what threads agree on without a lock, or by more than one
	RUSTFLAGS='--cfg loom' CARGO_TARGET_DIR=target/loom CARGO_PROFILE_RELEASE_LTO=off \
	  $(CARGO) test --no-default-features --release --lib loom

.PHONY: check-server
check-server: all plugins $(VENV)/.done $(B)/node/.done ## the tests against a real httpd, on event, worker and prefork
	@scripts/exports.sh $(MODULE)
	TEST_MPM=event $(PYTEST)
	TEST_MPM=worker $(PYTEST) -m 'not once'
	TEST_MPM=prefork $(PYTEST) -m 'not once'
	TEST_MPM=event WS_DETACH=Off $(PYTEST) -m 'not once'

PYTEST = APXS='$(APXS)' HTTPD='$(HTTPD)' $(VENV)/bin/python -m pytest test

.PHONY: pytest
pytest: all plugins $(VENV)/.done ## the tests against a real httpd, on TEST_MPM; ARGS='-k name' for some
	TEST_MPM='$(TEST_MPM)' $(PYTEST) $(ARGS)

.PHONY: autobahn
autobahn: all ## run the Autobahn TestSuite on TEST_MPM; WS_TLS=On, WS_DETACH=Off; CASES='7.*' for a part
	@APXS='$(APXS)' HTTPD='$(HTTPD)' TEST_MPM='$(TEST_MPM)' WS_TLS='$(WS_TLS)' WS_DETACH='$(WS_DETACH)' \
	  scripts/autobahn.sh '$(CASES)'

# Where connections may live: MPM, WS_TLS, WS_DETACH.
HOMES = event:Off:Auto event:On:Auto event:Off:Off event:On:Off worker:Off:Auto worker:On:Auto worker:Off:Off \
	prefork:Off:On prefork:On:On prefork:Off:Off
# All that RFC 6455 demands; the rest is large messages (9) and compression (12, 13).
RFC6455_CASES = 1.*,2.*,3.*,4.*,5.*,6.*,7.*,10.*

# autobahn-in HOMES,CASES
define autobahn-in
	@for home in $(1); do \
	  set -- $$(echo $$home | tr : ' '); \
	  $(MAKE) --no-print-directory autobahn TEST_MPM=$$1 WS_TLS=$$2 WS_DETACH=$$3 CASES='$(2)' || exit 1; done
endef

.PHONY: check-autobahn
check-autobahn: all ## the whole Autobahn TestSuite on event, sections 1-7 and 10 in the other homes
	$(call autobahn-in,event:Off:Auto,*)
	$(call autobahn-in,$(filter-out event:Off:Auto worker:Off:Off prefork:Off:Off,$(HOMES)),$(RFC6455_CASES))

.PHONY: autobahn-homes
autobahn-homes: all ## the whole Autobahn TestSuite in every home of a connection, on every MPM
	$(call autobahn-in,$(HOMES),*)

.PHONY: bench
bench: all $(VENV)/.done ## measure speed beside others; SCENARIOS=small,16k for a part, SECONDS_EACH=3, ROUNDS=5
	@scripts/setup.sh bench
	$(CARGO) build --release --manifest-path test/bench/Cargo.toml --target-dir test/bench/target
	APXS='$(APXS)' HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/run.py

.PHONY: bench-idle
bench-idle: all plugins $(VENV)/.done ## measure idle connections: memory, threads, latency
	APXS='$(APXS)' HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/idle.py

.PHONY: bench-bridge
bench-bridge: all $(VENV)/.done ## measure 1 GiB through the bridge, beside websockify and socat
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -r test/bench/requirements.txt
	APXS='$(APXS)' HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/bridge.py

.PHONY: soak
soak: soak-plugins $(VENV)/.done ## random churn under AddressSanitizer on TEST_MPM, for SOAK (60s, 2m, 1h)
	RUSTC_BOOTSTRAP=1 RUSTFLAGS=-Zsanitizer=address CARGO_TARGET_DIR=target/asan \
	  $(CARGO) build --release --lib --target $(HOST)
	install -m 755 target/asan/$(HOST)/release/libmod_websocket.so $(B)/soak/mod_websocket.so
	APXS='$(APXS)' HTTPD='$(HTTPD)' CC='$(CC)' TEST_MPM='$(TEST_MPM)' WS_MODULE=$(B)/soak/mod_websocket.so \
	  WS_EXAMPLES=$(B)/soak WS_PLUGINS=$(B)/soak WS_TEST_ROOT="$${WS_TEST_ROOT:-$(B)/soak}" \
	  $(VENV)/bin/python test/soak/soak.py $(SOAK)

HOST = $(shell rustc -vV | sed -n 's/^host: //p')
SOAK_PLUGINS = $(addprefix $(B)/soak/,mod_websocket_echo.so threads.so probe.so)

.PHONY: soak-plugins
soak-plugins: $(SOAK_PLUGINS)

$(B)/soak/mod_websocket_%.so: examples/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -fsanitize=address -o $@ $<

$(B)/soak/%.so: test/plugins/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -fsanitize=address -o $@ $<

$(B)/soak/%.so: test/soak/%.c include/websocket_plugin.h
	@mkdir -p $(@D)
	$(CC) $(PLUGIN_FLAGS) -fsanitize=address -o $@ $<

.PHONY: check-soak
check-soak: ## random churn for a minute
	@$(MAKE) --no-print-directory soak SOAK=60s

.PHONY: check-cost
check-cost: all $(VENV)/.done ## instructions and system calls of an echoed message, against test/bench/cost.json
	@APXS='$(APXS)' HTTPD='$(HTTPD)' $(VENV)/bin/python test/bench/cost.py $(ARGS)

.PHONY: fuzz
fuzz: ## run each fuzz target for FUZZ_SECONDS (600)
	scripts/fuzz.sh $(FUZZ_SECONDS)

.PHONY: clean
clean: ## remove what was built
	$(CARGO) clean
	rm -rf $(B) test/fuzz/target test/bench/target
