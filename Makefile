# `make` lists the targets. Every target works from a fresh clone on a machine with
# Go, Node and, for the tests, a Postgres (installed by itself on Debian as root).

EVERY    := $(addsuffix /...,$(shell awk '$$1 ~ /^\.\// { print $$1 }' go.work))
MODULES  := $(filter-out ./e2e/...,$(EVERY))
SERVICES := bucket-store compactor replicator rules-evaluator sluice sync-gateway
CONFIG   ?= powersync.yaml
DATA     ?= data
REPLICAS ?= 1
FUZZTIME ?= 20s
STORAGE  ?= embedded
SIM_N    ?= 2000
IMAGE    ?= sluice:local
PLATFORMS ?= linux/$(shell go env GOARCH)

.DEFAULT_GOAL := help
.PHONY: help build client generate lint arrows tidy breaking released monitoring alerts test race unit e2e fuzz sim bench bench-scale chart images postgres-versions conformance demo verify up down clean

help: ## list the targets
	@awk -F':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

build: ## bin/sluice (all in one process) and one binary a service
	go build -o bin/ $(foreach s,$(SERVICES),./services/$(s)/cmd/$(s))

client: ## install the client SDK that the tests and the demo use
	cd e2e/client && npm ci --ignore-scripts --no-audit --no-fund

generate: ## make the Go code of proto/, docs/metrics.md and the tables of docs/configuration.md again
	cd tools/generate && GOWORK=off go run . ../../proto
	go test ./services/sluice/internal/metricdoc -run TestDocument -rewrite
	go test ./libs/kit/config -run TestReference -rewrite

released: ## proto/ as it is now becomes the release that `make breaking` compares with
	cd tools/generate && GOWORK=off go run . -release ../../proto/released.binpb ../../proto

bin/tools/staticcheck: tools/staticcheck/go.mod
	cd tools/staticcheck && GOWORK=off go build -o ../../bin/tools/staticcheck honnef.co/go/tools/cmd/staticcheck

# Helm shows templates the version of Kubernetes that it was built for.
HELM := helm.sh/helm/v3/pkg
bin/tools/helm: tools/helm/go.mod
	cd tools/helm && GOWORK=off go build -o ../../bin/tools/helm -ldflags="-s -w -X $(HELM)/chartutil.k8sVersionMajor=1 -X $(HELM)/chartutil.k8sVersionMinor=33 \
	  -X $(HELM)/lint/rules.k8sVersionMajor=1 -X $(HELM)/lint/rules.k8sVersionMinor=33" helm.sh/helm/v3/cmd/helm

bin/tools/kubeconform: tools/kubeconform/go.mod
	cd tools/kubeconform && GOWORK=off go build -o ../../bin/tools/kubeconform github.com/yannh/kubeconform/cmd/kubeconform

bin/tools/buf: tools/buf/go.mod
	@$(call untidy,tools/buf)
	cd tools/buf && GOWORK=off go build -o ../../bin/tools/buf github.com/bufbuild/buf/cmd/buf

bin/schemas: tools/chart/schemas.go
	cd tools/chart && GOWORK=off go run . schemas ../../bin/schemas

lint: bin/tools/staticcheck ## gofmt, go vet, staticcheck
	@unformatted=$$(git ls-files -co --exclude-standard '*.go' | xargs -r gofmt -l); \
	  [ -z "$$unformatted" ] || { echo "gofmt -w is needed for:"; echo "$$unformatted"; exit 1; }
	go vet $(EVERY)
	bin/tools/staticcheck $(EVERY)

arrows: ## fail on an import that the house plan does not allow
	go run ./tools/arrows .

# What only these make use of is a gigabyte of modules: they check it themselves.
CHART  := tools/helm tools/kubeconform tools/chart
IMAGES := tools/images
BUF    := tools/buf

tidy: ## fail unless every go.mod is what `go mod tidy` makes
	@for d in $(filter-out $(CHART) $(IMAGES) $(BUF),$(patsubst %/,%,$(dir $(shell git ls-files -co --exclude-standard '*go.mod')))); do $(call untidy,$$d); done

untidy = (cd $(1) && GOWORK=off go mod tidy -diff) || { echo "$(1)/go.mod is not tidy"; exit 1; }

# Additions break nobody. Of anything else buf is the judge; it takes minutes to build.
breaking: ## fail on a change of proto/ that services of the last release do not understand
	cd tools/generate && GOWORK=off go vet . && GOWORK=off go test .
	cd tools/generate && GOWORK=off go run . -released ../../proto/released.binpb ../../proto || \
	  { $(MAKE) -C ../.. bin/tools/buf && ../../bin/tools/buf breaking ../../proto --against ../../proto/released.binpb; }

monitoring: ## check the alerts, boards and runbooks against docs/metrics.md
	cd tools/monitoring && GOWORK=off go test -count=1 . # it reads what the cache of tests does not see

alerts: monitoring ## run the tests of the alerts with promtool
	promtool=$$(scripts/promtool) && cd tools/monitoring/rules && \
	  $$promtool check rules ../../../deploy/helm/sluice/files/rules/*.yaml && $$promtool test rules *_test.yaml

verify: ## what CI checks besides tests: generate and diff, lint, arrows, tidy, breaking, monitoring
	$(MAKE) generate
	git diff --exit-code -- proto docs/metrics.md docs/configuration.md
	$(MAKE) lint arrows tidy breaking monitoring

test: client ## every test once, with -race, against real servers
	e2e/client/run --test client.test.mjs
	go test -race -timeout 20m $(MODULES)
	go test -run 'TestStore//(LargeBucket|ManyBuckets)$$' ./services/bucket-store/internal/...
	go test -race -timeout 60m -p 1 ./e2e/...
	go test ./e2e/sim -sim.n=$(SIM_N)

race: test ## the same as test

unit: ## the tests that need no server, without -race
	go test -short $(EVERY)

e2e: client ## the suites against real servers and the real client SDK; STORAGE=postgresql keeps the data there
	SLUICE_E2E_STORAGE=$(STORAGE) go test -race -timeout 60m -p 1 -v ./e2e/...

sim: ## the deterministic simulation; SIM_N=100000 widens it
	go test ./e2e/sim -sim.n=$(SIM_N)

fuzz: ## every fuzz target for FUZZTIME each
	scripts/fuzz $(FUZZTIME)

bench: ## the speed of every path; prints JSON
	scripts/bench

bench-scale: ## 1, 2 and 4 gateways, 250 to 4,000 clients: fails if cost grows; prints JSON
	scripts/bench Scale

chart: bin/tools/helm bin/tools/kubeconform bin/schemas ## the Helm chart: lint, Kubernetes' schemas, policies; builds helm first
	@for d in $(CHART); do $(call untidy,$$d); done
	go build -o bin/ ./services/sluice/cmd/sluice
	cd tools/chart && GOWORK=off go vet ./... && GOWORK=off go test -count=1 ./...

images: ## bin/images: the container image and its SBOM, without a container engine; PLATFORMS, IMAGE
	@$(call untidy,$(IMAGES))
	cd tools/images && GOWORK=off go vet ./... && GOWORK=off go test ./...
	cd tools/images && GOWORK=off go run . -out ../../bin/images -tag $(IMAGE) -platforms $(PLATFORMS) ../..

postgres-versions: ## the replicator's tests against Postgres 13, 14, 16, 17 and 18
	scripts/postgres-versions

conformance: ## run the recorded reference vectors and print what differs
	scripts/conformance

demo: ## a running instance, live changes and a real client, in one command
	scripts/demo

up: build ## start the suite of processes: CONFIG, DATA, REPLICAS
	scripts/suite up --replicas $(REPLICAS) --config $(CONFIG) --data $(DATA)

down: ## stop it
	scripts/suite down --config $(CONFIG) --data $(DATA)

clean: ## remove what the targets have made
	rm -rf bin e2e/client/node_modules e2e/web/node_modules
