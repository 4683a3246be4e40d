module github.com/sluicesync/sluice/services/compactor

go 1.26.0

require (
	github.com/google/go-cmp v0.7.0
	github.com/prometheus/client_golang v1.25.0
	github.com/sluicesync/sluice/libs/core v0.0.0
	github.com/sluicesync/sluice/libs/kit v0.0.0
	github.com/sluicesync/sluice/libs/model v0.0.0
	github.com/sluicesync/sluice/libs/wire v0.0.0
	github.com/sluicesync/sluice/proto v0.0.0
	go.uber.org/goleak v1.3.0
	golang.org/x/sync v0.24.0
	google.golang.org/grpc v1.85.0
)

require (
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	go.yaml.in/yaml/v3 v3.0.6 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260817212433-ac3dfec99bb1 // indirect
	google.golang.org/protobuf v1.36.12 // indirect
)

replace (
	github.com/sluicesync/sluice/libs/core => ../../libs/core
	github.com/sluicesync/sluice/libs/kit => ../../libs/kit
	github.com/sluicesync/sluice/libs/model => ../../libs/model
	github.com/sluicesync/sluice/libs/wire => ../../libs/wire
	github.com/sluicesync/sluice/proto => ../../proto
)
