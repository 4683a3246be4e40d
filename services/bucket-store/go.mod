module github.com/sluicesync/sluice/services/bucket-store

go 1.26.0

require (
	github.com/cockroachdb/pebble/v2 v2.1.7
	github.com/nats-io/nats-server/v2 v2.15.2
	github.com/nats-io/nats.go v1.55.0
	github.com/prometheus/client_golang v1.25.0
	github.com/sluicesync/sluice/libs/core v0.0.0
	github.com/sluicesync/sluice/libs/kit v0.0.0
	github.com/sluicesync/sluice/libs/model v0.0.0
	github.com/sluicesync/sluice/libs/wire v0.0.0
	github.com/sluicesync/sluice/proto v0.0.0
	go.uber.org/goleak v1.3.0
	golang.org/x/sync v0.24.0
	google.golang.org/grpc v1.85.0
	google.golang.org/protobuf v1.36.12
	pgregory.net/rapid v1.3.0
)

replace (
	github.com/sluicesync/sluice/libs/core => ../../libs/core
	github.com/sluicesync/sluice/libs/kit => ../../libs/kit
	github.com/sluicesync/sluice/libs/model => ../../libs/model
	github.com/sluicesync/sluice/libs/wire => ../../libs/wire
	github.com/sluicesync/sluice/proto => ../../proto
)
