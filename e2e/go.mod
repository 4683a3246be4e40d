module github.com/sluicesync/sluice/e2e

go 1.26.0

require github.com/jackc/pgx/v5 v5.12.0

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.30.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/nats-io/nkeys v0.4.16 // indirect
	github.com/nats-io/nuid v1.0.1 // indirect
	github.com/prometheus/client_golang v1.25.0 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	go.opentelemetry.io/otel v1.47.0 // indirect
	go.opentelemetry.io/otel/trace v1.47.0 // indirect
	go.opentelemetry.io/proto/otlp v1.11.0 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc // indirect
)

require go.uber.org/goleak v1.3.0

require (
	github.com/klauspost/compress v1.20.3
	github.com/nats-io/nats.go v1.55.0
	github.com/sluicesync/sluice/libs/core v0.0.0
	github.com/sluicesync/sluice/libs/kit v0.0.0
	github.com/sluicesync/sluice/libs/model v0.0.0
	github.com/sluicesync/sluice/libs/rules v0.0.0
	github.com/sluicesync/sluice/proto v0.0.0
	github.com/sluicesync/sluice/services/bucket-store v0.0.0
	golang.org/x/sys v0.49.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
)

replace (
	github.com/sluicesync/sluice/libs/core => ../libs/core
	github.com/sluicesync/sluice/libs/kit => ../libs/kit
	github.com/sluicesync/sluice/libs/model => ../libs/model
	github.com/sluicesync/sluice/libs/rules => ../libs/rules
	github.com/sluicesync/sluice/libs/wire => ../libs/wire
	github.com/sluicesync/sluice/proto => ../proto
	github.com/sluicesync/sluice/services/bucket-store => ../services/bucket-store
)
