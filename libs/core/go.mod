module github.com/sluicesync/sluice/libs/core

go 1.26.0

require (
	github.com/cockroachdb/datadriven v1.0.3
	github.com/google/go-cmp v0.7.0
	github.com/sluicesync/sluice/libs/model v0.0.0
	pgregory.net/rapid v1.3.0
)

require github.com/pmezard/go-difflib v1.0.0 // indirect

replace github.com/sluicesync/sluice/libs/model => ../model
