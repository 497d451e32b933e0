# GNU make. "make help" lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := help

# sudo has a PATH of its own, often without go.
GO ?= $(shell command -v go || ls -d /usr/local/go/bin/go /usr/lib/go/bin/go /snap/bin/go 2>/dev/null | head -n 1)
GO := $(GO)
ifneq ($(filter /%,$(GO)),)
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
endif

# Under sudo the checkout belongs to somebody else, which git would refuse; and
# a plain copy that happens to lie inside another checkout is not described by it.
git = $(shell test -e .git && GIT_OPTIONAL_LOCKS=0 git -c safe.directory='*' $(1) 2>/dev/null)

ifeq ($(strip $(TAG)),)
TAG := $(or $(call git,describe --tags --dirty --always),dev)
endif
ifeq ($(strip $(SOURCE_DATE_EPOCH)),)
SOURCE_DATE_EPOCH := $(or $(call git,log -1 --format=%ct),315532800)
endif

REGISTRY ?= quay.io/coreos/flannel
DOCKER   ?= docker
PREFIX   ?= /usr/local
GOARM    ?= 7
# A number of inputs, or a time: then Go sometimes takes its own end for a failure.
FUZZTIME ?= 200000x

ARCHES    = amd64 arm64 ppc64le s390x arm riscv64
HOST_ARCH = $(shell $(GO) env GOHOSTARCH)

# What "make tar.gz" packs: one architecture if ARCH is given, else all.
TARBALLS = $(foreach arch,$(or $(ARCH),$(ARCHES)),dist/flannel-$(TAG)-linux-$(arch).tar.gz)
IMAGE_ARCH = $(or $(ARCH),$(HOST_ARCH))

LDFLAGS = -s -w -X main.version=$(TAG)
BUILD   = CGO_ENABLED=0 GOOS=linux GOARM=$(GOARM) $(GO) build -trimpath -buildvcs=false -ldflags '$(LDFLAGS)'

# Packages without I/O: they must work on the big-endian machines too.
PURE = $(wildcard ./pkg/netconf ./pkg/lease ./pkg/host ./pkg/dataplane ./pkg/firewall ./pkg/backend ./pkg/subnetenv ./pkg/reconcile ./pkg/tunnel)
# Packages with goroutines that share something, worth the race detector's time.
# etcdv2 is raced by subnet's tests: in its own, etcd checks passwords with bcrypt,
# which under the detector takes longer than a request may.
RACE = $(addsuffix /...,$(wildcard ./pkg/registry/etcd ./pkg/registry/etcdv3 ./pkg/registry/memory ./pkg/subnet ./pkg/kernel ./pkg/iptables ./pkg/nftables ./pkg/tunnel ./pkg/reconcile ./pkg/hook ./pkg/daemon))
# Further arguments of "go test", e.g. TESTFLAGS='-run Lease -short'.
TESTFLAGS ?=

# Tests and the demo find the built daemon here.
export FLANNELD := $(CURDIR)/dist/flanneld

.PHONY: help
help:
	@echo 'Build'
	@echo '  make dist/flanneld         the daemon, for this machine'
	@echo '  make dist/flanneld-arm64   the daemon, for another one ($(ARCHES))'
	@echo '  make dist/flannel-lab      the lab: many hosts on one machine'
	@echo '  make tar.gz                release tarballs, all of them or that of ARCH'
	@echo '  make image                 container image for ARCH (needs docker)'
	@echo '  make install               flanneld and mk-docker-opts.sh below PREFIX'
	@echo '  make clean                 remove what was built'
	@echo
	@echo 'Try it (root)'
	@echo '  make demo                  a network of hosts in namespaces;'
	@echo '                             HOSTS=12 BACKEND=host-gw KEEP=1 or DEMO_ARGS=... to change it'
	@echo '  make bench                 throughput and convergence'
	@echo
	@echo 'Check'
	@echo '  make test                  everything; the parts that need root are skipped without it'
	@echo '  make test-arch             the pure packages on s390x and ppc64le, through qemu'
	@echo '  make test-dist             the release tarballs: contents, static, reproducible'
	@echo '  make fuzz                  every fuzz target, FUZZTIME inputs each'
	@echo '  make chaos                 trouble at random in a cluster, for CHAOS_TIME (root);'
	@echo '                             CHAOS_SEED=... and CHAOS_API=v2 or v3 repeat a run'
	@echo '  make vet gofmt             static checks'
	@echo
	@echo 'Variables, from the environment or the command line'
	@printf '  %-10s %s\n' \
	    TAG '$(TAG)' ARCH '$(or $(ARCH),not set)' REGISTRY '$(REGISTRY)' \
	    PREFIX '$(PREFIX)' DESTDIR '$(or $(DESTDIR),not set)' FUZZTIME '$(FUZZTIME)' \
	    TESTFLAGS '$(or $(TESTFLAGS),not set)' GO '$(or $(GO),not found)'

# Build ----------------------------------------------------------------------

# Always run: go itself knows best what is up to date.
.PHONY: FORCE
FORCE:

.PHONY: need-go
need-go:
	@[ -x '$(GO)' ] || command -v '$(GO)' >/dev/null || { echo 'go not found: install it, or say where it is with GO=/path/to/go' >&2; exit 1; }

dist/flanneld: FORCE | need-go
	GOARCH=$(HOST_ARCH) $(BUILD) -o $@ ./cmd/flanneld

dist/flanneld-%: FORCE | need-go
	GOARCH=$* $(BUILD) -o $@ ./cmd/flanneld

dist/flannel-lab: FORCE | need-go
	GOARCH=$(HOST_ARCH) $(BUILD) -o $@ ./cmd/flannel-lab

.PHONY: tar.gz
tar.gz: $(TARBALLS)

# The same input gives the same bytes, whoever builds where and when.
dist/flannel-$(TAG)-linux-%.tar.gz: dist/flanneld-% mk-docker-opts.sh README.md FORCE
	@stage=$$(mktemp -d); trap 'rm -rf "$$stage"' EXIT; \
	install -m 0755 dist/flanneld-$* "$$stage/flanneld"; \
	install -m 0755 mk-docker-opts.sh "$$stage/mk-docker-opts.sh"; \
	install -m 0644 README.md "$$stage/README.md"; \
	tar -C "$$stage" --format=ustar --owner=0 --group=0 --numeric-owner --mtime=@$(SOURCE_DATE_EPOCH) \
	    -cf - README.md flanneld mk-docker-opts.sh | gzip -n -9 >$@
	@echo $@

.PHONY: image
image: dist/flanneld-$(IMAGE_ARCH)
	$(DOCKER) build --platform linux/$(IMAGE_ARCH) --build-arg ARCH=$(IMAGE_ARCH) \
	    -t $(REGISTRY):$(TAG)-$(IMAGE_ARCH) $(if $(filter amd64,$(IMAGE_ARCH)),-t $(REGISTRY):$(TAG)) .

# Does not build again what is there: "make dist/flanneld && sudo make install".
.PHONY: install
install:
	@[ -x dist/flanneld ] || $(MAKE) dist/flanneld
	install -d '$(DESTDIR)$(PREFIX)/bin'
	install -m 0755 dist/flanneld mk-docker-opts.sh '$(DESTDIR)$(PREFIX)/bin'

.PHONY: clean
clean:
	rm -f dist/flanneld dist/flanneld-* dist/flannel-lab dist/*.tar.gz

# Try it ---------------------------------------------------------------------

.PHONY: need-root
need-root:
	@[ "$$(id -u)" = 0 ] || { echo 'This needs root (network namespaces): sudo make $(MAKECMDGOALS)' >&2; exit 1; }

.PHONY: demo
demo: need-root dist/flanneld dist/flannel-lab
	dist/flannel-lab demo --flanneld dist/flanneld $(if $(HOSTS),--hosts $(HOSTS)) $(if $(BACKEND),--backend $(BACKEND)) \
	    $(if $(filter-out 0 no false,$(KEEP)),--keep) $(DEMO_ARGS)

.PHONY: bench
bench: need-root dist/flanneld dist/flannel-lab
	dist/flannel-lab bench --flanneld dist/flanneld $(BENCH_ARGS)

# Check ----------------------------------------------------------------------

.PHONY: vet
vet: | need-go
	$(GO) vet ./...

.PHONY: gofmt
gofmt: | need-go
	@bad=$$("$$($(GO) env GOROOT)/bin/gofmt" -l $(wildcard cmd pkg dist)); \
	[ -z "$$bad" ] || { printf 'not formatted, run gofmt -w on:\n%s\n' "$$bad" >&2; exit 1; }

# Says what a complete run lacks on this machine, and how to get it; installs nothing.
.PHONY: missing
missing:
	@need() { command -v "$$1" >/dev/null || echo "MISSING $$1: $$3 (apt-get install $$2)"; }; \
	[ "$$(id -u)" = 0 ] || echo 'MISSING root: all tests that make network namespaces are skipped (sudo make test)'; \
	need dash dash 'mk-docker-opts.sh is not tested with it'; \
	need systemd-analyze systemd 'the systemd units are not verified'; \
	need "$$($(GO) env CC)" 'gcc libc6-dev' 'the race detector is off'; \
	need qemu-s390x-static qemu-user-static 'nothing is tested on s390x'; \
	need qemu-ppc64le-static qemu-user-static 'nothing is tested on ppc64le'; \
	need file file 'make test-dist cannot tell whether the binaries are static'; \
	need ip iproute2 'results are not compared with what ip says'; \
	need iptables iptables 'packet filter rules are not tested with it'; \
	need nft nftables 'nftables rules are not seen from outside'

# One package after another: two hundred daemons that start at once leave no
# processor for somebody else's deadlines. Everything is run, even when something
# fails. The filter prints what "go test" prints, and at the end the tests that did
# not run, each with its reason.
.PHONY: test
test: missing dist/flanneld $(if $(wildcard cmd/flannel-lab/*.go),dist/flannel-lab)
	@status=0; \
	$(MAKE) --no-print-directory vet || status=1; \
	$(MAKE) --no-print-directory gofmt || status=1; \
	$(MAKE) --no-print-directory test-arch LENIENT=yes || status=1; \
	race=; \
	[ -z '$(RACE)' ] || ! command -v "$$($(GO) env CC)" >/dev/null || race=$$($(GO) list $(RACE)); \
	rest=$$($(GO) list ./... | grep -vxF "$${race:-none}"); \
	{ failed=0; \
	  [ -z "$$race" ] || CGO_ENABLED=1 $(GO) test -v -race -p 1 -count=1 -timeout 20m $(TESTFLAGS) $$race || failed=1; \
	  CGO_ENABLED=0 $(GO) test -v -p 1 -count=1 -timeout 20m $(TESTFLAGS) $$rest || failed=1; \
	  exit $$failed; \
	} | awk -f .ci/gotest.awk || status=1; \
	[ $$status = 0 ] || { echo 'make test: FAILED, see above' >&2; exit 1; }

# Alone, a missing qemu is an error; as a part of "make test" it is only said.
.PHONY: test-arch
test-arch: | need-go
	@for arch in s390x ppc64le; do \
	    if ! command -v qemu-$$arch-static >/dev/null; then \
	        echo "SKIPPED the pure packages on $$arch: no qemu-$$arch-static (apt-get install qemu-user-static)" >&2; \
	        [ -n '$(LENIENT)' ] || exit 1; \
	        continue; \
	    fi; \
	    echo "$$arch:"; \
	    CGO_ENABLED=0 GOARCH=$$arch $(GO) test -short -count=1 -vet=off -exec qemu-$$arch-static $(PURE); \
	done

# Go fuzzes one target of one package at a time.
.PHONY: fuzz
fuzz: | need-go
	@{ grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' $(wildcard cmd pkg dist) || true; } | sort | \
	while IFS=: read -r file func; do \
	    name=$${func#func }; \
	    echo "$$name in $$(dirname "$$file"), $(FUZZTIME):"; \
	    $(GO) test -run='^$$' -fuzz="^$$name\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=1s "./$$(dirname "$$file")" </dev/null; \
	done

# "make test" has a short one of these. The go command's own limit is 10 minutes.
CHAOS_TIME ?= 10m
.PHONY: chaos
chaos: need-root dist/flanneld
	FLANNELD=$(CURDIR)/dist/flanneld CHAOS_TIME='$(CHAOS_TIME)' CHAOS_SEED='$(CHAOS_SEED)' CHAOS_API='$(CHAOS_API)' \
	    $(GO) test -v -count=1 -timeout 0 -run '^TestChaos$$' ./cmd/flanneld

# All tarballs, twice: the second time in another place, with another umask and
# time zone. What differs or is not as promised is an error.
.PHONY: test-dist
test-dist: tar.gz
	@command -v file >/dev/null || { echo 'file not found (apt-get install file)' >&2; exit 1; }
	@work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	for tarball in $(TARBALLS); do \
	    want=$$'-rw-r--r-- 0/0 README.md\n-rwxr-xr-x 0/0 flanneld\n-rwxr-xr-x 0/0 mk-docker-opts.sh'; \
	    have=$$(tar -tvzf "$$tarball" --numeric-owner | awk '{ print $$1, $$2, $$NF }'); \
	    [ "$$have" = "$$want" ] || { printf '%s contains:\n%s\n' "$$tarball" "$$have" >&2; exit 1; }; \
	    tar -xzf "$$tarball" -C "$$work" flanneld; \
	    kind=$$(file -b "$$work/flanneld"); \
	    case $$kind in *'statically linked'*' stripped'*) ;; *) echo "$$tarball: flanneld is: $$kind" >&2; exit 1;; esac; \
	    echo "$$tarball: $${kind%%, Go BuildID*}, $$(stat -c %s "$$tarball") bytes"; \
	done; \
	mkdir -p "$$work/tree/dist"; \
	cp -r cmd pkg go.mod go.sum Makefile README.md mk-docker-opts.sh "$$work/tree"; \
	(umask 077; TZ=Asia/Tokyo $(MAKE) --no-print-directory -C "$$work/tree" tar.gz TAG='$(TAG)' SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(if $(ARCH),ARCH=$(ARCH)) >/dev/null); \
	for tarball in $(TARBALLS); do cmp "$$tarball" "$$work/tree/$$tarball"; done; \
	echo 'second build: the same bytes'
