# Prepares the machine, then runs, tests or builds sluice. A fresh Debian needs git, make and npm: what a target needs
# beyond that, the target installs (src/provision/). `make` alone lists the targets.

# Pinned: much of what the gateway uses of Bun is documented nowhere and tested on this version only.
BUN_VERSION := 1.4.5
PREFIX      := /usr/local
BUN_HOME    := build/bun-$(BUN_VERSION)
BUN         := $(BUN_HOME)/bun
CFLAGS      := -std=gnu11 -O2 -g -Wall -Wextra -fPIC -shared -pthread
SOURCES     := $(shell find src nft -type f)

# Ordinary users have no /usr/sbin in their PATH, and nft, haproxy and nginx live there.
export PATH := $(PATH):/usr/sbin:/sbin

# Users without a home (nobody, CI accounts) get their download caches under build/.
ifneq ($(shell [ -n "$$HOME" ] && [ -w "$$HOME" ] && echo home),home)
export npm_config_cache := $(CURDIR)/build/cache/npm
export BUN_INSTALL_CACHE_DIR := $(CURDIR)/build/cache/bun
endif

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help run test test-vm check build bench clean install uninstall

help:
	@echo 'sluice: user space decides, the kernel carries.'
	@sed -n 's/^\([a-z][a-z-]*\):[^#]*## \(.*\)/  make \1|\2/p' Makefile | awk -F '|' '{ printf "%-14s %s\n", $$1, $$2 }'

# The gateway replaces the shell (exec), so that Ctrl-C and the exit code are its own.
run: ## run the gateway: a demonstration, or your own with CONFIG=path (root)
	@[ "$$(id -u)" = 0 ] || { echo 'make run needs root: the gateway loads nftables rules, opens low ports and runs its workers as another user. Try: sudo make run' >&2; exit 1; }
	@$(MAKE) --silent --no-print-directory build/packages/run build/libsluice.so
	@exec $(BUN) src/main.ts $(if $(CONFIG),run --config '$(CONFIG)',demo)

test: node_modules/.ready ## run all tests; ONLY=text runs the files whose path contains it
	@exec $(BUN) src/provision/test.ts $(ONLY)

test-vm: build/packages/vm build/libsluice.so build/sluice ## run the kernel tests on Debian's own kernel, emulated, and the service under its systemd; ONLY=text as above, or systemd; MINUTES=90
	@exec $(BUN) src/provision/vm.ts $(if $(MINUTES),--minutes $(MINUTES)) $(ONLY)

check: node_modules/.ready ## check format, types and architecture
	$(BUN) fmt --check src test package.json tsconfig.json
	$(BUN) check
	$(BUN) check -p src/observe/dashboard/page
	$(BUN) test ./test/architecture.test.ts

build: build/sluice ## build the program, one file: build/sluice

# A package for another machine needs no programs here, and touches nothing outside of DESTDIR.
install: $(if $(DESTDIR),,build/packages/run) build/sluice ## install as a service; PREFIX=/usr/local, DESTDIR=path for packages (root)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' $(BUN) src/provision/install-system.ts

uninstall: node_modules/.ready ## take away what install has put there (root)
	@PREFIX='$(PREFIX)' DESTDIR='$(DESTDIR)' $(BUN) src/provision/uninstall-system.ts

bench: build/packages/bench build/libsluice.so ## compare gateways, pair by pair; ARGS='kernel --runs 3', ARGS=--list
	@exec $(BUN) test/netns/inside.ts $(BUN) test/bench/bench.ts $(ARGS)

clean: ## remove build/ and node_modules/
	rm -rf build node_modules

# npm decides by version and settings whether it runs install scripts, so it is told not to and the script is run here.
# The link is made last: it is there when, and only when, the whole of Bun is. It is a hard link because programs show
# the path they were started by.
$(BUN):
	@command -v npm >/dev/null || { echo 'npm is missing. As root: apt-get install -y --no-install-recommends npm' >&2; exit 1; }
	@echo 'Getting Bun $(BUN_VERSION) from npm'
	@npm install --prefix $(BUN_HOME) --no-save --ignore-scripts --no-audit --no-fund --no-update-notifier --loglevel=error bun@$(BUN_VERSION)
	@cd $(BUN_HOME)/node_modules/bun && node install.js
	@[ "$$($(BUN_HOME)/node_modules/.bin/bun --version)" = $(BUN_VERSION) ]
	@ln -f $(BUN_HOME)/node_modules/bun/bin/bun.exe $@

node_modules/.ready: package.json bun.lock | $(BUN)
	@echo 'Getting the packages of bun.lock'
	@$(BUN) install --frozen-lockfile
	@touch $@

# One stamp for each set of Debian packages that is there in full.
build/packages/%: src/provision/packages.ts | node_modules/.ready
	@$(BUN) src/provision/install.ts $*
	@mkdir -p $(@D) && touch $@

# Moved into place: a gateway that runs has the old file mapped, and writing into that would crash it.
build/libsluice.so: $(wildcard native/*.c native/*.h) | build/packages/build
	@echo 'Compiling $@'
	@cc $(CFLAGS) native/*.c -lmnl -o $@.new
	@mv $@.new $@

# It finds the packages beside a handler, and takes their code for the Workers runtime, as the source does (src/config/load.ts).
build/sluice: $(SOURCES) build/libsluice.so package.json tsconfig.json Makefile | node_modules/.ready
	$(BUN) build --compile --compile-autoload-package-json --compile-exec-argv='--conditions=workerd' \
	  src/main.ts --outfile $@.new
	@mv $@.new $@
