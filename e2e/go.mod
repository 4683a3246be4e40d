module github.com/sluicesync/sluice/e2e

go 1.26.0

require github.com/jackc/pgx/v5 v5.12.0

require (
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.30.0 // indirect
	github.com/jackc/pgpassfile v1.0.0 // indirect
	github.com/jackc/pgservicefile v0.0.0-20240606120523-5a60cdf6a761 // indirect
	go.opentelemetry.io/proto/otlp v1.11.0 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/grpc v1.85.0 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

require go.uber.org/goleak v1.3.0

require (
	github.com/klauspost/compress v1.20.3
	github.com/sluicesync/sluice/libs/core v0.0.0
	github.com/sluicesync/sluice/libs/kit v0.0.0
	github.com/sluicesync/sluice/libs/model v0.0.0
	github.com/sluicesync/sluice/libs/rules v0.0.0
	github.com/sluicesync/sluice/services/bucket-store v0.0.0
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
