module github.com/sluicesync/sluice/services/bucket-store

go 1.26.0
