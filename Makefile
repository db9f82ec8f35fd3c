# Two commands: `make demo` runs the main job, `make test` passes the tests.
# Both install what they need, say what, and work twice.
SHELL := /bin/bash
GO    ?= go

.PHONY: all build demo test nightly setup setup-demo lint clean
all: build

build: ## the binary, ./lode
	$(GO) build -trimpath -o lode ./cmd/lode

setup: ## compilers for guests, Go modules
	@./bench/setup.sh tools

setup-demo: setup ## the corpora and the S3 server of the demo
	@./bench/setup.sh corpora

demo: setup-demo build ## put the corpora, run the jobs both ways, print one table
	./lode demo

test: setup lint ## everything, with the race detector
	PATH=$(CURDIR)/.cache/python/bin:$$PATH $(GO) test -race -timeout 20m ./...

lint: ## formatting, vet and staticcheck here; build and vet for the other platforms
	@out=$$(gofmt -l $$(git ls-files '*.go')); test -z "$$out" || { echo "not gofmt-ed: $$out"; exit 1; }
	$(GO) vet ./...
	$(GO) tool staticcheck ./...
	@for p in linux/arm64 darwin/amd64 darwin/arm64; do echo "vet $$p"; \
	  CGO_ENABLED=0 GOOS=$${p%/*} GOARCH=$${p#*/} $(GO) vet ./... || exit 1; done
	$(GO) mod tidy -diff

nightly: setup ## long fuzzing and crash rounds
	./test/nightly.sh

clean:
	rm -rf lode .cache
