# Muster: certificates for cluster nodes, whose keys never leave the nodes' TPMs.
#
#   make build      bin/muster and bin/muster-agent, static and reproducible
#   make initramfs  bin/muster.cpio.xz, a boot image: KERNEL=/lib/modules/RELEASE, CA=sha256:…|FILE, HEAD=https://…,
#                   MODULES=tpm,virtio,…, FILES=FROM:TO,…, FIRMWARE=/lib/firmware, IMAGE=FILE
#   make uki        bin/muster.efi, for UEFI: boot image, kernel and its command line in one file: KERNEL_IMAGE=/boot/vmlinuz-RELEASE,
#                   CMDLINE='…', IMAGE=FILE, UKI=FILE
#   make demo       a node passes muster, and comes back: real parts, in seconds once it is built
#   make vm-demo    the same with a virtual machine that boots from its network, console and head side by side
#   make test       everything (needs Debian and root for all of it; says what it leaves out)
#   make test-full  the boots that take minutes: UEFI, rogue DHCP servers, u-root, dracut, initramfs-tools, a Debian root
#   make bench      figures against their floors
#   make fuzz       each fuzz target for FUZZTIME
#   make check      gofmt, go vet, staticcheck
#   make install-boot  muster-agent, and its hooks for dracut, initramfs-tools and mkinitcpio
#   make install    programs, manual pages, completions, systemd's units; DESTDIR and PREFIX are heard
#   make help       this

GO       ?= go
PREFIX   ?= /usr/local
FUZZTIME ?= 30s
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo devel)
COMMITTED := $(shell git log -1 --format=%ct 2>/dev/null || echo 0)

# -trimpath, and a version and time from the commit alone: the same commit gives the same bytes. A node
# with a dead clock takes the commit's time for the earliest that it can be.
BUILD       = CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false \
	-ldflags '-s -w -buildid= -X main.version=$(VERSION) -X main.committed=$(COMMITTED)'
STATICCHECK = $(GO) run honnef.co/go/tools/cmd/staticcheck@v0.8.2
# Prints a line for each package, what failed, and what was left out and why.
TESTSUM     = $(GO) run gotest.tools/gotestsum@v1.13.0 --format pkgname --no-color
PROGRAMS    = ./signer/cmd/muster ./agent/cmd/muster-agent
PORTS       = arm64 ppc64le
# The boot image has a module of its own, with its tools.
INITRAMFS   = $(GO) -C initramfs
IMAGE      ?= bin/muster.cpio.xz
UKI        ?= bin/muster.efi

ifneq ($(filter-out help clean,$(or $(MAKECMDGOALS),build)),)
ifeq ($(shell command -v $(firstword $(GO))),)
$(error there is no $(firstword $(GO)) in PATH: install Go 1.26 or later, https://go.dev/dl)
endif
endif

.PHONY: help build initramfs uki test test-full demo vm-demo bench fuzz check clean install install-systemd install-boot deps $(PORTS)

.DEFAULT_GOAL = build

help:
	@sed -n 's/^#   //p' Makefile

build:
	$(BUILD) -o bin/ $(PROGRAMS)

# The other processors that clusters have: they must build, and nothing more is promised here.
$(PORTS):
	GOARCH=$@ $(BUILD) -o bin/$@/ $(PROGRAMS)

# quoted is a word for the shell, whatever is in it.
quoted = '$(subst ','\'',$(1))'
option = $(if $(2),-$(1) $(call quoted,$(2)))
initramfs:
	@mkdir -p "$$(dirname -- $(call quoted,$(IMAGE)))"
	@$(INITRAMFS) run ./cmd/mkinitramfs -in $(call quoted,$(CURDIR)) -o $(call quoted,$(IMAGE)) -version $(VERSION) -committed $(COMMITTED) \
		$(call option,kernel,$(KERNEL)) $(call option,modules,$(MODULES)) $(call option,firmware,$(FIRMWARE)) \
		$(call option,ca,$(CA)) $(call option,head,$(HEAD)) $(call option,file,$(FILES))

uki:
	@mkdir -p "$$(dirname -- $(call quoted,$(UKI)))"
	@initramfs/uki.sh $(call quoted,$(KERNEL_IMAGE)) $(call quoted,$(IMAGE)) $(call quoted,$(CMDLINE)) $(call quoted,$(UKI))

# Without a kernel the tests that need one say so; with CI set they fail.
deps:
	@.ci/deps test
	-@.ci/kernel cloud
	-@.ci/kernel generic

# At most two virtual machines run at once.
test: deps check build $(PORTS)
	$(TESTSUM) -- -race -count=1 -timeout 30m ./...
	cd initramfs && $(TESTSUM) -- -race -count=1 -parallel 2 -timeout 30m ./...

test-full: build
	@.ci/deps full
	@.ci/kernel cloud
	@.ci/kernel generic
	cd initramfs && $(TESTSUM) -- -count=1 -parallel 2 -timeout 60m ./vm -full

demo: build
	@.ci/deps demo
	@./demo.sh

vm-demo: build
	@.ci/deps vm
	@.ci/kernel cloud
	@$(MAKE) --no-print-directory initramfs IMAGE=bin/vm/muster.cpio.gz KERNEL=$$(echo bin/vm/kernel/cloud/lib/modules/*)
	@$(INITRAMFS) run ./cmd/vmdemo -bin $(CURDIR)/bin

bench: build
	@.ci/deps bench
	@.ci/kernel cloud
	@.ci/kernel generic
	@status=0; $(GO) run ./internal/bench -muster bin/muster -agent bin/muster-agent || status=$$?; \
	$(INITRAMFS) run ./cmd/imagebench -bin $(CURDIR)/bin || status=$$?; exit $$status

fuzz:
	@.ci/fuzz $(FUZZTIME)

# For the builders of other boot images, where they look: for hooks that is nowhere below /usr/local.
install-boot: build
	install -D -m 0755 bin/muster-agent $(DESTDIR)$(PREFIX)/bin/muster-agent
	install -D -m 0755 initramfs/boot.sh $(DESTDIR)/usr/lib/muster/boot
	install -d $(DESTDIR)/usr/lib/dracut/modules.d/91muster
	install -m 0755 initramfs/boot.sh initramfs/dracut/91muster/*.sh $(DESTDIR)/usr/lib/dracut/modules.d/91muster/
	install -D -m 0755 initramfs/initramfs-tools/hooks/muster $(DESTDIR)/usr/share/initramfs-tools/hooks/muster
	install -D -m 0755 initramfs/initramfs-tools/scripts/init-premount/muster $(DESTDIR)/usr/share/initramfs-tools/scripts/init-premount/muster
	install -D -m 0644 initramfs/mkinitcpio/install/muster $(DESTDIR)/usr/lib/initcpio/install/muster
	install -D -m 0644 initramfs/mkinitcpio/hooks/muster $(DESTDIR)/usr/lib/initcpio/hooks/muster

check:
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./signer/
	$(STATICCHECK) ./...
	$(INITRAMFS) vet ./...
	cd initramfs && $(STATICCHECK) ./...

install: build install-systemd
	install -D -m 0755 bin/muster $(DESTDIR)$(PREFIX)/bin/muster
	install -D -m 0755 bin/muster-agent $(DESTDIR)$(PREFIX)/bin/muster-agent
	install -d $(DESTDIR)$(PREFIX)/share/man/man8
	docs/man.sh bin/muster > $(DESTDIR)$(PREFIX)/share/man/man8/muster.8
	docs/man.sh bin/muster-agent > $(DESTDIR)$(PREFIX)/share/man/man8/muster-agent.8
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/muster completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/muster
	bin/muster completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_muster
	bin/muster completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/muster.fish

# Units, and what systemd makes of them, with PREFIX's paths in them. systemd looks below /usr/local/lib as it does
# below /usr/lib; with any other PREFIX it must be told where.
LIB = $(DESTDIR)$(PREFIX)/lib

install-systemd:
	install -d $(LIB)/systemd/system $(DESTDIR)$(PREFIX)/share/doc/muster
	for unit in systemd/*.service systemd/*.socket systemd/*.target systemd/*.timer; do \
		sed -e 's|/usr/bin/muster|$(PREFIX)/bin/muster|' -e 's|/usr/share/doc/|$(PREFIX)/share/doc/|' $$unit >$(LIB)/systemd/system/$${unit##*/} || exit; \
	done
	install -d $(LIB)/systemd/catalog $(LIB)/systemd/system-preset
	install -m 0644 systemd/muster.preset $(LIB)/systemd/system-preset/90-muster.preset
	sed -e 's|/usr/share/doc/|$(PREFIX)/share/doc/|' systemd/muster.catalog >$(LIB)/systemd/catalog/muster.catalog
	chmod 0644 $(LIB)/systemd/system/muster* $(LIB)/systemd/catalog/muster.catalog
	install -D -m 0644 systemd/muster.sysusers $(LIB)/sysusers.d/muster.conf
	install -D -m 0644 systemd/muster.tmpfiles $(LIB)/tmpfiles.d/muster.conf
	install -D -m 0644 systemd/muster-agent.tmpfiles $(LIB)/tmpfiles.d/muster-agent.conf
	install -m 0644 docs/*.md $(DESTDIR)$(PREFIX)/share/doc/muster/

clean:
	rm -rf bin
