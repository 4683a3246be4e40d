module github.com/sluicesync/sluice/libs/wire

go 1.26.0
