module github.com/sluicesync/sluice/libs/wire

go 1.26.0

require (
	github.com/google/go-cmp v0.7.0
	github.com/sluicesync/sluice/libs/model v0.0.0
	github.com/sluicesync/sluice/proto v0.0.0
	google.golang.org/protobuf v1.36.12
)

replace (
	github.com/sluicesync/sluice/libs/model => ../model
	github.com/sluicesync/sluice/proto => ../../proto
)
