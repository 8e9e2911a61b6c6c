# Muster: certificates for cluster nodes, whose keys never leave the nodes' TPMs.
#
#   make build      bin/muster and bin/muster-agent, static and reproducible
#   make demo       a node passes muster, and comes back: real parts, in seconds once it is built
#   make test       everything (needs Debian and root for all of it; says what it leaves out)
#   make bench      figures against their floors
#   make fuzz       each fuzz target for FUZZTIME
#   make check      gofmt, go vet, staticcheck
#   make install    DESTDIR and PREFIX are heard

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

.PHONY: build test demo bench fuzz check clean install deps $(PORTS)

build:
	$(BUILD) -o bin/ $(PROGRAMS)

# The other processors that clusters have: they must build, and nothing more is promised here.
$(PORTS):
	GOARCH=$@ $(BUILD) -o bin/$@/ $(PROGRAMS)

deps:
	@.ci/deps test

test: deps check build $(PORTS)
	$(TESTSUM) -- -race -count=1 -timeout 30m ./...

demo: build
	@.ci/deps demo
	@./demo.sh

bench: build
	@.ci/deps bench
	$(GO) run ./internal/bench -muster bin/muster -agent bin/muster-agent

fuzz:
	@.ci/fuzz $(FUZZTIME)

check:
	@test -z "$$(gofmt -l . | tee /dev/stderr)"
	$(GO) vet ./...
	$(GO) vet -tags failpoints ./signer/
	$(STATICCHECK) ./...

install: build
	install -D -m 0755 bin/muster $(DESTDIR)$(PREFIX)/bin/muster
	install -D -m 0755 bin/muster-agent $(DESTDIR)$(PREFIX)/bin/muster-agent
	install -d $(DESTDIR)$(PREFIX)/share/bash-completion/completions $(DESTDIR)$(PREFIX)/share/zsh/site-functions $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d
	bin/muster completion bash > $(DESTDIR)$(PREFIX)/share/bash-completion/completions/muster
	bin/muster completion zsh > $(DESTDIR)$(PREFIX)/share/zsh/site-functions/_muster
	bin/muster completion fish > $(DESTDIR)$(PREFIX)/share/fish/vendor_completions.d/muster.fish

clean:
	rm -rf bin
