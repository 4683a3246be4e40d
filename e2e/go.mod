module github.com/sluicesync/sluice/e2e

go 1.26.0
