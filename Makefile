# Few targets; `make help` lists them.
GO    ?= go
BUILD := CGO_ENABLED=0 $(GO) build -trimpath -gcflags=all=-dwarf=false -ldflags "-s -w" -tags nobadger,nomysql,nopgx

.PHONY: help build run test nightly conformance lint bench bench-registry bench-ingress docs clean

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## /\1\t/p' $(MAKEFILE_LIST) | expand -t 16

build: ## bin/denia and the example's program
	$(BUILD) -o bin/denia ./cmd/denia
	$(BUILD) -o examples/hello/hello ./examples/hello

run: build ## Denia on http://localhost:8080, with an example deployed
	@scripts/run

test: ## everything: vet, lint, unit, race, integration, end to end
	@scripts/test

nightly: ## the registry's soak for a minute, each fuzz target for half of one
	@scripts/nightly

conformance: ## the OCI's conformance suite against the registry
	@scripts/conformance

lint: ## golangci-lint: vet, gofmt and more
	@scripts/lint

bench: build ## idle cost, deployment latency, memory of an upload
	$(GO) test -count 1 -run '^$$' -bench . -benchtime 1x -timeout 30m ./test/e2e

bench-registry: build ## the registry beside docker-registry, nginx and Caddy
	@scripts/bench-registry

bench-ingress: build ## the ingress beside Caddy's reverse_proxy, nginx and HAProxy
	@scripts/bench-ingress

docs: ## the API reference, generated from the code
	$(GO) run ./cmd/denia denia openapi > docs/openapi.json
	$(GO) run ./cmd/denia denia api-reference > docs/api.md

clean: ## what was built; never the data
	rm -rf bin examples/hello/hello
