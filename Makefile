# GNU make. "make help" lists the targets.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.SECONDARY:
.DEFAULT_GOAL := help

# The PATH of sudo often has no go.
GO ?= $(shell command -v go || ls -d /usr/local/go/bin/go /usr/lib/go/bin/go /snap/bin/go 2>/dev/null | head -n 1)
GO := $(GO)
ifneq ($(filter /%,$(GO)),)
export PATH := $(patsubst %/,%,$(dir $(GO))):$(PATH)
endif

# The same flags for builds and tests, except with the race detector, so that nothing is
# compiled twice. grpcnotrace leaves out HTML templates, which need 0.7 MB of memory.
FLAGS := -trimpath -buildvcs=false -tags=grpcnotrace
export CGO_ENABLED := 0
export GOFLAGS := $(strip $(filter-out $(FLAGS),$(if $(GO),$(shell $(GO) env GOFLAGS))) $(FLAGS))

# Under sudo, the checkout has another owner, which git refuses without safe.directory. A
# plain copy inside another checkout must not be described by that one.
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
# A number of inputs. With a time instead, Go sometimes reports its own end as a failure.
FUZZTIME ?= 200000x

ARCHES    = amd64 arm64 ppc64le s390x arm riscv64
HOST_ARCH = $(shell $(GO) env GOHOSTARCH)

# The files of "make artifacts": for ARCH if it is set, else for all architectures.
RELEASE_ARCHES = $(or $(ARCH),$(ARCHES))
PACKAGE_ARCHES = $(filter $(RELEASE_ARCHES),amd64 arm64 ppc64le s390x)
TARBALLS = $(RELEASE_ARCHES:%=dist/flannel-$(TAG)-linux-%.tar.gz)
SBOMS    = $(RELEASE_ARCHES:%=dist/flannel-$(TAG)-linux-%.cdx.json)
IMAGES   = dist/flanneld-$(TAG)-oci.tar $(RELEASE_ARCHES:%=dist/flanneld-$(TAG)-%.docker)
PACKAGES = $(foreach arch,$(PACKAGE_ARCHES),$(call deb,$(arch)) $(call rpm,$(arch)))
RELEASE  = $(TARBALLS) $(PACKAGES) $(IMAGES) $(SBOMS)

# Version and architectures in the notation of dpkg and rpm.
VERSION = $(eval VERSION := $$(shell dist/package/version '$$(TAG)' $$(SOURCE_DATE_EPOCH)))$(VERSION)
deb = dist/flanneld_$(VERSION)_$(patsubst ppc64le,ppc64el,$(1)).deb
rpm = dist/flanneld-$(VERSION)-1.$(patsubst arm64,aarch64,$(patsubst amd64,x86_64,$(1))).rpm

DOCKER_ARCH = $(or $(ARCH),$(HOST_ARCH))

LDFLAGS = -s -w -X main.version=$(TAG)
BUILD   = GOOS=linux GOARM=$(GOARM) $(GO) build -ldflags '$(LDFLAGS)'

# Tools for packages and checks, and the tests of dist/prometheus and dist/page, have their own
# go.mod.
TOOL     = $(GO) tool -modfile=dist/tools/go.mod
TOOL_RUN = $(GO) run -C dist/tools

# Packages whose tests need no I/O. They must work on big-endian machines too.
PURE = $(wildcard ./pkg/netconf ./pkg/lease ./pkg/host ./pkg/dataplane ./pkg/firewall ./pkg/backend ./pkg/status ./pkg/subnetenv ./pkg/reconcile ./pkg/condition ./pkg/pace ./pkg/filter ./pkg/netlink ./pkg/tunnel)
# Packages that are not tested with the race detector, or only in part (SHORT_RACED): those without
# shared state, test beds, and those whose tests take minutes with it.
# etcdv2 is covered by subnet's tests.
UNRACED = netconf|lease|host|dataplane|firewall|backend|lab|status|doctor|registry/etcdv2|registry/etcdv3
# Packages that are tested with the race detector without the tests that -short skips, and with all
# tests without it: there etcd, in the same process, takes minutes for huge values, and doctor's
# tests send packets through many rulesets.
SHORT_RACED = registry/etcdv3 doctor
# Packages whose tests take longest, which are begun first.
SLOW = subnet iptables tunnel/e2e
# Tests of clusters of daemons, which measure times: no other package's tests run in parallel.
CLUSTERS = ./cmd/flanneld
# Number of cluster tests that run in parallel: most of the time they wait.
PARALLEL ?= 10
# Cluster tests that do nearly nothing but wait, for minutes, for example until a daemon reads the
# network config again. They run in parallel to the packages.
WAITING = ConfigChanges|FullPool|WaitingHostTakesOverAnyConfig|Password|EtcdCertificates|LastSubnet|EtcdMayBeReadOnly|NewUplinkAddressWhileAway
# The same as a regular expression, unless TESTFLAGS selects tests.
APART = $(if $(findstring -run,$(TESTFLAGS))$(findstring -skip,$(TESTFLAGS)),,^Test($(WAITING))$$)
# Further arguments for "go test", such as TESTFLAGS='-run Lease -short'.
TESTFLAGS ?=
# Programs of tests are kept here, because "go test" links each of them again unless -o names one
# that is up to date. It strips only those that it does not keep.
TESTS = $(CURDIR)/dist/tests
KEPT  = -vet=off -ldflags '-s -w' -o $(TESTS)

# Tests and the demo find the built daemon here.
export FLANNELD := $(CURDIR)/dist/flanneld

.PHONY: help
help:
	@echo 'Build'
	@echo '  make dist/flanneld         the daemon, for this machine'
	@echo '  make dist/flanneld-arm64   the daemon, for another architecture ($(ARCHES))'
	@echo '  make dist/flannel-lab      the lab: many hosts on one machine, for demo and bench'
	@echo '  make tar.gz                release tarballs for all architectures, or for ARCH'
	@echo '  make deb rpm               packages'
	@echo '  make image                 OCI archive of all architectures, and archives for "docker load"'
	@echo '  make docker-image          image on alpine, with iptables and a shell, for ARCH (needs docker)'
	@echo '  make artifacts             all of these except docker-image, with SBOMs and SHA256SUMS'
	@echo '  make release               artifacts, then test-fresh (root)'
	@echo '  make install               install flanneld and mk-docker-opts.sh below PREFIX'
	@echo '  make clean                 remove what was built'
	@echo
	@echo 'Try it (root)'
	@echo '  make demo                  run a network of hosts in namespaces;'
	@echo '                             HOSTS=12 BACKEND=host-gw KEEP=1 or DEMO_ARGS=... to change it'
	@echo '  make bench                 measure throughput, convergence, one host with 20,000 peers;'
	@echo "                             BENCH_ARGS='--only scale' for one section"
	@echo
	@echo 'Check'
	@echo '  make test                  all tests; as root it first installs the packages that they need,'
	@echo '                             unless NO_INSTALL=1; without root, the tests that need none'
	@echo '  make test-fresh            demo and tests on a fresh Debian 12 (root)'
	@echo '  make test-arch             the packages without I/O on arm64, s390x and ppc64le, with qemu'
	@echo '  make test-dist             the release: content, static binaries, the same bytes twice'
	@echo '  make test-system           two hosts with systemd and docker, from boot to upgrade (root);'
	@echo '                             SUITE=trixie for Debian 13 instead of 12'
	@echo '  make test-page             the page in a browser (chromium), with a real network as root;'
	@echo '                             SCREENSHOTS=DIR to keep the pictures'
	@echo '  make test-vm               the tests on other kernels, emulated: VM_KERNELS, VM_SHORT=yes'
	@echo '  make caches                create what these two keep in the cache (root)'
	@echo '  make zoo                   hosts of all shapes, with every backend (root)'
	@echo '  make fuzz                  every fuzz target, with FUZZTIME inputs each'
	@echo '  make chaos                 random faults in a cluster, for CHAOS_TIME, then 200 hosts at once (root);'
	@echo '                             CHAOS_SEED=..., CHAOS_BACKEND=... and CHAOS_API=v2 or v3 repeat a run'
	@echo '  make siege                 all attacks on a cluster together, for SIEGE_TIME (root);'
	@echo '                             SIEGE_BACKEND=... and SIEGE_API=... select one of each'
	@echo '  make soak                  continuous changes with 20,000 peers, for SOAK_TIME (root)'
	@echo '  make vet gofmt staticcheck static checks'
	@echo
	@echo 'Variables, from the environment or the command line'
	@printf '  %-10s %s\n' \
	    TAG '$(TAG)' ARCH '$(or $(ARCH),not set)' REGISTRY '$(REGISTRY)' \
	    PREFIX '$(PREFIX)' DESTDIR '$(or $(DESTDIR),not set)' FUZZTIME '$(FUZZTIME)' \
	    TESTFLAGS '$(or $(TESTFLAGS),not set)' GO '$(or $(GO),not found)'

# Build ----------------------------------------------------------------------

# Always run: go itself checks what is up to date.
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

# The same input gives the same bytes, independent of user, place and time.
dist/flannel-$(TAG)-linux-%.tar.gz: dist/flanneld-% mk-docker-opts.sh README.md FORCE
	@stage=$$(mktemp -d); trap 'rm -rf "$$stage"' EXIT; \
	install -m 0755 dist/flanneld-$* "$$stage/flanneld"; \
	install -m 0755 mk-docker-opts.sh "$$stage/mk-docker-opts.sh"; \
	install -m 0644 README.md "$$stage/README.md"; \
	tar -C "$$stage" --format=ustar --owner=0 --group=0 --numeric-owner --mtime=@$(SOURCE_DATE_EPOCH) \
	    -cf - README.md flanneld mk-docker-opts.sh | gzip -n >$@
	@echo $@

# Built before deb and rpm, which would else build it twice in parallel.
.PHONY: nfpm
nfpm: | need-go
	@$(TOOL) nfpm --version >/dev/null

.PHONY: deb rpm
deb rpm: $(PACKAGE_ARCHES:%=dist/flanneld-%) | nfpm
	@[ '$(PACKAGE_ARCHES)' ] || echo 'no $@ for $(ARCH)'
	@export GO='$(GO)' VERSION='$(VERSION)' SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH); \
	$(foreach arch,$(PACKAGE_ARCHES),dist/package/build $@ $(arch) dist/flanneld-$(arch) '$(call $@,$(arch))';)

.PHONY: image
image: $(IMAGES)

$(IMAGES) &: $(RELEASE_ARCHES:%=dist/flanneld-%) mk-docker-opts.sh FORCE
	@$(TOOL_RUN) ./image -dir '$(CURDIR)' -repository '$(REGISTRY)' -tag '$(TAG)' -goarm $(GOARM) \
	    -epoch $(SOURCE_DATE_EPOCH) $(RELEASE_ARCHES)

.PHONY: docker-image
docker-image: dist/flanneld-$(DOCKER_ARCH)
	$(DOCKER) build --platform linux/$(DOCKER_ARCH) --build-arg ARCH=$(DOCKER_ARCH) \
	    -t $(REGISTRY):$(TAG)-$(DOCKER_ARCH) $(if $(filter amd64,$(DOCKER_ARCH)),-t $(REGISTRY):$(TAG)) .

dist/flannel-$(TAG)-linux-%.cdx.json: dist/flanneld-% FORCE
	@$(TOOL_RUN) ./sbom -version '$(TAG)' -epoch $(SOURCE_DATE_EPOCH) '$(CURDIR)/$<' >$@
	@echo $@

.PHONY: artifacts
artifacts: tar.gz deb rpm image $(SBOMS)
	@cd dist; sha256sum -- $(sort $(notdir $(RELEASE))) >SHA256SUMS
	@echo dist/SHA256SUMS

# A release has passed the README's commands on a fresh system.
.PHONY: release
release: need-root
	@$(MAKE) --no-print-directory artifacts
	@$(MAKE) --no-print-directory test-fresh

# Does not build an existing binary again: "make dist/flanneld && sudo make install".
.PHONY: install
install:
	@[ -x dist/flanneld ] || $(MAKE) dist/flanneld
	install -d '$(DESTDIR)$(PREFIX)/bin'
	install -m 0755 dist/flanneld mk-docker-opts.sh '$(DESTDIR)$(PREFIX)/bin'

.PHONY: clean
clean:
	rm -f dist/flanneld dist/flanneld-* dist/flanneld_* dist/flannel-lab dist/*.tar.gz dist/*.cdx.json dist/SHA256SUMS
	rm -rf dist/tests

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
	$(GO) vet -tags grpcnotrace,system,vm ./pkg/lab/machine ./pkg/lab/vm ./dist

.PHONY: gofmt
gofmt: | need-go
	@bad=$$("$$($(GO) env GOROOT)/bin/gofmt" -l $(wildcard cmd pkg dist)); \
	[ -z "$$bad" ] || { printf 'not formatted, run gofmt -w on:\n%s\n' "$$bad" >&2; exit 1; }

# Includes test files and files with build tags.
.PHONY: staticcheck
staticcheck: | need-go
	$(TOOL) staticcheck -tags grpcnotrace,system,vm ./...
	cd dist/tools; $(GO) vet ./... && $(GO) tool staticcheck ./...
	cd dist/prometheus; $(GO) tool -modfile=../tools/go.mod staticcheck ./...
	cd dist/page; $(GO) vet ./... && $(GO) tool -modfile=../tools/go.mod staticcheck ./...

# Packages that the tests need besides Go and make. NO_INSTALL=1 installs nothing.
.PHONY: packages
packages:
	@if [ "$$(id -u)" != 0 ]; then \
	    echo 'MISSING root: all tests that make network namespaces are skipped (sudo make test)'; \
	elif [ -z '$(filter-out 0 no false,$(NO_INSTALL))' ]; then \
	    .ci/packages install test || { echo 'Tests of what is missing are skipped with: make test NO_INSTALL=1' >&2; exit 1; }; \
	fi; \
	.ci/packages missing test

# Packages in parallel, and the cluster tests that wait, then the other cluster tests alone.
# Everything is compiled before, because compilers leave no CPU for others. All tests run, even
# after a failure. test-arch runs in the background with idle priority. The filter prints what "go
# test" prints, and at the end a summary.
.PHONY: test
test: packages dist/flanneld $(if $(wildcard cmd/flannel-lab/*.go),dist/flannel-lab)
	@status=0; \
	arch=$$(mktemp); side=$$(mktemp); waiting=$$(mktemp); set -m; \
	chrt --idle 0 $(MAKE) --no-print-directory test-arch LENIENT=yes >"$$arch" 2>&1 & \
	set +m; trap 'kill -- -$$! 2>/dev/null || true; rm -f "$$arch" "$$side" "$$waiting"' EXIT; \
	$(MAKE) --no-print-directory vet || status=1; \
	$(MAKE) --no-print-directory gofmt || status=1; \
	race=; \
	! command -v "$$($(GO) env CC)" >/dev/null || race=$$($(GO) list $(SLOW:%=./pkg/%) ./pkg/... | awk '!seen[$$0]++' | grep -vE '/pkg(/($(UNRACED))(/.*)?)?$$'); \
	clusters=$$($(GO) list $(CLUSTERS)); \
	rest=$$($(GO) list ./... | grep -vxF "$$(printf '%s\n' $$race $$clusters)"); \
	mkdir -p $(TESTS)/race $(TESTS)/plain; export GORACE=atexit_sleep_ms=100; \
	[ -z "$$race" ] || CGO_ENABLED=1 $(GO) test -c $(KEPT)/race -race $$race $(SHORT_RACED:%=./pkg/%) >/dev/null || status=1; \
	$(GO) test -c $(KEPT)/plain $$clusters $$rest >/dev/null || status=1; \
	$(GO) test -C dist/prometheus -c $(KEPT)/prometheus.test . || status=1; \
	tested() { $(GO) test -v -count=1 -timeout 30m $(TESTFLAGS) $(KEPT)/"$$@" || failed=1; }; \
	{ failed=0; \
	  set -m; \
	  { [ -z "$(APART)" ] || tested plain -parallel 10 -run '$(APART)' $$clusters; exit $$failed; } >"$$waiting" & waits=$$!; \
	  { tested plain -p 2 $$rest; $(GO) test -C dist/prometheus -v -count=1 $(KEPT)/prometheus.test . || failed=1; [ -z "$$race" ] || CGO_ENABLED=1 tested race -race -short $(SHORT_RACED:%=./pkg/%); exit $$failed; } >"$$side" & sides=$$!; \
	  set +m; trap 'kill -- -$$waits -$$sides 2>/dev/null || true' EXIT; \
	  [ -z "$$race" ] || CGO_ENABLED=1 tested race -race -p 4 $$race; \
	  wait $$sides || failed=1; \
	  wait $$waits || failed=1; \
	  cat "$$side" "$$waiting"; \
	  tested plain -p 1 -parallel $(PARALLEL) $(if $(APART),-skip '$(APART)') $$clusters; \
	  exit $$failed; \
	} | awk -f .ci/gotest.awk || status=1; \
	wait $$! || status=1; \
	cat "$$arch"; \
	[ $$status = 0 ] || { echo 'make test: FAILED, see above' >&2; exit 1; }

# A missing qemu is an error, but only a message as a part of "make test".
.PHONY: test-arch
test-arch: | need-go
	@for arch in arm64 s390x ppc64le; do \
	    qemu=qemu-$${arch/arm64/aarch64}-static; \
	    if ! command -v $$qemu >/dev/null; then \
	        echo "SKIPPED the pure packages on $$arch: no $$qemu (apt-get install qemu-user-static)" >&2; \
	        [ -n '$(LENIENT)' ] || exit 1; \
	        continue; \
	    fi; \
	    echo "$$arch:"; \
	    mkdir -p $(TESTS)/$$arch; \
	    GOARCH=$$arch $(GO) test -short -count=1 $(KEPT)/$$arch -exec $$qemu $(PURE); \
	done

# The first commands of the README, on a system without anything installed.
.PHONY: test-fresh
test-fresh: need-root | need-go
	@command -v mmdebstrap >/dev/null || .ci/packages install
	@GO='$(GO)' .ci/fresh

# Two hosts with systemd, docker and the release. The older release is the same tree under
# another name.
SYSTEM_RUN ?= ^TestSystem
# Debian's suite on these hosts: bookworm or trixie.
SUITE ?= bookworm
OLDER = TAG=older SOURCE_DATE_EPOCH=0
.PHONY: test-system
test-system: need-root
	@built() { $(MAKE) --no-print-directory ARCH=$(HOST_ARCH) "$$@" | tail -n 1; }; \
	OLD_TARBALL=$(CURDIR)/$$(built tar.gz $(OLDER)); OLD_DEB=$(CURDIR)/$$(built deb $(OLDER)); \
	TARBALL=$(CURDIR)/$$(built tar.gz TAG='$(TAG)'); DEB=$(CURDIR)/$$(built deb TAG='$(TAG)'); \
	built image $(OLDER) >/dev/null; IMAGE=$(CURDIR)/dist/flanneld-older-$(HOST_ARCH).docker; \
	export OLD_TARBALL OLD_DEB TARBALL DEB IMAGE; \
	SUITE='$(SUITE)' $(GO) test -v -vet=off -p 1 -tags grpcnotrace,system -count=1 -timeout 15m -run '$(SYSTEM_RUN)' ./pkg/lab/machine ./dist

# The page in Debian's chromium: not a part of "make test", nor of CI, because the browser and what it
# needs are 600 MB of packages, and because it measures times. With TESTFLAGS=-short it is only
# clicked through.
.PHONY: test-page
test-page: dist/flanneld dist/flannel-lab
	@[ "$$(id -u)" != 0 ] || command -v chromium >/dev/null || .ci/packages install page
	SCREENSHOTS='$(abspath $(SCREENSHOTS))' nice -n 19 $(GO) test -C dist/page -v -vet=off -count=1 -timeout 15m $(TESTFLAGS) .

# Debian's kernels, emulated, and kept in the user's cache directory. VM_MIRROR sets another
# Debian mirror. VM_SHORT=yes runs only a few tests of each package.
VM_KERNELS ?= 6.1 5.10
.PHONY: test-vm
test-vm: | need-go
	VM_KERNELS='$(VM_KERNELS)' VM_SHORT='$(VM_SHORT)' VM_MIRROR='$(VM_MIRROR)' \
	    $(GO) test -v -vet=off -tags grpcnotrace,vm -count=1 -timeout 0 -run '^TestKernels$$' ./pkg/lab/vm

# Creates the root file systems and kernels that test-system and test-vm keep.
.PHONY: caches
caches: need-root
	SUITE='$(SUITE)' VM_KERNELS='$(VM_KERNELS)' VM_MIRROR='$(VM_MIRROR)' \
	    $(GO) test -v -vet=off -tags grpcnotrace,system,vm -count=1 -run '^TestRoot$$|^TestImages$$' ./pkg/lab/machine ./pkg/lab/vm

# "make test" runs each shape of host with one backend, and a few shapes with every backend.
.PHONY: zoo
zoo: need-root dist/flanneld
	ZOO=all $(GO) test -v -vet=off -count=1 -timeout 30m -parallel 6 -run '^TestZoo$$' ./cmd/flanneld
	ZOO=all $(MAKE) --no-print-directory test-vm VM_KERNELS=6.1

# Go fuzzes one target of one package at a time.
.PHONY: fuzz
fuzz: | need-go
	@{ grep -rHoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]*' $(wildcard cmd pkg dist) || true; } | sort | \
	while IFS=: read -r file func; do \
	    name=$${func#func }; \
	    echo "$$name in $$(dirname "$$file"), $(FUZZTIME):"; \
	    $(GO) test -vet=off -run='^$$' -fuzz="^$$name\$$" -fuzztime=$(FUZZTIME) -fuzzminimizetime=1s "./$$(dirname "$$file")" </dev/null; \
	done

# "make test" has a short run. The default time limit of go test is 10 minutes.
CHAOS_TIME ?= 10m
.PHONY: chaos
chaos: need-root dist/flanneld
	FLANNELD=$(CURDIR)/dist/flanneld CHAOS_TIME='$(CHAOS_TIME)' CHAOS_SEED='$(CHAOS_SEED)' CHAOS_API='$(CHAOS_API)' CHAOS_BACKEND='$(CHAOS_BACKEND)' STORM_HOSTS=200 \
	    $(GO) test -v -count=1 -timeout 0 -run '^TestChaos$$|^TestDaemonStorm$$' ./cmd/flanneld

# "make test" has a short run.
SIEGE_TIME ?= 10m
.PHONY: siege
siege: need-root dist/flanneld
	FLANNELD=$(CURDIR)/dist/flanneld SIEGE_TIME='$(SIEGE_TIME)' SIEGE_BACKEND='$(SIEGE_BACKEND)' SIEGE_API='$(SIEGE_API)' \
	    $(GO) test -v -count=1 -timeout 0 -run '^TestSiege$$' ./cmd/flanneld

# "make test" has a short run.
SOAK_TIME ?= 10m
.PHONY: soak
soak: need-root dist/flanneld
	FLANNELD=$(CURDIR)/dist/flanneld SOAK_TIME='$(SOAK_TIME)' SOAK_SEED='$(SOAK_SEED)' \
	    $(GO) test -v -count=1 -timeout 0 -run '^TestSoak$$' ./cmd/flanneld

# Builds the release twice, the second time in another directory, with another umask and time
# zone. Any difference is an error.
.PHONY: test-dist
test-dist:
	@release() { $(MAKE) --no-print-directory -j "$$(nproc)" "$$@" artifacts TAG='$(TAG)' SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) $(if $(ARCH),ARCH=$(ARCH)); }; \
	release; \
	(cd dist/tools; TAG='$(TAG)' VERSION='$(VERSION)' SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) ARCHES='$(RELEASE_ARCHES)' \
	    $(GO) test -v -vet=off -count=1 ./release | awk -f ../../.ci/gotest.awk); \
	work=$$(mktemp -d); trap 'rm -rf "$$work"' EXIT; \
	cp -r --parents cmd pkg go.mod go.sum Makefile README.md LICENSE mk-docker-opts.sh dist/tools dist/package \
	    dist/config dist/default dist/sysconfig dist/docker-bip dist/docker-opts dist/prometheus dist/flanneld.service "$$work"; \
	(umask 077; export TZ=Asia/Tokyo; release -C "$$work" >/dev/null); \
	for file in $(RELEASE) dist/SHA256SUMS; do cmp "$$file" "$$work/$$file"; done; \
	echo 'second build: the same bytes'
