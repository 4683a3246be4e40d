module github.com/sluicesync/sluice/libs/rules

go 1.26.0

require (
	github.com/cockroachdb/datadriven v1.0.3
	github.com/sluicesync/sluice/libs/model v0.0.0
	go.yaml.in/yaml/v3 v3.0.6
)

require github.com/pmezard/go-difflib v1.0.0 // indirect

replace github.com/sluicesync/sluice/libs/model => ../model
