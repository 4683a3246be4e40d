module github.com/sluicesync/sluice/services/sluice

go 1.26.0
