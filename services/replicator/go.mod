module github.com/sluicesync/sluice/services/replicator

go 1.26.0
