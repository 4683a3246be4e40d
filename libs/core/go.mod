module github.com/sluicesync/sluice/libs/core

go 1.26.0
