module github.com/sluicesync/sluice/services/compactor

go 1.26.0
