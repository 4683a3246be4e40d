module github.com/sluicesync/sluice/services/sync-gateway

go 1.26.0
